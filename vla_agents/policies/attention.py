"""Which attention kernels a model runs on: flash-attention where it can, else torch's own, else plain matrices.

`auto` is decided where the weights are: `Backbone` asks again whenever they move or change their type. A kernel that was
asked for by name is never replaced by another one; where it cannot run, a typed error says so.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from vla_agents.errors import ConfigError, MissingDependencyError

FLASH = "flash_attention_2"
_HALF = (torch.float16, torch.bfloat16)
_log = logging.getLogger(__name__)


def flash_is_installed() -> bool:
    """Whether the package flash-attn is there, and a GPU for it."""
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())


def choose_attention(asked: str, model: Any, device: torch.device, dtype: torch.dtype) -> str:
    """The name `transformers` knows the kernels by.

    Args:
        asked: `auto`, `flash_attention_2`, `sdpa` or `eager`.
        model: A `PreTrainedModel`.
        device: Where its weights are.
        dtype: Their type.

    Raises:
        ConfigError: The model has no such kernels.
        MissingDependencyError: flash-attn is asked for and not installed.
    """
    flash, sdpa = getattr(model, "_supports_flash_attn", False), getattr(model, "_supports_sdpa", False)
    if asked == "auto":
        if flash and device.type == "cuda" and dtype in _HALF and flash_is_installed():
            return FLASH
        return "sdpa" if sdpa else "eager"
    if not {FLASH: flash, "sdpa": sdpa, "eager": True}.get(asked, False):
        raise ConfigError(f"attention={asked!r} is not for {type(model).__name__}", "use attention='auto'")
    if asked == FLASH and not flash_is_installed():
        raise MissingDependencyError("flash-attn", "flash-attn", f"attention={FLASH!r} (on a GPU)")
    return asked


def check_place(attention: str, device: torch.device, dtype: torch.dtype) -> None:
    """`ConfigError` where flash-attention stands before weights it cannot compute with."""
    if attention == FLASH and (device.type != "cuda" or dtype not in _HALF):
        raise ConfigError(
            f"attention={FLASH!r} computes in half precision on a GPU, the weights are {dtype} on {device.type}",
            "set dtype='bfloat16' and a GPU, or attention='auto'",
        )


def set_attention(model: Any, attention: str) -> None:
    """Put a model and all that is in it onto these kernels; logged where it changes."""
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
        _log.info("%s attends by %s", type(model).__name__, attention)
