"""Says what this machine has, which models train on it, with which kernels, and if not why not.

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

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from flame_accel.diagnosis.machine import Machine
    from flame_accel.diagnosis.problems import Finding

COLORS = {"ok": 32, "warning": 33, "problem": 31}
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


class Line(NamedTuple):
    """A line of the screen."""

    mark: str
    """A key of `COLORS`, or the name of a fact."""
    text: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments; those with a dot are the options of a run."""
    parser.add_argument(
        "--model.config", dest="config", metavar="NAME", help="the model to try out"
    )
    parser.add_argument(
        "--model.custom",
        dest="custom",
        action="append",
        default=[],
        metavar="NAME",
        help="package or path that registers the architecture",
    )
    parser.add_argument(
        "--model.kernels",
        dest="kernels",
        choices=("auto", "torch", "triton"),
        default="auto",
        help="as of a run",
    )
    parser.add_argument(
        "--job.dump_folder", dest="run_folder", default="exp", metavar="PATH", help="as of a run"
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON, for a bug report")


def run(arguments: argparse.Namespace) -> None:
    """Prints the sections; exit code 1 where a problem stops training."""
    warnings.simplefilter("ignore")
    from flame_accel import kernels
    from flame_accel.diagnosis.machine import cache_folders, look_at_machine
    from flame_accel.diagnosis.problems import find_problems

    folders = {"the run": arguments.run_folder, **cache_folders()}
    machine = look_at_machine(arguments.kernels, folders, free_memory=True)
    findings = find_problems(machine)
    screen = Screen(as_json=arguments.json)
    screen.show("machine", describe(machine), facts=asdict(machine))
    screen.show("known problems", map(to_line, findings))
    # where something is that wrong, fla may not even import
    if not screen.stopped:
        kernels.install(arguments.kernels)
        silence()
        if arguments.config is None:
            screen.show("models", examine_all(machine))
        else:
            examine_one(machine, arguments, findings, screen)
    screen.close()
    if screen.stopped:
        raise SystemExit(1)


def silence() -> None:
    """Keeps off the screen what fla and transformers say about fast paths and progress."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("fla").setLevel(logging.ERROR)


class Screen:
    """Prints sections as they come, or all of them as JSON in the end; remembers problems."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.document: dict[str, Any] = {}
        self.stopped = False
        self.colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def show(self, title: str, lines: Iterable[Line], facts: Any = None) -> None:
        """Shows a section; JSON has `facts` in place of its lines, where there are any."""
        shown = []
        self.print(title)
        for line in lines:
            shown.append(line)
            self.print(self.format(line))
        if not shown:
            self.print(self.format(Line("ok", "none")))
        self.stopped |= any(line.mark == "problem" for line in shown)
        self.document[title] = facts or [line._asdict() for line in shown]

    def format(self, line: Line) -> str:
        """The line, wrapped, its mark in color on a terminal, and the remedy below it."""
        mark = f"  {line.mark:<11}"
        if self.colored and line.mark in COLORS:
            mark = f"\033[{COLORS[line.mark]}m{mark}\033[0m"
        remedy = f"-> {line.remedy}" if line.remedy else ""
        rows = [row for text in (line.text, remedy) for row in ROWS.wrap(text)]
        return mark + f"\n{'':13}".join(rows)

    def print(self, text: str) -> None:
        """Prints at once, unless JSON was asked for."""
        if not self.as_json:
            print(text, flush=True)

    def close(self) -> None:
        """Prints the document, where JSON was asked for."""
        if self.as_json:
            print(json.dumps({**self.document, "trains": not self.stopped}, indent=2))


def describe(machine: "Machine") -> Iterator[Line]:
    """The facts, a line each."""
    yield Line("system", f"{machine.system}, Python {machine.python}")
    memory = f"{machine.memory_bytes / GIB:.1f} GiB"
    yield Line("processor", f"{machine.processor}, {machine.cores} cores, {memory}")
    for device in machine.devices:
        free = "" if device.free_bytes is None else f" ({device.free_bytes / GIB:.1f} free)"
        text = f"{device.name}, {device.memory_bytes / GIB:.1f} GiB{free}"
        if device.capability is not None:
            text += ", compute capability {}.{}".format(*device.capability)
        yield Line("GPU", text)
    if not machine.devices:
        yield Line("GPU", "none that torch sees: training runs on the CPU")
    if machine.driver is not None:
        text = f"{machine.driver}; torch has CUDA {machine.cuda}, NCCL {machine.nccl}"
        yield Line("driver", text)
    present = {name: version for name, version in machine.versions.items() if version}
    yield Line("packages", ", ".join(f"{name} {version}" for name, version in present.items()))
    absent = [name for name in machine.versions if name not in present]
    yield Line("without", ", ".join(absent) or "nothing")
    yield Line("kernels", KERNELS[machine.kernels])
    package = "the flash-attn package" if "flash-attn" in present else "torch's own functions"
    yield Line("attention", package)
    for folder in machine.folders:
        text = f"{folder.free_bytes / GIB:,.1f} GiB free for {folder.purpose}, {folder.path}"
        yield Line("disk", text)


def to_line(finding: "Finding") -> Line:
    """A finding as a line."""
    return Line("problem" if finding.stops else "warning", finding.happens, finding.remedy)


def examine_all(machine: "Machine") -> Iterator[Line]:
    """Which of fla's models train here, from what is known about them."""
    from flame_accel.diagnosis.conformance.known_issues import known_issues
    from flame_accel.diagnosis.fitness import examine_fitness
    from flame_accel.models.catalogue import registered_configs, tiny_config

    reasons: dict[tuple[str, str], list[str]] = {}
    working, leaking = [], []
    for model_type in sorted(registered_configs()):
        findings = examine_fitness(machine, tiny_config(model_type))
        stops = [finding for finding in findings if finding.stops]
        if not stops:
            working.append(model_type)
        if "keeps documents apart" in known_issues(model_type, machine.laws):
            leaking.append(model_type)
        for finding in stops:
            reasons.setdefault((finding.happens, finding.remedy), []).append(model_type)
    yield Line("ok", f"{len(working)} train here: {', '.join(working)}")
    for (happens, remedy), models in reasons.items():
        yield Line("warning", f"{', '.join(models)}: {happens}", remedy)
    if leaking:
        yield Line("but", f"without training.varlen: {', '.join(leaking)}")
    yield Line("more", "--model.config tries one out, python -m flame_accel models all of them")


def examine_one(
    machine: "Machine", arguments: argparse.Namespace, told: Sequence["Finding"], screen: Screen
) -> None:
    """What is known about one model, and if nothing stands against it, how a small one fares."""
    from flame_accel.diagnosis.fitness import examine_fitness
    from flame_accel.diagnosis.numerics import count
    from flame_accel.models import load_model_config, register_models

    register_models(arguments.custom)
    config = load_model_config(arguments.config, custom=arguments.custom)
    parameters = count(config)
    findings = examine_fitness(machine, config, parameters)
    lines = [
        Line("type", f"{config.model_type}, {parameters:,} parameters"),
        *(to_line(finding) for finding in findings if finding not in told),
    ]
    screen.show(f"model {arguments.config}", lines)
    if not screen.stopped:
        screen.show("trial of a small one", try_out(config, machine))


def try_out(config: "PreTrainedConfig", machine: "Machine") -> Iterator[Line]:
    """How a small version keeps the laws of models, and whether both kinds of kernels agree."""
    from flame_accel.diagnosis.conformance.laws import examine, mixer_families
    from flame_accel.diagnosis.numerics import compare_kernels, count, install_untuned, shrink

    device = "cuda" if machine.platform in ("cuda", "hip") else "cpu"
    config = shrink(config, device)
    size = f"{config.num_hidden_layers} layers, width {config.hidden_size}"
    yield Line("size", f"{size}, {count(config):,} parameters, on {device}")
    if machine.kernels == "triton":
        install_untuned("triton")
    for law, holds, reason, seconds in examine(config, device):
        mark = "ok" if holds else "problem" if law == "trains" else "warning"
        text = f"{law} ({seconds:.1f} s)" if holds else f"{law}: no; {reason}"
        yield Line(mark, text, "" if holds else REMEDIES[law])
    if device == "cpu":
        families = mixer_families(config)
        yield Line("kernels", ", ".join(families) or "the model's own PyTorch code")
    if machine.kernels == "triton":
        for comparison in compare_kernels(config, device):
            mark = "ok" if comparison.holds else "problem" if comparison.trains else "warning"
            text = (
                f"{comparison.what}: Triton and PyTorch kernels differ by {comparison.error:.1e}, "
                f"where {comparison.tolerance:.0e} is allowed"
            )
            yield Line(
                mark, f"{comparison.what}: {comparison.reason}" if comparison.reason else text
            )
