"""A serial port as a line: exclusive, with deadlines, and with errors that say how to mend them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_agents.errors import (
    CommunicationError,
    ConfigError,
    MissingDependencyError,
    PortBusyError,
    PortNotFoundError,
    PortPermissionError,
    RobotError,
)

_GONE: tuple[type[Exception], ...] = (OSError, TypeError, ValueError)
"""What pyserial lets through when a device has gone."""
with contextlib.suppress(ImportError):  # Windows has none
    import termios

    _GONE = (*_GONE, termios.error)

_SLICE_S = 0.005  # a wait is cut into pieces of this length, so that Ctrl-C is heard on every system


@dataclass(frozen=True)
class PortInfo:
    """A serial port of this machine.

    Args:
        path: e.g. `/dev/ttyACM0`, or `COM3`.
        description: What the system calls it.
        serial: Serial number of the USB adapter; empty where it has none.
        vendor: USB vendor id, four hexadecimal digits; empty where it is no USB device.
        product: USB product id, likewise.
    """

    path: str
    description: str = ""
    serial: str = ""
    vendor: str = ""
    product: str = ""

    @property
    def udev_rule(self) -> str:
        """The line for /etc/udev/rules.d that lets everybody at this machine use the port."""
        match = f'KERNEL=="{Path(os.path.realpath(self.path)).name}"'  # no USB device: by its name
        if self.vendor:
            match = f'ATTRS{{idVendor}}=="{self.vendor}", ATTRS{{idProduct}}=="{self.product}"'
        return f'SUBSYSTEM=="tty", {match}, MODE="0666"'


def _pyserial() -> Any:
    try:
        import serial
        import serial.tools.list_ports
    except ImportError as error:
        raise MissingDependencyError("pyserial", "robots", "a serial port") from error
    return serial


def list_ports() -> list[PortInfo]:
    """The serial ports of this machine that may carry servos: USB adapters first."""
    found = []
    for port in _pyserial().tools.list_ports.comports():
        usb = port.vid is not None
        found.append(
            PortInfo(
                port.device,
                port.description or "",
                port.serial_number or "",
                f"{port.vid:04x}" if usb else "",
                f"{port.pid:04x}" if usb else "",
            )
        )
    return sorted(found, key=lambda port: (not port.vendor, port.path))


def port_info(path: str) -> PortInfo:
    """What is known of a port; links such as /dev/serial/by-id/... are followed."""
    real = str(Path(path).resolve()) if path.startswith("/") else path
    return next((port for port in list_ports() if port.path in (path, real)), PortInfo(path))


class SerialLine:
    """A serial port, held by this process alone.

    Args:
        path: e.g. `/dev/ttyACM0`.
        baud: Bits per second.

    Raises:
        PortNotFoundError, PortBusyError, PortPermissionError: With what to do about it.
    """

    def __init__(self, path: str, baud: int) -> None:
        serial = _pyserial()
        self.path, self.baud = path, baud
        try:
            self._port = serial.Serial(path, baud, timeout=_SLICE_S, write_timeout=1.0, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            raise _explain(path, baud, error) from error
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError, ValueError, NotImplementedError):  # other kinds of adapters
                self._port.set_low_latency_mode(True)  # FTDI's collect bytes for 16 ms otherwise

    def set_baud(self, baud: int) -> None:
        """Go on at another speed."""
        try:
            self._port.baudrate = baud
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} cannot run at {baud} baud ({error})") from error
        self.baud = baud

    def write(self, data: bytes) -> None:
        """Send all of `data`."""
        try:
            self._port.write(data)
        except OSError as error:  # SerialException is one
            raise self._lost(error) from error

    def read(self, count: int, deadline: float) -> bytes:
        """Up to `count` bytes, as soon as there are any; empty after the deadline (`time.monotonic()`)."""
        try:
            while True:
                data = self._port.read(max(1, min(count, self._port.in_waiting)))
                if data or time.monotonic() >= deadline:
                    return bytes(data)
        except (OSError, TypeError) as error:  # TypeError: pyserial, closed by another thread
            raise self._lost(error) from error

    def drain(self) -> int:
        """Throw away what has arrived; returns how many bytes that were."""
        try:
            waiting = self._port.in_waiting
            return len(self._port.read(waiting)) if waiting else 0
        except (OSError, TypeError) as error:
            raise self._lost(error) from error

    def close(self) -> None:
        """Give the port back, when all is sent. Safe to call twice."""
        with contextlib.suppress(*_GONE):
            if self._port.is_open:
                self._port.flush()
        self._port.close()

    def _lost(self, error: Exception) -> CommunicationError:
        return CommunicationError(
            f"{self.path} was lost ({error})", "check the USB cable and the power, then connect again"
        )


def _explain(path: str, baud: int, error: Exception) -> RobotError | ConfigError:
    number = getattr(error, "errno", None)
    text = str(error)
    if path.startswith("/") and not os.path.exists(path):
        there = ", ".join(port.path for port in list_ports()) or "none"
        return PortNotFoundError(
            f"there is no port {path} (there: {there})",
            "plug the adapter in; `vla-agents robot find` lists ports and who answers on them",
        )
    if number == errno.EACCES or "Permission denied" in text:
        rule = port_info(path).udev_rule
        return PortPermissionError(
            f"no permission to open {path}",
            "either `sudo usermod -aG dialout $USER` and log in again, or put this line into "
            f"/etc/udev/rules.d/99-servos.rules, run `sudo udevadm control --reload` and plug in again: {rule}",
        )
    if number in (errno.EBUSY, errno.EAGAIN) or "exclusively lock" in text or "busy" in text.lower():
        return PortBusyError(
            f"{path} is in use by another program{holders(path)}",
            "end that program (on Linux, ModemManager too takes new ports for a while)",
        )
    if isinstance(error, ValueError) or "baud" in text.lower():
        return ConfigError(f"{path} cannot run at {baud} baud ({error})")
    return PortNotFoundError(f"{path} cannot be opened ({error})", "`vla-agents robot find` lists the ports")


def holders(path: str) -> str:
    """` (python3, process 12)`: who has the port open, as far as this user may see it; Linux only."""
    real, found = os.path.realpath(path), []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            if any(os.readlink(link) == real for link in (process / "fd").iterdir()):
                found.append(f"{(process / 'comm').read_text().strip()}, process {process.name}")
        except OSError:
            continue  # another user's, or gone
    return f" ({'; '.join(found)})" if found else ""
