"""`torch.compile` for acting: one graph of static shapes, with kernels made for them.

On a GPU the graph is recorded as a CUDA graph (`mode="reduce-overhead"`), so that a thousand kernels start at once. On a
CPU inductor fuses what lies between the matrix products. Every new shape is compiled once, which takes from half a minute
(a small model) to a few minutes: prompts are padded to few different lengths, batches to powers of two.

Graphs are for acting only: where gradients are recorded, and after `train()`, everything runs as written.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from vla_agents.errors import ConfigError

LENGTHS = 32
"""Prompts are padded to a multiple of this many tokens."""
_MOST_SHAPES = 64


def compiled(
    function: Callable[..., Any],
    device: torch.device,
    *,
    constants: bool = False,
    graphs: bool = True,
) -> Callable[..., Any]:
    """A function of tensors, compiled for each combination of shapes it meets.

    Args:
        function: No shape in it may depend on a value.
        device: Where its tensors are.
        constants: CPU: take the weights for constants and keep a copy in the layout that suits the kernels (worth it for
            few tokens: 8 tokens 2.6 times as fast, 41 1.4, 180 1.1). A later change of a weight is not seen.
        graphs: GPU: record CUDA graphs as well.

    Raises:
        ConfigError: There is no C++ compiler.
    """
    check_compiler()
    options: dict[str, Any] = {"dynamic": False, "fullgraph": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = _MOST_SHAPES
    if device.type == "cuda":
        options["mode"] = "reduce-overhead" if graphs else "default"
    elif constants:
        options["options"] = {"freezing": True}
    made: Callable[..., Any] = torch.compile(function, **options)
    return made


def check_compiler() -> None:
    """`ConfigError` where inductor has no C++ compiler (CUDA's Triton needs one as well)."""
    named = os.environ.get("CXX")
    names = (named,) if named else ("g++", "clang++", "c++", "cl")
    if not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"compile=True needs a C++ compiler, and there is none on the PATH (looked for {', '.join(names)})",
            "install one (Debian, Ubuntu: apt-get install g++), name it by the variable CXX, or leave compile out",
        )


def begin_act() -> None:
    """Tell CUDA graphs that what the last act left in their memory is no longer needed."""
    if torch.cuda.is_available():
        torch.compiler.cudagraph_mark_step_begin()


def round_up(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
