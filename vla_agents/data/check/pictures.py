"""Checks of pictures: frozen while the robot moves, black, and the same from two cameras."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vla_agents.data.check.findings import Finding
from vla_agents.data.episode import Episode, EpisodeReader

FREEZE = 0.3  # seconds
MOVED = 0.05  # of the range of a state's dimension
_LEVELS = 16  # differences of encoding stay below
_DARK = 8
SAMPLED = 50  # episodes


def shortest_freeze(fps: float) -> int:
    """Pictures in a row that have to be the same."""
    return max(5, int(np.ceil(FREEZE * fps)))


def sampled_steps(length: int, fps: float) -> np.ndarray:
    """Steps to look at: the first, the last, and a run in the middle."""
    run = shortest_freeze(fps) + 3
    start = max(0, (length - run) // 2)
    middle = np.arange(start, min(length, start + run))
    return np.unique(np.r_[0, middle, length - 1]) if length else middle


def travel(episode: Episode, spread: np.ndarray) -> np.ndarray | None:
    """The state in units of its range, float64 (T, S); None without a state. `spread` is that range, (S,)."""
    if episode.state is None or not episode.state.size:
        return None
    return episode.state / np.where(spread > 1e-6, spread, np.inf)


def look(
    number: int,
    camera: str,
    steps: np.ndarray,
    pictures: Iterable[np.ndarray],
    state: np.ndarray | None,
    fps: float,
) -> list[Finding]:
    """Findings of one camera in one episode.

    Args:
        number: The episode.
        camera: Its name.
        steps: int64 (n,), rising: which steps `pictures` are of.
        pictures: uint8 (H, W, 3), one by one.
        state: Of `travel`.
        fps: Steps per second.
    """
    frozen = _Runs()
    dark, previous, before = [], None, -2
    for step, picture in zip(steps.tolist(), pictures, strict=True):
        if picture.max() < _DARK:
            dark.append(step)
        same = step == before + 1 and previous is not None and _same(previous, picture)
        frozen.add(step, same)
        if not same:  # so that slow motion adds up
            previous = picture
        before = step
    found = []
    if dark:
        found.append(
            Finding(
                "black_picture",
                "warning",
                f"camera {camera!r}: black pictures",
                number,
                dark[0],
                count=len(dark),
                remedy="the lens was covered, or the camera not ready: leave the episode out",
                leave_out=True,
            )
        )
    for start, end in frozen.runs():
        if end - start + 1 < shortest_freeze(fps) or state is None:
            continue
        moved = float(np.abs(state[start : end + 1] - state[start]).max())
        if moved > MOVED:
            found.append(
                Finding(
                    "frozen_picture",
                    "warning",
                    f"camera {camera!r}: the same picture for {end - start + 1} steps while the state moves by "
                    f"{moved:.0%} of its range",
                    number,
                    start,
                    moved,
                    end - start + 1,
                    "the camera or its cable hung: rows and pictures do not belong together; leave the episode out",
                    leave_out=True,
                )
            )
    return found


def twins(number: int, reader: EpisodeReader, step: int) -> list[Finding]:
    """Two cameras of one size that show the same picture."""
    seen: dict[bytes, str] = {}
    found = []
    for camera in reader.embodiment.camera_names:
        picture = reader.frames(number, camera, np.array([step]))[0]
        key = picture.tobytes() + repr(picture.shape).encode()
        if key in seen and np.ptp(picture):
            found.append(
                Finding(
                    "same_cameras",
                    "warning",
                    f"cameras {seen[key]!r} and {camera!r} show the same picture",
                    number,
                    step,
                    remedy="two names lead to one device: mend the robot's camera settings",
                )
            )
        seen.setdefault(key, camera)
    return found


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for the noise of encoding."""
    return bool((np.maximum(one, other) - np.minimum(one, other)).max() < _LEVELS)


class _Runs:
    """Stretches of steps that show the picture of the one before."""

    def __init__(self) -> None:
        self._found: list[list[int]] = []

    def add(self, step: int, same: bool) -> None:
        """The next step."""
        if same and self._found:
            self._found[-1][1] = step
        else:
            self._found.append([step, step])

    def runs(self) -> list[tuple[int, int]]:
        """`(first, last)` step of each."""
        return [(a, b) for a, b in self._found if b > a]
