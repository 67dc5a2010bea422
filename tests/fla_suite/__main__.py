"""Runs fla's own tests, from a checkout of fla, on the CPU and through our kernels.

    python -m tests.fla_suite /path/to/flash-linear-attention [tests/ops tests/models/test_x.py]

The installed fla is tested, not that of the checkout, by the tests of the checkout. Every part has
a process of its own, and every test a line in the file of results, as soon as it has run. A failure
that `expected.toml` does not have, or has and did not happen, is named at the end (exit code 1).
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = [
    f"tests/{folder}"
    for folder in ("layers", "models", "modules", "ops", "utils", "context_parallel")
] + ["tests/test_public_api.py", "tests/test_utils.py"]
OUTCOMES = ("passed", "expected", "left out", "skipped", "failed", "mended")


def run_part(checkout: Path, part: str, results: Path) -> int:
    """Runs the tests of a folder or file; the exit code of pytest."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "FLA_TESTS_RESULTS": str(results),
        # one test imports another by its bare name
        "PYTHONPATH": f"{ROOT}{os.pathsep}{checkout / 'tests' / 'context_parallel'}",
    }
    command = [sys.executable, "-m", "pytest", "-c", str(Path(__file__).with_name("pytest.ini"))]
    command += ["--rootdir", str(checkout), "--confcutdir", str(checkout)]
    # elsewhere than in the checkout, whose fla would be found first
    command.append(str(checkout / part))
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


def summarize(results: Path) -> str:
    """A table of outcomes by folder, and what was not expected."""
    counts: dict[str, Counter[str]] = {}
    unexpected = []
    for line in results.read_text(encoding="utf-8").splitlines():
        outcome, _, test, text = line.split("\t")
        part = test.partition("::")[0].rpartition("/")[0]
        counts.setdefault(part, Counter())[outcome] += 1
        if outcome in ("failed", "mended"):
            unexpected.append(f"{outcome} {test}: {text}")
    rows = [f"| {part} | {' | '.join(str(n[o]) for o in OUTCOMES)} |" for part, n in counts.items()]
    head = f"| part | {' | '.join(OUTCOMES)} |\n|---|{'---|' * len(OUTCOMES)}"
    return "\n".join([head, *rows, *unexpected])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder of flash-linear-attention")
    parser.add_argument("parts", nargs="*", default=PARTS, help="folders and files in it")
    parser.add_argument("--results", type=Path, default=Path("fla_tests.tsv"))
    given = parser.parse_args()
    checkout, results = given.checkout.resolve(), given.results.resolve()
    results.write_text("")
    for part in given.parts:
        code = run_part(checkout, part, results)
        # 1 is failed tests, which have their lines; 5 is no test, of a module left out
        if code not in (0, 1, 5):
            with results.open("a", encoding="utf-8") as lines:
                lines.write(f"failed\t0\t{part}::\tpytest ended with {code}\n")
    print(summarize(results))
    return any(line.startswith(("failed", "mended")) for line in results.open(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
