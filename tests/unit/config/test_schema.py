"""The options that exist, with their defaults."""

import dataclasses

import pytest

from flame_accel.config import Config
from flame_accel.config.paths import PathKind
from flame_accel.config.schema import options

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
        "dry_run": False,
        "dry_run_format": "text",
        "dry_run_gpu": "",
        "gpu_hour_price": 0.0,
    },
    "model": {
        "config": None,
        "tokenizer_path": None,
        "norm_type": None,
        "custom": (),
        "kernels": "auto",
        "fused_kernels": True,
        "flash_attn_4": True,
        "flash_qla": False,
        "recompute_operators": "auto",
        "tune_kernels": "auto",
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
        "max_rewinds": 0,
        "skip_spike_sigma": 0.0,
        "spike_window": 128,
        "watchdog_seconds": 600,
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
        "residual_dtype": "bfloat16",
        "fsdp_reshard_after_forward": "default",
        "compile": False,
        "cuda_graphs": "auto",
        "gc_freq": 50,
        "vocab_multiple": 1,
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
        "trackers": (),
        "project": "flame_accel",
        "wait_seconds": 60,
    },
    "checkpoint": {
        "enable_checkpoint": True,
        "folder": "checkpoint",
        "interval_type": "step",
        "interval": 500,
        "model_weights_only": False,
        "export_dtype": "float32",
        "keep_latest_k": 3,
        "keep_best": None,
        "best_direction": "auto",
        "export_best": False,
        "max_failures": 3,
        "load_step": -1,
        "async_mode": "auto",
        "initial_load_path": None,
        "initial_load_model_weights_only": True,
        "accept_differences": (),
        "create_seed_checkpoint": False,
        "exclude_from_loading": (),
    },
    "evaluation": {
        "dataset": None,
        "dataset_name": None,
        "dataset_split": None,
        "sets": (),
        "metrics": ("loss", "perplexity", "bits_per_byte", "accuracy"),
        "held_out_share": 0.01,
        "data_dir": None,
        "data_files": None,
        "interval": 0,
        "batch_size": 8,
        "max_tokens": 0,
        "max_context": 0,
        "carry_state": False,
        "prompts": None,
        "sample_temperature": 0.8,
        "prompt": "",
        "sample_tokens": 128,
    },
    "hub": {
        "repo_id": None,
        "private": True,
        "when": "end",
        "revision": "main",
        "tag": None,
        "overwrite": False,
        "include_logs": False,
        "wait_seconds": 600,
        "model_name": None,
        "license": None,
        "language": (),
        "tags": (),
        "base_model": None,
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


def test_every_option_of_the_specification_exists() -> None:
    assert len(SPECIFICATION) == 53
    assert set(SPECIFICATION) <= options().keys()


def test_defaults_are_the_agreed_ones() -> None:
    assert dataclasses.asdict(Config()) == DEFAULTS
    assert [f"{section}.{key}" for section in DEFAULTS for key in DEFAULTS[section]] == [*options()]


def test_types_and_choices_follow_from_the_declarations() -> None:
    assert options()["training.context_len"].python_type_name == "int | None"
    assert options()["model.custom"].python_type_name == "list[str]"
    assert options()["training.data_probs"].python_type_name == "list[float] | None"
    assert options()["model.norm_type"].python_type_name == "str | None"
    assert options()["optimizer.scheduler"].choices == ("wsd", "cosine", "linear")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.__setattr__("steps", 1)


def test_options_know_which_of_them_are_paths() -> None:
    paths = {name: option.path for name, option in options().items() if option.path}
    assert paths == {
        "job.config_file": PathKind.ONE,
        "job.dump_folder": PathKind.ONE,
        "model.config": PathKind.ONE,
        "model.tokenizer_path": PathKind.ONE,
        "model.custom": PathKind.ONE,
        "profiling.save_traces_folder": PathKind.ONE,
        "profiling.save_memory_snapshot_folder": PathKind.ONE,
        "training.dataset": PathKind.COMMA_SEPARATED,
        "training.data_dir": PathKind.COMMA_SEPARATED,
        "training.data_files": PathKind.COMMA_SEPARATED,
        "metrics.save_tb_folder": PathKind.ONE,
        "checkpoint.folder": PathKind.ONE,
        "checkpoint.initial_load_path": PathKind.ONE,
        "evaluation.dataset": PathKind.COMMA_SEPARATED,
        "evaluation.data_dir": PathKind.ONE,
        "evaluation.data_files": PathKind.COMMA_SEPARATED,
        "evaluation.prompts": PathKind.ONE,
    }
