"""The least time an act can take: bytes of weights it reads, over the bandwidth of the memory they lie in.

At batch 1 every weight is read for a few hundred tokens at most. On a GPU reading them is what cannot be avoided; that is
the floor of benchmarks/inference_gpu.py. (Arithmetic has a floor of its own, which at these sizes lies near it.)
"""

from __future__ import annotations

import time
from typing import Any

import torch

_KEPT = ("timestep_encoder.", ".norm1.linear.", "proj_out_1.", "position_embedding.", "future_tokens.")
"""Parts of a flow head that acting reads next to nothing of, or as what was computed before (`step_conditioning`)."""


def weights_read(policy: Any, words: int = 1) -> int:
    """Bytes of weights that one act has to read.

    Args:
        policy: Over a Qwen-VL.
        words: Passes of the language model: 1, and for Qwen-FAST one for each word.
    """
    deepest = max(getattr(policy, "layers", [policy.backbone.num_layers]))
    return sum(
        weight.numel() * weight.element_size() * _times(policy, name, deepest, words)
        for name, weight in policy.named_parameters()
    )


def _times(policy: Any, name: str, deepest: int, words: int) -> int:
    """How often an act reads a parameter."""
    if name.startswith("backbone."):
        if ".layers." in name:
            return words if int(name.split(".layers.")[1].split(".")[0]) < deepest else 0
        return int(".visual." in name)  # of the word embeddings only the rows of a prompt are read
    head = getattr(policy, "head", None)
    if not hasattr(head, "crosses"):
        return 1
    if any(part in name for part in _KEPT):
        return 0
    if "proj_out_2." in name and policy.config.output == 26:  # Qwen-PI's leads nowhere
        return 0
    crosses = (
        ".transformer_blocks." in name
        and head.crosses[int(name.split(".transformer_blocks.")[1].split(".")[0])]
    )
    once = "state_encoder." in name or (crosses and (".to_k." in name or ".to_v." in name))
    return 1 if once else int(policy.config.steps)


def parameters_by_part(policy: Any) -> dict[str, int]:
    """Numbers of parameters: vision tower, language model, action head; tied ones once."""
    counts = {"vision": 0, "language": 0, "head": 0}
    for name, weight in policy.named_parameters():
        part = "head" if not name.startswith("backbone.") else "vision" if ".visual." in name else "language"
        counts[part] += weight.numel()
    return counts


def copy_bandwidth(device: torch.device, size: int = 1 << 30, rounds: int = 20) -> float:
    """Bytes per second, read and written, of copying on a device: the best of some rounds."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def synchronize(device: torch.device) -> None:
    """Wait for what a device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
