"""Laws of refusal: nothing wrong gets through, all of it is told at once, with the way out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flame_accel.config import ConfigError, UserError, describe_options, load_file, parse
from flame_accel.config.availability import REFUSALS
from flame_accel.config.dialect import DIALECT
from flame_accel.config.schema import options

REQUIRED = ["--model.config", "org/model", "--training.dataset", "python-stdlib"]


def refused(*flags: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse([*REQUIRED, *flags])
    return caught.value


def only_problem(*flags: str) -> str:
    error = refused(*flags)
    assert len(error.problems) == 1, error
    return str(error.problems[0])


def test_a_user_error_says_what_where_and_the_way_out() -> None:
    error = UserError("has no text", where="a.jsonl:3", remedy="Add a text column.")
    assert str(error) == "a.jsonl:3: has no text\n    Add a text column."
    assert error.exit_code == 1
    assert str(UserError("no")) == "no"
    assert issubclass(ConfigError, UserError)


def test_an_option_in_the_wrong_section_is_found() -> None:
    assert "Did you mean --optimizer.lr?" in only_problem("--training.lr", "1e-3")
    assert "Did you mean --training.seq_len?" in only_problem("--seq_len=1")
    assert "-h lists every option" in only_problem("--something.else", "1")


def test_negations_are_only_for_booleans() -> None:
    assert "there is no such option" in only_problem("--training.no_steps")
    assert "takes no value" in only_problem("--training.no_varlen=true")
    assert "Did you mean --training.no_varlen?" in only_problem("--training.no_varlem")


def test_what_belongs_to_no_option_is_refused() -> None:
    assert '"5"' in only_problem("--training.steps", "1000", "5")
    assert '"maybe"' in only_problem("--metrics.enable_wandb", "maybe")
    assert '"steps"' in str(parse_error(["steps", *REQUIRED]))
    assert "needs a value" in only_problem("--training.steps", "--metrics.enable_wandb")
    assert "needs a value" in only_problem("--training.steps")


def parse_error(argv: list[str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    return caught.value


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--training.steps 0", "must be at least 1"),
        ("--training.seq_len 1", "must be at least 2"),
        ("--training.batch_size 0", "must be at least 1"),
        ("--training.context_len 1 --training.varlen", "must be at least 2"),
        ("--training.context_len 4096 --training.varlen", "at most training.seq_len: 4096 > 2048"),
        ("--training.context_len 1024", "has no effect"),
        ("--training.warmup_steps -1", "must be at least 0"),
        ("--training.steps 100", "(200) and the decay (10) must fit into training.steps (100)"),
        ("--training.warmup_steps 9001", "(9001) and the decay (1000) must fit"),
        ("--training.warmup_steps 10001 --optimizer.scheduler cosine", "must fit into"),
        ("--training.gradient_accumulation_steps 0", "must be at least 1"),
        ("--training.prefetch_factor 0", "must be at least 1"),
        ("--training.num_workers -1", "must be at least 0"),
        ("--training.num_workers 0 --training.persistent_workers", "no workers to keep alive"),
        ("--training.data_parallel_replicate_degree -1", "must be at least 1"),
        ("--training.data_parallel_shard_degree 0", "must be at least 1, or -1"),
        ("--training.max_norm -0.5", "must be at least 0"),
        ("--training.max_norm inf", "must be finite"),
        ("--training.seed -1", "must be from 0"),
        ("--training.add_bos maybe", "must be one of auto, always, never"),
        ("--optimizer.lr nan", "must be finite"),
        ("--optimizer.lr 0", "must be above 0"),
        ("--optimizer.beta2 1", "below 1"),
        ("--optimizer.min_lr_ratio 1.5", "must be from 0 to 1"),
        ("--optimizer.decay_ratio -0.1", "must be from 0 to 1"),
        ("--optimizer.name SGD", "must be one of AdamW, Adam, Muon"),
        ("--checkpoint.load_step -2", "must be at least -1"),
        ("--checkpoint.load_step 5 --checkpoint.no_enable_checkpoint", "checkpoints are off"),
        ("--checkpoint.folder ../x", "must be a folder inside the run folder"),
        ("--checkpoint.folder hf", "must be a folder inside the run folder"),
        ("--checkpoint.folder tb", "is the same folder as metrics.save_tb_folder"),
        ("--metrics.log_freq 0", "must be at least 1"),
        ("--evaluation.interval 10", "nothing to validate on"),
        ("--evaluation.sample_tokens -1", "must be at least 0"),
        ("--activation_checkpoint.selective_ac_option 0", "must be op or a whole number"),
        ("--job.dump_folder=", "must not be empty"),
        ("--job.description=\udc80", "is not valid UTF-8"),
        ("--model.config ./missing", "./missing is not there"),
        ("--model.config missing.json", "missing.json is not there"),
        ("--training.dataset /missing/*.jsonl", "is not there"),
        ("--model.custom ./missing.py", "is not there"),
        ("--training.data_probs 0.5,0 --training.dataset a,b", "must be numbers above 0"),
        ("--training.data_probs 0.5,0.5", "has 2 numbers for 1 dataset"),
        ("--training.dataset a,b", "is required for 2 datasets"),
        ("--training.dataset a,,b --training.data_probs 1,1,1", "empty name between commas"),
        ("--training.dataset a,/b/c --training.data_probs 1,1", "/b/c is not there"),
        (
            "--training.dataset a,b --training.data_probs 1,1 --training.data_dir x",
            "has 1 entries for 2 datasets",
        ),
        ("--training.packing best_fit", "documents are kept apart"),
        ("--training.shuffle_block 0", "must be at least 1"),
        ("--evaluation.held_out_share 1", "must be between 0 and 1"),
    ],
)
def test_wrong_values_are_refused_by_flag_and_rule(flags: str, rule: str) -> None:
    message = only_problem(*flags.split(" "))
    assert message.startswith("--")
    assert rule in message
    assert "\n    " in message


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    option = options().get(name) or DIALECT[name]
    special = {
        "evaluation.dataset": "a,b",
    }
    plain = {bool: str(not option.default), int: "7", float: "7", str: "x"}
    choice = next((value for value in option.choices if value != option.default), None)
    value = special.get(name) or choice or plain[option.kind]
    message = only_problem(f"--{name}={value}")
    assert REFUSALS[name].reason in message
    assert REFUSALS[name].remedy in message


def test_the_table_of_refusals_names_only_options() -> None:
    assert set(REFUSALS) <= {*options(), *DIALECT}


def test_flames_sqrt_decay_needs_a_ratio() -> None:
    assert "lr_scheduler.decay_ratio" in only_problem("--lr_scheduler.decay_type", "sqrt")


def test_required_options_name_the_quickstart() -> None:
    error = parse_error([])
    assert [problem.where for problem in error.problems] == ["--model.config", "--training.dataset"]
    assert all("--job.config_file quickstart" in problem.remedy for problem in error.problems)


def test_a_file_in_place_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "is a file" in only_problem("--job.dump_folder", str(tmp_path / "taken"))
    assert "is a file" in only_problem("--job.dump_folder", str(tmp_path / "taken/run"))


def test_a_run_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tests may run as root, who may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = only_problem("--job.dump_folder", str(tmp_path / "new/run"))
    assert f"{tmp_path} cannot be written to" in message


def test_all_problems_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "[training]\nseq_len = 1\nstepps = 5\nbatch_size = true\n[metrics]\nlog_freq = 0\n"
    )
    error = parse_error(
        [
            f"--job.config_file={path}",
            "--optimizer.lr=fast",
            "--experimental.enable_compiled_autograd",
            "--model.confg=x",
        ]
    )
    assert [problem.where for problem in error.problems] == [
        f"{path}:3: training.stepps",
        f"{path}:4: training.batch_size",
        "--optimizer.lr",
        "--model.confg",
        f"{path}:2: training.seq_len",
        f"{path}:6: metrics.log_freq",
        "--experimental.enable_compiled_autograd",
        "--training.dataset",
    ]
    assert str(error).startswith("8 problems in the configuration:\n")


def test_what_could_not_be_read_raises_no_second_problem(tmp_path: Path) -> None:
    broken = tmp_path / "run.toml"
    broken.write_text("[model\n")
    flags = [f"--job.config_file={broken}", "--training.steps", "0", "--training.warmup_steps", "5"]
    error = parse_error(flags)
    assert [problem.where for problem in error.problems] == [f"{broken}:1", "--training.steps"]


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_process_ends_with_status_2_and_no_traceback(rank: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    if rank is not None:
        environment["RANK"] = rank
    done = subprocess.run(
        [sys.executable, "-m", "flame_accel.config", "--training.stepss", "1"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    # one rank explains, the others only say so
    assert ("Did you mean --training.steps?" in done.stderr) == (rank != "1")
    assert "3 problems" in done.stderr


def test_a_run_file_alone_is_checked_but_its_paths_are_not_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[model]\nconfig = "/gone/config.json"\n[training]\ndataset = "python-stdlib"\n'
    )
    assert load_file(path).model.config == "/gone/config.json"
    path.write_text("[model]\nconfig = 'org/model'\n")
    with pytest.raises(ConfigError, match=r"training\.dataset: is required"):
        load_file(path)


def test_every_option_can_be_blamed() -> None:
    """A value of the wrong type is refused for every option that has a type to miss."""
    for option in describe_options():
        if option.type.startswith(("int", "float")) or option.choices:
            assert f"--{option.name} = " in str(refused(f"--{option.name}=~"))
