"""Linux input devices (/dev/input/event*) without a package: who is there, and their events.

The kernel lists them for everybody in /proc/bus/input/devices; opening one needs the group `input` or a udev rule.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from vla_agents.errors import PortBusyError, PortNotFoundError, PortPermissionError, RobotError

PROC = Path("/proc/bus/input/devices")
EVENT = struct.Struct("llHHi")  # struct input_event: seconds, microseconds, type, code, value
SYN, KEY, ABS = 0, 1, 3
SYN_REPORT, SYN_DROPPED = 0, 3
RETRY_S = 1.0
BTN_SOUTH, BTN_JOYSTICK, KEY_A, KEY_SPACE = 0x130, 0x120, 30, 57


@dataclass(frozen=True)
class InputInfo:
    """An input device of this machine.

    Args:
        path: e.g. `/dev/input/event5`.
        name: What it calls itself.
        vendor: USB vendor id, four hexadecimal digits.
        product: USB product id.
        kind: `"gamepad"`, `"keyboard"`, or empty.
    """

    path: str
    name: str
    vendor: str
    product: str
    kind: str

    @property
    def udev_rule(self) -> str:
        """The line that lets whoever sits at this machine use it."""
        match = f'ATTRS{{idVendor}}=="{self.vendor}", ATTRS{{idProduct}}=="{self.product}", '
        usb = self.vendor not in ("", "0000")
        return f'SUBSYSTEM=="input", KERNEL=="event*", {match if usb else ""}TAG+="uaccess"'


@dataclass(frozen=True)
class InputEvent:
    """One event: a key or button (value 1 down, 0 up, 2 repeated) or an axis."""

    type: int
    code: int
    value: int

    @property
    def is_key(self) -> bool:
        """Whether it is a key or button."""
        return self.type == KEY


def list_inputs(listing: Path | None = None) -> list[InputInfo]:
    """The input devices of this machine; none where the system is not Linux. Needs no permission."""
    try:
        text = (listing or PROC).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for block in text.split("\n\n"):
        handler = re.search(r"H: Handlers=.*?\b(event\d+)", block)
        if handler is None:
            continue
        name = re.search(r'N: Name="(.*)"', block)
        ids = re.search(r"Vendor=(\w+) Product=(\w+)", block)
        keys, axes = _bits(block, "KEY"), _bits(block, "ABS")
        kind = ""
        if axes & 0b11 == 0b11 and (keys >> BTN_SOUTH & 1 or keys >> BTN_JOYSTICK & 1):
            kind = "gamepad"
        elif keys >> KEY_A & 1 and keys >> KEY_SPACE & 1:
            kind = "keyboard"
        found.append(
            InputInfo(
                f"/dev/input/{handler[1]}",
                name[1] if name else "",
                ids[1] if ids else "",
                ids[2] if ids else "",
                kind,
            )
        )
    return found


def _bits(block: str, kind: str) -> int:
    """A bitmap of the listing: hexadecimal words of 64 bits, the highest first."""
    found = re.search(rf"B: {kind}=([0-9a-f ]+)", block)
    value = 0
    for word in found[1].split() if found else ():
        value = value << 64 | int(word, 16)
    return value


class InputDevice:
    """An input device that is read without waiting, and sought again when it was unplugged.

    Args:
        info: Which.
    """

    def __init__(self, info: InputInfo) -> None:
        self.info = info
        self.trouble = ""
        self.ranges: dict[int, tuple[int, int]] = {}  # axis -> what it may say
        self._file = -1
        self._rest = b""
        self._dropped = False
        self._next = 0.0
        self._first: list[InputEvent] = []  # where the axes stood when it was opened

    def open(self) -> None:
        """Open it.

        Raises:
            PortNotFoundError, PortPermissionError, PortBusyError: With the udev line.
        """
        try:
            self._file = os.open(self.info.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise explain_open(error, self.info.path, self.info.name, self.info.udev_rule) from error
        self._rest, self._dropped, self.trouble = b"", False, ""
        self.ranges = {axis: found for axis in range(0x12) if (found := self._range(axis))}
        self._first = self._all_axes()

    def read(self) -> list[InputEvent]:
        """What happened since the last call; whole reports only."""
        if self._file < 0:
            self._seek()
            return []
        data = self._rest + self._everything()
        whole = len(data) - len(data) % EVENT.size
        self._rest = data[whole:]
        events, self._first = self._first, []
        for _, _, kind, code, value in EVENT.iter_unpack(data[:whole]):
            if kind == SYN and code == SYN_DROPPED:  # the kernel's memory was full: what comes is not whole
                self._dropped = True
            elif kind == SYN and code == SYN_REPORT and self._dropped:
                self._dropped = False
                events += self._all_axes()
            elif not self._dropped and kind in (KEY, ABS):
                events.append(InputEvent(kind, code, value))
        return events

    def close(self) -> None:
        """Give it back. May be called twice."""
        handle, self._file = self._file, -1
        if handle >= 0:
            os.close(handle)

    # ---- inside -------------------------------------------------------------------------------------------
    def _everything(self) -> bytes:
        """What waits, up to a full memory of the kernel's; it ends at a read that gives nothing."""
        found = b""
        try:
            for _ in range(64):
                data = os.read(self._file, EVENT.size * 64)
                if not data:  # a pipe whose other end is not open
                    break
                found += data
        except BlockingIOError:
            pass
        except OSError as error:
            self.close()
            self.trouble = f"{self.info.name or self.info.path} is gone ({error.strerror})"
            return b""
        return found

    def _seek(self) -> None:
        """Once a second: the same device, maybe under another name."""
        if not self.trouble or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + RETRY_S
        same = [i for i in list_inputs() if (i.name, i.kind) == (self.info.name, self.info.kind)]
        self.info = next(iter(same), self.info)
        before = self.trouble
        try:
            self.open()
        except RobotError:
            self.trouble = before

    def _absinfo(self, axis: int) -> tuple[int, ...] | None:
        buffer = bytearray(24)  # struct input_absinfo: value, minimum, maximum, fuzz, flat, resolution
        try:
            fcntl.ioctl(self._file, 2 << 30 | 24 << 16 | ord("E") << 8 | 0x40 + axis, buffer)
        except OSError:
            return None
        return struct.unpack("6i", buffer)

    def _range(self, axis: int) -> tuple[int, int] | None:
        found = self._absinfo(axis)
        return (found[1], found[2]) if found and found[1] < found[2] else None

    def _all_axes(self) -> list[InputEvent]:
        found = ((axis, self._absinfo(axis)) for axis in self.ranges)
        return [InputEvent(ABS, axis, info[0]) for axis, info in found if info]


