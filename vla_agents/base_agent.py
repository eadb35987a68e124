"""What every agent is: something that acts."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.observations import Observation


class Plans(Protocol):
    """What those who plan in chunks say of themselves, in whatever way they are asked for one."""

    embodiment: Embodiment

    @property
    def horizon(self) -> int:
        """Actions per chunk."""

    @property
    def default_execute(self) -> int:
        """How many of them are carried out before a new chunk, where nothing else is said."""

    @property
    def continues(self) -> bool:
        """Whether a plan takes a prefix."""


class Agent:
    """Anything that turns observations into actions. Subclasses write `act`, and `reset` for state."""

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Forget what belongs to the last episode.

        Args:
            mask: For a vector env, bool (N,): the slots that start a new episode. None means all.
            seed: Seeds the agent's own randomness; for a vector env one per slot, of which the masked ones
                count.
        """

    def idle(self, mask: np.ndarray) -> None:
        """For a vector env, bool (N,): the slots whose actions nobody uses until they are reset."""

    def due(self, mask: np.ndarray) -> bool:
        """For a vector env, bool (N,): whether the next `act` plans for any of these slots, so that others may join in.

        Who does not plan ahead always does.
        """
        return True

    def replan(self, mask: np.ndarray | None = None) -> None:
        """The episode goes on, but not as planned (in the slots of `mask`): forget what was meant to come next."""
        self.reset(mask)

    @property
    def intervened(self) -> bool | np.ndarray:
        """Whether a person gave the last action in place of a policy; bool (N,) for a vector env."""
        return False

    def act(self, obs: Observation) -> np.ndarray:
        """The action for one observation, float32 (D,), or for N of them, (N, D), in the env's own units."""
        raise NotImplementedError

    def close(self) -> None:
        """Release devices, files, sockets."""

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
