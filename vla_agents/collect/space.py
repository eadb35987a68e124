"""What a recording may need on the disk, and what is left of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from vla_agents.data.recording.status import RecordingStatus
from vla_agents.embodiment import Embodiment

LOW = 1e9  # bytes under which a disk is shown as nearly full
# Bytes per pixel and picture, at the upper end of what was measured: see docs/data.md.
_PER_PIXEL = {"lerobot": 0.1, "hdf5": 2.0}
_PER_STEP = 300.0  # numbers
_PER_EPISODE = 20e3  # files


def expected_bytes(body: Embodiment, format: str, episodes: int, steps: int) -> float:
    """About how much so many episodes of so many steps will take, rather more than less."""
    pixels = sum(camera.height * camera.width for camera in body.cameras)
    return episodes * (_PER_EPISODE + steps * (_PER_STEP + pixels * _PER_PIXEL.get(format, 2.0)))


def free_bytes(path: Path) -> int:
    """Free bytes where `path` is, or will be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def warning(path: Path, expected: float) -> str:
    """What to say before a recording starts; nothing where there is enough space."""
    free = free_bytes(path)
    if free >= max(expected, LOW / 2):
        return ""
    return (
        f"Only {free / 1e9:.2f} GB are free in {path}, and this recording may take {expected / 1e9:.2f} GB. "
        "When the disk is full, recording stops; what was saved stays."
    )


def meter(status: RecordingStatus) -> str:
    """The line of the operator: free space, and what came late (rich markup)."""
    free = f"{status.free / 1e9:.1f} GB free"
    parts = [f"[red]{free}[/red]" if status.free < LOW else free]
    if status.waited:
        parts.append(f"[yellow]waited {status.waited}x, {status.seconds_waited:.1f} s[/yellow]")
    if status.repeated:
        parts.append(f"[red]{status.repeated} pictures repeated[/red]")
    if status.error is not None:
        parts.append("[red]error[/red]")
    return ", ".join(parts)
