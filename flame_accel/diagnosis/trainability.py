"""Whether a model can train on this machine, judged from facts alone.

Facts are collected in `machine`, known problems of machines listed in `known_problems`, known
defects of models in `diagnosis/conformance/known_issues.py`. Running a small version of a model
lives in `small_model_trial`.
"""

from transformers import PreTrainedConfig

from flame_accel.config.errors import UserError
from flame_accel.diagnosis.conditions import uses_triton
from flame_accel.diagnosis.conformance.known_issues import known_issue_reasons_by_law
from flame_accel.diagnosis.detected_problems import DetectedProblem, detect_known_problems
from flame_accel.diagnosis.machine import Machine, cache_folders_by_purpose, collect_machine_facts
from flame_accel.diagnosis.model_parts import find_reachable_fla_layers_and_operators
from flame_accel.kernels.install import KernelKind
from flame_accel.parallel.topology import Precision

STATE_BYTES = 16
"""Bytes per parameter in training: weight, gradient and AdamW's two moments in fp32."""
SAVED_BYTES = 4 * 12 + 4
"""Bytes per parameter on disk: three checkpoints, a fourth being written, and the export."""


TRITON_OPERATORS_WITHOUT_FP32 = frozenset(
    {
        "ops.delta_rule.chunk.chunk_delta_rule",
        "ops.gated_delta_product.chunk.chunk_gated_delta_product",
        "ops.parallax.parallel.parallel_parallax",
    }
)
"""Operators whose Triton kernels assert half precision, as parts of a model."""


def find_training_problems(
    machine: Machine,
    config: PreTrainedConfig,
    num_parameters: int | None = None,
    precision: Precision = "bfloat16",
) -> list[DetectedProblem]:
    """Lists what is known to go wrong when a model trains on a machine, blocking problems first.

    Args:
        machine: Facts about the machine.
        config: Config of the model.
        num_parameters: Number of its parameters, if known.
        precision: Precision of the computation, "bfloat16" or "float32".
    """
    parts = find_reachable_fla_layers_and_operators(config)
    findings = detect_known_problems(machine, model_parts=parts, model_config=config)
    if precision == "float32" and uses_triton(machine) and parts & TRITON_OPERATORS_WITHOUT_FP32:
        description = (
            f"fla's Triton kernel of {min(parts & TRITON_OPERATORS_WITHOUT_FP32)} takes no float32"
        )
        remedy = "--training.mixed_precision_param bfloat16, or --model.kernels torch"
        findings.append(DetectedProblem("no float32", True, description, remedy))
    reason = known_issue_reasons_by_law(
        config.model_type, machine.conformance_device_of_kernels
    ).get("trains")
    if reason is not None:
        remedy = "train another model; docs/models.md has what each can do"
        findings.insert(0, DetectedProblem("defect of the model", True, reason, remedy))
    if num_parameters is not None:
        findings += _find_memory_and_disk_shortages(machine, num_parameters)
    return sorted(findings, key=lambda finding: not finding.blocks_training)


def check_machine_and_list_warnings(
    config: PreTrainedConfig, requested_kernels: KernelKind, run_folder: str, precision: Precision
) -> list[str]:
    """Checks that nothing known prevents training on this machine; takes milliseconds.

    Args:
        config: Config of the model to train.
        requested_kernels: Kernels that the run asked for: "auto", "torch" or "triton".
        run_folder: Folder of the run.
        precision: Precision of the computation, "bfloat16" or "float32".

    Returns:
        Warnings, one line each.

    Raises:
        UserError: Something known makes training impossible.
    """
    machine = collect_machine_facts(
        requested_kernels, {"the run": run_folder, **cache_folders_by_purpose()}
    )
    findings = find_training_problems(machine, config, precision=precision)
    for finding in findings:
        if finding.blocks_training:
            raise UserError(
                f"cannot train on this machine: {finding.description}",
                where=f"model_type '{config.model_type}'",
                remedy=finding.remedy,
            )
    return [f"{finding.description} ({finding.remedy})" for finding in findings]


def _find_memory_and_disk_shortages(machine: Machine, num_parameters: int) -> list[DetectedProblem]:
    """Compares memory and disk with what this number of parameters needs."""
    needed = num_parameters * STATE_BYTES
    sizes = [device.memory_bytes for device in machine.devices] or [machine.memory_bytes]
    state = f"{_format_gib_number(needed)} GiB of weights, gradients and AdamW state"
    findings = []
    if needed > sum(sizes):
        where = f"{len(sizes)} GPU(s)" if machine.devices else "this machine"
        description = f"{state} do not fit into the {_format_gib_number(sum(sizes))} GiB of {where}"
        findings.append(
            DetectedProblem("too large", True, description, "use more GPUs, or a smaller model")
        )
    elif needed > min(sizes):
        description = f"{state} do not fit into the {_format_gib_number(min(sizes))} GiB of one GPU"
        findings.append(
            DetectedProblem("too large for one GPU", False, description, "ACCELERATE_CONFIG=fsdp2")
        )
    for folder in machine.folders[:1]:
        if folder.free_bytes < num_parameters * SAVED_BYTES:
            description = (
                f"{_format_gib_number(folder.free_bytes)} GiB are free for {folder.purpose} "
                f"({folder.path}), and its checkpoints and export take up to "
                f"{_format_gib_number(num_parameters * SAVED_BYTES)} GiB"
            )
            remedy = "free some, name another --job.dump_folder, or --checkpoint.keep_latest_k 1"
            findings.append(DetectedProblem("little disk", False, description, remedy))
    return findings


def _format_gib_number(number_of_bytes: float) -> str:
    return f"{number_of_bytes / 2**30:,.1f}"
