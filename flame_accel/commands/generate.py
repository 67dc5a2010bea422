"""Generates text with a trained model or one of the Hub, streamed or for a file of prompts.

Here are its arguments and the prompt of a pipe. What becomes of prompts is in `continuations`, how
a file of them is read in `prompt_files.py`, which model is meant in `loaded_model`.
"""

import argparse
import re
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

from flame_accel.commands.arguments import (
    add_custom_modules_argument,
    argparse_integer_at_least,
)
from flame_accel.commands.continuations import (
    generate_result_records,
    stream_continuation_without_prompt_to_stdout,
    write_json_lines,
)
from flame_accel.commands.export import DTYPES
from flame_accel.commands.loaded_model import (
    MODEL_KINDS,
    check_any_gpu_exists_if_cuda_asked,
    find_model,
    has_no_chat_template,
    load_model_and_tokenizer,
)
from flame_accel.config.errors import UsageError
from flame_accel.prompt_files import (
    Prompt,
    find_utf8_problem,
    missing_chat_template,
    read_text_or_jsonl_prompts,
)

TEMPERATURE = 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", help=MODEL_KINDS)
    parser.add_argument("--prompt", metavar="TEXT", help="text to continue; without it, stdin")
    parser.add_argument(
        "--prompts_file",
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help="one prompt per line, blank ones skipped, or .jsonl with prompt or messages; prints "
        "JSON lines",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="file for these JSON lines")
    parser.add_argument(
        "--chat", action="store_true", help="prompts are messages, for the chat template"
    )
    at_least = argparse_integer_at_least
    parser.add_argument("--max_new_tokens", type=at_least(1), default=256, help="(256)")
    parser.add_argument(
        "--temperature",
        type=partial(_parse_number_between, minimum=0.0),
        help=f"0 takes the likeliest token ({TEMPERATURE}, with beams 0)",
    )
    parser.add_argument(
        "--top_p",
        type=partial(_parse_number_between, minimum=0.0, maximum=1.0),
        default=1.0,
        help="(1.0)",
    )
    parser.add_argument("--top_k", type=at_least(0), default=0, help="0 is all (0)")
    parser.add_argument("--beams", type=at_least(1), default=1, help="beam search (1)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the sampling (0)")
    parser.add_argument("--batch_size", type=at_least(1), default=8, help="of a file (8)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the weights (bfloat16 on a GPU, else float32)"
    )
    parser.add_argument(
        "--device",
        type=_parse_cpu_or_cuda_device_name,
        help="cpu, cuda or cuda:N (a GPU if there is one)",
    )
    add_custom_modules_argument(parser)
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the model"
    )


def _parse_number_between(word: str, *, minimum: float, maximum: float = float("inf")) -> float:
    try:
        number = float(word)
    except ValueError:
        number = float("nan")
    if not minimum <= number <= maximum or number == float("inf"):
        limits = f">= {minimum:g}" if maximum == float("inf") else f"of {minimum:g} to {maximum:g}"
        raise argparse.ArgumentTypeError(f"{word!r} is not a number {limits}")
    return number


def _parse_cpu_or_cuda_device_name(word: str) -> str:
    if re.fullmatch(r"cpu|cuda(:\d+)?", word) is None:
        raise argparse.ArgumentTypeError(f"{word!r} is none of cpu, cuda and cuda:N")
    return word


def run(arguments: argparse.Namespace) -> None:
    """Generates and prints."""
    _check_prompt_and_output_arguments(arguments)
    source = find_model(arguments.model)
    text = (
        None
        if arguments.prompts_file
        else _read_prompt_or_piped_text_or_raise(arguments.prompt, sys.stdin)
    )
    prompts = (
        list(read_text_or_jsonl_prompts(arguments.prompts_file))
        if text is None
        else [Prompt(content=text, where="--prompt")]
    )
    if has_no_chat_template(source):
        for prompt in prompts:
            if arguments.chat or not isinstance(prompt.content, str):
                raise missing_chat_template(prompt.where)
    # mistakes up to here do not wait for imports, and this one for torch alone
    check_any_gpu_exists_if_cuda_asked(arguments.device)

    from flame_accel import kernels
    from flame_accel.evaluation.generate import GenerationSettings

    temperature = arguments.temperature
    if temperature is None:
        temperature = TEMPERATURE if arguments.beams == 1 else 0.0
    settings = GenerationSettings(
        max_new_tokens=arguments.max_new_tokens,
        temperature=temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        beams=arguments.beams,
        seed=arguments.seed,
    )
    # kernels of generation would take longer to tune than to run
    with kernels.disable_tuning_then_forget_choices_made():
        model, tokenizer = load_model_and_tokenizer(
            source,
            dtype=arguments.dtype,
            device=arguments.device,
            custom_modules=arguments.custom,
            trust_remote_code=arguments.trust_remote_code,
        )
        if text is None:
            results = generate_result_records(
                model, tokenizer, prompts, settings, arguments.chat, arguments.batch_size
            )
            write_json_lines(results, arguments.output)
        else:
            try:
                stream_continuation_without_prompt_to_stdout(
                    model, tokenizer, prompts[0], settings, chat=arguments.chat
                )
            except KeyboardInterrupt:
                # what was printed so far is what was asked for
                print()
                raise SystemExit(130) from None


def _check_prompt_and_output_arguments(arguments: argparse.Namespace) -> None:
    if arguments.prompts_file and arguments.prompt is not None:
        raise UsageError(
            "are two sources of prompts", where="--prompt and --prompts_file", remedy="give one"
        )
    if arguments.output and not arguments.prompts_file:
        raise UsageError(
            "is the file of results of --prompts_file",
            where=f"--output {arguments.output}",
            remedy="give --prompts_file, or redirect the printed text",
        )
    if arguments.output and arguments.output.exists():
        raise UsageError(
            "already exists", where=f"--output {arguments.output}", remedy="choose another file"
        )
    if arguments.prompts_file and not arguments.prompts_file.exists():
        raise UsageError(
            "no such file", where=f"--prompts_file {arguments.prompts_file}", remedy="name a file"
        )


def _read_prompt_or_piped_text_or_raise(prompt: str | None, stdin: TextIO) -> str:
    """The prompt, or what is piped into the command.

    Raises:
        UsageError: There is none, it is empty, or no UTF-8.
    """
    where = "--prompt" if prompt is not None else "standard input"
    remedy = "give a text in UTF-8"
    if prompt is None:
        if stdin.isatty():
            raise UsageError(
                "there is no prompt",
                remedy="give --prompt TEXT or --prompts_file FILE, or pipe a text into the command",
            )
        try:
            prompt = stdin.read()
        except UnicodeDecodeError as error:
            raise UsageError(f"is not UTF-8: {error}", where=where, remedy=remedy) from error
    problem = "the prompt is empty" if not prompt else find_utf8_problem(prompt)
    if problem is not None:
        raise UsageError(problem, where=where, remedy=remedy)
    return prompt
