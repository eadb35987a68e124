"""Curves of several runs in one picture.

    python benchmarks/curves.py --key success --out docs/online.png runs/a runs/b=label

Reads metrics.jsonl of each run folder; of several keys the first that a run has is drawn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def points(run: Path, keys: list[str]) -> tuple[list[int], list[float]]:
    """Steps and values of the first key that is there."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for key in keys:
        found = [(line["step"], line[key]) for line in lines if key in line]
        if found:
            steps, values = zip(*found, strict=True)
            return list(steps), list(values)
    raise SystemExit(f"{run}: none of {keys} in metrics.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, FOLDER or FOLDER=label")
    parser.add_argument("--key", nargs="+", default=["success"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    parser.add_argument("--start", type=float, help="value at step 0, the same for all")
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), dpi=120)
    for text in args.runs:
        folder, _, label = text.partition("=")
        steps, values = points(Path(folder), args.key)
        if args.start is not None:
            steps, values = [0, *steps], [args.start, *values]
        axes.plot(steps, values, marker="o", label=label or Path(folder).name)
    axes.set(xlabel="gradient steps", ylabel=args.key[0].replace("_", " "), title=args.title)
    if all(key.startswith(("success", "stage_success", "answers")) for key in args.key):
        axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
