"""Which keys are down: from a terminal, from evdev, from pynput.

A terminal repeats a held key, first after a pause, and never tells that it was released. So a press counts for
`TAP_S`, and a repeated key for `TAP_S` after its last repetition: a lost connection stops the tool within that time.
"""

from __future__ import annotations

import threading
from typing import Any

from vla_agents.collect.devices.evdev import InputDevice, choose_input
from vla_agents.collect.keys import KeyInbox, KeyReader
from vla_agents.errors import MissingDependencyError, RobotError

TAP_S = 0.12  # s that one press moves; longer than the time between repetitions (33 ms, more over a network)


class HeldKeys:
    """Keys that are down.

    Attributes:
        own: Whether nobody else gets these keys, so that those for the recording are seen to here.
    """

    own = True

    def open(self) -> None:
        """Start to listen."""

    def close(self) -> None:
        """Stop."""

    def pressed(self) -> list[str]:
        """Keys that went down since the last call, by the names of `keys.KeyDecoder`."""
        raise NotImplementedError

    def held(self, now: float) -> list[str]:
        """Keys that are down now."""
        raise NotImplementedError

    @property
    def trouble(self) -> str:
        """Why none can be read; empty where they can."""
        return ""


class TerminalKeys(HeldKeys):
    """Presses of a terminal; a shared `KeyReader` hands its keys to others as well, who then see to the events."""

    def __init__(self, keys: KeyReader | None) -> None:
        self.own = keys is None
        self._reader = keys or KeyReader()
        self._inbox: KeyInbox | None = None
        self._until: dict[str, float] = {}

    def open(self) -> None:
        """Start to listen."""
        self._inbox = self._reader.inbox()
        self._reader.open()

    def close(self) -> None:
        """Stop."""
        if self.own:
            self._reader.close()

    def pressed(self) -> list[str]:
        """Keys that went down since the last call."""
        found = [] if self._inbox is None else self._inbox.take_timed()
        for key, when in found:
            name = key.lower() if len(key) == 1 else key  # caps lock
            self._until[name] = when + TAP_S
        return [key.lower() if len(key) == 1 else key for key, _ in found]

    def held(self, now: float) -> list[str]:
        """Keys that are down now."""
        self._until = {key: until for key, until in self._until.items() if until > now}
        return list(self._until)

    @property
    def trouble(self) -> str:
        """Why none can be read; empty where they can."""
        return "the terminal has gone" if self._reader.ended else ""


class EvdevKeys(HeldKeys):
    """Presses and releases from /dev/input, whichever window has the focus; Linux."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._input: InputDevice | None = None
        self._held: set[str] = set()

    def open(self) -> None:
        """Start to listen."""
        self._input = choose_input("keyboard", self._path)
        self._input.open()

    def close(self) -> None:
        """Stop."""
        if self._input is not None:
            self._input.close()

    def pressed(self) -> list[str]:
        """Keys that went down since the last call."""
        assert self._input is not None
        found = []
        for event in self._input.read():
            name = KEY_CODES.get(event.code)
            if event.is_key and name and event.value != 2:  # 2: the kernel repeats
                if event.value:
                    found.append(name)
                    self._held.add(name)
                else:
                    self._held.discard(name)
        if self._input.trouble:
            self._held.clear()
        return found

    def held(self, now: float) -> list[str]:
        """Keys that are down now."""
        return list(self._held)

    @property
    def trouble(self) -> str:
        """Why none can be read; empty where they can."""
        return "" if self._input is None else self._input.trouble


class PynputKeys(HeldKeys):
    """Presses and releases through pynput: X11, macOS, Windows. Not Wayland, not SSH."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pressed: list[str] = []
        self._held: set[str] = set()
        self._listener: Any = None

    def open(self) -> None:
        """Start to listen."""
        try:
            from pynput import keyboard
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "pynput":
                raise MissingDependencyError("pynput", "teleop", "reading keys with pynput") from error
            raise RobotError(  # pynput imports its backend at once, which needs a display
                f"pynput cannot read keys here ({str(error).splitlines()[0]})",
                "it needs X11, macOS or Windows; use backend=terminal or backend=evdev",
            ) from error
        self._listener = keyboard.Listener(
            on_press=lambda key: self._note(key, True), on_release=lambda key: self._note(key, False)
        )
        self._listener.start()

    def _note(self, key: Any, down: bool) -> None:
        name = getattr(key, "char", None) or _PYNPUT.get(getattr(key, "name", ""), getattr(key, "name", ""))
        name = str(name).lower()
        with self._lock:
            if down and name not in self._held:
                self._pressed.append(name)
            (self._held.add if down else self._held.discard)(name)

    def pressed(self) -> list[str]:
        """Keys that went down since the last call."""
        with self._lock:
            found, self._pressed = self._pressed, []
        return found

    def held(self, now: float) -> list[str]:
        """Keys that are down now."""
        with self._lock:
            return list(self._held)

    def close(self) -> None:
        """Stop."""
        if self._listener is not None:
            self._listener.stop()


_PYNPUT = {"esc": "escape", "page_up": "pageup", "page_down": "pagedown"}
# input-event-codes.h
KEY_CODES = {
    1: "escape", 12: "-", 13: "+", 14: "backspace", 15: "tab", 28: "enter", 57: "space", 96: "enter",
    16: "q", 17: "w", 18: "e", 19: "r", 20: "t", 21: "y", 22: "u", 23: "i", 24: "o", 25: "p",
    30: "a", 31: "s", 32: "d", 33: "f", 34: "g", 35: "h", 36: "j", 37: "k", 38: "l",
    44: "z", 45: "x", 46: "c", 47: "v", 48: "b", 49: "n", 50: "m", 74: "-", 78: "+",
    103: "up", 105: "left", 106: "right", 108: "down", 104: "pageup", 109: "pagedown",
}  # fmt: skip
