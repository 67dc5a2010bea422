"""Laws of options and flags: what there is, every form of a flag, aliases, the help, no torch."""

import dataclasses
import os
import resource
import subprocess
import sys

import pytest

from flame_accel.config import Config, ConfigError, describe_options, parse

REQUIRED = ["--model.config", "org/model", "--training.dataset", "python-stdlib"]

# the specification's options, word for word
SPECIFICATION = [
    "job.config_file",
    "job.dump_folder",
    "job.description",
    "job.use_for_integration_test",
    "job.print_args",
    "model.config",
    "model.norm_type",
    "model.tokenizer_path",
    "profiling.enable_profiling",
    "profiling.save_traces_folder",
    "profiling.profile_freq",
    "profiling.enable_memory_snapshot",
    "profiling.save_memory_snapshot_folder",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.fused",
    "optimizer.scheduler",
    "optimizer.early_step_in_backward",
    "training.batch_size",
    "training.seq_len",
    "training.warmup_steps",
    "training.gradient_accumulation_steps",
    "training.steps",
    "training.max_norm",
    "training.skip_nan_inf",
    "training.dataset",
    "training.dataset_name",
    "training.dataset_split",
    "training.num_workers",
    "training.prefetch_factor",
    "training.data_parallel_replicate_degree",
    "training.data_parallel_shard_degree",
    "training.enable_cpu_offload",
    "training.tensor_parallel_degree",
    "training.disable_loss_parallel",
    "training.mixed_precision_param",
    "training.mixed_precision_reduce",
    "training.compile",
    "training.gc_freq",
    "training.seed",
    "training.deterministic",
    "metrics.log_freq",
    "metrics.enable_tensorboard",
    "metrics.disable_color_printing",
    "metrics.save_tb_folder",
    "metrics.rank_0_only",
    "metrics.enable_wandb",
    "checkpoint.enable_checkpoint",
    "checkpoint.folder",
    "checkpoint.interval_type",
    "checkpoint.interval",
    "checkpoint.model_weights_only",
    "checkpoint.export_dtype",
]

DEFAULTS = {
    "job": {
        "config_file": None,
        "dump_folder": "exp",
        "description": "",
        "use_for_integration_test": False,
        "print_args": False,
    },
    "model": {
        "config": None,
        "tokenizer_path": None,
        "norm_type": None,
        "custom": (),
        "kernels": "auto",
        "trust_remote_code": False,
    },
    "profiling": {
        "enable_profiling": False,
        "save_traces_folder": "profile_traces",
        "profile_freq": 10,
        "enable_memory_snapshot": False,
        "save_memory_snapshot_folder": "memory_snapshot",
    },
    "optimizer": {
        "name": "AdamW",
        "lr": 3e-4,
        "eps": 1e-8,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "fused": True,
        "scheduler": "wsd",
        "decay_ratio": 0.1,
        "decay_type": "linear",
        "min_lr_ratio": 0.1,
        "early_step_in_backward": False,
    },
    "training": {
        "batch_size": 8,
        "seq_len": 2048,
        "context_len": None,
        "varlen": False,
        "warmup_steps": 200,
        "gradient_accumulation_steps": 1,
        "steps": 10000,
        "max_norm": 1.0,
        "skip_nan_inf": True,
        "max_consecutive_skips": 10,
        "dataset": None,
        "dataset_name": None,
        "dataset_split": None,
        "data_dir": None,
        "data_files": None,
        "data_probs": None,
        "streaming": False,
        "shuffle_block": 10_000,
        "text_column": None,
        "packing": "sequential",
        "add_bos": "auto",
        "num_workers": 1,
        "prefetch_factor": 2,
        "pin_memory": True,
        "persistent_workers": False,
        "max_bad_records": None,
        "max_document_bytes": 64 * 1024**2,
        "data_parallel_replicate_degree": None,
        "data_parallel_shard_degree": None,
        "enable_cpu_offload": False,
        "tensor_parallel_degree": 1,
        "disable_loss_parallel": False,
        "mixed_precision_param": None,
        "mixed_precision_reduce": "float32",
        "fsdp_reshard_after_forward": "default",
        "compile": False,
        "gc_freq": 50,
        "seed": 42,
        "deterministic": False,
    },
    "metrics": {
        "log_freq": 10,
        "enable_tensorboard": False,
        "disable_color_printing": False,
        "save_tb_folder": "tb",
        "rank_0_only": True,
        "enable_wandb": False,
    },
    "checkpoint": {
        "enable_checkpoint": True,
        "folder": "checkpoint",
        "interval_type": "step",
        "interval": 500,
        "model_weights_only": False,
        "export_dtype": "float32",
        "keep_latest_k": 3,
        "load_step": -1,
        "async_mode": "disabled",
        "initial_load_path": None,
        "initial_load_model_weights_only": True,
        "create_seed_checkpoint": False,
        "exclude_from_loading": (),
    },
    "evaluation": {
        "dataset": None,
        "dataset_name": None,
        "dataset_split": None,
        "held_out_share": 0.01,
        "data_dir": None,
        "data_files": None,
        "interval": 0,
        "batch_size": 8,
        "max_tokens": 0,
        "prompt": "",
        "sample_tokens": 128,
    },
    "activation_checkpoint": {"mode": "none", "selective_ac_option": "2"},
    "float8": {
        "enable_fsdp_float8_all_gather": False,
        "precompute_float8_dynamic_scale_for_fsdp": False,
        "force_recompute_fp8_weight_in_bwd": False,
        "recipe_name": None,
        "emulate": False,
    },
    "comm": {
        "init_timeout_seconds": 300,
        "train_timeout_seconds": 100,
        "trace_buf_size": 20000,
    },
    "experimental": {
        "context_parallel_degree": 1,
        "pipeline_parallel_degree": 1,
        "enable_async_tensor_parallel": False,
        "enable_compiled_autograd": False,
    },
}


