"""The tasks that are asked for: found by name or file, with their data, or an error that says why.

Tasks and groups are those of lm-eval (an optional package), of the folder `groups` and the user's
own. They are loaded before the model, so that a mistake is answered at once. What runs them is in
`model`, what becomes of their results in `results`.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from flame_accel.config import UserError
from flame_accel.config.errors import UsageError
from flame_accel.hub_lookup import offline_unless_hub_reachable

GROUPS_FOLDER = Path(__file__).parent / "groups"
RULER_PREFIXES = ("niah_", "ruler_")
RULER_DEFAULT_LENGTH = 4096
"""Tokens of a prompt of RULER, unless the metadata say otherwise."""
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""With one of them nobody asks the Hub."""
NETWORK_ERRORS = ("Offline", "Connect", "Timeout", "LocalEntryNotFound", "ProxyError")
"""In names of exceptions: the data is not on this machine, and nobody was there to ask for it."""


class LoadedTasks(NamedTuple):
    """Tasks with their data."""

    manager: TaskManager
    items: list[Task | Group]
    """No task is in two of them."""

    def list_tasks(self) -> list[Task]:
        """All tasks, those of groups included."""
        return [task for item in self.items for task in list_tasks_of(item)]

    def list_groups(self) -> list[Group]:
        """All groups, those in groups included."""
        groups = [item for item in self.items if isinstance(item, Group)]
        return [each for group in groups for each in (group, *group.get_all_groups())]


def load_tasks(
    names: Sequence[str], *, include_paths: Sequence[Path], metadata: Mapping[str, Any]
) -> LoadedTasks:
    """Loads tasks with their data.

    Args:
        names: Of tasks, groups or tags, with * for any characters, or paths of YAML files.
        include_paths: Folders with YAML files of further tasks; of one name they win.
        metadata: Given to tasks that ask for it, such as those of RULER.

    Raises:
        UserError: There is no such task, its data is not here, or a group is empty.
    """
    manager = _open_task_manager(names, include_paths, metadata)
    found = {name: _match_file_or_registered_names(manager, name) for name in names}
    unknown = [name for name, matches in found.items() if not matches]
    if unknown:
        raise _make_unknown_tasks_error(manager, unknown, include_paths)
    with offline_unless_hub_reachable():
        items = _load_each(manager, [match for matches in found.values() for match in matches])
    tasks = LoadedTasks(manager, _drop_tasks_that_are_in_a_group(items))
    _check_every_group_has_tasks(tasks)
    return tasks


