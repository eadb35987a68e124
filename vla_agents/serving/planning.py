"""What a policy is asked for, what it answers, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vla_agents.base_agent import Plans
from vla_agents.errors import ActionError
from vla_agents.observations import Observation


class BatchPlanner(Plans, Protocol):
    """What a server serves; `PolicyAgent` is one."""

    def generator(self, seed: int) -> Any:
        """A source of randomness for `plan_batch`."""

    def plan_batch(
        self,
        observations: Sequence[Observation],
        generators: Sequence[Any],
        prefixes: Sequence[np.ndarray] | None = None,
        committed: int = 0,
    ) -> Sequence[np.ndarray]:
        """A chunk (H, D) for each observation; see `PolicyAgent.plan_batch`."""


@dataclass
class PlanRequest:
    """What a client asks for at once.

    Args:
        observations: n of them, checked.
        slots: Which of the client's envs each is of.
        seeds: For each a seed to start its slot's generator from, or None.
        prefixes: For each, (P, D) first actions that are known already, or None for all.
        committed: How many of those will be carried out for sure.
        client: Whose; names the session.
        generators: The client's generators by slot.
    """

    observations: Sequence[Observation]
    slots: Sequence[int] = (0,)
    seeds: Sequence[int | None] = (None,)
    prefixes: Sequence[np.ndarray] | None = None
    committed: int = 0
    client: str = ""
    generators: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """The answer: chunks (n, H, D), and how it came about.

    Args:
        chunks: float32 (n, H, D).
        batch: Observations that went through the policy together.
        queue_s: Time until the policy began.
        infer_s: Time in the policy.
        revision: Which load of the checkpoint it was; 1 is the first.
    """

    chunks: np.ndarray
    batch: int
    queue_s: float
    infer_s: float
    revision: int


Done = Callable[[Planned | Exception], None]


def run_policy(planner: BatchPlanner, requests: list[PlanRequest]) -> np.ndarray:
    """Chunks (n, H, D) of all observations of the requests, which agree in how many actions are known and committed.

    Raises:
        ActionError: The policy answered with something of another shape.
        Exception: What the policy raised.
    """
    observations = [obs for request in requests for obs in request.observations]
    generators = [generator for request in requests for generator in _generators(planner, request)]
    if requests[0].prefixes is None:
        chunks = planner.plan_batch(observations, generators)
    else:
        prefixes = [prefix for request in requests for prefix in request.prefixes or ()]
        chunks = planner.plan_batch(observations, generators, prefixes, requests[0].committed)
    found = (
        np.asarray(chunks[0], np.float32)[None]
        if len(chunks) == 1
        else np.stack(list(chunks)).astype(np.float32)
    )
    wanted = (len(observations), planner.horizon, planner.embodiment.action_dim)
    if found.shape != wanted:
        raise ActionError(f"the policy planned {found.shape}, expected {wanted}")
    return found


def _generators(planner: BatchPlanner, request: PlanRequest) -> list[Any]:
    for slot, seed in zip(request.slots, request.seeds, strict=True):
        if seed is not None:
            request.generators[slot] = planner.generator(seed)
    return [request.generators.get(slot) for slot in request.slots]
