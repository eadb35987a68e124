"""From pictures to the patches a Qwen-VL reads, as tensors: equal to the Hugging Face processors to the bit.

A picture whose size is already a multiple of patch * merge within the pixel budget is only cut; others are resized first.
`transformers` has two processors, which differ in the last bit of that resize: one with torchvision ("...Fast", named by
the released Qwen3-VL in `preprocessor_config.json`) and one with Pillow. `ImageSettings.resize` says which.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageSettings:
    """What `preprocessor_config.json` says about pixels."""

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_pixels: int
    max_pixels: int
    resize: Literal["pillow", "torch"] = "pillow"

    @classmethod
    def load(cls, source: str | Path) -> ImageSettings:
        """From a model folder or hub id."""
        from transformers.image_processing_utils import BaseImageProcessor

        data, _ = BaseImageProcessor.get_image_processor_dict(str(source))
        size = data.get("size") or {}
        return cls(
            patch=data["patch_size"],
            merge=data["merge_size"],
            temporal=data["temporal_patch_size"],
            mean=tuple(data.get("image_mean") or (0.48145466, 0.4578275, 0.40821073)),
            std=tuple(data.get("image_std") or (0.26862954, 0.26130258, 0.27577711)),
            min_pixels=data.get("min_pixels") or size.get("shortest_edge") or 56 * 56,
            max_pixels=data.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280,
            resize="torch" if str(data.get("image_processor_type")).endswith("Fast") else "pillow",
        )

    def save(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`, which `load` and `AutoImageProcessor` read."""
        data = {
            "image_processor_type": "Qwen2VLImageProcessor" + ("Fast" if self.resize == "torch" else ""),
            "patch_size": self.patch,
            "merge_size": self.merge,
            "temporal_patch_size": self.temporal,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": 3,
            "rescale_factor": 1 / 255,
        }
        text = json.dumps(data, indent=2) + "\n"
        (Path(folder) / "preprocessor_config.json").write_text(text, encoding="utf-8")

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a picture is seen: multiples of patch * merge within the pixel budget."""
        factor = self.patch * self.merge
        new_h, new_w = (max(factor, round(side / factor) * factor) for side in (height, width))
        if new_h * new_w > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            new_h, new_w = (
                max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
            )
        elif new_h * new_w < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            new_h, new_w = (math.ceil(side * grow / factor) * factor for side in (height, width))
        return new_h, new_w

    def patches(self, view: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """uint8 (B, H, W, 3) -> float32 (B * patches, 3 * temporal * patch²) and the grid (1, rows, columns)."""
        cut, grid = self.cut(view)
        return self.normalized(cut), grid

    def cut(self, view: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """uint8 (B, H, W, 3) -> uint8 (B * patches, 3, patch²) and the grid: an eighth of what `patches` takes."""
        size = self.target_size(view.shape[1], view.shape[2])
        if size != tuple(view.shape[1:3]):
            view = resize_pillow(view, size) if self.resize == "pillow" else resize_torch(view, size)
        rows, columns = size[0] // self.patch, size[1] // self.patch
        m, p = self.merge, self.patch
        x = view.reshape(len(view), rows // m, m, p, columns // m, m, p, 3)
        x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # B, rows/m, cols/m, m, m, 3, patch, patch
        return x.reshape(len(view) * rows * columns, 3, p * p), (1, rows, columns)

    def normalized(self, cut: Tensor) -> Tensor:
        """uint8 (N, 3, patch²) -> float32 (N, 3 * temporal * patch²), wherever the pixels are."""
        mean, std = (
            cut.new_tensor(row, dtype=torch.float32).view(3, 1) * 255 for row in (self.mean, self.std)
        )
        x = cut.float().sub_(mean).div_(std)[:, :, None]
        x = x.expand(-1, -1, self.temporal, -1)  # a still picture is repeated in time
        return x.reshape(len(cut), 3 * self.temporal * cut.shape[-1])


def resize_pillow(view: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (B, H, W, 3) -> uint8 (B, *size, 3) by Pillow's bicubic."""
    from PIL import Image

    width_first = (size[1], size[0])
    frames = [
        np.asarray(Image.fromarray(frame).resize(width_first, Image.Resampling.BICUBIC))
        for frame in view.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(frames)).to(view.device)


def resize_torch(view: Tensor, size: tuple[int, int]) -> Tensor:
    """The same by torch's antialiased bicubic on uint8, which is the one torchvision's `resize` calls.

    On a CPU it computes in integers; where a device has no such kernel, in floats, rounded (which may differ by one level).
    """
    x = view.permute(0, 3, 1, 2)
    if view.device.type != "cpu":
        x = nn.functional.interpolate(x.float(), size, mode="bicubic", antialias=True)
        x = x.round().clamp(0, 255).to(torch.uint8)
    else:
        x = nn.functional.interpolate(x, size, mode="bicubic", antialias=True)
    return x.permute(0, 2, 3, 1)