def explain_open(error: OSError, path: str, name: str, rule: str) -> RobotError:
    """The error for a device file that cannot be opened."""
    what = f"{name} ({path})" if name else path
    if error.errno in (errno.EACCES, errno.EPERM):
        return PortPermissionError(
            f"no permission to open {what}",
            "put this line into /etc/udev/rules.d/70-teleop.rules, run `sudo udevadm control --reload` and plug it in "
            f"again: {rule}",
        )
    if error.errno == errno.EBUSY:
        return PortBusyError(f"{what} is held by another program", "end that program")
    return PortNotFoundError(
        f"{what} cannot be opened ({error.strerror})",
        "plug it in; `vla-agents robot find` lists the devices of this machine",
    )


def choose_input(kind: str, path: str = "", listing: Path | None = None) -> InputDevice:
    """The input device at `path`, or the first of a kind.

    Raises:
        PortNotFoundError: None is there.
    """
    inputs = list_inputs(listing)
    if path:
        real = os.path.realpath(path)
        return InputDevice(next((i for i in inputs if i.path == real), InputInfo(path, "", "", "", kind)))
    for info in inputs:
        if info.kind == kind:
            return InputDevice(info)
    there = ", ".join(i.name for i in inputs) or "none"
    with contextlib.suppress(OSError):
        if not Path("/dev/input").exists():
            there = "none; this system has no /dev/input"
    raise PortNotFoundError(
        f"no {kind} is connected (input devices: {there})",
        f"plug one in, or name its file with path=/dev/input/eventN; over the network, use the phone device, "
        f"whose page reads a {kind} at the browser",
    )
