"""Pictures and sample orders that both sides of `benchmarks/data.py` use; needs numpy and Pillow only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


class Scene:
    """A textured table under a moving camera, a gripper, a red disc, sensor noise: compresses like a real camera's picture.

    Args:
        size: Height and width.
        seed: Decides texture and noise.
    """

    def __init__(self, size: int, seed: int) -> None:
        rng, wide = np.random.default_rng(seed), size + 64
        table = np.zeros((wide, wide, 3))
        for cell in (4, 8, 16, 32, 64):
            noise = rng.normal(size=(wide // cell + 2, wide // cell + 2, 3)).astype(np.float32)
            layers = [
                Image.fromarray(noise[..., k]).resize((wide, wide), Image.Resampling.BICUBIC)
                for k in range(3)
            ]
            table += np.stack([np.asarray(layer) for layer in layers], axis=-1) * cell**0.6
        table = (table - table.min()) / np.ptp(table) * 255
        self._size, self._table = size, table.astype(np.int16)
        self._noise = rng.normal(0, 2.0, (16, size, size, 3)).astype(np.int16)
        y, x = np.mgrid[:size, :size]
        self._disc = (y - size // 2) ** 2 + (x - size // 3) ** 2 < (size // 12) ** 2

    def frame(self, t: int) -> np.ndarray:
        """uint8 (H, W, 3) at step t."""
        n = self._size
        top, left = int(20 + 18 * np.cos(t / 55)), int(20 + 18 * np.sin(t / 40))
        image = self._table[top : top + n, left : left + n].copy()
        x, y = int((0.5 + 0.4 * np.sin(t / 25)) * n), int((0.5 + 0.4 * np.cos(t / 33)) * n)
        image[max(0, y - n // 10) : y + n // 10, max(0, x - n // 16) : x + n // 16] = (40, 40, 45)
        image[self._disc] = (200, 30, 30)
        return np.clip(image + self._noise[t % 16], 0, 255).astype(np.uint8)


def random_rows(total: int, batch: int, samples: int, seed: int) -> np.ndarray:
    """int64 (batches, batch): rows to load, three batches more than asked for."""
    return np.random.default_rng(seed).integers(0, total, (3 + samples // batch, batch))


def peak_mb() -> float:
    """Most memory that this process has held, MB (of Linux; unlike ru_maxrss, not that of its parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))
