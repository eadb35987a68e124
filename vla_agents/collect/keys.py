"""Keys of the terminal, read once for everybody: works over SSH, under Wayland, in tmux, without X.

    with KeyReader() as keys:
        inbox = keys.inbox()
        ...
        for key in inbox.take():   # "s", "enter", "left", ...
            ...

A terminal tells presses and (held down) repetitions, no releases. Ctrl-C, Ctrl-Z and Ctrl-\\ stay what they are.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, TextIO

from vla_agents.collect.teleop import Event
from vla_agents.errors import ConfigError

ESCAPE_S = 0.05  # how long the rest of an escape sequence may take; after that it was the key Escape
_SEQUENCES = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left", "[H": "home", "[F": "end", "[Z": "backtab",
    "OA": "up", "OB": "down", "OC": "right", "OD": "left", "OH": "home", "OF": "end",
    "[1~": "home", "[2~": "insert", "[3~": "delete", "[4~": "end", "[5~": "pageup", "[6~": "pagedown",
    "[7~": "home", "[8~": "end",
}  # fmt: skip
_CONTROLS = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    " ": "space",
    "\x7f": "backspace",
    "\x08": "backspace",
}

OPERATOR_KEYS: Mapping[str, Event] = {
    "enter": Event.SAVE,
    "backspace": Event.DISCARD,
    "r": Event.REDO,
    "y": Event.SUCCESS,
    "n": Event.FAILURE,
    "p": Event.PAUSE,
    "tab": Event.TAKEOVER,
    "q": Event.QUIT,
    "escape": Event.QUIT,
}
"""Keys for the recording; none of them moves the robot on the keyboard device."""


def events_of(keys: Iterable[str], table: Mapping[str, Event] = OPERATOR_KEYS) -> list[Event]:
    """What these keys mean for the recording; others are left out."""
    return [table[key] for key in keys if key in table]


def can_read_keys(stream: TextIO | None = None) -> bool:
    """Whether `stream` (standard input) is a terminal in whose foreground this program is."""
    try:
        handle = (sys.stdin if stream is None else stream).fileno()
        return os.isatty(handle) and os.tcgetpgrp(handle) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # no terminal; closed; no stdin at all
        return False


class KeyInbox:
    """The keys that arrived for one reader of them, with the time of each."""

    def __init__(self) -> None:
        self._keys: deque[tuple[str, float]] = deque(maxlen=1024)

    def put(self, key: str, when: float) -> None:
        """A key arrived (called by the reader's thread)."""
        self._keys.append((key, when))

    def take_timed(self) -> list[tuple[str, float]]:
        """Keys since the last call and their monotonic times, oldest first."""
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._keys.popleft())
        return found

    def take(self) -> list[str]:
        """Keys since the last call, oldest first."""
        return [key for key, _ in self.take_timed()]


class KeyReader:
    """Reads the terminal in a thread, key by key and without echo; `close` gives it back as it was.

    Args:
        stream: The terminal; standard input by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._inboxes: list[KeyInbox] = []
        self._handle = -1
        self._before: list[Any] | None = None
        self._thread: threading.Thread | None = None
        self._wake = (-1, -1)
        self._continued: Any = None
        self.ended = False  # the terminal has gone

    def inbox(self) -> KeyInbox:
        """A new inbox: every key that arrives from now on is put into each of them."""
        box = KeyInbox()
        self._inboxes.append(box)
        return box

    @property
    def is_open(self) -> bool:
        """Whether keys are being read."""
        return self._thread is not None

    def open(self) -> None:
        """Take the terminal. May be called twice.

        Raises:
            ConfigError: Standard input is no terminal, or this program runs in its background.
        """
        if self._thread is not None:
            return
        stream = sys.stdin if self._stream is None else self._stream
        if not can_read_keys(stream):
            raise ConfigError(
                "keys cannot be read: standard input is not a terminal in whose foreground this program runs",
                "run it in a terminal (over SSH: `ssh -t`), not in a pipe and not with `&`; or use another device",
            )
        import termios

        self._handle, self.ended = stream.fileno(), False
        self._before = termios.tcgetattr(self._handle)
        self._take()
        self._wake = os.pipe()
        atexit.register(self.close)
        if threading.current_thread() is threading.main_thread():
            # After Ctrl-Z and fg the shell has set the terminal its own way.
            self._continued = signal.signal(signal.SIGCONT, lambda *_: self._take())
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the terminal back as it was. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        import termios

        os.write(self._wake[1], b".")
        thread.join(2.0)
        for end in self._wake:
            os.close(end)
        if self._continued is not None:
            with contextlib.suppress(ValueError):  # closed by another thread: the handler does no harm
                signal.signal(signal.SIGCONT, self._continued)
        self._continued = None
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self._handle, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]
        atexit.unregister(self.close)

    def __enter__(self) -> KeyReader:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside -------------------------------------------------------------------------------------------
    def _take(self) -> None:
        """Key by key, no echo; the keys that send signals and the output stay as they are."""
        import termios

        if self._before is None:
            return
        mode = list(self._before)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6] = list(mode[6])
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self._handle, termios.TCSANOW, mode)

    def _run(self) -> None:
        decoder = KeyDecoder()
        while True:
            wait = ESCAPE_S if decoder.pending else None
            ready, _, _ = select.select([self._handle, self._wake[0]], [], [], wait)
            if self._wake[0] in ready:
                return
            try:
                data = os.read(self._handle, 1024) if ready else b""
            except OSError:  # the terminal has gone
                data, ready = b"", [self._handle]
            if ready and not data:
                self.ended = True
                return
            for key in decoder.feed(data) if ready else decoder.flush():
                for box in self._inboxes:
                    box.put(key, time.monotonic())


class KeyDecoder:
    """Bytes of a terminal -> names of keys: a character for itself, `"enter"`, `"up"`, `"escape"`, ..."""

    def __init__(self) -> None:
        self._text = ""
        self._bytes = b""

    @property
    def pending(self) -> bool:
        """Whether an escape sequence has begun and not ended."""
        return bool(self._text)

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete now."""
        self._bytes += data
        try:
            text, self._bytes = self._bytes.decode(), b""
        except UnicodeDecodeError as error:
            if error.start < len(self._bytes) - 3 or error.reason != "unexpected end of data":
                text, self._bytes = self._bytes.decode(errors="ignore"), b""
            else:  # a character whose rest is still to come
                text, self._bytes = self._bytes[: error.start].decode(), self._bytes[error.start :]
        self._text += text
        keys = []
        while self._text:
            key, size = _first(self._text)
            if size == 0:
                break
            self._text = self._text[size:]
            if key:
                keys.append(key)
        return keys

    def flush(self) -> list[str]:
        """Nothing more came: what looked like the beginning of a sequence was the key Escape."""
        text, self._text = self._text, ""
        return ["escape", *self.feed(text[1:].encode())] if text else []


def _first(text: str) -> tuple[str, int]:
    """The first key of `text` and how many characters it takes; 0 where more must come, "" for what is no key."""
    if text[0] != "\x1b":
        key = _CONTROLS.get(text[0], text[0])
        return (key if key.isprintable() else ""), 1
    if len(text) == 1:
        return "", 0
    if text[1] == "\x1b":
        return "escape", 1
    if text[1] not in "[O":  # Alt and a key: the key
        return "", 1
    for size in range(3, len(text) + 1):
        last = text[size - 1]
        if "@" <= last <= "~":
            return _SEQUENCES.get(text[1:size], ""), size
        if not " " <= last < "@":  # no sequence
            return "escape", 1
    return "", 0
