"""Tiny models and data for tests: true architectures, random weights, made in a second or two."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.checkpoint import make_policy
from vla_agents.policies.policy import Batch
from vla_agents.policies.qwen_oft import QwenOFT, QwenOFTConfig
from vla_agents.policies.tiny import TinySize, make_tiny_vlm

SIZE = TinySize(
    hidden=32, layers=2, heads=2, mlp=64, vision_hidden=32, vision_layers=2, vision_heads=2, image_size=32
)

BODY = Embodiment(
    name="test_arm",
    action=(
        Part("delta_position", 3, "delta_xyz", -1, 1, "0.05 m"),
        Part("gripper", 1, "gripper_close_pm1", -1, 1),
    ),
    state=(Part("eef_position", 3, "xyz", -1, 1, "m"),),
    cameras=(Camera("front", 32, 32), Camera("wrist", 32, 32)),
    control_hz=20.0,
)


@cache
def vlm_folder(family: str = "qwen3_vl") -> Path:
    """A random tiny Qwen-VL, once per test process."""
    corpus = ["pick up the red block", "where is the green block?"] * 5
    return make_tiny_vlm(mkdtemp(prefix="tiny-vlm-"), family=family, size=SIZE, corpus=corpus)


def tiny_policy(family: str = "qwen3_vl", body: Embodiment = BODY, seed: int = 0, **config: Any) -> QwenOFT:
    """A random Qwen-OFT."""
    settings = QwenOFTConfig(vlm=str(vlm_folder(family)), **({"horizon": 4, "execute": 2} | config))
    stats = {
        name: VectorStats(
            count=10,
            mean=(0.1,) * size,
            std=(0.5,) * size,
            min=(-0.8,) * size,
            max=(0.9,) * size,
            q01=(-0.7,) * size,
            q99=(0.8,) * size,
        )
        for name, size in (("state", body.state_dim), ("action", body.action_dim))
        if size
    }
    normalizers = {name: Normalizer(getattr(body, name), value) for name, value in stats.items()}
    policy = make_policy("qwen_oft", settings, body, normalizers, seed=seed)
    assert isinstance(policy, QwenOFT)
    return policy.eval()


def random_batch(count: int, body: Embodiment = BODY, horizon: int = 4, seed: int = 0) -> Batch:
    """Random samples whose instructions differ in length."""
    rng = np.random.default_rng(seed)
    texts = ["pick up the red block", "lift it", "put the green block on the blue pad, please"]
    mask = rng.random((count, horizon)) < 0.8
    mask[:, 0] = True
    return Batch(
        images={
            c.name: torch.from_numpy(rng.integers(0, 255, (count, c.height, c.width, 3), dtype=np.uint8))
            for c in body.cameras
        },
        instructions=[texts[i % len(texts)] for i in range(count)],
        state=torch.from_numpy(rng.uniform(-1, 1, (count, body.state_dim)).astype(np.float32)),
        action=torch.from_numpy(rng.uniform(-1, 1, (count, horizon, body.action_dim)).astype(np.float32)),
        mask=torch.from_numpy(mask),
    )


def rows(batch: Batch, index: list[int]) -> Batch:
    """Some samples of a batch."""
    pick = {
        name: None if getattr(batch, name) is None else getattr(batch, name)[index]
        for name in ("state", "action", "mask", "seeds")
    }
    images = {name: image[index] for name, image in batch.images.items()}
    return Batch(images, [batch.instructions[i] for i in index], **pick)


class ArrayWindows:
    """A window source over one batch, for strategies."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.step_of = np.arange(len(batch)) % 7

    def __len__(self) -> int:
        return len(self._batch)

    def get_batch(self, indices: np.ndarray) -> dict[str, Any]:
        part = rows(self._batch, [int(i) for i in indices])
        vectors = {n: getattr(part, n).numpy() for n in ("state", "action", "mask")}
        images = {name: image.numpy() for name, image in part.images.items()}
        return {"images": images, "instruction": part.instructions, **vectors}
