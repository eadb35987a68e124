"""How chunks of H actions become one action per tick. Every slot of a vector env has its own state.

RecedingHorizon      carry out the first k actions of a chunk, then plan anew
TemporalEnsemble     plan every tick, average all predictions for this tick, older ones weigh more
                     (w_i = exp(-decay * i), i = 0 the oldest; Zhao et al. 2023, "ACT", section III.B)
CosineEnsemble       plan every tick, predictions that point where the newest one points weigh more
                     (w_i ~ exp(alpha * cos(a_i, a_newest)); Li et al. 2024, "CogACT", section 3.4)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, UnknownNameError


class Chunker(ABC):
    """Turns chunks into actions; `slot` numbers the envs of a vector env (0 for a single one)."""

    @abstractmethod
    def needs_plan(self, slot: int) -> bool:
        """Whether a new chunk must be added before `next`."""

    @abstractmethod
    def add(self, slot: int, chunk: np.ndarray) -> None:
        """Take a new chunk (H, D) that starts at this tick."""

    @abstractmethod
    def next(self, slot: int) -> np.ndarray:
        """The action (D,) for this tick; moves on by one tick."""

    @abstractmethod
    def reset(self, slot: int | None) -> None:
        """Forget one slot, or all (None)."""


class RecedingHorizon(Chunker):
    """Carry out the first `execute` actions of each chunk."""

    def __init__(self, execute: int) -> None:
        if execute < 1:
            raise ConfigError(f"execute is {execute}, it must be at least 1")
        self.execute = execute
        self._queues: dict[int, deque[np.ndarray]] = {}

    def needs_plan(self, slot: int) -> bool:
        """True when the last chunk is used up."""
        return not self._queues.get(slot)

    def add(self, slot: int, chunk: np.ndarray) -> None:
        """Replace what is left by the new chunk's first `execute` actions."""
        if len(chunk) < self.execute:
            raise ConfigError(
                f"the policy plans {len(chunk)} actions, execute={self.execute} asks for more",
                f"use execute <= {len(chunk)}",
            )
        self._queues[slot] = deque(chunk[: self.execute])

    def next(self, slot: int) -> np.ndarray:
        """The next action of the chunk."""
        return self._queues[slot].popleft()

    def reset(self, slot: int | None) -> None:
        """Drop the chunk."""
        if slot is None:
            self._queues.clear()
        else:
            self._queues.pop(slot, None)


class _Ensemble(Chunker):
    """Keeps the chunks of the last ticks and combines what each predicts for now."""

    def __init__(self, keep: int) -> None:
        if keep < 1:
            raise ConfigError(f"an ensemble must keep at least 1 chunk, not {keep}")
        self._keep = keep
        self._chunks: dict[int, deque[np.ndarray]] = {}
        self._fresh: dict[int, bool] = {}

    def needs_plan(self, slot: int) -> bool:
        """True at every tick."""
        return not self._fresh.get(slot, False)

    def add(self, slot: int, chunk: np.ndarray) -> None:
        """Add this tick's chunk."""
        chunks = self._chunks.setdefault(slot, deque(maxlen=self._keep))
        chunks.append(np.asarray(chunk))
        self._fresh[slot] = True

    def next(self, slot: int) -> np.ndarray:
        """The weighted mean of all predictions for this tick."""
        chunks = self._chunks[slot]
        ages = range(len(chunks) - 1, -1, -1)  # oldest first
        predictions = np.stack(
            [chunk[age] for chunk, age in zip(chunks, ages, strict=True) if age < len(chunk)]
        )
        weights = self._weights(predictions)
        self._fresh[slot] = False
        return (weights[:, None] * predictions).sum(0) / weights.sum()

    def reset(self, slot: int | None) -> None:
        """Forget the chunks."""
        if slot is None:
            self._chunks.clear()
            self._fresh.clear()
        else:
            self._chunks.pop(slot, None)
            self._fresh.pop(slot, None)

    @abstractmethod
    def _weights(self, predictions: np.ndarray) -> np.ndarray:
        """(n,) positive weights for (n, D) predictions, the oldest first."""


