"""What a loader worker sends, in one piece: all tensors of a step in one block of memory.

Torch sends each tensor through a file of shared memory of its own, whose handle the receiving process has to ask the worker
for while that is busy with the next step: a few tenths of a millisecond each, and a batch has a dozen tensors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGNED = 64  # bytes; suits every dtype


class Place(NamedTuple):
    """Where a tensor lies in a block.

    Args:
        start: Its first byte.
        dtype: Its dtype.
        shape: Its shape.
    """

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The byte after its last one."""
        return self.start + self.dtype.itemsize * math.prod(self.shape)

    def of(self, block: Tensor) -> Tensor:
        """The tensor, a view of the block."""
        return block[self.start : self.end].view(self.dtype).view(self.shape)


def pack(found: Any) -> tuple[Any, Tensor]:
    """`found` (lists, tuples, dicts, plain objects) with a `Place` for every tensor; and the block, uint8 (bytes,)."""
    tensors: list[Tensor] = []
    places: list[Place] = []

    def put(tensor: Tensor) -> Place:
        free = places[-1].end if places else 0
        places.append(Place(-(-free // _ALIGNED) * _ALIGNED, tensor.dtype, tuple(tensor.shape)))
        tensors.append(tensor)
        return places[-1]

    packed = _exchanged(found, Tensor, put)
    block = torch.empty(places[-1].end if places else 0, dtype=torch.uint8)
    for place, tensor in zip(places, tensors, strict=True):
        place.of(block).copy_(tensor)
    return packed, block


def unpack(packed: Any, block: Tensor) -> Any:
    """The inverse of `pack`; the tensors are views of the block."""
    return _exchanged(packed, Place, lambda place: place.of(block))


def _exchanged(found: Any, kind: type, exchange: Callable[[Any], Any]) -> Any:
    """A copy with everything of one kind, however deep, exchanged for something else."""
    if isinstance(found, kind):
        return exchange(found)
    if isinstance(found, list | tuple) and type(found) in (list, tuple):
        return type(found)(_exchanged(item, kind, exchange) for item in found)
    has_parts = hasattr(found, "__dict__") and not isinstance(found, type)
    if not has_parts and not isinstance(found, dict):
        return found
    twin = copy.copy(found)
    if isinstance(twin, dict):
        for key, value in twin.items():
            twin[key] = _exchanged(value, kind, exchange)
    for name, value in vars(twin).items() if has_parts else ():
        object.__setattr__(twin, name, _exchanged(value, kind, exchange))
    return twin
