"""What LeRobot's own `LeRobotDataset` returns for a dataset; run by LeRobot's Python, never imported.

    python lerobot_oracle.py DATASET OUT.npz        # every row: numbers, text, instruction, pixels

Tests that compare with it want the variable `VLA_AGENTS_LEROBOT_PYTHON`: a Python in which `import lerobot` works (0.3.3,
0.4.4; docs/loading.md says how to make one).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import numpy as np


def main(path: str, out: str) -> None:
    from lerobot_side import without_cuda

    without_cuda()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/set", root=path, video_backend="torchcodec")
    rows = [dataset[k] for k in range(len(dataset))]
    found = {"task": np.array([row["task"] for row in rows])}
    for key, feature in dataset.meta.features.items():
        values = [row[key] for row in rows]
        if feature["dtype"] in ("video", "image"):
            found[key] = np.stack([(v * 255).round().byte().permute(1, 2, 0).numpy() for v in values])
        else:
            found[key] = np.array(values if feature["dtype"] == "string" else [np.asarray(v) for v in values])
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
