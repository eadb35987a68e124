"""What `recording.py` compares: our recorder, LeRobot's, the plain way, and the scene that all of them record.

Each has `add(images, vector)`, `save()` and `close()`; `dropped` counts the pictures of an episode that were lost, repeated
or waited for.
"""

from __future__ import annotations

import argparse
import queue
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


class Scene:
    """A textured table that drifts, a block that moves, sensor noise: as compressible as a real camera's pictures."""

    def __init__(self, height: int, width: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.height, self.width = height, width
        table = np.zeros((height + 64, width + 64, 3))
        for size in (4, 8, 16, 32, 64):
            coarse = rng.normal(size=((height + 64) // size + 1, (width + 64) // size + 1, 3)) * size**0.6
            table += _smooth(coarse.repeat(size, 0).repeat(size, 1)[: height + 64, : width + 64], size // 2)
        table -= table.min()
        self._table = (table / table.max() * 255).astype(np.int16)
        self._noise = [rng.normal(0, 2, (height, width, 3)).astype(np.int16) for _ in range(8)]

    def frame(self, t: int) -> np.ndarray:
        """uint8 (H, W, 3)"""
        y, x = int(30 + 28 * np.sin(t / 40)), int(30 + 28 * np.cos(t / 55))
        image = self._table[y : y + self.height, x : x + self.width] + self._noise[t % 8]
        across, down = (
            int((0.45 + 0.4 * np.sin(t / 25)) * self.width),
            int((0.4 + 0.35 * np.cos(t / 33)) * self.height),
        )
        image[down : down + self.height // 5, across : across + self.width // 8] = (40, 40, 45)
        return image.clip(0, 255).astype(np.uint8)


def _smooth(image: np.ndarray, radius: int) -> np.ndarray:
    """A box blur, twice along each axis."""
    for axis in (0, 0, 1, 1):
        total = np.cumsum(
            np.pad(image, [(radius + 1, radius) if k == axis else (0, 0) for k in range(3)], "edge"), axis
        )
        end = np.take(total, range(2 * radius + 1, total.shape[axis]), axis)
        image = (end - np.take(total, range(total.shape[axis] - 2 * radius - 1), axis)) / (2 * radius + 1)
    return image


# ---- recorders --------------------------------------------------------------------------------------------
class Nothing:
    """The loop alone."""

    dropped = 0

    def add(self, images: dict[str, np.ndarray], vector: np.ndarray) -> None: ...

    def save(self) -> None: ...

    def close(self) -> None: ...


class Ours:
    """Our recorder; `options` are those of `create_dataset`."""

    def __init__(self, folder: Path, args: argparse.Namespace, **options: Any) -> None:
        from vla_agents.data import create_dataset
        from vla_agents.embodiment import Camera, Embodiment, Part

        cameras = tuple(Camera(f"cam{k}", args.height, args.width) for k in range(args.cameras))
        parts = (Part("joints", 7, "joint_position"),)
        self._writer: Any = create_dataset(
            folder / "d", Embodiment("bench", parts, parts, cameras, args.hz), **options
        )
        self._open, self._before = False, 0

    def add(self, images: dict[str, np.ndarray], vector: np.ndarray) -> None:
        from vla_agents.data import Step

        if not self._open:
            self._before += self.dropped
            self._writer.begin("bench")
            self._open = True
        self._writer.add(Step(images, vector, vector, time=time.monotonic()))

    def save(self) -> None:
        self._writer.save(True)
        self._open = False

    @property
    def dropped(self) -> int:
        status = self._writer.status()
        return status.repeated + status.waited - self._before

    def close(self) -> None:
        self._writer.close()


class LeRobot:
    """LeRobot's streaming encoder; runs in LeRobot's own Python."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        from lerobot_side import without_cuda

        without_cuda()
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        names = [f"j{k}" for k in range(7)]
        features: dict[str, Any] = {
            f"observation.images.cam{k}": {
                "dtype": "video",
                "shape": (args.height, args.width, 3),
                "names": ["height", "width", "channels"],
            }
            for k in range(args.cameras)
        }
        for name in ("observation.state", "action"):
            features[name] = {"dtype": "float32", "shape": (7,), "names": names}
        self._data: Any = LeRobotDataset.create(
            "bench/bench",
            fps=int(args.hz),
            root=folder / "l",
            features=features,
            streaming_encoding=True,
            **self._superfast(),
        )

    @staticmethod
    def _superfast() -> dict[str, Any]:
        """h264 with the preset superfast, which 0.4 leaves to x264 (medium) and has no option for."""
        try:
            from lerobot.configs import RGBEncoderConfig
        except ImportError:
            from lerobot.datasets import video_utils

            plain = video_utils._get_codec_options
            video_utils._get_codec_options = lambda *given: plain(*given) | {"preset": "superfast"}
            return {"vcodec": "h264"}
        return {"rgb_encoder": RGBEncoderConfig(vcodec="h264", preset="superfast")}

    def add(self, images: dict[str, np.ndarray], vector: np.ndarray) -> None:
        frame: dict[str, Any] = {f"observation.images.{name}": image for name, image in images.items()}
        self._data.add_frame(frame | {"observation.state": vector, "action": vector, "task": "bench"})

    def save(self) -> None:
        self._data.save_episode()

    @property
    def dropped(self) -> int:
        owner = (
            self._data if hasattr(self._data, "_streaming_encoder") else getattr(self._data, "writer", None)
        )
        encoder = getattr(owner, "_streaming_encoder", None)
        return sum((getattr(encoder, "_dropped_frames", None) or {}).values())

    def close(self) -> None:
        self._data.finalize()


class PilSwscale:
    """The plain way: threads, queues, PIL, swscale, one mp4 per camera."""

    dropped = 0

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self._folder, self._args, self._count = folder, args, 0
        folder.mkdir(exist_ok=True)
        self._threads: list[threading.Thread] = []
        self._queues: dict[str, queue.Queue] = {}

    def add(self, images: dict[str, np.ndarray], vector: np.ndarray) -> None:
        if not self._threads:
            for name in images:
                self._queues[name] = queue.Queue(30)
                path = self._folder / f"{name}-{self._count}.mp4"
                self._threads.append(threading.Thread(target=self._encode, args=(self._queues[name], path)))
                self._threads[-1].start()
        for name, image in images.items():
            self._queues[name].put(image.copy())

    def _encode(self, line: queue.Queue, path: Path) -> None:
        import av
        from PIL import Image

        with av.open(str(path), "w") as container:
            options = {"crf": "30", "g": "2", "preset": "superfast"}
            stream: Any = container.add_stream("libx264", rate=int(self._args.hz), options=options)
            stream.width, stream.height, stream.pix_fmt = self._args.width, self._args.height, "yuv420p"
            stream.codec_context.time_base = Fraction(1, int(self._args.hz))
            k = 0
            while (image := line.get()) is not None:
                frame = av.VideoFrame.from_image(Image.fromarray(image))
                frame.pts, frame.time_base = k, Fraction(1, int(self._args.hz))
                container.mux(stream.encode(frame))
                k += 1
            container.mux(stream.encode(None))

    def save(self) -> None:
        for line in self._queues.values():
            line.put(None)
        for thread in self._threads:
            thread.join()
        self._threads, self._count = [], self._count + 1

    def close(self) -> None: ...


RECORDERS: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
    "loop alone": lambda folder, args: Nothing(),
    "ours": lambda folder, args: Ours(folder, args),
    "ours crf 30": lambda folder, args: Ours(folder, args, crf=30),
    "lerobot superfast": lambda folder, args: LeRobot(folder, args),
    "pil-swscale superfast": lambda folder, args: PilSwscale(folder, args),
}