def parsed(*flags: str) -> Config:
    return parse([*REQUIRED, *flags])


def refused(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(*flags)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_every_option_of_the_specification_exists() -> None:
    assert len(SPECIFICATION) == 53
    assert set(SPECIFICATION) <= {option.name for option in describe_options()}


def test_defaults_are_the_agreed_ones() -> None:
    assert dataclasses.asdict(Config()) == DEFAULTS


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.__setattr__("steps", 1)


def test_descriptions_tell_type_default_choices_and_help() -> None:
    described = {option.name: option for option in describe_options()}
    assert [f"{s}.{key}" for s in DEFAULTS for key in DEFAULTS[s]] == list(described)
    assert all(option.help for option in described.values())
    assert described["training.context_len"].type == "int | None"
    assert described["model.custom"].type == "list[str]"
    assert described["training.data_probs"].type == "list[float] | None"
    assert described["optimizer.scheduler"].choices == ("wsd", "cosine", "linear")
    assert described["optimizer.lr"].default == 3e-4
    assert described["model.norm_type"].type == "str | None"
    assert "not supported" in described["experimental.enable_compiled_autograd"].limits
    assert described["training.steps"].limits == ""


@pytest.mark.parametrize(
    "flags",
    [
        ["--training.seq_len", "64"],
        ["--training.seq_len=64"],
        ["--training.seq-len", "64"],
        ["--training.seq-len=64"],
        ["--training.seq_len", "32", "--training.seq_len=64"],
    ],
)
def test_a_value_is_given_in_every_form(flags: list[str]) -> None:
    assert parsed(*flags).training.seq_len == 64


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--training.varlen"], True),
        (["--training.no_varlen"], False),
        (["--training.no-varlen"], False),
        (["--training.varlen=true"], True),
        (["--training.varlen=false"], False),
        (["--training.varlen", "True"], True),
        (["--training.varlen", "false"], False),
        (["--training.varlen", "--training.no_varlen"], False),
        (["--training.no_varlen", "--training.varlen"], True),
    ],
)
def test_a_boolean_is_given_in_every_form(flags: list[str], value: bool) -> None:
    assert parsed("--training.seq_len", "64", *flags).training.varlen is value


def test_negative_numbers_empty_text_and_none_are_values() -> None:
    flags = ["--training.data_parallel_shard_degree", "-1", "--evaluation.prompt", ""]
    config = parsed(*flags, "--training.text_column", "none", "--training.data_dir=")
    assert config.training.data_parallel_shard_degree == -1
    assert config.evaluation.prompt == ""
    assert config.training.text_column is None
    assert config.training.data_dir is None
    assert config.activation_checkpoint.mode == "none"


@pytest.mark.parametrize(
    "flags",
    [["--model.custom", "a,b"], ["--model.custom=a, b"], ["--model.custom", "a", "b"]],
)
def test_lists_take_commas_and_several_values(flags: list[str]) -> None:
    assert parsed(*flags).model.custom == ("a", "b")
    assert parsed(*flags, "--model.custom=").model.custom == ()


