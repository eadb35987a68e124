"""Loading for training, beside LeRobot's loader: CPU time per sample of two cameras and a chunk of 16 actions.

    python benchmarks/data.py --lerobot-python /path/to/lerobot-venv/bin/python --codec h264 --size 256
    python benchmarks/data.py                    # without LeRobot: the dataset is recorded with our writer
    python benchmarks/data.py --epochs 10        # memory of the process, epoch by epoch

Every measurement has a process of its own, and the loaders take turns, so that what else the machine does hits all alike.
CPU time is that of all threads of the process; it and ratios say something on a busy machine, samples/s does not.
Pixels and numbers are compared with what LeRobot returns before anything is measured. How to make LeRobot's environment
is in docs/loading.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from data_scene import Scene, peak_mb, random_rows
from rich.console import Console
from rich.table import Table

CHUNK, BATCH = 16, 8
OURS = {
    "video": {"source": "files"},
    "video, resized": {"source": "files", "small": True},
    "cache, raw": {"source": "cache", "small": True, "format": "raw"},
    "cache, JPEG": {"source": "cache", "small": True, "format": "jpeg"},
    "memory": {"source": "memory", "small": True},
}


def record(path: Path, size: int, codec: str, episodes: int, length: int) -> None:
    """The same scenes as LeRobot's side, with our writer."""
    from vla_agents.data import LeRobotWriter, Step
    from vla_agents.embodiment import Camera, Embodiment, Part

    body = Embodiment(
        "benchmark", (Part("a", 7, "other"),), (Part("s", 8, "other"),),
        (Camera("front", size, size), Camera("wrist", size, size)), 30.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with LeRobotWriter(path, body, codec=codec, durable=False) as writer:
        for episode in range(episodes):
            scenes = {name: Scene(size, 2 * episode + k) for k, name in enumerate(("front", "wrist"))}
            writer.begin(f"task {episode % 3}")
            for t in range(length):
                images = {name: scene.frame(t) for name, scene in scenes.items()}
                numbers = rng.normal(size=15).astype(np.float32)
                writer.add(Step(images, numbers[:8], numbers[8:], time=t / 30))
            writer.save()


def windows(arguments: argparse.Namespace, root: Path, kind: str) -> Any:
    """Our windows over the dataset."""
    from vla_agents.data import Pictures, WindowDataset, open_dataset

    options = dict(OURS[kind])
    size = (arguments.policy_size,) * 2 if options.pop("small", False) else None
    pictures = Pictures(**options, size=size, folder=root.parent / "cache")  # type: ignore[arg-type]
    return WindowDataset(open_dataset(root), CHUNK, pictures=pictures)


class Rows:
    """The benchmark's order of samples."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def rows(self, step: int, count: int = 1, rank: int = 0, world: int = 1) -> np.ndarray:
        """int64 (1, batch)."""
        return self._rows[step][None]


def measure(arguments: argparse.Namespace, root: Path, kind: str) -> None:
    """One of our loaders, in this process; batches are tensors, as training gets them."""
    import torch

    from vla_agents.data import Loader
    from vla_agents.policies.policy import Batch

    torch.set_num_threads(1)
    data = windows(arguments, root, kind)
    rows = random_rows(len(data), BATCH, arguments.samples, arguments.seed)
    with Loader(data, Rows(rows), workers=arguments.workers, finish=Batch.from_numpy) as loader:
        for step in range(3):
            loader.step(step)
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(3, len(rows)):
            loader.step(step)
        count = (len(rows) - 3) * BATCH
        report = {"cpu_ms": (time.process_time() - cpu) / count * 1e3}
        report["rate"] = count / (time.perf_counter() - wall)
    report["peak_mb"] = peak_mb()
    print("RESULT " + json.dumps(report))


def run(command: list[str], *, result: bool = True) -> dict[str, float]:
    """Run a measurement and read its result."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SVT_LOG": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode == 0 and not result:
        return {}
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def compare(arguments: argparse.Namespace, root: Path, console: Console) -> None:
    """Pixels, states, chunks and masks of random samples, ours and LeRobot's."""
    data = windows(arguments, root, "video")
    rows = np.unique(
        np.concatenate([np.random.default_rng(5).integers(0, len(data), 60), [0, 1, len(data) - 1]])
    )
    asked, told = root.parent / "rows.npy", root.parent / "lerobot.npz"
    np.save(asked, rows)
    run(lerobot(arguments, "pixels", root, asked, told), result=False)
    ours = data.get_batch(rows)
    with np.load(told) as theirs:
        worst = max(int(np.abs(ours["images"][n].astype(int) - theirs[n]).max()) for n in ("front", "wrist"))
        same = np.array_equal(ours["state"], theirs["observation.state"])
        same &= np.array_equal(ours["action"][:, :4], theirs["action"])
        same &= np.array_equal(ours["mask"][:, :4], ~theirs["action_is_pad"])
    console.print(
        f"{len(rows)} samples against LeRobot's: largest difference of a pixel {worst}, numbers equal: {same}"
    )
    if worst or not same:
        raise SystemExit("what we load is not what LeRobot loads")


def lerobot(arguments: argparse.Namespace, *rest: object) -> list[str]:
    """A command line for LeRobot's side."""
    script = Path(__file__).with_name("lerobot_side.py")
    return [arguments.lerobot_python, str(script), *map(str, rest)]


def table(arguments: argparse.Namespace, root: Path) -> Table:
    """All loaders, taking turns."""
    kinds = [*(["LeRobot"] if arguments.lerobot_python else []), *OURS]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    (
        windows(arguments, root, "cache, raw"),
        windows(arguments, root, "cache, JPEG"),
    )  # made before the clock runs
    for turn in range(arguments.rounds):
        for kind in kinds:
            if kind == "LeRobot":
                rest = (CHUNK, BATCH, arguments.samples, turn, arguments.workers)
                command = lerobot(arguments, "measure", root, *rest)
            else:
                command = [
                    sys.executable,
                    __file__,
                    "--root",
                    str(root),
                    "--measure",
                    kind,
                    "--seed",
                    str(turn),
                ]
                for name in ("samples", "workers", "policy_size"):
                    command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
            found[kind].append(run(command))
    title = f"{arguments.codec} {arguments.size}x{arguments.size}, policy size {arguments.policy_size}, "
    title += f"{arguments.workers} workers, {arguments.rounds} rounds of {arguments.samples} samples"
    shown = Table(
        "loader", "CPU ms/sample", "least-most", "times LeRobot", "samples/s", "peak MB", title=title
    )
    base = np.median([one["cpu_ms"] for one in found[kinds[0]]])
    for kind, results in found.items():
        cpu = [one["cpu_ms"] for one in results]
        shown.add_row(
            kind,
            f"{np.median(cpu):.2f}",
            f"{min(cpu):.2f}-{max(cpu):.2f}",
            f"{base / np.median(cpu):.1f}" if kinds[0] == "LeRobot" else "",
            f"{np.median([one['rate'] for one in results]):.0f}",
            f"{max(one['peak_mb'] for one in results):.0f}",
        )
    return shown


def memory(arguments: argparse.Namespace, root: Path, console: Console) -> None:
    """Resident memory of this process and its workers after each epoch."""
    import psutil

    from vla_agents.data import Epochs, Loader

    this = psutil.Process()
    for kind in ("video", "video, resized", "cache, raw", "cache, JPEG"):
        data = windows(arguments, root, kind)
        steps = len(data) // BATCH
        used = []
        with Loader(data, Epochs([len(data)], BATCH), workers=arguments.workers) as loader:
            for epoch in range(arguments.epochs):
                for step in range(epoch * steps, (epoch + 1) * steps):
                    loader.step(step)
                used.append(sum(p.memory_info().rss for p in (this, *this.children(recursive=True))) / 1e6)
        console.print(f"{kind}: " + " ".join(f"{mb:.0f}" for mb in used) + " MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lerobot-python", default="", help="Python of an environment that has LeRobot")
    parser.add_argument("--root", type=Path, help="a dataset made before (two cameras: front, wrist)")
    parser.add_argument("--codec", choices=("h264", "av1"), default="h264")
    parser.add_argument("--size", type=int, default=256, help="height and width of the videos")
    parser.add_argument("--policy-size", type=int, default=224, help="height and width that a policy wants")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--samples", type=int, default=400, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="0: CPU time is that of loading")
    parser.add_argument("--epochs", type=int, default=0, help="print memory over so many epochs instead")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=OURS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments, arguments.root, arguments.measure)
        return
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="vla-agents-bench-") as folder:
        root = arguments.root or Path(folder) / "dataset"
        facts = (arguments.size, arguments.codec, arguments.episodes, arguments.length)
        if arguments.root is None and arguments.lerobot_python:
            run(lerobot(arguments, "make", root, *facts), result=False)
        elif arguments.root is None:
            record(root, *facts)
        if arguments.epochs:
            memory(arguments, root, console)
            return
        if arguments.lerobot_python:
            compare(arguments, root, console)
        console.print(table(arguments, root))


if __name__ == "__main__":
    main()
