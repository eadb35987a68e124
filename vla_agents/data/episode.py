"""An episode in memory, and the two protocols through which every file format reads and writes one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ActionError, ObservationError

CAMERA_TIME = "capture_time."  # and the camera's name


@dataclass
class Step:
    """One tick of the control loop, before and after.

    Args:
        images: Camera name -> uint8 (H, W, 3), upright, as seen *before* the action.
        state: float32 (S,), or None.
        action: float32 (D,): the training label, in the embodiment's units. On a robot what was really sent; where
            noise was put on a demonstration on purpose, what the demonstrator asked for.
        reward: Reward the step gave.
        terminated: The episode ended by itself with this step.
        truncated: It was cut off with this step.
        intervened: A human (or expert) had taken over.
        time: Monotonic capture time of the observation, seconds.
        executed: float32 (D,): what was really sent, where that differs from the label (noise).
        commanded: float32 (D,): what the agent asked for, where that differs from the label (limits of a robot).
        repeated: A camera's picture is that of an earlier step, because the recorder could not keep up.
        camera_times: Camera name -> monotonic time at which its picture was taken, where that is known.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray | None
    action: np.ndarray
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    intervened: bool = False
    time: float = 0.0
    executed: np.ndarray | None = None
    commanded: np.ndarray | None = None
    repeated: bool = False
    camera_times: dict[str, float] = field(default_factory=dict)

    def check(self, embodiment: Embodiment) -> None:
        """Raise `ObservationError` / `ActionError` unless the step fits the embodiment and is finite."""
        for camera in embodiment.cameras:
            image = self.images.get(camera.name)
            shape = (camera.height, camera.width, 3)
            if image is None:
                raise ObservationError(
                    f"camera {camera.name!r} is missing; the observation has {sorted(self.images)}",
                    "record with the cameras of the dataset's embodiment",
                )
            if image.shape != shape or image.dtype != np.uint8:
                raise ObservationError(
                    f"camera {camera.name!r}: got {image.dtype} {image.shape}, expected uint8 {shape}"
                )
        if embodiment.state_dim:
            _check_vector(self.state, embodiment.state_dim, "state", ObservationError)
        _check_vector(self.action, embodiment.action_dim, "action", ActionError)
        for value, what in ((self.executed, "executed action"), (self.commanded, "commanded action")):
            if value is not None:
                _check_vector(value, embodiment.action_dim, what, ActionError)


