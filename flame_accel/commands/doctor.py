"""Reports what this machine has, which models train on it, with which kernels, or why not.

With --model.config it also tries a small version of that model out, and ends with exit code 1 if
the model cannot train here. Facts, known problems and trials live in `diagnosis`.
"""

import argparse
import json
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from flame_accel.commands.arguments import add_run_options

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from flame_accel.diagnosis.detected_problems import DetectedProblem
    from flame_accel.diagnosis.machine import Machine

MARK_COLORS = {"ok": 32, "warning": 33, "problem": 31}
GIB = 2**30
ROWS = textwrap.TextWrapper(width=87, break_on_hyphens=False, break_long_words=False)
KERNELS = {
    "triton": "fla's own, in Triton",
    "torch": "PyTorch (flame_accel/kernels) in place of fla's, which need a Triton device",
}
REMEDIES = {
    "trains": "the line of fla or flame_accel above tells where; --model.kernels torch may help",
    "reloads": "report it: an exported model would be another one",
    "generates": "generate with use_cache=False",
    "keeps documents apart": "train it without --training.varlen",
}
"""What to do where a law of `diagnosis/conformance/laws.py` does not hold."""


class ReportLine(NamedTuple):
    """A line of the report."""

    mark: str
    """A key of `MARK_COLORS`, or the name of a fact."""
    text: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments; those with a dot are the options of a run."""
    add_run_options(parser, "model.config", metavar="NAME", help="the model to try out")
    add_run_options(
        parser,
        "model.custom",
        # may be repeated
        action="extend",
        default=[],
        metavar="NAME",
        help="package or path that registers the architecture",
    )
    add_run_options(parser, "model.kernels")
    add_run_options(parser, "job.dump_folder", metavar="PATH")
    parser.add_argument("--json", action="store_true", help="everything as JSON, for a bug report")


def run(arguments: argparse.Namespace) -> None:
    """Prints the sections; exit code 1 where a problem stops training."""
    warnings.simplefilter("ignore")
    from flame_accel import kernels
    from flame_accel.diagnosis.detected_problems import detect_known_problems
    from flame_accel.diagnosis.machine import cache_folders_by_purpose, collect_machine_facts

    folders = {"the run": arguments.dump_folder, **cache_folders_by_purpose()}
    machine = collect_machine_facts(arguments.kernels, folders, query_free_memory=True)
    findings = detect_known_problems(machine)
    report = Report(as_json=arguments.json)
    report.print_and_record_section(
        "machine", describe_machine(machine), json_facts=asdict(machine)
    )
    report.print_and_record_section("known problems", map(format_problem, findings))
    # where something is that wrong, fla may not even import
    if not report.stopped:
        kernels.install(arguments.kernels)
        silence_fla_and_transformers()
        if arguments.config is None:
            report.print_and_record_section("models", summarize_which_fla_models_train(machine))
        else:
            report_model_problems_then_try_unless_blocked(machine, arguments, findings, report)
    report.print_json_if_asked()
    if report.stopped:
        raise SystemExit(1)


def silence_fla_and_transformers() -> None:
    """Mutes fla and transformers on fast paths and progress."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("fla").setLevel(logging.ERROR)


