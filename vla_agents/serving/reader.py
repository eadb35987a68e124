"""Reading of messages: msgpack by rules that a hostile sender cannot bend.

Reading copies no array: it is a read-only view into the message. What a message may cost is bounded before anything is
built from it: its bytes, the number of its values, how deep they nest, how long a string is.

msgpack's own reader copies every bin and knows limits per container only: a message of 32 MB can ask it for 32 million
empty lists, which are gigabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vla_agents.errors import FrameError
from vla_agents.serving.arrays import ArrayReader, WireLimits

Recipe = Callable[[memoryview], Any]
"""Makes a value from a message, in the place where it was found in another one that is laid out alike."""

_NUMBERS = {  # first byte -> layout of what follows
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_SIZES = {  # first byte -> bytes of the size that follows
    0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4,
}  # fmt: skip
_LAYOUTS = {first: struct.Struct(layout) for first, layout in _NUMBERS.items()}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_MAX_KEY = 256  # bytes


class Reader:
    """Walks over a message once. Every value read counts; nothing is built before its size is known to be there.

    Args:
        data: The message.
        limits: What it may cost.
        read_array: See `codec.decode`.

    Attributes:
        holes: (begin, end) of the bytes that do not say how the message goes on: numbers of a fixed size, and what is in
            bins. Where all others are the same, another message is read in the same steps.
        recipe: Of the value that was read last; None: it has no holes and cannot be changed.
    """

    def __init__(self, data: bytes | memoryview, limits: WireLimits, read_array: ArrayReader) -> None:
        if len(data) > limits.max_bytes:
            raise FrameError(f"a message of {len(data)} bytes, at most {limits.max_bytes} are taken")
        self._data = data if isinstance(data, bytes) else bytes(data)  # indexed quicker than a view
        self._view = memoryview(self._data)
        self._limits, self._read_array = limits, read_array
        self._at, self._end = 0, len(data)
        self._left = limits.max_items
        self.holes: list[tuple[int, int]] = []
        self.recipe: Recipe | None = None

    def message(self) -> Any:
        """What the message holds."""
        try:
            value = self._read(0)
        except (struct.error, IndexError):
            raise self._short() from None
        if self._at != self._end:
            raise FrameError(f"{self._end - self._at} bytes after the end of the message")
        return _plain(value)

    def _read(self, depth: int) -> Any:
        """The next value. A bin is a view as yet: it may belong to an array."""
        self._left -= 1
        if self._left < 0:
            raise self._too_many()
        first = self._data[self._at]
        self._at += 1
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
            (value,) = layout.unpack_from(self._data, self._at)
            self.recipe = partial(_number, layout, self._at)
            self.holes.append((self._at, self._at + layout.size))
            self._at += layout.size
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
        self._at += width
        if self._at > self._end:
            raise self._short()
        return int.from_bytes(self._data[self._at - width : self._at], "big")

    def _too_many(self) -> FrameError:
        return FrameError(f"more than {self._limits.max_items} values in a message")

    def _short(self) -> FrameError:
        return FrameError("the message ends in the middle of a value")

    def _take(self, size: int) -> memoryview:
        start, self._at = self._at, self._at + size
        if self._at > self._end:
            raise self._short()
        self.recipe = _Bin(start, self._at)
        self.holes.append((start, self._at))
        return self._view[start : self._at]

    def _text(self, size: int, most: int) -> str:
        if size > most:
            raise FrameError(f"a string of {size} bytes, at most {most} are taken")
        start, self._at = self._at, self._at + size
        if self._at > self._end:
            raise self._short()
        try:
            return self._data[start : self._at].decode("utf-8")
        except UnicodeDecodeError:
            raise FrameError("a string that is not UTF-8") from None

    def _enter(self, depth: int, values: int) -> None:
        if depth >= self._limits.max_depth:
            raise FrameError(f"values nested deeper than {self._limits.max_depth}")
        if values > self._left:
            raise self._too_many()

    def _list(self, size: int, depth: int) -> list[Any]:
        self._enter(depth, size)
        found: list[Any] = []
        recipes: list[tuple[Any, Recipe]] = []
        for index in range(size):
            found.append(_plain(self._read(depth + 1)))
            self._note(index, recipes)
        self.recipe = partial(_container, _without(found, recipes), recipes)
        return found

    def _map(self, size: int, depth: int) -> Any:
        self._enter(depth, 2 * size)
        found: dict[str, Any] = {}
        recipes: list[tuple[Any, Recipe]] = []
        first = len(self.holes)
        for _ in range(size):
            key = self._key()
            if key in found:
                raise FrameError("a key that comes twice in a map")
            found[key] = self._read(depth + 1)
            self._note(key, recipes)
        array = self._read_array(found, self._limits)
        if array is None:
            self.recipe = partial(_container, _without(found, recipes), recipes)
            for key, _ in recipes:
                found[key] = _plain(found[key])
            return found
        bins = [(key, recipe) for key, recipe in recipes if isinstance(recipe, _Bin)]
        self.holes[first:] = [(data.begin, data.end) for _, data in bins]  # its numbers say what array it is
        if bins:
            self.recipe = partial(_array, _without(found, bins), bins, self._read_array, self._limits)
        return array

    def _note(self, key: Any, recipes: list[tuple[Any, Recipe]]) -> None:
        """Keep the recipe of the value under that key, if it has one."""
        if self.recipe is not None:
            recipes.append((key, self.recipe))
            self.recipe = None

    def _key(self) -> str:
        """A string of at most 256 bytes, as str or bin."""
        self._left -= 1
        first = self._data[self._at]
        self._at += 1
        if 0xA0 <= first < 0xC0:
            return self._text(first & 0x1F, _MAX_KEY)
        if first not in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB):
            raise FrameError("a key that is no string")
        return self._text(self._size(first), _MAX_KEY)


def _plain(value: Any) -> Any:
    """A view that belongs to no array becomes bytes."""
    return bytes(value) if type(value) is memoryview else value


# ---- recipes ----------------------------------------------------------------------------------------------
class _Bin:
    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end

    def __call__(self, message: memoryview) -> bytes:
        return bytes(message[self.begin : self.end])


def _number(layout: struct.Struct, at: int, message: memoryview) -> Any:
    return layout.unpack_from(message, at)[0]


def _container(constant: Any, recipes: list[tuple[Any, Recipe]], message: memoryview) -> Any:
    made = constant.copy()
    for key, recipe in recipes:
        made[key] = recipe(message)
    return made


def _array(
    constant: dict[str, Any],
    bins: list[tuple[str, _Bin]],
    read_array: ArrayReader,
    limits: WireLimits,
    message: memoryview,
) -> np.ndarray | None:
    views = {key: message[data.begin : data.end] for key, data in bins}
    return read_array(constant | views, limits)


def _without(found: Any, recipes: Sequence[tuple[Any, Recipe]]) -> Any:
    """A copy without what is made anew, so that nothing of the message is kept."""
    constant = found.copy()
    for key, _ in recipes:
        constant[key] = None
    return constant