def test_whole_numbers_are_numbers_but_not_the_reverse() -> None:
    lr = parsed("--optimizer.lr", "1").optimizer.lr
    assert (lr, type(lr)) == (1.0, float)
    assert "--training.steps" in refused("--training.steps", "1e3")
    assert "--training.steps" in refused("--training.steps", "1.0")
    assert "--training.steps" in refused("--training.steps", "true")


@pytest.mark.parametrize(
    ("flags", "section", "key", "value"),
    [
        ("--lr_scheduler.warmup_steps 7", "training", "warmup_steps", 7),
        ("--lr_scheduler.lr_min 0.2", "optimizer", "min_lr_ratio", 0.2),
        ("--lr_scheduler.decay_type cosine", "optimizer", "scheduler", "cosine"),
        ("--lr_scheduler.decay_type linear", "optimizer", "scheduler", "linear"),
        ("--lr_scheduler.decay_ratio none", "optimizer", "scheduler", "linear"),
        ("--optimizer.implementation fused", "optimizer", "fused", True),
        ("--optimizer.implementation foreach", "optimizer", "fused", False),
        ("--optimizer.implementation for-loop", "optimizer", "fused", False),
        ("--metrics.no_save_for_all_ranks", "metrics", "rank_0_only", True),
        ("--checkpoint.last_save_model_weights_only", "checkpoint", "model_weights_only", True),
        ("--experimental.custom_model_path pkg", "model", "custom", ("pkg",)),
        ("--experimental.custom_model_path=", "model", "custom", ()),
        ("--training.no_pin_memory", "training", "pin_memory", False),
    ],
)
def test_names_of_flames_dialect_mean_our_options(
    flags: str, section: str, key: str, value: object
) -> None:
    assert dataclasses.asdict(parsed(*flags.split()))[section][key] == value


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_flames_decay_ratio_asks_for_wsd(shape: str) -> None:
    flags = ["--lr_scheduler.decay_ratio", "0.3", "--lr_scheduler.decay_type", shape]
    optimizer = parsed("--optimizer.scheduler", "wsd", *flags).optimizer
    assert (optimizer.scheduler, optimizer.decay_ratio, optimizer.decay_type) == ("wsd", 0.3, shape)


def test_two_names_of_one_option_must_agree() -> None:
    alias = ["--lr_scheduler.warmup_steps", "10"]
    assert parsed(*alias, "--training.warmup_steps", "10").training.warmup_steps == 10
    message = refused(*alias, "--training.warmup_steps", "20")
    assert "--lr_scheduler.warmup_steps = 10" in message
    assert "--training.warmup_steps = 20" in message
    message = refused("--optimizer.scheduler", "wsd", "--lr_scheduler.decay_type", "cosine")
    assert '--lr_scheduler.decay_type = "cosine"' in message
    assert '--optimizer.scheduler = "wsd"' in message


def test_flames_own_defaults_are_accepted() -> None:
    flags = ["--model.name", "fla", "--model.converters=", "--activation_offload.mode", "none"]
    assert parsed(*flags, "--fault_tolerance.no_enable") == parsed()


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    left_out = ("RANK", "COLUMNS")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


def test_help_lists_every_option_with_default_and_meaning() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python("-m", "flame_accel.config", "--training.steps", "x", "-h")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    # without the frames that tyro draws
    words = " ".join(done.stdout.translate(dict.fromkeys(range(0x2500, 0x2580))).split())
    for option in describe_options():
        _, _, rest = words.partition(f" --{option.name}")
        assert option.help in rest[: len(option.help) + 300], option.name
        default = option.default
        if default not in ("", ()):
            text = str(default).lower() if default in (None, True, False) else str(default)
            assert f"(default: {text})" in rest[: len(option.help) + 400], option.name
    # processor time: what a user waits for on a machine that does nothing else
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_a_good_command_line_prints_nothing_and_imports_no_torch() -> None:
    code = (
        "import sys; from flame_accel.config import parse_or_exit; parse_or_exit(sys.argv[1:]);"
        "heavy = {'torch', 'fla', 'transformers', 'accelerate', 'datasets', 'tyro', 'yaml'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python("-c", code, *REQUIRED).stdout == "[]\n"
    done = run_python("-m", "flame_accel.config", *REQUIRED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from flame_accel.config import parse\n"
        "try: parse(['--help'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    assert run_python("-c", code).stderr == "0 False\n"
