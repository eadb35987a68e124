"""What recording and loading many short episodes of small pictures costs; prints one table.

    python benchmarks/data_small.py --episodes 1500 --length 15 --size 64 --cameras 2

Times are CPU time of the process (all threads) and wall time; on a busy machine only the first says something.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_agents.data import Step, WindowDataset, create_dataset, open_dataset
from vla_agents.data.video.decode import decode
from vla_agents.data.video.encode import VideoEncoder, VideoSettings
from vla_agents.embodiment import Camera, Embodiment, Part

COLOURS = [(220, 30, 30), (30, 60, 220), (30, 180, 60), (230, 200, 30), (160, 40, 180)]


def body(size: int, cameras: int) -> Embodiment:
    action = (
        Part("move", 3, "delta_xyz"),
        Part("turn", 3, "delta_axis_angle"),
        Part("grip", 1, "gripper_close_pm1"),
    )
    state = (
        Part("eef", 3, "xyz"),
        Part("rotation", 4, "quaternion_xyzw"),
        Part("finger", 1, "gripper_position"),
    )
    names = ("front", "wrist", "left", "right")[:cameras]
    return Embodiment("bench", action, state, tuple(Camera(n, size, size) for n in names), 20.0)


def scene(rng: np.random.Generator, length: int, size: int) -> np.ndarray:
    """Blocks of 5 to 7 pixels on dark grey (at 64 pixels), one of which moves; uint8 (T, H, W, 3)."""
    frames = np.full((length, size, size, 3), 45, np.uint8)
    frames[:, : size // 3] = 60
    for block in range(4):
        side = int(rng.integers(5, 8)) * size // 64
        y, x = rng.integers(0, size - side, 2)
        colour = COLOURS[rng.integers(5)]
        for t in range(length):
            at = min(x + (t * size // 80 if block == 0 else 0), size - side)
            frames[t, y : y + side, at : at + side] = colour
    return frames


class Clock:
    """CPU and wall time since it was made, per unit, in milliseconds."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def per(self, count: int) -> tuple[float, float]:
        """`(CPU, wall)` in milliseconds per unit."""
        return (time.process_time() - self._cpu) / count * 1e3, (
            time.perf_counter() - self._wall
        ) / count * 1e3


def measure(arguments: argparse.Namespace, folder: Path, table: Table) -> None:
    arm = body(arguments.size, arguments.cameras)
    rng = np.random.default_rng(0)
    pool = [{c: scene(rng, arguments.length, arguments.size) for c in arm.camera_names} for _ in range(40)]
    numbers = rng.normal(size=(arguments.length, 15)).astype(np.float32)

    def row(name: str, unit: str, cpu: float, wall: float) -> None:
        table.add_row(name, unit, f"{cpu:.2f}", f"{wall:.2f}")

    count = arguments.episodes
    clock = Clock()
    for k in range(count):
        for camera in arm.cameras:
            encoder = VideoEncoder(VideoSettings(camera.height, camera.width, 20))
            for image in pool[k % 40][camera.name]:
                encoder.add(image)
            encoder.finish()
    encoding = clock.per(count)
    row("encoding alone", "ms/episode", *encoding)

    for kind, durable, episodes in (
        ("lerobot", False, count),
        ("lerobot", True, count // 10),
        ("hdf5", False, count),
    ):
        path = folder / f"{kind}-{durable}"
        writer = create_dataset(path, arm, kind, durable=durable)
        saving = [0.0, 0.0]
        clock = Clock()
        for k in range(episodes):
            writer.begin(f"put the block {k % 7}", {"seed": k})
            for t in range(arguments.length):
                images = {c: frames[t] for c, frames in pool[k % 40].items()}
                writer.add(Step(images, numbers[t, :8], numbers[t, 8:], time=k + t / 20))
            inner = Clock()
            writer.save(True)
            saving = [total + part for total, part in zip(saving, inner.per(1), strict=True)]
        writer.close()
        cpu, wall = clock.per(episodes)
        name = f"{kind}, durable={durable}"
        row(f"record, {name}", "ms/episode", cpu, wall)
        row(f"  of which save(), {name}", "ms/episode", saving[0] / episodes, saving[1] / episodes)
        if kind == "lerobot":
            row(f"  beyond encoding, {name}", "ms/episode", cpu - encoding[0], wall - encoding[1])
        if durable:
            continue
        clock = Clock()
        reader = open_dataset(path)
        row(f"open, {kind}", "s", *(value / 1e3 for value in clock.per(1)))
        for threads in (1, 2):
            clock = Clock()
            data = WindowDataset(reader, 8, threads=threads)
            seconds = [value / 1e3 for value in clock.per(1)]
            row(f"load {data.nbytes / 1e6:.0f} MB, {kind}, {threads} thread(s)", "s", *seconds)
        clock = Clock()
        order = np.random.default_rng(0).integers(0, len(data), (200, 64))
        for indices in order:
            data.get_batch(indices)
        row("batch of 64 windows", "ms", *clock.per(200))


def errors(arguments: argparse.Namespace, folder: Path, table: Table) -> None:
    """Mean absolute error in grey levels, of the whole picture and of the coloured blocks."""
    rng = np.random.default_rng(1)
    scenes = [scene(rng, arguments.length, arguments.size) for _ in range(20)]
    for pix_fmt in ("yuv420p", "yuv444p"):
        for crf in (12, 18, 23):
            whole, blocks, size = [], [], 0
            for frames in scenes:
                settings = VideoSettings(arguments.size, arguments.size, 20, crf=crf, pix_fmt=pix_fmt)
                encoder = VideoEncoder(settings)
                for image in frames:
                    encoder.add(image)
                file = folder / "one.mp4"
                file.write_bytes(encoder.finish())
                size += file.stat().st_size
                shape = (arguments.size, arguments.size)
                off = np.abs(decode(file, np.arange(len(frames)) / 20, 20, shape).astype(int) - frames)
                whole.append(off.mean())
                blocks.append(off[np.ptp(frames, axis=-1) > 20].mean())
            table.add_row(
                pix_fmt,
                str(crf),
                f"{np.mean(whole):.2f}",
                f"{np.mean(blocks):.2f}",
                f"{size / len(scenes) / 1e3:.1f}",
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=1500, help="how many to record")
    parser.add_argument("--length", type=int, default=15, help="steps of each")
    parser.add_argument("--size", type=int, default=64, help="height and width of the pictures")
    parser.add_argument("--cameras", type=int, default=2, choices=(1, 2, 3, 4))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vla-agents-bench-"))
    console = Console()
    try:
        title = f"{arguments.episodes} episodes of {arguments.length} steps, {arguments.cameras} x {arguments.size}^2"
        times = Table("what", "unit", "CPU", "wall", title=title)
        measure(arguments, folder, times)
        console.print(times)
        lossy = Table(
            "pix_fmt", "crf", "picture", "blocks", "kB/episode", title="mean |error| in grey levels"
        )
        errors(arguments, folder, lossy)
        console.print(lossy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
