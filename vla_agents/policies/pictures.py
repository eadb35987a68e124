"""From pictures to the square pixels that Florence-2 and CLIP read, as tensors: equal to the Hugging Face processors.

Florence-2 squeezes a picture into its square; CLIP brings the shorter side to it and cuts the middle out, so it never sees
the ends of a wide picture. `size` of `preprocessor_config.json` says which (`height` and `width`, or `shortest_edge`).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vla_agents.errors import ConfigError
from vla_agents.policies.pixels import resize_pillow, resize_torch


@dataclass(frozen=True)
class PictureSettings:
    """What `preprocessor_config.json` says about pixels.

    Args:
        size: Side of the square.
        crop: Whether the middle is cut out; else the picture is squeezed.
        mean: Per channel, in [0, 1].
        std: Likewise.
        resize: Which of the two processors of `transformers` (they differ in the last bit of a resize).
    """

    size: int
    crop: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["pillow", "torch"] = "pillow"

    @classmethod
    def load(cls, source: str | Path) -> PictureSettings:
        """From a model folder or hub id."""
        from transformers.image_processing_utils import BaseImageProcessor

        data, _ = BaseImageProcessor.get_image_processor_dict(str(source))
        size = data.get("size", {})
        size = size if isinstance(size, dict) else {"shortest_edge": size}
        crop = bool(data.get("do_center_crop", "shortest_edge" in size))
        sides = {*size.values(), *_sides(data.get("crop_size", {}) if crop else {})}
        if len(sides) != 1 or crop != ("shortest_edge" in size):
            raise ConfigError(
                f"{source}: pictures of size {size}, center crop {crop} {data.get('crop_size')}: no square",
                "only square sizes, squeezed (height, width) or cut out (shortest_edge), are read",
            )
        return cls(
            size=int(sides.pop()),
            crop=crop,
            mean=tuple(data.get("image_mean") or (0.48145466, 0.4578275, 0.40821073)),
            std=tuple(data.get("image_std") or (0.26862954, 0.26130258, 0.27577711)),
            resize="torch" if str(data.get("image_processor_type")).endswith("Fast") else "pillow",
        )

    def save(self, folder: str | Path, **more: Any) -> None:
        """Write `preprocessor_config.json`, which `load` and `AutoImageProcessor` read; `more` goes into it too."""
        square = {"height": self.size, "width": self.size}
        data = {
            "image_processor_type": "CLIPImageProcessor" + ("Fast" if self.resize == "torch" else ""),
            "size": {"shortest_edge": self.size} if self.crop else square,
            "do_center_crop": self.crop,
            "crop_size": square,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": 3,
            "rescale_factor": 1 / 255,
        }
        text = json.dumps(data | more, indent=2) + "\n"
        (Path(folder) / "preprocessor_config.json").write_text(text, encoding="utf-8")

    def sized(self, size: int) -> PictureSettings:
        """The same with another square; 0 changes nothing."""
        return dataclasses.replace(self, size=size) if size else self

    def pixels(self, view: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, size, size)."""
        height, width = view.shape[1:3]
        target = (self.size, self.size)
        if self.crop:
            short = min(height, width)
            target = (int(self.size * height / short), int(self.size * width / short))
        if target != (height, width):
            view = resize_pillow(view, target) if self.resize == "pillow" else resize_torch(view, target)
        top, left = (target[0] - self.size) // 2, (target[1] - self.size) // 2
        view = view[:, top : top + self.size, left : left + self.size]
        mean, std = (
            view.new_tensor(row, dtype=torch.float32).view(1, 3, 1, 1) * 255 for row in (self.mean, self.std)
        )
        return (view.permute(0, 3, 1, 2).float() - mean) / std


def _sides(size: Any) -> list[int]:
    return list(size.values()) if isinstance(size, dict) else [size]
