"""Starts a training run on this machine: checks its options, then calls `accelerate launch`.

    flame-accel train                                  the quickstart
    flame-accel train --job.config_file run.toml ...   a run of your own; flags override the file
    flame-accel train -h                               the common options; -h all shows every one

All arguments are options of the run. Environment variables say how it is launched: NGPU (processes
on this machine; its GPUs unless given, else 1), NNODE, NODE_RANK, MASTER_ADDR, MASTER_PORT, and
ACCELERATE_CONFIG (a launch preset such as fsdp2, or a file). `train.sh` calls this command. What
each launched process does is in `train_process`.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flame_accel.config import UsageError, parse_or_exit
from flame_accel.cpu_cores import count_cores_in_affinity_mask
from flame_accel.presets import (
    ACCELERATE,
    existing_else_preset_path_or_unchanged,
    preset_names,
    suggest_presets,
)
from flame_accel.stop_signals import forward_stop_signals_to_ranks

QUICKSTART = ("--job.config_file", "quickstart")
"""Options that a run starts from if it names neither a run file nor a model."""
SCRIPT = Path(__file__).parents[1] / "train_process.py"
"""What `accelerate launch` runs in every process."""
ENGINE_PINS = Path(__file__).parents[2] / "requirements-engines.txt"
"""Tested versions of DeepSpeed and torchao; only a checkout has the file."""
DEFAULT_PORT = "29500"
"""Port of machine 0 on which the others find it, if MASTER_PORT is not given."""
LAUNCHED_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)
"""A launcher gives the processes of a run their own; here they may be left over from another."""
# threads that wait by spinning for long starve on a shared core (a tenth of the speed was measured)
SHORT_SPIN = "1000"


class AccelerateLaunch(NamedTuple):
    """How a run is launched."""

    flags: list[str]
    """Flags of `accelerate launch`."""
    environment: dict[str, str]
    """Variables to set for the processes of the run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares no argument: all of them are options of a run."""
    parser.set_defaults(run_options=[])


def run(arguments: argparse.Namespace) -> None:
    """Launches the run and ends this process with the exit code of the run."""
    environment = dict(os.environ)
    for name in LAUNCHED_VARIABLES:
        os.environ.pop(name, None)
    options = prepend_quickstart_unless_model_or_file_given(arguments.run_options)
    # wrong options end here, with exit code 2 and before torch is imported
    parse_or_exit(options)
    plan = resolve_accelerate_launch(
        environment,
        num_gpus=count_visible_gpus(environment),
        num_cores=count_cores_in_affinity_mask(),
    )
    os.environ.update(plan.environment)
    raise SystemExit(run_accelerate_launch_in_this_process(plan, options))


def prepend_quickstart_unless_model_or_file_given(options: Sequence[str]) -> list[str]:
    """The options of a run, on top of the quickstart unless they name a run file or a model.

    Weights to start from name a model too: they bring their config.
    """
    names = {option.partition("=")[0].replace("-", "_") for option in options}
    models = {"__model.config", "__checkpoint.initial_load_path"}
    if names & {"_h", "__help", "__job.config_file", *models}:
        return list(options)
    return [*QUICKSTART, *options]


def count_visible_gpus(environment: Mapping[str, str]) -> int:
    """Number of GPUs that the run may use: those that CUDA_VISIBLE_DEVICES names, else all."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        # CUDA ignores what follows an invalid device
        return (devices.index("-1") if "-1" in devices else len(devices)) - devices.count("")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def resolve_accelerate_launch(
    environment: Mapping[str, str], *, num_gpus: int, num_cores: int
) -> AccelerateLaunch:
    """Decides how to launch a run.

    Args:
        environment: Variables of the caller, NGPU and ACCELERATE_CONFIG among them.
        num_gpus: GPUs of this machine that the run may use.
        num_cores: CPU cores of this machine that the run may use.

    Raises:
        UserError: A variable has a wrong value, or they contradict each other or the machine.
    """
    local_processes = _read_positive_integer(environment, "NGPU", default=max(num_gpus, 1))
    machines = _read_positive_integer(environment, "NNODE", default=1)
    processes = local_processes * machines
    _check_not_one_of_several_processes(environment, machines)
    config = _resolve_launch_preset_or_file(
        environment.get("ACCELERATE_CONFIG"), processes, num_gpus
    )
    _check_several_processes_allowed_and_deepspeed_installed(config, processes)
    flags = [
        *("--config_file", str(config)),
        *("--num_processes", str(processes), "--num_machines", str(machines)),
        # NODE_RANK says who waits for the others; c10d would guess it from host names
        *("--machine_rank", str(_read_node_rank_or_zero_if_unset(environment, machines))),
        *("--rdzv_backend", "static"),
        *_main_process_address_flags(environment, machines),
    ]
    variables = {"TOKENIZERS_PARALLELISM": "false"}
    if num_gpus == 0:
        # bf16 is slower than fp32 on many CPUs; the launcher would give every process one thread
        flags += ["--mixed_precision", "no"]
        variables["OMP_NUM_THREADS"] = str(max(num_cores // local_processes, 1))
        variables["GOMP_SPINCOUNT"] = SHORT_SPIN
    given = {name: environment[name] for name in variables if environment.get(name)}
    return AccelerateLaunch(flags, variables | given)


def run_accelerate_launch_in_this_process(plan: AccelerateLaunch, options: Sequence[str]) -> int:
    """Runs `accelerate launch` within this process until the run ends; returns its exit code.

    A process that a signal ended counts as 128 + the number of the signal, as in a shell.
    """
    forward_stop_signals_to_ranks(str(SCRIPT))
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args([*plan.flags, str(SCRIPT), *options])
    # torchrun would give the ranks 30 s and kill them; they end by themselves, after a save
    arguments.signals_to_handle = "SIGQUIT"
    # the run has said what went wrong; the launcher's own traceback would bury it
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _print_signal_and_get_exit_code("the run", error.returncode)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _print_signal_and_get_exit_code(f"rank {rank}", failure.exitcode)
    except ValueError as error:
        raise UsageError(
            f"accelerate launch refuses it: {error}",
            where=f"ACCELERATE_CONFIG = {plan.flags[1]}",
            remedy="correct the launch file, or name a launch preset such as ddp",
        ) from error
    except SignalException as error:
        return 128 + error.sigval
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _read_positive_integer(environment: Mapping[str, str], variable: str, *, default: int) -> int:
    """A variable that counts something; an empty one is as one that is not set."""
    text = environment.get(variable) or str(default)
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(
            f'"{text}" is not a positive integer',
            where=variable,
            remedy=f"give a number, such as {variable}=2, or unset it",
        )
    return int(text)


def _check_not_one_of_several_processes(environment: Mapping[str, str], machines: int) -> None:
    """Each of several processes that are started as ranks would train the whole run by itself."""
    world_size = environment.get("WORLD_SIZE") or "1"
    if machines == 1 and world_size != "1":
        raise UsageError(
            f"says that this is one of {world_size} processes, but NNODE is not set",
            where=f"WORLD_SIZE = {world_size}",
            remedy="this command starts the processes of a machine itself: unset WORLD_SIZE, or "
            "give NNODE and NODE_RANK on every machine",
        )


def _read_node_rank_or_zero_if_unset(environment: Mapping[str, str], machines: int) -> int:
    """The number of this machine, from 0."""
    text = environment.get("NODE_RANK") or "0"
    if not text.isdecimal() or int(text) >= machines:
        raise UsageError(
            f'"{text}" is not the number of one of {machines} machines, counted from 0',
            where="NODE_RANK",
            remedy=f"give a number from 0 to {machines - 1}; NNODE is the number of machines",
        )
    return int(text)


def _read_port(environment: Mapping[str, str]) -> str | None:
    """MASTER_PORT, or None if it is not set."""
    text = environment.get("MASTER_PORT") or None
    if text is not None and (not text.isdecimal() or not 0 < int(text) < 2**16):
        raise UsageError(
            f'"{text}" is not a port',
            where="MASTER_PORT",
            remedy="give a number from 1 to 65535, the same on all machines, or unset it",
        )
    return text


def _resolve_launch_preset_or_file(
    preset_or_file: str | None, processes: int, num_gpus: int
) -> Path:
    """The file for `accelerate launch`: as asked for, or the preset that fits the machine."""
    fitting = "ddp" if processes > 1 else "single" if num_gpus else "cpu"
    path = Path(existing_else_preset_path_or_unchanged(ACCELERATE, preset_or_file or fitting))
    if not path.is_file():
        raise UsageError(
            f'"{preset_or_file}" is neither a file nor a launch preset',
            where="ACCELERATE_CONFIG",
            remedy=f"{suggest_presets(ACCELERATE, preset_or_file or '')} "
            f"Launch presets are {', '.join(preset_names(ACCELERATE))}.",
        )
    return path


def _check_several_processes_allowed_and_deepspeed_installed(
    launch_file: Path, num_processes: int
) -> None:
    """Raises `UserError` if the file cannot launch that many processes, or not on this machine."""
    engine = str(_read_launch_file(launch_file).get("distributed_type"))
    # an unquoted NO is false in YAML
    if engine in ("NO", "False") and num_processes > 1:
        raise UsageError(
            f"{launch_file} starts one process, NGPU and NNODE ask for {num_processes}",
            where="ACCELERATE_CONFIG",
            remedy="use ddp or fsdp2",
        )
    if engine == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        wanted = f"--requirement {ENGINE_PINS}" if ENGINE_PINS.is_file() else "deepspeed"
        raise UsageError(
            f"{launch_file} asks for DeepSpeed, which is not installed",
            where="ACCELERATE_CONFIG",
            remedy=f"install it: {sys.executable} -m pip install --use-pep517 {wanted}",
        )


def _read_launch_file(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = f"{path} cannot be read: {error}"
    else:
        if isinstance(content, dict):
            return content
        what = f"{path} is not a mapping of keys to values"
    remedy = "name a YAML file for accelerate launch, such as those of `accelerate config`"
    raise UsageError(what, where="ACCELERATE_CONFIG", remedy=remedy)


def _main_process_address_flags(environment: Mapping[str, str], machines: int) -> list[str]:
    """Where the processes of a run find each other."""
    port = _read_port(environment)
    if machines == 1:
        return ["--main_process_port", port] if port else []
    address = environment.get("MASTER_ADDR")
    if not address:
        raise UsageError(
            f"is not set, but NNODE = {machines} machines have to find each other",
            where="MASTER_ADDR",
            remedy="give the address of machine 0, the same on all of them",
        )
    return ["--main_process_ip", address, "--main_process_port", port or DEFAULT_PORT]


def _print_signal_and_get_exit_code(process_name: str, return_code: int) -> int:
    """An exit code as a shell gives it; a process that a signal ended had no last words."""
    if return_code >= 0:
        return return_code
    print(f"{process_name} was ended by {signal.Signals(-return_code).name}", file=sys.stderr)
    return 128 - return_code
