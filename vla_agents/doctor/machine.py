"""Checks of the machine: Python, memory, disk, folders that must be writable, serial ports, the terminal."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from vla_agents.doctor.checks import Row, Status, Target
from vla_agents.doctor.remedies import sudo

GB = 1e9
LITTLE_DISK, NO_DISK = 5 * GB, 0.5 * GB  # a run's checkpoints and videos; not even a demo's (docs/install.md)
LITTLE_MEMORY = 3 * GB  # an env of LIBERO and the process that drives it (docs/libero.md)
LITTLE_SHARED = 0.25 * GB  # pictures on their way between processes; a container's default is 64 MB


def python_version(target: Target) -> Iterator[Row]:
    """Which one this is. (An older one than 3.11 does not get here.)"""
    version = platform.python_version()
    yield Row("Python", "ok", f"{version} at {sys.executable}, {platform.platform(terse=True)}")


def memory(target: Target) -> Iterator[Row]:
    """Cores and memory of this process, a container's limits counted in."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total, free = _memory()
    found = f"{free / GB:.1f} of {total / GB:.1f} GB free, {cores} core{'s' * (cores > 1)}"
    if free < LITTLE_MEMORY:
        yield Row("memory", "warning", found, advice="end other programs, or fewer envs: --num-envs 1")
    else:
        yield Row("memory", "ok", found)
    shared = Path("/dev/shm")
    if sys.platform == "linux" and shared.is_dir():
        size = shutil.disk_usage(shared).total
        if size < LITTLE_SHARED:
            remedy = f"{sudo()}mount -o remount,size=4G /dev/shm"
            advice = "in Docker: docker run --shm-size=4g ..."
            yield Row("shared memory", "warning", f"{size / 1e6:.0f} MB at /dev/shm", remedy, advice)


def _memory() -> tuple[float, float]:
    """Bytes in all, and bytes free."""
    total, free = float("inf"), float("inf")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        numbers = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}
        total, free = numbers["MemTotal"], numbers["MemAvailable"]
        group = Path("/sys/fs/cgroup")
        limit = float((group / "memory.max").read_text())  # "max" is no number
        used = float((group / "memory.current").read_text())
        total, free = min(total, limit), min(free, limit - used)
    except (OSError, ValueError, KeyError, IndexError):
        if total == float("inf"):
            total = free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return total, free


# ---- disk ---------------------------------------------------------------------------------------------------
def folders() -> dict[str, Path]:
    """What is written to, by what it is for."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(os.environ.get("HF_HOME") or home / "huggingface")
    return {"runs": Path.cwd() / "runs", "models": hub, "temporary": Path(tempfile.gettempdir())}


_ELSEWHERE = {
    "runs": "start in another folder, or give --out a folder on another disk",
    "models": "export HF_HOME=/other/disk/huggingface",
    "temporary": "export TMPDIR=/other/disk/tmp",
}


def disk(target: Target) -> Iterator[Row]:
    """Room where runs, models and temporary files go; a row per disk."""
    disks: dict[int, list[str]] = {}
    for use, folder in folders().items():
        disks.setdefault(_there(folder).stat().st_dev, []).append(use)
    for uses in disks.values():
        place = _there(folders()[uses[0]])
        free = shutil.disk_usage(place).free
        found = f"{free / GB:.1f} GB free at {place} ({', '.join(uses)})"
        remedy = _ELSEWHERE[uses[0]]
        if free < NO_DISK:
            yield Row("disk", "missing", found, advice=f"make room, or {remedy}")
        elif free < LITTLE_DISK:
            yield Row("disk", "warning", found, advice=f"make room, or {remedy}")
        else:
            yield Row("disk", "ok", found)
        if hasattr(os, "statvfs") and (stats := os.statvfs(place)).f_files and not stats.f_favail:
            yield Row(
                "disk", "missing", f"no more files fit on the disk of {place} (inodes)", advice="delete some"
            )


def writable(target: Target) -> Iterator[Row]:
    """Whether files can be made there; tried."""
    fine = []
    for use, folder in folders().items():
        place = _there(folder)
        try:
            with tempfile.NamedTemporaryFile(dir=place, prefix=".vla-agents-doctor-"):
                fine.append(use)
        except OSError as error:
            mend = f"{sudo()}chown -R {shlex.quote(getpass.getuser())} {shlex.quote(str(place))}"
            elsewhere = _ELSEWHERE[use]
            command = elsewhere if elsewhere.startswith("export") else mend
            why = error.strerror or str(error)
            yield Row(f"folder for {use}", "missing", f"cannot write to {place}: {why}", command)
    if fine:
        yield Row("writable folders", "ok", ", ".join(f"{use}: {folders()[use]}" for use in fine))


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next((place for place in (folder, *folder.parents) if place.is_dir()), Path("/"))


# ---- what people and robots are reached by --------------------------------------------------------------------
def serial_ports(target: Target) -> Iterator[Row]:
    """USB adapters of servos, and whether this user may open them."""
    if sys.platform != "linux":
        return
    ports = serial_devices()
    closed = [port for port in ports if not os.access(port, os.R_OK | os.W_OK)]
    if closed:
        import grp  # Unix only

        group = grp.getgrgid(closed[0].stat().st_gid).gr_name
        found = f"no permission to open {', '.join(map(str, closed))} (group {group})"
        command = f"{sudo()}usermod -aG {group} $USER"
        status: Status = "missing" if target.needs_ports else "warning"
        yield Row("serial ports", status, found, command, "and log in again")
    elif ports:
        yield Row("serial ports", "ok", f"{', '.join(map(str, ports))} may be opened")
    else:
        absent: Status = "warning" if target.needs_ports else "absent"
        yield Row("serial ports", absent, "no USB adapter is plugged in", advice="for servos, plug one in")


def serial_devices() -> list[Path]:
    """Device files of USB serial adapters."""
    return sorted([*Path("/dev").glob("ttyUSB*"), *Path("/dev").glob("ttyACM*")])


def terminal(target: Target) -> Iterator[Row]:
    """Whether tables, bars and the live view can be shown."""
    stream = sys.__stdout__ or sys.stdout  # rich's spinner stands before the present one
    console = Console(file=stream)
    encoding = (getattr(stream, "encoding", None) or "ascii").lower()
    if "utf" not in encoding:
        found = f"its encoding is {encoding}: names and frames of tables are garbled"
        yield Row("terminal", "warning", found, "export PYTHONIOENCODING=utf-8 LC_ALL=C.UTF-8")
    elif not console.is_terminal:
        yield Row("terminal", "ok", "none (the output goes to a file or pipe)")
    elif console.width < 80:
        found = f"{console.width} columns: tables are cramped"
        yield Row("terminal", "warning", found, advice="make the window 80 columns wide or more")
    else:
        colours = {"truecolor": "true colour", "256": "256 colours"}.get(
            console.color_system or "", "few colours"
        )
        yield Row("terminal", "ok", f"{console.width} x {console.height}, {colours}, {encoding}")
