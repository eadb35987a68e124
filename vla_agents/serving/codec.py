"""Messages on the wire: msgpack, arrays as maps (`arrays`), read by rules that a hostile sender cannot bend (`reader`).

A robot's messages are alike: what changes from one to the next is the bytes of its pictures and a few numbers. So a
`Decoder` remembers how the last message was laid out, and walks over the next one only where that is laid out otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_agents.errors import FrameError, MissingDependencyError
from vla_agents.serving.arrays import LIMITS, ArrayReader, WireLimits, array_of, numpy_map
from vla_agents.serving.reader import Reader, Recipe

MOST_HOLES = 64  # values that may change in a layout that is remembered
MOST_KNOWN = 16 * 2**10  # bytes of it that may not


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
    return Reader(data, limits, read_array or array_of).message()


class Decoder:
    """`decode`, for the messages of one peer: quicker where one is laid out like the last.

    Args:
        limits: As of `decode`.
        read_array: As of `decode`; asked anew about every array whose bytes are in the message. One that is elsewhere
            (in shared memory) is the same as in the last message.
    """

    def __init__(self, limits: WireLimits = LIMITS, read_array: ArrayReader | None = None) -> None:
        self._limits, self._read_array = limits, read_array or array_of
        self._size = -1  # of the message that is remembered
        self._known: list[
            tuple[int, int, bytes]
        ] = []  # (begin, end, what stands there): all but the reader's holes
        self._recipe: Recipe | None = None

    def __call__(self, data: bytes) -> Any:
        """See `decode`."""
        if (
            self._recipe is not None
            and len(data) == self._size
            and all(data[begin:end] == known for begin, end, known in self._known)
        ):
            return self._recipe(memoryview(data))
        self._recipe = None
        reader = Reader(data, self._limits, self._read_array)
        value = reader.message()
        self._remember(data, reader)
        return value

    def _remember(self, data: bytes, reader: Reader) -> None:
        holes = reader.holes
        if len(holes) > MOST_HOLES or len(data) - sum(end - begin for begin, end in holes) > MOST_KNOWN:
            return
        begins, ends = [0, *(end for _, end in holes)], [*(begin for begin, _ in holes), len(data)]
        self._known = [(b, e, data[b:e]) for b, e in zip(begins, ends, strict=True) if b < e]
        self._size, self._recipe = len(data), reader.recipe


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
