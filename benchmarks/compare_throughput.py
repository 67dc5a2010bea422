"""Prints the table of `throughput.sh`: the plain loop beside train.py, round by round."""

import json
import statistics
import sys
from pathlib import Path

SKIPPED_STEPS = 10


def main(folder: Path) -> None:
    """Reads `plain.jsonl` and `metrics-*.jsonl` of a folder."""
    plain = [json.loads(line) for line in (folder / "plain.jsonl").read_text().splitlines()]
    ratios = []
    print("round  plain tok/s  GiB    train.py tok/s  GiB    ratio  loss first -> last")
    for number, reference in enumerate(plain):
        lines = (folder / f"metrics-{number}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        late = [record for record in records if record["step"] > SKIPPED_STEPS]
        ours = statistics.median(record["throughput/tokens_per_second"] for record in late)
        ratios.append(ours / reference["tokens_per_second"])
        print(
            f"{number:5}  {reference['tokens_per_second']:11,.0f}  {reference['peak_gib']:5.1f}"
            f"  {ours:14,.0f}  {records[-1]['memory/peak_gib']:5.1f}  {ratios[-1]:.3f}"
            f"  {records[0]['train/loss']:.3f} -> {records[-1]['train/loss']:.3f}"
        )
    print(f"median ratio train.py / plain loop: {statistics.median(ratios):.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
