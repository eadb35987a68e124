"""Random samples for a policy of any embodiment, and parts of a batch: for checks and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_agents.policies.policy import Batch, Policy

_TEXTS = ("pick up the red block", "lift it", "put the green block on the blue pad, please", "go to the left")


def random_batch(policy: Policy, count: int, seed: int = 0) -> Batch:
    """Samples that fit a policy's embodiment: noise for pictures, smooth chunks, episodes that end within some of them."""
    rng = np.random.default_rng(seed)
    body, horizon = policy.embodiment, policy.horizon
    ends = [max(1, horizon - row % horizon) for row in range(count)]

    def units(name: str, values: np.ndarray) -> Tensor:
        return torch.as_tensor(policy.normalizers[name].unnormalize(values), dtype=torch.float32)

    bend = np.linspace(-1, 1, horizon)[None, :, None] if horizon > 1 else np.zeros((1, 1, 1))
    start, slope = (rng.uniform(-0.4, 0.4, (count, 1, body.action_dim)) for _ in range(2))
    batch = Batch(
        images={
            camera.name: torch.from_numpy(
                rng.integers(0, 256, (count, camera.height, camera.width, 3), dtype=np.uint8)
            )
            for camera in body.cameras
        },
        instructions=[_TEXTS[row % len(_TEXTS)] for row in range(count)],
        state=units("state", rng.uniform(-0.8, 0.8, (count, body.state_dim)).astype(np.float32))
        if body.state_dim
        else None,
        action=units("action", (start + slope * bend).astype(np.float32)),
        mask=torch.arange(horizon)[None] < torch.tensor(ends)[:, None],
        seeds=torch.from_numpy(rng.integers(2**63, size=count)),
    )
    return batch.to(policy.device)


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some samples of a batch."""
    index = torch.as_tensor(list(rows))

    def take(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[index.to(tensor.device)]

    images = {name: image[index.to(image.device)] for name, image in batch.images.items()}
    texts = [batch.instructions[row] for row in rows]
    vectors: dict[str, Any] = {
        name: take(getattr(batch, name)) for name in ("state", "action", "mask", "seeds", "action_mask")
    }
    return Batch(images, texts, **vectors)
