"""The model card of an export or a checkpoint: README.md in the Hub's format, and its picture.

A card is a function of the files of the model and of its run folder, and of what a user wrote into
the card before it. Facts are read in `run_facts`, the parts are written in `card_header`,
`card_sections`, the picture is drawn in `observe.report`, and edits are kept in `card_edits`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flame_accel.files import write_bytes_atomically
from flame_accel.hub.card_data_tables import LOSS_CURVE_FILE
from flame_accel.hub.card_edits import CardParts, combine_with_edits
from flame_accel.hub.card_header import choose_model_name, format_header_entries
from flame_accel.hub.card_sections import format_sections
from flame_accel.hub.run_facts import read_model_facts
from flame_accel.json_text import parse_json_text
from flame_accel.observe import get_logger
from flame_accel.observe.report import VegaError, render_loss_png
from flame_accel.observe.starts import CONFIG_FILE, read_options_of_last_start

CARD_FILE = "README.md"
STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOrigin:
    """Which run made a model, and how far it was; None: not known, and the card is silent on it."""

    run_folder: Path | None = None
    step: int | None = None
    """Number of completed steps."""
    tokens: int | None = None
    """Number of tokens of these steps."""


def origin_of_checkpoint(checkpoint: Path) -> ModelOrigin:
    """The run and step of a checkpoint; its run is known while it lies in the run folder."""
    state = parse_json_text((checkpoint / STATE_FILE).read_bytes())
    folder = next((p for p in checkpoint.resolve().parents if (p / CONFIG_FILE).is_file()), None)
    if folder is not None:
        checkpoints = folder / str(read_options_of_last_start(folder).get("checkpoint.folder"))
        folder = folder if checkpoints.resolve() == checkpoint.resolve().parent else None
    return ModelOrigin(run_folder=folder, step=state["step"], tokens=state["tokens"])


def write_model_card(
    folder: Path, origin: ModelOrigin, *, earlier_card_folder: Path | None = None
) -> None:
    """Writes `README.md` and the loss curve into the folder of a model.

    Args:
        folder: Of a model in the Hugging Face format.
        origin: Its run and step.
        earlier_card_folder: Has the card that this one replaces; None: `folder`. What a user wrote
            into it stays.
    """
    facts = read_model_facts(folder, origin.run_folder, step=origin.step, tokens=origin.tokens)
    picture = _draw_loss_or_warn(facts.records)
    name = choose_model_name(facts)
    parts = CardParts(
        header=format_header_entries(facts, name=name),
        sections=format_sections(facts, name=name, has_loss_curve=picture is not None),
    )
    before = (earlier_card_folder or folder) / CARD_FILE
    # neither line breaks nor a byte order mark are changed
    text = before.read_bytes().decode("utf-8", "surrogateescape") if before.is_file() else None
    card = combine_with_edits(parts, text)
    if card.kept:
        get_logger().info(
            "%s: edited, and kept as it is: %s. Delete the file to have all of it written anew",
            before,
            ", ".join(card.kept),
        )
    if picture is not None:
        write_bytes_atomically(folder / LOSS_CURVE_FILE, picture)
    write_bytes_atomically(folder / CARD_FILE, card.text.encode("utf-8", "surrogateescape"))


def _draw_loss_or_warn(records: Sequence[Mapping[str, float]]) -> bytes | None:
    """A PNG of the loss; None if there is no loss, or no way to draw it, which the log says."""
    try:
        return render_loss_png(records)
    except VegaError as error:
        get_logger().warning("the model card has no picture of the loss: %s", error)
        return None
