"""Who acts and who labels while a policy learns online: agents that hold two agents, or one and some noise.

Mixed         the expert drives a share of the steps, the policy the others; the label is always the expert's (DAgger)
ScriptedHuman the env's expert as the person in HG-DAgger: looks on, takes over when the policy is off, hands back
Exploring     the policy with noise, so that its episodes differ from one another
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_agents.agent import Agent, PolicyAgent
from vla_agents.embodiment import Embodiment
from vla_agents.observations import Observation, batch_size
from vla_agents.rollout import EpisodeResult, Listener, StepEvent


class Seeded(Agent):
    """An agent with a random generator per slot, a function of the episode's seed."""

    stream = 0

    def __init__(self) -> None:
        self._generators: dict[int, np.random.Generator] = {}

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Reseed the slots that start anew."""
        if seed is None:
            return
        seeds = seed if isinstance(seed, Sequence) else [seed]
        for slot in range(len(seeds)):
            if mask is None or mask[slot]:
                self._generators[slot] = np.random.default_rng([int(seeds[slot]), self.stream])

    def random(self, slot: int) -> np.random.Generator:
        """The slot's."""
        return self._generators.setdefault(slot, np.random.default_rng([slot, self.stream]))


class Mixed(Seeded):
    """DAgger's mixture of expert and policy (Ross, Gordon, Bagnell 2011).

    Args:
        policy: Drives some steps ...
        expert: ... this one the others, and says what should have been done in all of them.
        share: Of the steps that the expert drives.

    Attributes:
        labels: The expert's actions at the last step, (D,) or (N, D).
    """

    stream = 0xDA6

    def __init__(self, policy: Agent, expert: Agent, share: float) -> None:
        super().__init__()
        self._policy, self._expert, self._share = policy, expert, share
        self.labels = np.zeros(0)
        self._drove = np.zeros(0, bool)  # () or (N,)

    @property
    def intervened(self) -> bool | np.ndarray:
        """Whether the expert drove at the last step, bool (N,) for a vector env."""
        return self._drove if self._drove.ndim else bool(self._drove)

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Both begin anew."""
        super().reset(mask, seed=seed)
        self._policy.reset(mask, seed=seed)
        self._expert.reset(mask, seed=seed)

    def idle(self, mask: np.ndarray) -> None:
        """Nobody acts in these slots."""
        self._policy.idle(mask)
        self._expert.idle(mask)

    def act(self, obs: Observation) -> np.ndarray:
        """What is executed."""
        count = batch_size(obs)
        self.labels = np.asarray(self._expert.act(obs), np.float32)
        drives = np.array([self.random(slot).random() < self._share for slot in range(count or 1)])
        self._drove = drives if count else np.asarray(drives[0])
        own = np.asarray(self._policy.act(obs), np.float32)
        return np.where(self._drove[..., None], self.labels, own)


class ScriptedHuman(Agent):
    """An expert that looks on and takes over where the policy goes wrong, as a person would.

    Args:
        expert: Knows what should be done.
        body: Says what the actions may be.
        disagreement: An action is off where a value of it differs by more than this, in units of half its range.
        patience: It takes over after so many of those in a row ...
        hold: ... for so many steps.
    """

    def __init__(
        self, expert: Agent, body: Embodiment, disagreement: float, patience: int, hold: int
    ) -> None:
        self._expert, self._limit, self._patience, self._hold = expert, disagreement, patience, hold
        space = body.action_space()
        self._half = np.maximum((space.high - space.low) / 2, 1e-9)
        self._off: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._label: np.ndarray | None = None
        self._watched: np.ndarray | None = None

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Slots that start anew are driven by the policy."""
        self._expert.reset(mask, seed=seed)
        slots = list({*self._off, *self._left}) if mask is None else np.flatnonzero(mask)
        for slot in map(int, slots):
            self._off.pop(slot, None)
            self._left.pop(slot, None)

    def idle(self, mask: np.ndarray) -> None:
        """Nobody acts in these slots."""
        self._expert.idle(mask)

    def act(self, obs: Observation) -> np.ndarray:
        """The expert's action."""
        if self._label is None:
            self._label = np.asarray(self._expert.act(obs), np.float32)
        return self._label

    def watch(self, actions: np.ndarray) -> None:
        """What the policy would do, or did, at the step that `takes_over` was last asked about."""
        self._watched = np.asarray(actions, np.float32)

    def takes_over(self, obs: Observation) -> np.ndarray:
        """Whether it drives now, bool () or (N,); judges by the step before."""
        single = batch_size(obs) is None
        before, did = self._label, self._watched
        if before is not None and did is not None and before.shape == did.shape:
            gaps = np.atleast_2d(np.abs(before - did) / self._half).max(-1)
            for slot, gap in enumerate(gaps):
                self._off[slot] = self._off.get(slot, 0) + 1 if gap > self._limit else 0
        self._watched = None
        self._label = np.asarray(self._expert.act(obs), np.float32)
        drives = np.array([self._drives(slot) for slot in range(len(np.atleast_2d(self._label)))])
        return np.asarray(drives[0]) if single else drives

    def _drives(self, slot: int) -> bool:
        left = self._left.get(slot, 0)
        if not left and self._off.get(slot, 0) >= self._patience:
            left = self._hold
        if left:  # afterwards the policy is judged anew
            self._off[slot] = 0
        self._left[slot] = max(0, left - 1)
        return left > 0


