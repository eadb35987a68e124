"""Messages on the wire: msgpack, with arrays as maps, read by rules that a hostile sender cannot bend.

An array is the map `{"__ndarray__": true, "data": bin, "dtype": "<f4", "shape": [50, 32]}`, C order, as openpi's and
StarVLA's clients write it (keys as bin or str). Reading copies no array: it is a read-only view into the message. What a
message may cost is bounded before anything is built from it: its bytes, the number of its values, how deep they nest,
how long a string is. Only plain numbers become arrays (an object array would be run or dereferenced), and a shape must
fit its bytes to the last one.

msgpack's own reader copies every bin and knows limits per container only: a message of 32 MB can ask it for 32 million
empty lists, which are gigabytes. So reading is done here; writing is msgpack's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_agents.errors import FrameError, MissingDependencyError

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
def decode(
    data: bytes | memoryview, limits: WireLimits = LIMITS, read_array: ArrayReader | None = None
) -> Any:
    """One message -> dicts, lists, strings, numbers, arrays.

    Args:
        data: The message; arrays are views into it.
        limits: What it may cost.
        read_array: Given every map, says which array it stands for, or None where it is just a map; by default
            `array_of`.

    Raises:
        FrameError: It is no msgpack, breaks a limit, has a value of a kind that is not allowed, a key that comes twice
            or is no string, or bytes after its end.
    """
    if len(data) > limits.max_bytes:
        raise FrameError(f"a message of {len(data)} bytes, at most {limits.max_bytes} are taken")
    reader = _Reader(data, limits, read_array or array_of)
    try:
        value = reader.read(0)
    except (struct.error, IndexError):
        raise FrameError("the message ends in the middle of a value") from None
    if reader.at != reader.end:
        raise FrameError(f"{reader.end - reader.at} bytes after the end of the message")
    return _plain(value)


_NUMBERS = {  # first byte -> layout of what follows
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_SIZES = {  # first byte -> bytes of the size that follows
    0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4,
}  # fmt: skip
_LAYOUTS = {first: struct.Struct(layout) for first, layout in _NUMBERS.items()}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_MAX_KEY = 256  # bytes


class _Reader:
    """Walks over a message once. Every value read counts; nothing is built before its size is known to be there."""

    def __init__(self, data: bytes | memoryview, limits: WireLimits, read_array: ArrayReader) -> None:
        self._data = data if isinstance(data, bytes) else bytes(data)  # indexed quicker than a view
        self._view = memoryview(self._data)
        self._limits, self._read_array = limits, read_array
        self.at, self.end = 0, len(data)
        self._left = limits.max_items

    def read(self, depth: int) -> Any:
        """The next value. A bin is a view as yet: it may belong to an array."""
        self._left -= 1
        if self._left < 0:
            raise self._too_many()
        first = self._data[self.at]
        self.at += 1
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first < 0x90:
            return self._map(first & 0x0F, depth)
        if first < 0xA0:
            return self._list(first & 0x0F, depth)
        if first < 0xC0:
            return self._text(first & 0x1F, self._limits.max_text)
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _LAYOUTS:
            layout = _LAYOUTS[first]
            (value,) = layout.unpack_from(self._data, self.at)
            self.at += layout.size
            return value
        size = self._size(first)
        if first <= 0xC6:
            return self._take(size)
        if first <= 0xDB:
            return self._text(size, self._limits.max_text)
        return self._list(size, depth) if first <= 0xDD else self._map(size, depth)

    def _size(self, first: int) -> int:
        width = _SIZES.get(first)
        if width is None:
            raise FrameError("a value of an extension type or a reserved one, of which none is allowed")
        self.at += width
        if self.at > self.end:
            raise self._short()
        return int.from_bytes(self._data[self.at - width : self.at], "big")

    def _too_many(self) -> FrameError:
        return FrameError(f"more than {self._limits.max_items} values in a message")

    def _short(self) -> FrameError:
        return FrameError("the message ends in the middle of a value")

    def _take(self, size: int) -> memoryview:
        start, self.at = self.at, self.at + size
        if self.at > self.end:
            raise self._short()
        return self._view[start : self.at]

    def _text(self, size: int, most: int) -> str:
        if size > most:
            raise FrameError(f"a string of {size} bytes, at most {most} are taken")
        start, self.at = self.at, self.at + size
        if self.at > self.end:
            raise self._short()
        try:
            return self._data[start : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise FrameError("a string that is not UTF-8") from None

    def _enter(self, depth: int, values: int) -> None:
        if depth >= self._limits.max_depth:
            raise FrameError(f"values nested deeper than {self._limits.max_depth}")
        if values > self._left:
            raise self._too_many()

    def _list(self, size: int, depth: int) -> list[Any]:
        self._enter(depth, size)
        return [_plain(self.read(depth + 1)) for _ in range(size)]

    def _map(self, size: int, depth: int) -> Any:
        self._enter(depth, 2 * size)
        found: dict[str, Any] = {}
        has_bin = False
        for _ in range(size):
            key = self._key()
            if key in found:
                raise FrameError("a key that comes twice in a map")
            value = found[key] = self.read(depth + 1)
            has_bin |= type(value) is memoryview
        array = self._read_array(found, self._limits)
        if array is not None:
            return array
        return {key: _plain(value) for key, value in found.items()} if has_bin else found

    def _key(self) -> str:
        """A string of at most 256 bytes, as str or bin."""
        self._left -= 1
        first = self._data[self.at]
        self.at += 1
        if 0xA0 <= first < 0xC0:
            return self._text(first & 0x1F, _MAX_KEY)
        if first not in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB):
            raise FrameError("a key that is no string")
        return self._text(self._size(first), _MAX_KEY)


def _plain(value: Any) -> Any:
    """A view that belongs to no array becomes bytes."""
    return bytes(value) if type(value) is memoryview else value


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
            return np.asarray(value).astype(dtype)
        except (OverflowError, TypeError, ValueError):
            raise FrameError(f"a numpy scalar that does not fit its type {dtype.str}") from None
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


class Encoder:
    """Writes messages; keeps its buffer, so it is for one thread.

    Args:
        default: Writes what msgpack cannot; by default `numpy_map`.
    """

    def __init__(self, default: Callable[[Any], Any] = numpy_map) -> None:
        try:
            from msgpack import Packer
        except ImportError as error:
            raise MissingDependencyError("msgpack", "serving", "talking to a policy server") from error
        self._packer = Packer(default=default, autoreset=False)

    def encode(self, message: Any) -> bytes:
        """The message as bytes.

        Raises:
            FrameError: It holds something that cannot be sent.
        """
        self._pack(message)
        return self._packer.bytes()

    def view(self, message: Any) -> memoryview:
        """The message in the encoder's own buffer, to be released before the next one is written.

        Raises:
            FrameError: It holds something that cannot be sent.
        """
        self._pack(message)
        return memoryview(self._packer.getbuffer())

    def _pack(self, message: Any) -> None:
        self._packer.reset()
        try:
            self._packer.pack(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise (
                error if isinstance(error, FrameError) else FrameError(f"cannot be sent: {error}")
            ) from error