class Report:
    """Prints sections as they come, or all of them as JSON in the end; remembers problems."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.document: dict[str, Any] = {}
        self.stopped = False
        self.colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def print_and_record_section(
        self, title: str, lines: Iterable[ReportLine], json_facts: dict[str, Any] | None = None
    ) -> None:
        """Shows a section; JSON has `json_facts` in place of its lines, where there are any."""
        shown = []
        self.print_unless_json(title)
        for line in lines:
            shown.append(line)
            self.print_unless_json(self.format_line(line))
        if not shown:
            self.print_unless_json(self.format_line(ReportLine("ok", "none")))
        self.stopped |= any(line.mark == "problem" for line in shown)
        self.document[title] = json_facts or [line._asdict() for line in shown]

    def format_line(self, line: ReportLine) -> str:
        """The line, wrapped, its mark in color on a terminal, and the remedy below it."""
        mark = f"  {line.mark:<11}"
        if self.colored and line.mark in MARK_COLORS:
            mark = f"\033[{MARK_COLORS[line.mark]}m{mark}\033[0m"
        remedy = f"-> {line.remedy}" if line.remedy else ""
        rows = [row for text in (line.text, remedy) for row in ROWS.wrap(text)]
        return mark + f"\n{'':13}".join(rows)

    def print_unless_json(self, text: str) -> None:
        """Prints at once, unless JSON was asked for."""
        if not self.as_json:
            print(text, flush=True)

    def print_json_if_asked(self) -> None:
        """Prints the document, where JSON was asked for."""
        if self.as_json:
            print(json.dumps({**self.document, "trains": not self.stopped}, indent=2))


def describe_machine(machine: "Machine") -> Iterator[ReportLine]:
    """Facts about the machine, one line each."""
    yield ReportLine("system", f"{machine.system}, Python {machine.python}")
    memory = f"{machine.memory_bytes / GIB:.1f} GiB"
    yield ReportLine("processor", f"{machine.processor}, {machine.cores} cores, {memory}")
    for device in machine.devices:
        free = "" if device.free_bytes is None else f" ({device.free_bytes / GIB:.1f} free)"
        text = f"{device.name}, {device.memory_bytes / GIB:.1f} GiB{free}"
        if device.capability is not None:
            text += ", compute capability {}.{}".format(*device.capability)
        yield ReportLine("GPU", text)
    if not machine.devices:
        yield ReportLine("GPU", "none that torch sees: training runs on the CPU")
    if machine.driver is not None:
        text = f"{machine.driver}; torch has CUDA {machine.cuda}, NCCL {machine.nccl}"
        yield ReportLine("driver", text)
    present = {name: version for name, version in machine.versions.items() if version}
    yield ReportLine(
        "packages", ", ".join(f"{name} {version}" for name, version in present.items())
    )
    absent = [name for name in machine.versions if name not in present]
    yield ReportLine("without", ", ".join(absent) or "nothing")
    yield ReportLine("kernels", KERNELS[machine.kernels])
    package = "the flash-attn package" if "flash-attn" in present else "torch's own functions"
    yield ReportLine("attention", package)
    yield from describe_kernel_packages(machine)
    for folder in machine.folders:
        text = f"{folder.free_bytes / GIB:,.1f} GiB free for {folder.purpose}, {folder.path}"
        yield ReportLine("disk", text)


def describe_kernel_packages(machine: "Machine") -> Iterator[ReportLine]:
    """Installed packages whose kernels may serve a run, one line each."""
    from flame_accel.kernels.packages import HOPPER, KERNEL_PACKAGES

    hopper = any(device.capability == HOPPER for device in machine.devices)
    for package in KERNEL_PACKAGES:
        if machine.versions.get(package.distribution):
            used = (
                "used" if hopper and machine.kernels == "triton" else "is for Hopper GPUs, not used"
            )
            yield ReportLine("kernels", f"{package.distribution} {used} for {package.serves}")


def format_problem(problem: "DetectedProblem") -> ReportLine:
    """A problem as a line."""
    return ReportLine(
        "problem" if problem.blocks_training else "warning", problem.description, problem.remedy
    )


def summarize_which_fla_models_train(machine: "Machine") -> Iterator[ReportLine]:
    """Which of fla's models can train here, from what is known about them."""
    from flame_accel.diagnosis.conformance.known_issues import known_issue_reasons_by_law
    from flame_accel.diagnosis.trainability import find_training_problems
    from flame_accel.models.catalogue import fla_config_classes, tiny_config

    reasons: dict[tuple[str, str], list[str]] = {}
    working, leaking = [], []
    for model_type in sorted(fla_config_classes()):
        findings = find_training_problems(machine, tiny_config(model_type))
        blocking = [finding for finding in findings if finding.blocks_training]
        if not blocking:
            working.append(model_type)
        if "keeps documents apart" in known_issue_reasons_by_law(
            model_type, machine.conformance_device_of_kernels
        ):
            leaking.append(model_type)
        for finding in blocking:
            reasons.setdefault((finding.description, finding.remedy), []).append(model_type)
    yield ReportLine("ok", f"{len(working)} train here: {', '.join(working)}")
    for (description, remedy), models in reasons.items():
        yield ReportLine("warning", f"{', '.join(models)}: {description}", remedy)
    if leaking:
        yield ReportLine("but", f"without training.varlen: {', '.join(leaking)}")
    yield ReportLine(
        "more", "--model.config tries one out, python -m flame_accel models all of them"
    )


