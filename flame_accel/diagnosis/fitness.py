"""Whether one model can train on this machine, from facts alone; what a run asks before it starts.

Facts are collected in `machine`, known problems of machines listed in `problems`, known defects of
models in `diagnosis/conformance/known_issues.py`. Trying a model out lives in `numerics`.
"""

from transformers import PreTrainedConfig

from flame_accel.config.errors import UserError
from flame_accel.diagnosis.conditions import uses_triton
from flame_accel.diagnosis.conformance.known_issues import known_issues
from flame_accel.diagnosis.machine import Machine, cache_folders, look_at_machine
from flame_accel.diagnosis.parts import find_parts
from flame_accel.diagnosis.problems import Finding, find_problems

STATE_BYTES = 16
"""Of a parameter in training: weight, gradient and AdamW's two moments in fp32."""
SAVED_BYTES = 4 * 12 + 4
"""Of a parameter on disk: three checkpoints, a fourth while it is written, and the export."""


REFUSE_FP32 = frozenset(
    {
        "ops.delta_rule.chunk.chunk_delta_rule",
        "ops.gated_delta_product.chunk.chunk_gated_delta_product",
        "ops.parallax.parallel.parallel_parallax",
    }
)
"""Operators whose Triton kernels assert half precision, as parts of a model."""


def examine_fitness(
    machine: Machine,
    config: PreTrainedConfig,
    parameters: int | None = None,
    precision: str = "bfloat16",
) -> list[Finding]:
    """What is known to go wrong when a model trains on a machine, what makes it impossible first.

    Args:
        machine: the facts.
        config: of the model.
        parameters: number of its parameters, if known.
        precision: in which it shall compute, "bfloat16" or "float32".
    """
    parts = find_parts(config)
    findings = find_problems(machine, parts=parts, config=config)
    if precision == "float32" and uses_triton(machine) and parts & REFUSE_FP32:
        happens = f"fla's Triton kernel of {min(parts & REFUSE_FP32)} takes no float32"
        remedy = "--training.mixed_precision_param bfloat16, or --model.kernels torch"
        findings.append(Finding("no float32", True, happens, remedy))
    reason = known_issues(config.model_type, machine.laws).get("trains")
    if reason is not None:
        remedy = "train another model; docs/models.md has what each can do"
        findings.insert(0, Finding("defect of the model", True, reason, remedy))
    if parameters is not None:
        findings += _find_shortages(machine, parameters)
    return sorted(findings, key=lambda finding: not finding.stops)


def check_machine(
    config: PreTrainedConfig, kernels: str, run_folder: str, precision: str
) -> list[str]:
    """Refuses a run that cannot succeed on this machine; takes milliseconds.

    Args:
        config: of the model to train.
        kernels: that the run asked for: "auto", "torch" or "triton".
        run_folder: where it writes.
        precision: in which it shall compute, "bfloat16" or "float32".

    Returns:
        Warnings, a line each.

    Raises:
        UserError: Something known makes training impossible.
    """
    machine = look_at_machine(kernels, {"the run": run_folder, **cache_folders()})
    findings = examine_fitness(machine, config, precision=precision)
    for finding in findings:
        if finding.stops:
            raise UserError(
                f"cannot train on this machine: {finding.happens}",
                where=f"model_type '{config.model_type}'",
                remedy=finding.remedy,
            )
    return [f"{finding.happens} ({finding.remedy})" for finding in findings]


def _find_shortages(machine: Machine, parameters: int) -> list[Finding]:
    """Memory and disk, compared with what so many parameters need."""
    needed = parameters * STATE_BYTES
    sizes = [device.memory_bytes for device in machine.devices] or [machine.memory_bytes]
    state = f"{_gib(needed)} GiB of weights, gradients and AdamW state"
    findings = []
    if needed > sum(sizes):
        where = f"{len(sizes)} GPU(s)" if machine.devices else "this machine"
        happens = f"{state} do not fit into the {_gib(sum(sizes))} GiB of {where}"
        findings.append(Finding("too large", True, happens, "use more GPUs, or a smaller model"))
    elif needed > min(sizes):
        happens = f"{state} do not fit into the {_gib(min(sizes))} GiB of one GPU"
        findings.append(Finding("too large for one GPU", False, happens, "ACCELERATE_CONFIG=fsdp2"))
    for folder in machine.folders[:1]:
        if folder.free_bytes < parameters * SAVED_BYTES:
            happens = (
                f"{_gib(folder.free_bytes)} GiB are free for {folder.purpose} ({folder.path}), and "
                f"its checkpoints and export take up to {_gib(parameters * SAVED_BYTES)} GiB"
            )
            remedy = "free some, name another --job.dump_folder, or --checkpoint.keep_latest_k 1"
            findings.append(Finding("little disk", False, happens, remedy))
    return findings


def _gib(number_of_bytes: float) -> str:
    return f"{number_of_bytes / 2**30:,.1f}"