class TemporalEnsemble(_Ensemble):
    """ACT's exponential ensemble.

    Args:
        keep: How many chunks are kept (at most the horizon).
        decay: ACT's m; 0 weighs all alike, larger values trust old predictions more.
    """

    def __init__(self, keep: int, decay: float = 0.01) -> None:
        super().__init__(keep)
        self.decay = decay

    def _weights(self, predictions: np.ndarray) -> np.ndarray:
        return np.exp(-self.decay * np.arange(len(predictions)))


class CosineEnsemble(_Ensemble):
    """CogACT's adaptive ensemble, which SimplerEnv evaluations use.

    Args:
        keep: How many chunks are kept (7 for WidowX, 2 for the Google robot).
        alpha: How much agreement with the newest prediction counts.
    """

    def __init__(self, keep: int, alpha: float = 0.1) -> None:
        super().__init__(keep)
        self.alpha = alpha

    def _weights(self, predictions: np.ndarray) -> np.ndarray:
        newest = predictions[-1]
        norms = np.linalg.norm(predictions, axis=1) * np.linalg.norm(newest) + 1e-7
        return np.exp(self.alpha * (predictions @ newest) / norms)


class ActionUnits:
    """What can be done with an action, given what its numbers mean: stretch it, hold still.

    Args:
        embodiment: Whose actions.

    Attributes:
        smooth: bool (D,): the values between two of which lies a third (positions and joints).
    """

    def __init__(self, embodiment: Embodiment) -> None:
        kinds = [part.kind for part in embodiment.action for _ in range(part.size)]
        self._moves = np.array([kind.startswith("delta_") or kind == "joint_velocity" for kind in kinds])
        self.smooth = np.array([kind in ("xyz", "joint_position", "gripper_position") for kind in kinds])
        self._embodiment = embodiment

    def between(self, actions: np.ndarray, index: float, pace: float = 1.0) -> np.ndarray:
        """The action (D,) of a chunk (H, D) at a fractional index, played at a share of its pace.

        Positions and joints are interpolated, deltas and velocities are scaled, everything else (grippers,
        orientations) is that of the nearest action.
        """
        first = min(int(index), len(actions) - 1)
        after = actions[min(first + 1, len(actions) - 1)]
        nearest = actions[min(round(index), len(actions) - 1)]
        between = actions[first] + (index - first) * (after - actions[first])
        return np.where(self._moves, pace * actions[first], np.where(self.smooth, between, nearest))

    def hold(self, last: np.ndarray | None, state: np.ndarray | None) -> np.ndarray | None:
        """The action (D,) that leaves the body where it is: no delta, and the last value of everything else.

        Before the first action, the part of the state (S,) with the same name, kind and size stands in; a gripper
        is open. None where nothing tells.
        """
        if last is not None:
            return np.where(self._moves, 0.0, last).astype(np.float32)
        held = np.zeros(len(self._moves), np.float32)
        places = self._embodiment.state_slices()
        for part, (name, place) in zip(
            self._embodiment.action, self._embodiment.action_slices().items(), strict=True
        ):
            twin = next((p for p in self._embodiment.state if (p.name, p.kind) == (name, part.kind)), None)
            if self._moves[place].all():
                continue
            if twin is not None and twin.size == part.size and state is not None:
                held[place] = np.asarray(state)[places[name]]
            elif part.kind in _OPEN:
                held[place] = _OPEN[part.kind]
            else:
                return None
        return held


_OPEN = {"gripper_open_01": 1.0, "gripper_close_01": 0.0, "gripper_close_pm1": -1.0, "gripper_open_pm1": 1.0}


def make_chunker(execute: int, horizon: int, ensemble: str | None = None) -> Chunker:
    """A chunker by name: None (receding horizon), `"act"` or `"cosine"`."""
    if execute > horizon:
        raise ConfigError(
            f"execute={execute} is more than the policy's horizon {horizon}", f"use <= {horizon}"
        )
    if ensemble is None:
        return RecedingHorizon(execute)
    if ensemble == "act":
        return TemporalEnsemble(horizon)
    if ensemble == "cosine":
        return CosineEnsemble(min(7, horizon))
    raise UnknownNameError("ensemble", ensemble, ("act", "cosine"))