def check_unsafe_code_is_confirmed(tasks: LoadedTasks) -> None:
    """Refuses tasks that run what the model writes, unless the user has agreed to it.

    Raises:
        UsageError: There is such a task.
    """
    unsafe = [task.task_name for task in tasks.list_tasks() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe:
        raise UsageError(
            "these tasks run code that the model writes, on this machine",
            where=f"--tasks {','.join(unsafe)}",
            remedy="--confirm_run_unsafe_code allows it; a container is the place for that",
        )


def list_tasks_of(item: Task | Group) -> list[Task]:
    """The tasks of a group, or the task itself."""
    return item.get_all_tasks() if isinstance(item, Group) else [item]


def find_longest_ruler_prompt(tasks: LoadedTasks, metadata: Mapping[str, Any]) -> int | None:
    """Tokens of the longest prompt of RULER with its answer; None without such a task."""
    if not any(task.task_name.startswith(RULER_PREFIXES) for task in tasks.list_tasks()):
        return None
    return max(metadata.get("max_seq_lengths", [RULER_DEFAULT_LENGTH]))


def _open_task_manager(
    names: Sequence[str], include_paths: Sequence[Path], metadata: Mapping[str, Any]
) -> TaskManager:
    """Knows the tasks of these names; those of lm-eval, some 15,000 files, only if need be."""

    def open_with(include_path: Sequence[Path], include_defaults: bool) -> TaskManager:
        return TaskManager(
            include_path=[*include_path],
            include_defaults=include_defaults,
            metadata=dict(metadata),
        )

    own = open_with(include_paths, include_defaults=False)
    if all({*_list_member_names(own, name)} <= {*own.all_subtasks} for name in names):
        return own
    return open_with([GROUPS_FOLDER, *include_paths], include_defaults=True)


def _load_each(manager: TaskManager, names: Sequence[str]) -> list[Task | Group]:
    """The tasks and groups of these names, groups in groups left out.

    Raises:
        UserError: One cannot be loaded.
    """
    items: list[Task | Group] = []
    for name in dict.fromkeys(names):
        try:
            loaded = manager.load([name])
        # the data and code of others: whatever is wrong there, nothing can be evaluated
        except Exception as error:
            raise _make_load_error(manager, name, error) from error
        groups = loaded.get("groups", {}).values()
        inner = {child for group in groups for child in group.child_names}
        items += [group for group in groups if group.name not in inner]
        items += [task for task in loaded["tasks"].values() if task.task_name not in inner]
    return items


def _match_file_or_registered_names(manager: TaskManager, name: str) -> list[str]:
    if name.endswith((".yaml", ".yml")):
        return [name] if Path(name).expanduser().is_file() else []
    return manager.match_tasks([name])


def _make_unknown_tasks_error(
    manager: TaskManager, unknown: Sequence[str], include_paths: Sequence[Path]
) -> UserError:
    near = [
        match
        for name in unknown
        for match in difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
    ]
    remedy = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
    remedy += "`lm_eval ls tasks` lists lm-eval's, --include_path FOLDER adds your own"
    broken = [
        f"{path}: {problem}"
        for folder in include_paths
        for path in sorted(folder.rglob("*.yaml"))
        if (problem := _find_yaml_problem(path)) is not None
    ]
    if broken:
        remedy += f". Not read: {'; '.join(broken)}"
    kind = (
        "no such file or task"
        if any(n.endswith((".yaml", ".yml")) for n in unknown)
        else ("no such task")
    )
    return UsageError(kind, where=f"--tasks {','.join(unknown)}", remedy=remedy)


def _find_yaml_problem(path: Path) -> str | None:
    """Why a file defines no task; None if it may."""

    class Loader(yaml.SafeLoader):
        """Reads tags such as !function, too."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: suffix)
    try:
        content = yaml.load(path.read_bytes(), Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        return " ".join(str(error).split())
    named = isinstance(content, dict) and {"task", "group", "include"} & content.keys()
    return None if named else "it has neither `task` nor `group`"


def _make_load_error(manager: TaskManager, name: str, error: Exception) -> UserError:
    """Names every task of a group that cannot be loaded, and why."""
    failures = {name: error}
    members = _list_member_names(manager, name)
    if members != [name]:
        failures = {}
        for member in members:
            try:
                manager.load([member])
            except Exception as reason:
                failures[member] = reason
    tasks_by_reason: dict[str, list[str]] = {}
    for task, reason in failures.items():
        tasks_by_reason.setdefault(_describe_failure(reason), []).append(task)
    lines = [f"\n      {', '.join(tasks)}: {why}" for why, tasks in tasks_by_reason.items()]
    reasons = [e for each in failures.values() for e in _list_causes(each)]
    if any(isinstance(e, ImportError) for e in reasons):
        remedy = 'install it; lm-eval has extras for some tasks: pip install "lm-eval[ruler]"'
    elif any(mark in type(e).__name__ for e in reasons for mark in NETWORK_ERRORS):
        forbidding = [name for name in OFFLINE_VARIABLES if os.environ.get(name)]
        instead = f"unset {' and '.join(forbidding)}" if forbidding else "check it"
        remedy = (
            f"this needs a network once: {instead}, or run it on a machine with one "
            "and take along its cache of datasets (HF_HOME)"
        )
    else:
        remedy = "check the YAML file of the task and its data, or leave the task out"
    left = ", ".join(member for member in members if member not in failures)
    if left and failures:
        remedy += f". What can be evaluated here: --tasks {left.replace(' ', '')}"
    return UserError(
        f"cannot be loaded:{''.join(lines) or f' {_describe_failure(error)}'}",
        where=f"--tasks {name}",
        remedy=remedy,
    )


def _list_member_names(manager: TaskManager, name: str) -> list[str]:
    """The tasks that a group or tag stands for; a task is its own, and so is an unknown name."""
    entry = manager.task_index.get(name)
    if entry is None or entry.kind.name not in ("GROUP", "TAG"):
        return [name]
    listed = [*((entry.cfg or {}).get("task") or [])]
    children = sorted(entry.tags) if entry.kind.name == "TAG" else listed
    names = [
        child if isinstance(child, str) else str(child.get("task") or child.get("group"))
        for child in children
    ]
    return [leaf for child in names for leaf in _list_member_names(manager, child)]


def _list_causes(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _describe_failure(error: Exception) -> str:
    """The error and, where it only says that there is one, what caused it."""
    described = []
    for each in (error, error.__cause__):
        if each is not None:
            lines = str(each).strip().splitlines()
            described.append(f"{type(each).__name__}: {lines[0]}" if lines else type(each).__name__)
    return ", by ".join(described)


def _drop_tasks_that_are_in_a_group(items: Sequence[Task | Group]) -> list[Task | Group]:
    """Leaves out tasks that a group brings along; lm-eval takes each task once.

    Raises:
        UsageError: Two groups share a task.
    """
    owners: dict[str, str] = {}
    groups = [item for item in items if isinstance(item, Group)]
    for group in groups:
        for task in group.get_all_tasks():
            owner = owners.setdefault(task.task_name, group.name)
            if owner != group.name:
                raise UsageError(
                    f"the groups {owner} and {group.name} both hold {task.task_name}",
                    where="--tasks",
                    remedy="evaluate them one after the other: the records of a run add up",
                )
    alone = {item.task_name: item for item in items if not isinstance(item, Group)}
    return [
        *groups,
        *(task for name, task in alone.items() if name not in owners),
    ]


def _check_every_group_has_tasks(tasks: LoadedTasks) -> None:
    for group in tasks.list_groups():
        if not group.get_all_tasks():
            raise UsageError(
                "the group holds no task",
                where=f"--tasks {group.name}",
                remedy="name its tasks in its YAML file, in the list `task`",
            )
