"""Whether a run may resume the data stream of a checkpoint: the same tokens, in rows of a step.

Other data, another tokenizer, seed, row length or packing, or another number of rows per step is
refused with what would fit. What the state holds is in `stream_state`.
"""

from flame_accel.config.errors import UserError
from flame_accel.data.loading.stream_state import FORMAT, Identity, StreamState

WHERE = "the checkpoint's data position"


def check_format_and_stream_identity(state: StreamState, identity: Identity) -> None:
    """Check that a state means the same tokens in this run.

    Raises:
        UserError: the state has another format, or its stream is not that of `identity`; names all
            differences.
    """
    if state.get("format") != FORMAT:
        raise UserError(
            f"has format {state.get('format')}, this version reads format {FORMAT}",
            where=WHERE,
            remedy="resume with the version of flame_accel that wrote the checkpoint",
        )
    saved = state["identity"]
    different = [
        f"{name} is {identity.get(name)!r}, the checkpoint has {saved.get(name)!r}"
        for name in sorted({*identity, *saved})
        if identity.get(name) != saved.get(name)
    ]
    if different:
        raise UserError(
            "belongs to another stream of tokens: " + "; ".join(different),
            where=WHERE,
            remedy="resume with the same values, or start a new run from these weights",
        )


def check_rows_per_step(
    state: StreamState, *, micro_batch_size: int, accumulation: int, world_size: int
) -> None:
    """Check that the steps of this run have as many rows as those of a state.

    Raises:
        UserError: they do not; names the accumulation that would.
    """
    saved_rows, rows = state["rows_per_step"], micro_batch_size * accumulation * world_size
    if saved_rows == rows:
        return
    needed = accumulation_for_rows(
        saved_rows, micro_batch_size=micro_batch_size, world_size=world_size
    )
    raise UserError(
        f"a step has {rows} rows (training.batch_size {micro_batch_size} x {world_size} ranks x "
        f"training.gradient_accumulation_steps {accumulation}), the checkpoint's have {saved_rows}",
        where="training.gradient_accumulation_steps",
        remedy=f"use training.gradient_accumulation_steps {needed}",
    )


def accumulation_for_rows(rows_per_step: int, *, micro_batch_size: int, world_size: int) -> int:
    """Gradient accumulation that gives `rows_per_step` rows on `world_size` data-parallel ranks.

    Raises:
        UserError: there is none; names the sizes that would work.
    """
    accumulation, rest = divmod(rows_per_step, micro_batch_size * world_size)
    if accumulation and not rest:
        return accumulation
    share, uneven = divmod(rows_per_step, world_size)
    if uneven:
        sizes = ", ".join(str(n) for n in range(1, rows_per_step + 1) if rows_per_step % n == 0)
        remedy = f"use a number of data-parallel ranks that divides it: {sizes}"
    else:
        pairs = ", ".join(f"{b} x {share // b}" for b in range(1, share + 1) if share % b == 0)
        remedy = (
            "on these ranks, training.batch_size x training.gradient_accumulation_steps can be "
            + pairs
        )
    raise UserError(
        f"{rows_per_step} rows per step cannot be split into {world_size} ranks x batches of "
        f"{micro_batch_size}",
        where="training.batch_size",
        remedy=remedy,
    )
