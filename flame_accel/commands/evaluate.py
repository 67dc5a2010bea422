"""Evaluates a model with tasks of lm-evaluation-harness: benchmarks, RULER, or your own.

The arguments have the names and meanings that they have in `lm_eval`. The tasks are loaded in
`evaluation.harness`; where the results go is decided in `evaluation_outputs`.
"""

import argparse
import importlib.util
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flame_accel.commands.arguments import add_custom_modules_argument, argparse_integer_at_least
from flame_accel.commands.export import DTYPES
from flame_accel.commands.loaded_model import (
    MODEL_KINDS,
    ModelSource,
    check_any_gpu_exists_if_cuda_asked,
    explain_load_errors,
    find_model,
    has_no_chat_template,
    has_no_tokenizer,
)
from flame_accel.config import UserError
from flame_accel.config.errors import UsageError
from flame_accel.hub.uploaded_files import checksum_of_model_files, has_checkpoint_manifest
from flame_accel.json_text import parse_json_text

INSTALL_COMMAND = 'pip install "lm-eval[ruler]>=0.4.13"'
SEEDS = (0, 1234, 1234, 1234)
"""lm-eval's: of Python, NumPy, torch and the choice of examples."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", help=MODEL_KINDS)
    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="tasks or groups of lm-eval, YAML files, or zero_shot, recall, ruler, single_needle; "
        "separated by commas or spaces",
    )
    parser.add_argument(
        "--include_path",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder with YAML files of your own tasks; may be repeated",
    )
    parser.add_argument(
        "--num_fewshot", type=argparse_integer_at_least(0), metavar="N", help="examples in a prompt"
    )
    parser.add_argument(
        "--batch_size", metavar="N|auto", help="per process (auto on a GPU, else 1)"
    )
    parser.add_argument("--max_batch_size", type=argparse_integer_at_least(1), metavar="N")
    parser.add_argument(
        "--limit", type=float, metavar="N", help="examples of each task, or a share below 1: a try"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        help="of the weights (as they are stored; of a checkpoint on a GPU bfloat16)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU if there is one)")
    parser.add_argument(
        "--model_args",
        default="",
        metavar="KEY=VALUE,...",
        help="further arguments of lm-eval's model, such as max_length=8192",
    )
    parser.add_argument("--gen_kwargs", metavar="KEY=VALUE,...", help="of generated answers")
    parser.add_argument(
        "--apply_chat_template",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="give prompts as messages",
    )
    parser.add_argument("--system_instruction", metavar="TEXT", help="first message of each prompt")
    parser.add_argument(
        "--fewshot_as_multiturn", action="store_true", help="examples as messages of their own"
    )
    parser.add_argument(
        "--metadata", metavar="JSON", help="""for tasks, such as '{"max_seq_lengths": [1024]}'"""
    )
    parser.add_argument("--seed", type=int, metavar="N", help="one for all (0, 1234, 1234, 1234)")
    parser.add_argument(
        "--use_cache",
        metavar="FILE",
        help="keep answers, to resume after a stop; each model has its own",
    )
    parser.add_argument(
        "--output_path",
        type=Path,
        metavar="FOLDER",
        help="for the files with all results (lm_eval in the run folder)",
    )
    parser.add_argument(
        "--log_samples", action="store_true", help="also keep every prompt and answer"
    )
    parser.add_argument(
        "--confirm_run_unsafe_code", action="store_true", help="run code that the model writes"
    )
    add_custom_modules_argument(parser)
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the model"
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluates, prints the results and keeps them."""
    names = [name for word in arguments.tasks for name in word.split(",") if name]
    task_metadata = _check_arguments_and_parse_metadata(arguments, names)
    source = find_model(arguments.model)
    _check_tokenizer_and_chat_template(arguments, source)
    check_any_gpu_exists_if_cuda_asked(arguments.device)
    # what lm-eval logs at each start concerns no user; the variable is its own
    logging.getLogger("lm_eval").setLevel(os.environ.get("LMEVAL_LOG_LEVEL", "ERROR"))

    from flame_accel.commands.evaluation_outputs import choose_outputs, print_and_keep_results
    from flame_accel.evaluation.harness.evaluate import (
        ModelArguments,
        TaskSettings,
        evaluate_tasks,
        load_harness_model,
    )
    from flame_accel.evaluation.harness.tasks import (
        check_unsafe_code_is_confirmed,
        find_longest_ruler_prompt,
        load_tasks,
    )
    from flame_accel.models import register_models

    outputs = choose_outputs(source.name, arguments.output_path)
    settings = TaskSettings(
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        gen_kwargs=arguments.gen_kwargs,
        apply_chat_template=arguments.apply_chat_template,
        system_instruction=arguments.system_instruction,
        fewshot_as_multiturn=arguments.fewshot_as_multiturn,
        use_cache=_name_answer_cache_of_model(arguments.use_cache, source),
        log_samples=arguments.log_samples,
        confirm_run_unsafe_code=arguments.confirm_run_unsafe_code,
        seeds=SEEDS if arguments.seed is None else (arguments.seed,) * len(SEEDS),
    )
    settings.set_seeds()
    metadata = {"pretrained": source.name, **task_metadata}
    tasks = load_tasks(names, include_paths=arguments.include_path, metadata=metadata)
    if not arguments.confirm_run_unsafe_code:
        check_unsafe_code_is_confirmed(tasks)
    register_models(arguments.custom)
    with explain_load_errors(source):
        model = load_harness_model(
            ModelArguments(
                name=source.name,
                revision=source.revision,
                is_checkpoint=has_checkpoint_manifest(Path(source.name)),
                dtype=arguments.dtype,
                device=arguments.device,
                batch_size=arguments.batch_size,
                max_batch_size=arguments.max_batch_size,
                longest_prompt=find_longest_ruler_prompt(tasks, metadata),
                trust_remote_code=arguments.trust_remote_code,
                others=arguments.model_args,
            )
        )
    results = evaluate_tasks(model, tasks, settings)
    # one process of a launch has all results
    if results is not None:
        print_and_keep_results(results, tasks, outputs)


