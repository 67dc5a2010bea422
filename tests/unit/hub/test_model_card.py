"""The card of a run: valid for the Hub, true to the record, and the same however it is written."""

import json
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from flame_accel.__main__ import main
from flame_accel.hub.model_card import ModelOrigin, origin_of_checkpoint, write_model_card
from tests.helpers.local_hub.card_rules import judge_card, read_front_matter
from tests.helpers.runs import SHORT_RUN, WITHOUT_SAMPLE, read_records, run_python

END_OF_EXAMPLE = "-- end --"
RUN_EACH = f"""
import sys
for code in sys.argv[1:]:
    exec(code, {{"__name__": "__main__"}})
    print("{END_OF_EXAMPLE}")
"""
VALIDATED = {"evaluation.held_out_share": 0.2, "evaluation.interval": 4}


def read_card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def rows(card: str) -> dict[str, str]:
    """The tables of a card."""
    return dict(re.findall(r"^\| (.+?) \| (.*) \|$", card, re.M))


@pytest.mark.covers_option(
    "hub.license", "hub.language", "hub.tags", "hub.base_model", "hub.model_name"
)
def test_the_hub_accepts_the_card_and_reads_the_options(
    train_here, flags, tmp_path, corpus, local_hub
):
    options = {
        **SHORT_RUN,
        **VALIDATED,
        "evaluation.dataset": corpus,
        "hub.license": "apache-2.0",
        "hub.language": "en,code",
        "hub.tags": "tiny,of mine",
        "hub.base_model": "org/base-1",
        "hub.model_name": 'Tiny: the "first" #1',
    }
    train_here(flags(**options))
    card = ModelCard.load(tmp_path / "run/hf/README.md")
    card.validate()
    assert local_hub.requests(path_contains="validate-yaml")
    assert judge_card(read_card(tmp_path / "run/hf")) == ([], [])
    assert card.data.license == "apache-2.0" and card.data.language == ["en", "code"]
    assert card.data.tags == ["flash-linear-attention", "gla", "flame_accel", "tiny", "of mine"]
    assert card.data.base_model == "org/base-1"
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.model_name == 'Tiny: the "first" #1'
    assert "\n# Tiny:" in card.text
    # a local file is no dataset of the Hub
    assert card.data.get("datasets") is None


def test_the_figures_are_those_of_the_records(train_here, flags, tmp_path, corpus):
    train_here(flags(**WITHOUT_SAMPLE, **VALIDATED, **{"evaluation.dataset": corpus}))
    folder = tmp_path / "run"
    last = read_records(folder)[-1]
    card = ModelCard.load(folder / "hf/README.md")
    results = card.data.eval_results or []
    assert {f"eval/{result.metric_type}": result.metric_value for result in results} == {
        key: value for key, value in last.items() if key.startswith("eval/")
    }
    assert {result.dataset_name for result in results} == {corpus.name}
    table = rows(card.text)
    assert table["tokens"] == "2,048" and table["updates"] == "8"
    assert table["tokens per update"] == "256"
    assert table["started from"] == "random weights, seed 42"
    assert table["validation: loss (nats per token)"] == f"{last['eval/loss']:.4g}"
    assert "20.0% of its documents" in table["validation data"]
    assert table["data"].startswith(f"`{corpus.name}`, 40 documents")
    assert "held out" in table["documents left out"]
    assert table["peak learning rate"] == "0.0003"
    assert "warm-up of 2 steps" in table["learning rate schedule"]
    seconds = sum(record["time/step_seconds"] for record in read_records(folder))
    hours = float(table["device hours"])
    assert hours == pytest.approx(seconds / 3600, rel=1e-3)
    assert "(loss_curve.png)" in card.text
    assert (folder / "hf/loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_no_path_name_or_token_of_the_machine_is_in_it(
    train_here, flags, tmp_path, corpus, monkeypatch
):
    import socket

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    train_here(flags(**SHORT_RUN, **VALIDATED, **{"evaluation.dataset": corpus}))
    card = read_card(tmp_path / "run/hf")
    for private in (str(tmp_path), str(corpus.parent), sys.prefix, "/home", "/root", "hf_secret"):
        assert private not in card
    host = socket.gethostname()
    assert re.search(rf"\b{re.escape(host)}\b", card) is None
    links = re.findall(r"\]\((.*?)\)", card)
    assert all(link.startswith("https://") or link == "loss_curve.png" for link in links)


def test_each_example_runs_as_it_stands(train_here, flags, tmp_path):
    train_here(flags(**SHORT_RUN))
    blocks = re.findall(r"```python\n(.*?)```", read_card(tmp_path / "run/hf"), re.DOTALL)
    # this machine has no GPU: what the comment says to do then
    codes = [code.replace("import fla  #", "import flame_accel  #") for code in blocks]
    done = run_python(["-c", RUN_EACH, *codes], folder=tmp_path / "run/hf")
    assert done.returncode == 0, done.stderr
    printed = [text.strip() for text in done.stdout.split(END_OF_EXAMPLE)]
    assert len(printed) == len(blocks) + 1 > 1 and all(printed[:-1])


