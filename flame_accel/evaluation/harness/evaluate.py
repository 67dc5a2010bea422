"""lm-eval's tasks on a model of transformers: loads the model and asks lm-eval for the results.

What the tasks are is found in `tasks`; the results become records in `results`.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string

from flame_accel import kernels
from flame_accel.config.errors import UsageError
from flame_accel.evaluation.harness.tasks import LoadedTasks

TRANSFORMERS_MODEL: Any = HFLM
"""Registering it hides from type checkers which class it is."""


class DataParallelModel(TRANSFORMERS_MODEL):
    """lm-eval's model of transformers; every process of a launch answers a share of the requests.

    lm-eval by itself does so only where a machine has several GPUs, and counts processes within a
    machine: on a CPU each process would answer everything, and of several machines all would answer
    the same share.

    Args:
        arguments: Those of `HFLM`, `pretrained` a name or folder among them.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:
            self._device = accelerator.device
            self._rank = accelerator.process_index
            self._world_size = accelerator.num_processes


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArguments:
    """A model and how it is loaded."""

    name: str
    """A folder or a name on the Hub."""
    revision: str | None
    is_checkpoint: bool
    """Whether it is a checkpoint of a run, whose weights are stored in float32."""
    dtype: str | None
    """None: as the weights are stored; of a checkpoint on a GPU bfloat16."""
    device: str | None
    """None: a GPU if there is one."""
    batch_size: str | None
    """A number or "auto"; None: "auto" on a GPU, else 1."""
    max_batch_size: int | None
    longest_prompt: int | None
    """Tokens of the longest prompt, where the tasks say so; longer ones are cut at the front."""
    trust_remote_code: bool
    others: str
    """Further arguments of `HFLM`, as KEY=VALUE,KEY=VALUE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSettings:
    """How tasks are evaluated, with the names of `lm_eval.simple_evaluate`."""

    num_fewshot: int | None
    limit: float | None
    gen_kwargs: str | None
    apply_chat_template: bool | str
    system_instruction: str | None
    fewshot_as_multiturn: bool
    use_cache: str | None
    log_samples: bool
    confirm_run_unsafe_code: bool
    seeds: tuple[int, int, int, int]
    """Of Python, NumPy, torch and the choice of examples."""

    def set_seeds(self) -> None:
        """Sets those that making a task's data may draw from."""
        random.seed(self.seeds[0])
        np.random.seed(self.seeds[1])
        torch.manual_seed(self.seeds[2])


def load_harness_model(arguments: ModelArguments) -> DataParallelModel:
    """Loads a model for lm-eval; architectures that are not transformers' have to be registered.

    Raises:
        UsageError: An argument is wrong.
        OSError, ValueError, KeyError, RuntimeError: transformers cannot load it.
    """
    where = f"--model_args {arguments.others}"
    if any("=" not in part for part in arguments.others.split(",") if arguments.others):
        raise UsageError("is not KEY=VALUE,KEY=VALUE", where=where, remedy="write it in this way")
    others = simple_parse_args_string(arguments.others)
    on_gpu = (arguments.device or "cuda") != "cpu" and torch.cuda.is_available()
    options: dict[str, Any] = {
        "pretrained": arguments.name,
        "revision": arguments.revision or "main",
        "dtype": arguments.dtype or ("bfloat16" if arguments.is_checkpoint and on_gpu else "auto"),
        "device": arguments.device or ("cuda" if on_gpu else "cpu"),
        "batch_size": arguments.batch_size or ("auto" if on_gpu else "1"),
        "trust_remote_code": arguments.trust_remote_code,
    }
    if arguments.max_batch_size is not None:
        options["max_batch_size"] = arguments.max_batch_size
    if clashing := options.keys() & others.keys():
        raise UsageError(
            f"{', '.join(sorted(clashing))}: has an argument of its own",
            where=where,
            remedy="use that: MODEL, MODEL@REVISION, --dtype, --device, --batch_size, "
            "--trust_remote_code",
        )
    try:
        model = DataParallelModel(**options, **others)
    except TypeError as error:
        raise UsageError(
            f"an argument is not known: {error}", where=where, remedy="`lm_eval run -h` explains it"
        ) from error
    longest = arguments.longest_prompt
    if longest is not None and "max_length" not in others and longest > model.max_length:
        # the fields of a config say how far it was trained; what was to be found would be cut off
        model._max_length = longest
        if model.rank == 0:
            print(f"max_length={longest}, as the longest prompt; --model_args max_length=N wins")
    return model


def evaluate_tasks(
    model: DataParallelModel, tasks: LoadedTasks, settings: TaskSettings
) -> dict[str, Any] | None:
    """What `lm_eval.simple_evaluate` returns; None on all processes but the first.

    Its entries `samples` (by task) and `chat_template` are None where there are none.
    """
    # groups are allowed as well
    items: Any = tasks.items
    # it asks git for the commit of the working folder, which is none of the model or its code
    evaluator.get_git_commit_hash = lambda: None
    # kernels would take longer to tune, for ever new lengths, than to run
    with kernels.disable_tuning_then_forget_choices_made():
        results = evaluator.simple_evaluate(
            model=model,
            model_args={"pretrained": str(model.pretrained)},
            tasks=items,
            task_manager=tasks.manager,
            num_fewshot=settings.num_fewshot,
            batch_size=model.batch_size,
            device=str(model.device),
            use_cache=settings.use_cache,
            limit=settings.limit,
            log_samples=settings.log_samples,
            system_instruction=settings.system_instruction,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.fewshot_as_multiturn,
            gen_kwargs=settings.gen_kwargs,
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            random_seed=settings.seeds[0],
            numpy_random_seed=settings.seeds[1],
            torch_random_seed=settings.seeds[2],
            fewshot_random_seed=settings.seeds[3],
        )
    if results is None:
        return None
    template = settings.apply_chat_template
    return {
        "samples": None,
        **results,
        "chat_template": model.chat_template(template) if template else None,
        "system_instruction": settings.system_instruction,
    }
