"""What the readers of all formats share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_agents.data.episode import Episode
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, DatasetError

MEND = "leave this episode out, or mend it"


class BaseReader(ABC):
    """Random access to the episodes of one dataset; may be used from several threads.

    Attributes:
        path: The dataset's folder or file.
        embodiment: What the numbers and pixels mean.
        format: What was found, e.g. `"LeRobot v2.1"`.
        fps: Nominal steps per second.
        notes: What was assumed, or is in the files and not in the episodes; a sentence each.
    """

    path: Path
    embodiment: Embodiment
    format: str
    fps: float
    notes: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """Number of episodes."""

    @abstractmethod
    def lengths(self) -> np.ndarray:
        """int64 (N,): steps per episode."""

    @abstractmethod
    def instructions(self) -> list[str]:
        """The instruction of each episode; where it changes inside one, that of its first step."""

    @abstractmethod
    def read(self, index: int, *, images: bool = True) -> Episode:
        """One whole episode; `images=False` skips decoding (then `images` is empty)."""

    def successes(self) -> list[bool | None]:
        """Whether each episode succeeded; None where nobody judged."""
        return [self.read(k, images=False).success for k in range(len(self))]

    def stream(self, index: int, camera: str) -> Iterator[np.ndarray]:
        """The pictures of one camera, uint8 (H, W, 3), one by one; never the whole episode in memory."""
        for step in range(int(self.lengths()[index])):
            yield self.frames(index, camera, np.array([step]))[0]

    def wide(self, index: int) -> dict[str, np.ndarray]:
        """Extras too large to be read with an episode's numbers (depth pictures): name -> (T, ...)."""
        return {}

    @abstractmethod
    def frames(self, index: int, camera: str, steps: np.ndarray) -> np.ndarray:
        """Some pictures of one episode, in any order: uint8 (n, H, W, 3)."""

    def columns(self) -> dict[str, np.ndarray]:
        """All numbers of the dataset, without pictures, by LeRobot's names: feature -> (N,) or (N, D)."""
        episodes = [self.read(k, images=False) for k in range(len(self))]
        sizes = [len(episode) for episode in episodes]
        found: dict[str, list[np.ndarray]] = {
            "action": [e.action for e in episodes],
            "executed_action": [e.action if e.executed is None else e.executed for e in episodes],
            "commanded_action": [e.action if e.commanded is None else e.commanded for e in episodes],
            "next.reward": [e.reward for e in episodes],
            "next.done": [e.terminated | e.truncated for e in episodes],
            "next.truncated": [e.truncated for e in episodes],
            "next.terminated": [e.terminated for e in episodes],
            "intervention": [e.intervened for e in episodes],
            "repeated_frame": [e.repeated for e in episodes],
            "capture_time": [e.time for e in episodes],
            "frame_index": [np.arange(size) for size in sizes],
            "episode_index": [np.full(size, k) for k, size in enumerate(sizes)],
        }
        if self.embodiment.state_dim:
            found["observation.state"] = [e.state for e in episodes if e.state is not None]
        for name in episodes[0].extras if episodes else ():
            if all(name in e.extras and e.extras[name].ndim < 3 for e in episodes):
                found.setdefault(name, [e.extras[name] for e in episodes])
        action, state = self.embodiment.action_dim, self.embodiment.state_dim
        sizes_of = {"observation.state": state} | {n: action for n in found if n.endswith("action")}
        return {
            name: np.concatenate(rows)
            if rows
            else np.zeros((0, sizes_of[name]) if name in sizes_of else 0, np.float32)
            for name, rows in found.items()
        }

    def _checked(self, index: int) -> int:
        """A position from 0 on; negative ones count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: no episode {index}, there are {len(self)}")
        return index % len(self)


def require_finite(path: Path, values: np.ndarray, name: str, episode: int | str) -> None:
    """Refuse NaN and infinities in (T, ...) numbers, naming episode and frame."""
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise DatasetError(path, f"{name} is not finite in episode {episode}, frame {bad[0]}", MEND)


def fitted(given: Embodiment, found: Embodiment, path: Path) -> Embodiment:
    """`given`, unless it cannot describe the data: other sizes, or cameras that are not there.

    Args:
        given: What the caller says the numbers and pixels mean. May name fewer cameras, or no state.
        found: What the files say: sizes and names.
        path: Of the dataset, for errors.
    """
    wrong = []
    if given.action_dim != found.action_dim:
        wrong.append(f"action has {given.action_dim} values, the files have {found.action_dim}")
    if given.state_dim not in (0, found.state_dim):
        wrong.append(f"state has {given.state_dim} values, the files have {found.state_dim}")
    there = {c.name: c for c in found.cameras}
    for camera in given.cameras:
        match = there.get(camera.name)
        if match is None:
            wrong.append(f"camera {camera.name!r} is not there; the files have {sorted(there)}")
        elif (camera.height, camera.width) != (match.height, match.width):
            wrong.append(
                f"camera {camera.name!r} is {camera.height}x{camera.width}, the files have "
                f"{match.height}x{match.width}"
            )
    if wrong:
        raise ConfigError(
            f"{path}: the given embodiment {given.name!r} does not fit: {'; '.join(wrong)}",
            "start from `open_dataset(path).embodiment`, and change kinds, names and units",
        )
    return given


def with_cameras(embodiment: Embodiment, names: list[str]) -> Embodiment:
    """The same body with some of its cameras, in this order."""
    by_name = {camera.name: camera for camera in embodiment.cameras}
    return dataclasses.replace(embodiment, cameras=tuple(by_name[name] for name in names))