def report_model_problems_then_try_unless_blocked(
    machine: "Machine",
    arguments: argparse.Namespace,
    already_reported: Sequence["DetectedProblem"],
    report: Report,
) -> None:
    """Reports what is known about one model and, unless that rules it out, tries a small one.

    Args:
        machine: Facts about it.
        arguments: Arguments of the command.
        already_reported: Problems already shown.
        report: To print to.
    """
    from flame_accel.diagnosis.small_model_trial import count_config_parameters
    from flame_accel.diagnosis.trainability import find_training_problems
    from flame_accel.models import load_model_config, register_models

    register_models(arguments.custom)
    config = load_model_config(arguments.config, custom_modules=arguments.custom)
    parameters = count_config_parameters(config)
    findings = find_training_problems(machine, config, parameters)
    lines = [
        ReportLine("type", f"{config.model_type}, {parameters:,} parameters"),
        *(format_problem(finding) for finding in findings if finding not in already_reported),
    ]
    report.print_and_record_section(f"model {arguments.config}", lines)
    if not report.stopped:
        report.print_and_record_section(
            "trial of a small one", check_laws_and_kernels_of_small_model(config, machine)
        )


def check_laws_and_kernels_of_small_model(
    config: "PreTrainedConfig", machine: "Machine"
) -> Iterator[ReportLine]:
    """How a small version keeps the laws of models, and whether both kinds of kernels agree."""
    from flame_accel.diagnosis.conformance.laws import (
        TRIAL_LAWS,
        find_cpu_mixer_kernel_modules,
        run_law_checks,
    )
    from flame_accel.diagnosis.small_model_trial import (
        compare_triton_with_torch,
        count_config_parameters,
        install_kernels_without_tuning,
        shrink_layers_and_vocabulary_or_tiny_to_fit,
    )

    device = "cuda" if machine.platform in ("cuda", "hip") else "cpu"
    config = shrink_layers_and_vocabulary_or_tiny_to_fit(config, device)
    size = f"{config.num_hidden_layers} layers, width {config.hidden_size}"
    yield ReportLine("size", f"{size}, {count_config_parameters(config):,} parameters, on {device}")
    if machine.kernels == "triton":
        install_kernels_without_tuning("triton")
    for law, holds, reason, seconds in run_law_checks(config, device, TRIAL_LAWS):
        mark = "ok" if holds else "problem" if law == "trains" else "warning"
        text = f"{law} ({seconds:.1f} s)" if holds else f"{law}: no; {reason}"
        yield ReportLine(mark, text, "" if holds else REMEDIES[law])
    if device == "cpu":
        families = find_cpu_mixer_kernel_modules(config)
        yield ReportLine("kernels", ", ".join(families) or "the model's own PyTorch code")
    if machine.kernels == "triton":
        for comparison in compare_triton_with_torch(config, device):
            mark = "ok" if comparison.holds else "problem" if comparison.trains else "warning"
            text = (
                f"{comparison.quantity}: Triton and PyTorch kernels differ by "
                f"{comparison.error:.1e}, where {comparison.tolerance:.0e} is allowed"
            )
            yield ReportLine(
                mark, f"{comparison.quantity}: {comparison.reason}" if comparison.reason else text
            )