class Corrected(Agent):
    """A policy under the eyes of a `ScriptedHuman`; what it had planned is dropped when control comes back to it."""

    def __init__(self, policy: PolicyAgent, human: ScriptedHuman) -> None:
        self._policy, self._human = policy, human
        self._drove = np.zeros(0, bool)  # () or (N,)

    @property
    def intervened(self) -> bool | np.ndarray:
        """Whether the human gave the last action, bool (N,) for a vector env."""
        return self._drove if self._drove.ndim else bool(self._drove)

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Both begin anew, the policy drives."""
        self._policy.reset(mask, seed=seed)
        self._human.reset(mask, seed=seed)
        if mask is None:
            self._drove = np.zeros(0, bool)
        elif len(np.atleast_1d(self._drove)) == len(mask):
            self._drove = self._drove & ~np.asarray(mask, bool)

    def idle(self, mask: np.ndarray) -> None:
        """Nobody acts in these slots."""
        self._policy.idle(mask)
        self._human.idle(mask)

    def act(self, obs: Observation) -> np.ndarray:
        """The driver's action; the human sees what the policy would have done."""
        drives = self._human.takes_over(obs)
        if self._drove.shape == drives.shape:
            for slot in np.flatnonzero(self._drove & ~drives):
                self._policy.chunker.reset(int(slot))
        own = np.asarray(self._policy.act(obs), np.float32)
        self._human.watch(own)
        self._drove = drives
        return np.where(drives[..., None], self._human.act(obs), own)


class Exploring(Seeded):
    """Another agent, its actions disturbed (but grippers) and kept within their range."""

    stream = 0xE8

    def __init__(self, policy: Agent, body: Embodiment, std: float) -> None:
        super().__init__()
        self._policy = policy
        space = body.action_space()
        self._low, self._high = space.low, space.high
        loud = [not part.kind.startswith("gripper") for part in body.action for _ in range(part.size)]
        self._std = std * (self._high - self._low) / 2 * np.array(loud)

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """See `Agent.reset`."""
        super().reset(mask, seed=seed)
        self._policy.reset(mask, seed=seed)

    def idle(self, mask: np.ndarray) -> None:
        """See `Agent.idle`."""
        self._policy.idle(mask)

    def act(self, obs: Observation) -> np.ndarray:
        """The policy's action, and noise from the slot's generator."""
        actions = np.asarray(self._policy.act(obs), np.float32)
        rows = np.atleast_2d(actions)
        noise = np.stack([self.random(slot).normal(size=rows.shape[1]) for slot in range(len(rows))])
        disturbed = np.clip(rows + noise * self._std, self._low, self._high).astype(np.float32)
        return disturbed if actions.ndim == 2 else disturbed[0]


class Told(Listener):
    """Hands steps on with what an agent knows of them: who acted, and the label where that was not what was executed."""

    def __init__(self, listener: Listener, agent: Any) -> None:
        self._listener, self._agent = listener, agent

    def on_reset(self, slot: int, seed: int, obs: Observation, info: dict[str, Any]) -> None:
        """Handed on."""
        self._listener.on_reset(slot, seed, obs, info)

    def on_step(self, slot: int, step: StepEvent) -> None:
        """With `info["intervened"]`, and `info["executed"]` where there are labels."""
        agent, info = self._agent, dict(step.info)
        intervened = getattr(agent, "intervened", None)
        if intervened is not None:
            drove = np.atleast_1d(intervened)
            info["intervened"] = bool(drove[slot % len(drove)])
        labels = getattr(agent, "labels", None)
        if labels is not None:
            info["executed"] = step.action
            step = replace(step, action=np.atleast_2d(labels)[slot])
        self._listener.on_step(slot, replace(step, info=info))

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """Handed on."""
        self._listener.on_end(slot, result)

    def on_abort(self) -> None:
        """Handed on."""
        self._listener.on_abort()