def test_edits_survive_the_export_and_the_rest_is_new(train_here, flags, tmp_path):
    train_here(flags(**WITHOUT_SAMPLE))
    path = tmp_path / "run/hf/README.md"
    before = path.read_text()
    own = "## How we use it\n\nWith care.\n"
    path.write_text(before.replace("---\n", "---\nlicense: mit\n", 1) + own)
    train_here(flags(**WITHOUT_SAMPLE, **{"training.steps": 10}))
    card = path.read_text()
    assert own in card and "license: mit" in card
    table = rows(card)
    assert table["updates"] == "10" and table["tokens"] == "2,560"
    (tmp_path / "run/ended.json").unlink()
    train_here(flags(**WITHOUT_SAMPLE, **{"training.steps": 10}))
    assert path.read_text() == card


def test_the_export_command_writes_the_card_that_the_run_wrote(finished, tmp_path):
    main(["export", str(finished), str(tmp_path / "out")])
    for name in ("README.md", "loss_curve.png"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / "hf" / name).read_bytes()


def test_a_checkpoint_has_the_card_of_its_step(finished, tmp_path):
    main(["export", str(finished / "checkpoint/step-4"), str(tmp_path / "out")])
    table = rows(read_card(tmp_path / "out"))
    assert table["updates"] == "4 of 8" and table["tokens"] == "1,024"


def test_a_resumed_run_says_with_which_options_it_made_which_steps(
    train_here, flags, tmp_path, monkeypatch
):
    from flame_accel.observe import environment

    train_here(flags(**WITHOUT_SAMPLE))
    monkeypatch.setattr(environment, "device_name", lambda device: "Other CPU")
    train_here(flags(**WITHOUT_SAMPLE, **{"training.steps": 12, "optimizer.lr": 0.5}))
    card = read_card(tmp_path / "run/hf")
    table = rows(card)
    assert table["peak learning rate"] == "0.5"
    assert "* from step 9: `optimizer.lr` 0.0003 → 0.5\n" in card
    assert table["starts"] == "2"
    assert table["devices"] == "from step 9: 1 x Other CPU, fp32"
    # a checkpoint of before does not know what came later
    main(["export", str(tmp_path / "run/checkpoint/step-8"), str(tmp_path / "out")])
    earlier = read_card(tmp_path / "out")
    assert rows(earlier)["peak learning rate"] == "0.0003"
    assert "0.5" not in rows(earlier)["peak learning rate"] and "Other CPU" not in earlier


def test_a_validation_of_another_step_is_no_result_of_the_model(
    train_here, flags, tmp_path, corpus
):
    options = {**VALIDATED, "evaluation.dataset": corpus, "evaluation.interval": 3}
    train_here(flags(**WITHOUT_SAMPLE, **options))
    main(["export", str(tmp_path / "run/checkpoint/step-4"), str(tmp_path / "out")])
    card = read_card(tmp_path / "out")
    metadata = read_front_matter(card).metadata or {}
    assert "model-index" not in metadata
    assert rows(card)["validated after step"] == "3"
    assert "after step 3, not after its last step" in card


def test_a_model_without_its_run_says_only_what_it_is(finished, tmp_path):
    moved = tmp_path / "elsewhere/step-4"
    moved.parent.mkdir()
    (finished / "checkpoint/step-4").rename(moved)
    assert origin_of_checkpoint(moved).run_folder is None
    main(["export", str(moved), str(tmp_path / "out")])
    card = read_card(tmp_path / "out")
    assert rows(card) == {"updates": "4", "tokens": "1,024"}
    assert judge_card(card) == ([], [])
    assert "None" not in card


def test_a_run_that_recorded_less_has_a_card_that_says_less(finished, tmp_path):
    (finished / "environment.json").write_text("{}")
    (finished / "metrics.jsonl").unlink()
    write_model_card(finished / "hf", ModelOrigin(run_folder=finished, step=8, tokens=2048))
    card = read_card(finished / "hf")
    assert judge_card(card) == ([], [])
    assert "## Hardware" not in card and "None" not in card and "loss_curve" not in card
    assert rows(card)["peak learning rate"] == "0.0003"


def test_a_dataset_and_weights_of_the_hub_are_named(train_here, flags, tmp_path, local_hub):
    from huggingface_hub import HfApi

    api = HfApi()
    lines = "".join(json.dumps({"text": f"document {i} " * (i + 1)}) + "\n" for i in range(40))
    api.create_repo("tester/words", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=lines.encode(),
        path_in_repo="train.jsonl",
        repo_id="tester/words",
        repo_type="dataset",
    )
    train_here(flags(**SHORT_RUN, **{"training.dataset": "tester/words"}))
    api.create_repo("tester/first")
    api.upload_folder(repo_id="tester/first", folder_path=tmp_path / "run/hf")
    train_here(
        flags(
            **SHORT_RUN,
            **{
                "job.dump_folder": tmp_path / "second",
                "training.dataset": "tester/words",
                "checkpoint.initial_load_path": "tester/first",
            },
        )
    )
    first, second = (ModelCard.load(tmp_path / name / "hf/README.md") for name in ("run", "second"))
    assert first.data.datasets == second.data.datasets == ["tester/words"]
    assert first.data.get("base_model") is None
    assert second.data.base_model == "tester/first"
    link = "[tester/first](https://huggingface.co/tester/first)"
    assert rows(second.text)["started from"] == link
    link = "[tester/words](https://huggingface.co/datasets/tester/words)"
    assert rows(first.text)["data"].startswith(link)
    second.validate()
