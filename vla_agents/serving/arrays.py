"""Arrays in messages: which are taken, how they are written, and that a shape fits its bytes to the last one.

An array is the map `{"__ndarray__": true, "data": bin, "dtype": "<f4", "shape": [50, 32]}`, C order, as openpi's and
StarVLA's clients write it (keys as bin or str). Only plain numbers become arrays: an object array would be run or
dereferenced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_agents.errors import FrameError

DTYPES = {
    name: np.dtype(name)
    for name in ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
}
"""What an array may be made of: bool, integers and floats, little-endian."""


@dataclass(frozen=True)
class WireLimits:
    """What one message may cost.

    Args:
        max_bytes: Of the whole message; nine pictures of 1280 x 720 fit.
        max_items: Values in it, containers and keys included; an array counts as few.
        max_depth: How deep containers nest.
        max_text: Bytes of one string.
        max_dims: Axes of an array.
    """

    max_bytes: int = 32 * 2**20
    max_items: int = 4096
    max_depth: int = 12
    max_text: int = 64 * 2**10
    max_dims: int = 8


LIMITS = WireLimits()
ArrayReader = Callable[[dict[str, Any], WireLimits], np.ndarray | None]


# ---- reading ----------------------------------------------------------------------------------------------
def array_of(found: dict[str, Any], limits: WireLimits) -> np.ndarray | None:
    """The array or numpy scalar that a map of openpi's kind stands for, or None."""
    if "__ndarray__" in found:
        data = found.get("data")
        if not isinstance(data, memoryview):
            raise FrameError("an array whose data is no bin")
        return make_array(data, found.get("dtype"), found.get("shape"), limits)
    if "__npgeneric__" in found:
        dtype, value = check_dtype(found.get("dtype")), found.get("data")
        if not isinstance(value, bool | int | float):
            raise FrameError("a numpy scalar that is no number")
        try:
            number = np.asarray(value).astype(dtype)
        except (OverflowError, TypeError, ValueError):
            raise FrameError(f"a numpy scalar that does not fit its type {dtype.str}") from None
        number.setflags(write=False)
        return number
    return None


def check_dtype(name: Any) -> np.dtype:
    """The dtype of that name, if it is one of `DTYPES`."""
    if type(name) is memoryview and len(name) <= 8:
        name = bytes(name).decode("latin-1")
    kind = DTYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise FrameError(
            f"an array of dtype {str(name)[:20]!r}, only numbers are taken", f"one of {', '.join(DTYPES)}"
        )
    return kind


def check_shape(shape: Any, dtype: np.dtype, limits: WireLimits) -> tuple[tuple[int, ...], int]:
    """(shape, bytes), if it is a list of few sizes whose product is no absurdity."""
    if not isinstance(shape, list) or len(shape) > limits.max_dims:
        raise FrameError(f"an array whose shape is no list of at most {limits.max_dims} sizes")
    size = dtype.itemsize
    for axis in shape:
        if type(axis) is not int or not 0 <= axis <= limits.max_bytes:
            raise FrameError("an array with an axis that is no size")
        size *= max(axis, 1)  # axes of 0 must not hide absurd ones
        if size > limits.max_bytes:
            raise FrameError(f"an array of more than {limits.max_bytes} bytes")
    return tuple(shape), 0 if 0 in shape else size


def make_array(data: memoryview, dtype: Any, shape: Any, limits: WireLimits) -> np.ndarray:
    """A read-only view of data, whose dtype and shape must fit it to the byte."""
    kind = check_dtype(dtype)
    axes, size = check_shape(shape, kind, limits)
    if size != len(data):
        raise FrameError(f"an array of shape {axes} and dtype {kind.str} with {len(data)} bytes, not {size}")
    return view_of(data, kind, axes)


def view_of(data: memoryview, kind: np.dtype, axes: tuple[int, ...]) -> np.ndarray:
    """A read-only view of data, which is known to be of that dtype and shape as far as its size goes."""
    array = np.frombuffer(data, kind).reshape(axes)
    if kind.kind == "b" and data.nbytes and array.view(np.uint8).max(initial=0) > 1:
        raise FrameError("a boolean array with values other than 0 and 1")
    return array if array.flags.aligned else array.copy()


# ---- writing ----------------------------------------------------------------------------------------------
def numpy_map(value: Any) -> Any:
    """What msgpack cannot write itself: arrays and numpy scalars, as openpi's clients read them."""
    if isinstance(value, np.ndarray):
        array = checked(value)
        return {b"__ndarray__": True, b"data": raw(array), b"dtype": array.dtype.str, b"shape": array.shape}
    if isinstance(value, np.generic):
        checked(np.asarray(value))
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise FrameError(
        f"a {type(value).__name__} cannot be sent", "send dicts, lists, strings, numbers and arrays"
    )


def checked(array: np.ndarray) -> np.ndarray:
    """The array in C order and little-endian, if it is one of numbers."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype.str not in DTYPES:
        raise FrameError(f"an array of dtype {array.dtype} cannot be sent", "send numbers")
    return np.ascontiguousarray(array).reshape(array.shape)


def raw(array: np.ndarray) -> memoryview | bytes:
    """The bytes of a contiguous array, uncopied where that is possible."""
    return array.reshape(-1).view(np.uint8).data if array.size else b""
