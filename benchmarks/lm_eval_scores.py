"""The scores of a run by `flame-accel evaluate` and by `lm_eval --model hf` on its export.

    python benchmarks/lm_eval_scores.py exp/quickstart [--examples 200] [--output scores.md]

The tasks are made of the Python standard library on this machine, so that no network is needed:
`real_line`, which of four lines is not shuffled (multiple choice), and `source_text` (perplexity).
Both programs run as a user runs them. Prints a Markdown table; exit code 1 if a score differs.
"""

import argparse
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

CHOICES, CONTEXT_LINES, TEXT_CHARACTERS = 4, 4, 600
REAL_LINE = {
    "task": "real_line",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "target_delimiter": "",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ],
}
SOURCE_TEXT = {
    "task": "source_text",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [
        {"metric": name, "aggregation": how, "higher_is_better": False}
        for name, how in (
            ("bits_per_byte", "bits_per_byte"),
            ("byte_perplexity", "weighted_perplexity"),
        )
    ],
}


def make_tasks(folder: Path, examples: int) -> None:
    """Writes both tasks; the same examples each time for one version of Python."""
    generator = random.Random(0)
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    lines = [[line for line in text.splitlines() if line.strip()] for text in texts]
    lines = [each for each in lines if len(each) > CONTEXT_LINES]
    questions = []
    for _ in range(examples):
        source = generator.choice(lines)
        start = generator.randrange(len(source) - CONTEXT_LINES)
        *before, right = source[start : start + CONTEXT_LINES + 1]
        wrong = ["".join(generator.sample(right, len(right))) for _ in range(CHOICES - 1)]
        label = generator.randrange(CHOICES)
        choices = [*wrong[:label], right, *wrong[label:]]
        questions.append({"prompt": "\n".join(before) + "\n", "choices": choices, "label": label})
    long = [text for text in texts if len(text) > TEXT_CHARACTERS]
    documents = []
    for _ in range(max(examples // 5, 1)):
        text = generator.choice(long)
        start = generator.randrange(len(text) - TEXT_CHARACTERS)
        documents.append({"text": text[start : start + TEXT_CHARACTERS]})
    for task, records in ((REAL_LINE, questions), (SOURCE_TEXT, documents)):
        data = folder / f"{task['task']}.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records))
        content = {
            **task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metadata": {"version": 1},
        }
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(content))


def run_and_read_results(command: list[str], output: Path) -> tuple[dict[str, Any], float]:
    """The results that a program writes into a folder, and its seconds."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command, "--output_path", str(output)], check=True)
    seconds = time.perf_counter() - begun
    (file,) = output.rglob("results_*.json")
    return json.loads(file.read_text()), seconds


def main() -> None:
    """Makes the tasks, runs both programs and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder with an export")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    names = [str(task["task"]) for task in (REAL_LINE, SOURCE_TEXT)]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        make_tasks(place, arguments.examples)
        tasks = ["--tasks", ",".join(names), "--include_path", temporary]
        ours, our_seconds = run_and_read_results(
            ["flame_accel", "evaluate", str(arguments.run), *tasks], place / "ours"
        )
        model = f"pretrained={arguments.run / 'hf'},trust_remote_code=True"
        theirs, their_seconds = run_and_read_results(
            ["lm_eval", "--model", "hf", "--model_args", model, *tasks], place / "theirs"
        )
    rows = [
        "| task | metric | `flame-accel evaluate` | `lm_eval --model hf` | standard error |",
        "|---|---|---|---|---|",
    ]
    differ = False
    for name in names:
        for key, value in ours["results"][name].items():
            metric, comma, _ = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            other = theirs["results"][name][key]
            error = ours["results"][name].get(f"{metric}_stderr,none", "N/A")
            shown = f"{error:.4f}" if isinstance(error, float) else ""
            differ |= value != other
            rows.append(f"| `{name}` | {metric} | {value!r} | {other!r} | {shown} |")
    rows += ["", f"Seconds: {our_seconds:.0f} and {their_seconds:.0f}, imports included."]
    table = "\n".join(rows)
    print(table)
    if arguments.output is not None:
        arguments.output.write_text(table + "\n")
    sys.exit(int(differ))


if __name__ == "__main__":
    main()