@dataclass
class Episode:
    """A whole episode, stacked along time.

    Args:
        embodiment: What the numbers and pixels mean.
        instruction: What the agent was told.
        images: Camera name -> uint8 (T, H, W, 3).
        state: float32 (T, S), or None.
        action: float32 (T, D), the training label (see `Step`).
        reward: float32 (T,).
        terminated: bool (T,).
        truncated: bool (T,).
        intervened: bool (T,).
        time: float64 (T,), monotonic capture times in seconds, starting at the recorder's clock.
        success: Whether the task was done; None where nobody judged.
        executed: float32 (T, D) where what was sent differs from the label, else None.
        commanded: float32 (T, D) where what the agent asked for differs from the label, else None.
        repeated: bool (T,): a camera's picture is that of an earlier step.
        metadata: JSON-able facts (seed, renderer, package versions, ...).
        tasks: The instruction of each step, where it changes inside the episode, else None.
        extras: What else a dataset holds for each step: name -> numbers (T, ...) or text (T,); `"capture_time.front"` is
            when the camera `front` took its pictures.
    """

    embodiment: Embodiment
    instruction: str
    images: dict[str, np.ndarray]
    state: np.ndarray | None
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    intervened: np.ndarray
    time: np.ndarray
    success: bool | None = None
    executed: np.ndarray | None = None
    commanded: np.ndarray | None = None
    repeated: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    metadata: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.repeated):
            self.repeated = np.zeros(len(self.action), bool)

    @property
    def label(self) -> str:
        """What `action` is: `"sent"`, or `"commanded"` where something else was executed on purpose."""
        return "sent" if self.executed is None else "commanded"

    def __len__(self) -> int:
        return len(self.action)

    def steps(self) -> Iterator[Step]:
        """The ticks, one by one."""
        cameras = {
            key.removeprefix(CAMERA_TIME): values
            for key, values in self.extras.items()
            if key.startswith(CAMERA_TIME) and values.ndim == 1
        }
        for t in range(len(self)):
            yield Step(
                images={name: frames[t] for name, frames in self.images.items()},
                state=None if self.state is None else self.state[t],
                action=self.action[t],
                reward=float(self.reward[t]),
                terminated=bool(self.terminated[t]),
                truncated=bool(self.truncated[t]),
                intervened=bool(self.intervened[t]),
                time=float(self.time[t]),
                executed=None if self.executed is None else self.executed[t],
                commanded=None if self.commanded is None else self.commanded[t],
                repeated=bool(self.repeated[t]),
                camera_times={name: float(times[t]) for name, times in cameras.items()},
            )

    @classmethod
    def from_steps(
        cls,
        embodiment: Embodiment,
        instruction: str,
        steps: list[Step],
        *,
        success: bool | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Episode:
        """Stack steps; they are checked against the embodiment."""
        if not steps:
            raise ObservationError("an episode needs at least one step")
        for step in steps:
            step.check(embodiment)
        return cls(
            embodiment=embodiment,
            instruction=instruction,
            images={c: np.stack([s.images[c] for s in steps]) for c in embodiment.camera_names},
            state=np.stack([np.asarray(s.state) for s in steps]).astype(np.float32)
            if embodiment.state
            else None,
            action=np.stack([s.action for s in steps]).astype(np.float32),
            reward=np.array([s.reward for s in steps], np.float32),
            terminated=np.array([s.terminated for s in steps], bool),
            truncated=np.array([s.truncated for s in steps], bool),
            intervened=np.array([s.intervened for s in steps], bool),
            time=np.array([s.time for s in steps], np.float64),
            success=success,
            executed=stacked_or_none(steps, "executed"),
            commanded=stacked_or_none(steps, "commanded"),
            repeated=np.array([s.repeated for s in steps], bool),
            metadata=dict(metadata or {}),
            extras=camera_times(embodiment, steps),
        )


@runtime_checkable
class EpisodeWriter(Protocol):
    """Writes episodes step by step. An episode is on disk whole (after `save`) or not at all.

    Life cycle: `begin`, `add` (many), then `save` or `discard`; again and again; at last `close`.
    """

    embodiment: Embodiment

    def begin(self, instruction: str, metadata: dict[str, Any] | None = None) -> None:
        """Start an episode."""

    def add(self, step: Step) -> None:
        """Append one tick; checks it first."""

    def save(self, success: bool | None = None) -> int:
        """Make the open episode durable and return its index. When this returns, it survives `kill -9`."""

    def discard(self) -> None:
        """Drop the open episode."""

    def close(self) -> None:
        """Discard what is open and finish the files."""


@runtime_checkable
class EpisodeReader(Protocol):
    """Random access to the episodes of one dataset.

    Where its pictures are videos, a reader also has `videos(camera) -> VideoFiles` (see `vla_agents.data.video.frames`).
    """

    path: Path
    embodiment: Embodiment
    format: str
    notes: list[str]

    def __len__(self) -> int:
        """Number of episodes."""

    def read(self, index: int, *, images: bool = True) -> Episode:
        """One whole episode; `images=False` skips decoding (then `images` is empty)."""

    def lengths(self) -> np.ndarray:
        """int64 (N,): steps per episode, without reading them."""

    def instructions(self) -> list[str]:
        """The instruction of each episode, without reading them."""

    def successes(self) -> list[bool | None]:
        """Whether each episode succeeded; None where nobody judged."""

    def columns(self) -> dict[str, np.ndarray]:
        """All numbers, episode after episode, by LeRobot's names: `action` (N, D), `observation.state` (N, S), ..."""

    def stream(self, index: int, camera: str) -> Iterator[np.ndarray]:
        """The pictures of one camera of one episode, uint8 (H, W, 3), one by one."""

    def frames(self, index: int, camera: str, steps: np.ndarray) -> np.ndarray:
        """Some pictures of one episode, in any order: uint8 (n, H, W, 3)."""


def camera_times(embodiment: Embodiment, steps: list[Step]) -> dict[str, np.ndarray]:
    """`"capture_time.<camera>"` -> float64 (T,), the step's own time where a camera's is not known; empty where none is."""
    if not any(step.camera_times for step in steps):
        return {}
    return {
        CAMERA_TIME + name: np.array([s.camera_times.get(name, s.time) for s in steps], np.float64)
        for name in embodiment.camera_names
    }


def stacked_or_none(steps: list[Step], name: str) -> np.ndarray | None:
    """`executed` or `commanded` of all steps, float32 (T, D), the label where a step has none; None if all have none."""
    found = [getattr(step, name) for step in steps]
    if all(value is None for value in found):
        return None
    return np.stack([s.action if v is None else v for s, v in zip(steps, found, strict=True)]).astype(
        np.float32
    )


def _check_vector(
    value: np.ndarray | None, size: int, what: str, error: type[ObservationError | ActionError]
) -> None:
    if value is None:
        raise error(f"{what} is missing, expected {size} values")
    array = np.asarray(value)
    if array.shape != (size,):
        raise error(f"{what} has shape {array.shape}, expected ({size},)")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array)).tolist()
        raise error(
            f"{what} is not finite at index {bad}: {array.tolist()}", "find the sensor or model that made it"
        )
