"""What `benchmarks/data.py` runs in an environment of LeRobot's own (see docs/loading.md): make a dataset, load it.

python lerobot_side.py make ROOT SIZE CODEC EPISODES LENGTH
python lerobot_side.py measure ROOT CHUNK BATCH SAMPLES SEED WORKERS
python lerobot_side.py pixels ROOT ROWS.npy OUT.npz
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("SVT_LOG", "1")

import numpy as np
import torch
from data_scene import Scene, peak_mb, random_rows


def without_cuda() -> None:
    """torchvision from the package index is a CUDA build, which without CUDA lacks operators that its import asks for."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        without_cuda.kept = library  # type: ignore[attr-defined]


def open_dataset(root: str, chunk: int = 1) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    fps = json.loads((Path(root) / "meta/info.json").read_text())["fps"]
    return LeRobotDataset(
        "local/benchmark",
        root=root,
        video_backend="torchcodec",
        delta_timestamps={"action": [k / fps for k in range(chunk)]},
    )


def make(root: str, size: str, codec: str, episodes: str, length: str) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    side = int(size)
    features: dict[str, Any] = {
        f"observation.images.{name}": {
            "dtype": "video",
            "shape": (side, side, 3),
            "names": ["height", "width", "channels"],
        }
        for name in ("front", "wrist")
    }
    for name, width in (("observation.state", 8), ("action", 7)):
        features[name] = {
            "dtype": "float32",
            "shape": (width,),
            "names": [f"{name[0]}{k}" for k in range(width)],
        }
    dataset = LeRobotDataset.create(
        "local/benchmark", fps=30, root=root, features=features, vcodec={"av1": "libsvtav1"}.get(codec, codec),
        streaming_encoding=True, encoder_queue_maxsize=10**6,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for episode in range(int(episodes)):
        scenes = {name: Scene(side, 2 * episode + k) for k, name in enumerate(("front", "wrist"))}
        for t in range(int(length)):
            frame: dict[str, Any] = {f"observation.images.{n}": s.frame(t) for n, s in scenes.items()}
            frame["observation.state"] = rng.normal(size=8).astype(np.float32)
            frame["action"] = rng.normal(size=7).astype(np.float32)
            dataset.add_frame(frame | {"task": f"task {episode % 3}"})
        dataset.save_episode()
    dataset.finalize()


def measure(root: str, chunk: str, batch: str, samples: str, seed: str, workers: str) -> None:
    torch.set_num_threads(1)
    dataset = open_dataset(root, int(chunk))
    rows = random_rows(len(dataset), int(batch), int(samples), int(seed)).ravel().tolist()
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=int(batch), sampler=rows, num_workers=int(workers),
        multiprocessing_context="spawn" if int(workers) else None,
    )  # fmt: skip
    batches = iter(loader)
    for _ in range(3):  # decoders are opened, workers are up
        next(batches)
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    for _ in batches:
        count += int(batch)
    seconds = time.perf_counter() - wall
    report = {
        "cpu_ms": (time.process_time() - cpu) / count * 1e3,
        "rate": count / seconds,
        "peak_mb": peak_mb(),
    }
    print("RESULT " + json.dumps(report))


def pixels(root: str, rows: str, out: str) -> None:
    dataset = open_dataset(root, 4)
    items = [dataset[int(row)] for row in np.load(rows)]
    found = {
        name: np.stack(
            [(item[f"observation.images.{name}"] * 255).round().byte().permute(1, 2, 0) for item in items]
        )
        for name in ("front", "wrist")
    }
    numbers = {
        key: np.stack([item[key] for item in items])
        for key in ("observation.state", "action", "action_is_pad")
    }
    np.savez(out, **found, **numbers)


if __name__ == "__main__":
    without_cuda()
    {"make": make, "measure": measure, "pixels": pixels}[sys.argv[1]](*sys.argv[2:])
