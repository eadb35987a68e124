"""A SpaceMouse (3Dconnexion) as a device, by its HID reports: /dev/hidraw* on Linux, hidapi elsewhere.

The cap springs back to the middle, which makes it its own dead-man's switch.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.collect.devices.evdev import RETRY_S, explain_open
from vla_agents.collect.devices.hand import EndEffectorDevice, HandSource, Motion
from vla_agents.collect.teleop import Event
from vla_agents.errors import MissingDependencyError, PortNotFoundError, RobotError

SYSFS = Path("/sys/class/hidraw")
FULL = 350.0  # what an axis says at full deflection
RECEIVERS = (0xC603, 0xC605, 0xC606, 0xC621, 0xC623, 0xC625, 0xC626, 0xC627, 0xC628, 0xC629, 0xC62B)
# The device counts x to the right, y towards the hand, z down; the base x forward, y left, z up: a rotation.
TO_BASE = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
BUTTONS = {1: Event.SAVE}  # button 0 is the gripper


@dataclass(frozen=True)
class HidInfo:
    """A SpaceMouse of this machine: its device file, name and USB ids."""

    path: str
    name: str
    vendor: int
    product: int

    @property
    def udev_rule(self) -> str:
        """The line that lets whoever sits at this machine use it."""
        return f'KERNEL=="hidraw*", ATTRS{{idVendor}}=="{self.vendor:04x}", TAG+="uaccess"'


def list_spacemice(folder: Path | None = None) -> list[HidInfo]:
    """Those of this machine; Linux. Needs no permission."""
    found = []
    for entry in sorted((folder or SYSFS).glob("hidraw*")):
        try:
            text = (entry / "device" / "uevent").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        ids = re.search(r"HID_ID=\w+:(\w+):(\w+)", text)
        name = re.search(r"HID_NAME=(.*)", text)
        if ids is None:
            continue
        vendor, product = int(ids[1], 16), int(ids[2], 16)
        if vendor == 0x256F or (vendor == 0x046D and product in RECEIVERS):
            found.append(HidInfo(f"/dev/{entry.name}", name[1].strip() if name else "", vendor, product))
    return found


class Hidraw:
    """Reports from a hidraw file, one per read."""

    def __init__(self, info: HidInfo) -> None:
        self.info = info
        try:
            self._file = os.open(info.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise explain_open(error, info.path, info.name, info.udev_rule) from error

    def read(self) -> bytes:
        """The next report, empty where there is none; `OSError` when the device has gone."""
        try:
            data = os.read(self._file, 64)
        except BlockingIOError:
            return b""
        if not data and stat.S_ISCHR(os.fstat(self._file).st_mode):
            raise OSError("end of file")
        return data

    def close(self) -> None:
        """Give it back."""
        with contextlib.suppress(OSError):
            os.close(self._file)


class Hidapi:
    """Reports through the package hidapi: macOS and Windows."""

    def __init__(self) -> None:
        try:
            import hid
        except ImportError as error:
            raise MissingDependencyError("hidapi", "teleop", "a SpaceMouse on this system") from error
        there = [
            d
            for d in hid.enumerate()
            if d["vendor_id"] == 0x256F or (d["vendor_id"] == 0x046D and d["product_id"] in RECEIVERS)
        ]
        if not there:
            raise PortNotFoundError("no SpaceMouse is connected", "plug it in, or its receiver")
        first = there[0]
        self.info = HidInfo(
            str(first["path"]), first["product_string"] or "", first["vendor_id"], first["product_id"]
        )
        self._device = hid.device()
        try:
            self._device.open_path(first["path"])
        except OSError as error:
            raise explain_open(error, self.info.path, self.info.name, self.info.udev_rule) from error
        self._device.set_nonblocking(True)

    def read(self) -> bytes:
        """The next report."""
        return bytes(self._device.read(64))

    def close(self) -> None:
        """Give it back."""
        self._device.close()


def open_spacemouse(path: str = "") -> Hidraw | Hidapi:
    """The SpaceMouse at `path`, or the first; see `Device.connect` for the errors."""
    mice = list_spacemice()
    if path:
        return Hidraw(next((m for m in mice if m.path == path), HidInfo(path, "", 0x256F, 0)))
    if mice:
        return Hidraw(mice[0])
    if SYSFS.parent.exists():
        raise PortNotFoundError(
            "no SpaceMouse is connected", "plug it in, or its receiver; or name it with path=/dev/hidrawN"
        )
    return Hidapi()


class SpaceMouseSource(HandSource):
    """Reports -> motion."""

    name = "spacemouse"

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._device: Hidraw | Hidapi | None = None
        self._axes = np.zeros(6)
        self._buttons = 0
        self._toggled = False
        self._events: list[Event] = []
        self._trouble, self._next = "", 0.0

    def open(self) -> None:
        """Open it."""
        self._device = open_spacemouse(self._path)
        self._axes[:] = 0
        self._buttons, self._trouble = 0, ""

    def close(self) -> None:
        """Give it back."""
        device, self._device = self._device, None
        if device is not None:
            device.close()

    def read(self) -> Motion:
        """How far the cap is pushed and turned now."""
        if self._device is None:
            self._seek()
            return Motion(held=False)
        try:
            while report := self._device.read():
                self._take(report)
        except (OSError, ValueError) as error:
            self.close()
            self._axes[:] = 0
            self._trouble = f"the SpaceMouse is gone ({error})"
        axes = np.clip(self._axes / FULL, -1, 1)
        rate = np.concatenate([TO_BASE @ axes[:3], TO_BASE @ axes[3:]])
        toggle, self._toggled = self._toggled, False
        return Motion(rate, toggle=toggle)

    def _take(self, report: bytes) -> None:
        """1: translation, and on newer ones the turn behind it; 2: the turn; 3: buttons. Others are left alone."""
        kind, data = report[0], report[1:]
        if kind == 1 and len(data) >= 12:
            self._axes[:] = struct.unpack_from("<6h", data)
        elif kind in (1, 2) and len(data) >= 6:
            self._axes[3 * (kind - 1) : 3 * kind] = struct.unpack_from("<3h", data)
        elif kind == 3 and data:
            now = int.from_bytes(data[:4], "little")
            fresh, self._buttons = now & ~self._buttons, now
            if fresh & 1:
                self._toggled = not self._toggled
            self._events += [event for bit, event in BUTTONS.items() if fresh >> bit & 1]

    def _seek(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + RETRY_S
        before = self._trouble
        try:
            self.open()
        except RobotError:
            self._trouble = before

    def events(self) -> list[Event]:
        """Of the second button."""
        events, self._events = self._events, []
        return events

    @property
    def trouble(self) -> str:
        """Unplugged, out of reach."""
        return self._trouble

    def controls(self) -> dict[str, str]:
        """Cap and buttons."""
        return {
            "push and turn the cap": "move and turn the tool alike",
            "left button": "close and open the gripper",
            "right button": "save",
        }


class SpaceMouseDevice(EndEffectorDevice):
    """Leads the tool by a SpaceMouse.

    Args:
        env: Whose actions.
        path: e.g. `/dev/hidraw3`; by default the first that is there.
        keys: Not needed; the terminal's keys see to the rest of the recording.
        **options: Of `EndEffectorDevice`.
    """

    def __init__(self, env: Any, *, path: str = "", keys: Any = None, **options: Any) -> None:
        super().__init__(env, SpaceMouseSource(path), **options)