def _check_arguments_and_parse_metadata(
    arguments: argparse.Namespace, names: Sequence[str]
) -> dict[str, Any]:
    """Answers what is wrong before anything is imported; returns --metadata.

    Raises:
        UsageError: Something is.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "it needs the package lm-eval (lm-evaluation-harness), which is not installed",
            where="flame-accel evaluate",
            remedy=f"install it: {INSTALL_COMMAND}",
        )
    if not names:
        raise UsageError("names no task", where="--tasks", remedy="give one, such as zero_shot")
    for folder in arguments.include_path:
        if not folder.is_dir():
            raise UsageError(
                "no such folder",
                where=f"--include_path {folder}",
                remedy="name the folder that holds the YAML files of your tasks",
            )
    if arguments.limit is not None and not 0 < arguments.limit < float("inf"):
        raise UsageError(
            "must be above 0",
            where=f"--limit {arguments.limit:g}",
            remedy="give a number of examples, or a share of them below 1",
        )
    size = arguments.batch_size
    if size is not None and re.fullmatch(r"[1-9]\d*|auto(:\d+)?", size) is None:
        raise UsageError(
            "is neither a number nor auto", where=f"--batch_size {size}", remedy="give such a value"
        )
    if arguments.fewshot_as_multiturn and not arguments.apply_chat_template:
        raise UsageError(
            "needs --apply_chat_template", where="--fewshot_as_multiturn", remedy="give both"
        )
    if arguments.metadata is None:
        return {}
    try:
        metadata = parse_json_text(arguments.metadata)
    except ValueError as error:
        metadata, reason = None, f": {error}"
    else:
        reason = ""
    if not isinstance(metadata, dict):
        raise UsageError(
            f"is no JSON object{reason}",
            where=f"--metadata {arguments.metadata}",
            remedy="""write it as '{"max_seq_lengths": [1024, 2048]}'""",
        )
    return metadata


def _name_answer_cache_of_model(path: str | None, source: ModelSource) -> str | None:
    """The cache of one model's answers: lm-eval looks them up by their prompts alone."""
    if path is None:
        return None
    folder = Path(source.name)
    if folder.is_dir():
        return f"{path}-{checksum_of_model_files(folder, '.safetensors')[:12]}"
    return f"{path}-{source.name.replace('/', '__')}-{source.revision or 'main'}"


def _check_tokenizer_and_chat_template(arguments: argparse.Namespace, source: ModelSource) -> None:
    if has_no_tokenizer(source) and "tokenizer=" not in arguments.model_args:
        raise UserError(
            "has no tokenizer",
            where=source.name,
            remedy="put its files there, or give --model_args tokenizer=FOLDER_OR_NAME",
        )
    if arguments.apply_chat_template and has_no_chat_template(source):
        raise UserError(
            "its tokenizer has no chat template",
            where=f"--apply_chat_template of {source.name}",
            remedy="leave the option out, or add a chat_template.jinja to the model",
        )
