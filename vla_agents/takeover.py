"""A policy drives, a person corrects it at any moment: an agent that holds two agents (HG-DAgger, Kelly et al. 2019).

    with Takeover(load_agent("runs/lift", env=env), device) as agent:
        rollout(env, agent, seeds, [Recorder(writer)])      # every step says who acted: `intervened`

Who drives is asked anew at every step. Who does not drive is told what was done (`follow`, where an agent has it), so a
device starts from where the body is. What the policy had planned is dropped when control returns to it: it plans from what
it sees then. And where actions are positions, the first ones after a change of hands lead from the last one to where the
new driver wants to be, so there is no jump at the seam, whoever the two are.

The same works for the slots of a vector env (`takes_over` then answers for each), with a scripted expert as the person:
that is how a policy can be corrected without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vla_agents.agent import Agent
from vla_agents.chunking import ActionUnits
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError
from vla_agents.observations import Observation, batch_size, take

BLEND_S = 0.5  # s in which the action goes over from the one driver's to the other's
TakesOver = Callable[[Observation], "bool | np.ndarray"]


class Takeover(Agent):
    """Two agents, of which one acts.

    Args:
        policy: Drives as long as nobody takes over.
        human: Takes over: a `Device`, a scripted expert, any agent.
        embodiment: Of the env; says which action values are positions and have to be blended at the seams. None: those
            of the policy, where it has one, else nothing is blended.
        takes_over: Whether the person drives now: asked at every step with the observation, a bool, or bool (N,) for a
            vector env. None: the human's own `engaged`.
        blend: Seconds that a change of hands takes.

    Attributes:
        intervened: Who gave the last action: True where it was the person; bool (N,) for a vector env.
        takeovers: How often the person took over, since the last reset of all slots.
    """

    def __init__(
        self,
        policy: Agent,
        human: Agent,
        *,
        embodiment: Embodiment | None = None,
        takes_over: TakesOver | None = None,
        blend: float = BLEND_S,
    ) -> None:
        if takes_over is None and not hasattr(human, "engaged"):
            raise ConfigError(
                f"nothing tells when {type(human).__name__} takes over",
                "give takes_over=, or an agent with `engaged`",
            )
        if not blend >= 0:
            raise ConfigError(f"blend is {blend} s", "it must not be negative")
        self.policy, self.human = policy, human
        self.embodiment = embodiment or getattr(policy, "embodiment", None)
        self.takeovers = 0
        self._asked: TakesOver = takes_over or (lambda obs: bool(human.engaged))  # type: ignore[attr-defined]
        self._units = None if self.embodiment is None else ActionUnits(self.embodiment)
        self._steps = 0 if self.embodiment is None else round(blend * self.embodiment.control_hz)
        self._driving = np.zeros(0, bool)  # (N,): the person, at the last step
        self._idle = np.zeros(0, bool)
        self._since = np.zeros(0, int)  # steps since the last change of hands
        self._last: np.ndarray | None = None  # (N, D)
        self._single = True

    @property
    def intervened(self) -> bool | np.ndarray:
        """Whether the person gave the last action."""
        return bool(self._driving.any()) if self._single else self._driving.copy()

    def __enter__(self) -> Takeover:
        """Enter both: a device is opened."""
        self.policy.__enter__()
        try:
            self.human.__enter__()
        except BaseException:
            self.policy.close()
            raise
        return self

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Both begin a new episode, the policy drives."""
        self.policy.reset(mask, seed=seed)
        self.human.reset(mask, seed=seed)
        if mask is None and getattr(self.human, "switched", False):
            self.human.engaged = False  # type: ignore[attr-defined]
        if mask is None or len(self._driving) != len(mask):
            self._driving, self._last = np.zeros(0, bool), None
            self.takeovers = 0
        else:
            self._driving[mask] = False
            self._since[mask] = self._steps
            if self._last is not None:
                self._last[mask] = np.nan  # the first action of an episode continues nothing
        if mask is not None and len(self._idle) == len(mask):
            self._idle = self._idle & ~np.asarray(mask, bool)

    def idle(self, mask: np.ndarray) -> None:
        """Nobody acts in these slots."""
        self._idle = np.array(mask, bool)
        self.human.idle(mask)

    def act(self, obs: Observation) -> np.ndarray:
        """The driver's action, float32 (D,), or (N, D)."""
        count = batch_size(obs)
        self._single = count is None
        drives = np.broadcast_to(np.asarray(self._asked(obs), bool), (count or 1,)).copy()
        self._change_hands(drives)
        if len(self._idle) != len(drives):
            self._idle = np.zeros(len(drives), bool)
        actions = self._blended(self._both(obs, drives))
        _follow(self.human, obs, actions, ~drives & ~self._idle)
        _follow(self.policy, obs, actions, drives & ~self._idle)
        self._last, self._since = actions.copy(), self._since + 1
        return actions[0] if self._single else actions

    def close(self) -> None:
        """Close both."""
        try:
            self.policy.close()
        finally:
            self.human.close()

    # ---- inside -------------------------------------------------------------------------------------------
    def _change_hands(self, drives: np.ndarray) -> None:
        """Drop the policy's plans where control returns to it; start blending where hands change."""
        before = self._driving
        if len(before) != len(drives):
            before = np.zeros(len(drives), bool)
            self._since = np.full(len(drives), self._steps)
        back = before & ~drives
        if back.any():
            self.policy.replan(None if self._single else back)
        self.takeovers += int((drives & ~before).sum())
        self._since[before != drives] = 0
        self._driving = drives

    def _both(self, obs: Observation, drives: np.ndarray) -> np.ndarray:
        """(N, D): each slot's driver is asked, and nobody else where that can be helped."""
        if self._single:
            driver = self.human if drives[0] else self.policy
            return np.asarray(driver.act(obs), np.float32)[None]
        self.policy.idle(self._idle | drives)  # they need no plan
        theirs = np.zeros((len(drives), 0)) if drives.all() else np.asarray(self.policy.act(obs), np.float32)
        ours = np.asarray(self.human.act(obs), np.float32) if drives.any() else theirs
        return ours if drives.all() else np.where(drives[:, None], ours, theirs)

    def _blended(self, wanted: np.ndarray) -> np.ndarray:
        """Positions go over from the last action to the wanted one; deltas begin anew anyway."""
        young = self._since < self._steps
        if self._units is None or self._last is None or self._last.shape != wanted.shape or not young.any():
            return wanted
        left = self._steps - self._since
        share = np.where(young, 1.0 / np.maximum(left, 1), 1.0)[
            :, None
        ]  # straight on, there in the last step
        smooth = self._units.smooth & young[:, None] & np.isfinite(self._last)
        return np.where(smooth, self._last + share * (wanted - self._last), wanted).astype(np.float32)


def _follow(agent: Agent, obs: Observation, actions: np.ndarray, slots: np.ndarray) -> None:
    """Tell an agent what another one does in these slots, bool (N,)."""
    follow: Any = getattr(agent, "follow", None)
    if follow is None:
        return
    single = batch_size(obs) is None
    for slot in map(int, np.flatnonzero(slots)):
        follow(obs if single else take(obs, slot), actions[slot])
