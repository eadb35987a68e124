"""The one loop. Evaluating, collecting and fine-tuning online differ in the listeners only.

    results = rollout(env, agent, seeds=range(100), listeners=[Recorder(writer)])

`env` is a Gymnasium env or vector env. A vector env must be made with `AutoresetMode.DISABLED`: each slot
that ends is reset with the next seed while the others go on, so an episode depends on its seed alone and
not on its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from vla_agents.agent import Agent, Observation
from vla_agents.errors import ActionError, ConfigError, VlaAgentsError
from vla_agents.interrupt import CtrlC
from vla_agents.slots import Slots, slots_of


@dataclass(frozen=True)
class EpisodeResult:
    """What is left of an episode.

    Args:
        seed: The reset seed.
        task: `info["task"]` where the env gives one, else "".
        instruction: What the agent was told.
        success: `info["success"]` at the last step.
        steps: Number of actions.
        reward: Sum of rewards.
        terminated: The env ended it.
        truncated: It was cut off (step limit).
        seconds: Wall time from reset to end (shared with the other slots of a vector env).
        info: The other plain values of the last `info`; `judged: False` where it had no `"success"`.
        error: Why the episode was given up: the agent could not act (see `rollout`), or the env's last `info["error"]`
            (a simulator that died); "" else.
    """

    seed: int
    task: str
    instruction: str
    success: bool
    steps: int
    reward: float
    terminated: bool
    truncated: bool
    seconds: float
    info: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def judged(self) -> bool:
        """Whether the env or a person said if it was a success."""
        return bool(self.info.get("judged", True))


class Listener:
    """Is told what happens; subclasses override what they need. `slot` numbers the envs."""

    def on_reset(self, slot: int, seed: int, obs: Observation, info: dict[str, Any]) -> None:
        """An episode begins."""

    def on_step(self, slot: int, step: StepEvent) -> None:
        """A tick is over."""

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """An episode is over."""

    def on_abort(self) -> None:
        """The rollout was interrupted (Ctrl-C, an error); open episodes will not end."""


@dataclass(frozen=True)
class StepEvent:
    """One tick: what was seen, what the agent said, what came of it.

    `time` is the monotonic time at which the observation was captured, where the env knows that (a robot), else
    at which it was handed to the agent; `next_obs` is what was seen after the action, at the end of an episode its
    last picture. `intervened`: a person gave the action in place of the policy.
    """

    obs: Observation
    action: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    time: float
    next_obs: Observation
    intervened: bool = False


def rollout(
    env: gymnasium.Env | VectorEnv,
    agent: Agent,
    seeds: Iterable[int],
    listeners: Sequence[Listener] = (),
    *,
    max_steps: int | None = None,
    mark_errors: bool = False,
) -> list[EpisodeResult]:
    """Run one episode per seed.

    Args:
        env: A single or vector env.
        agent: Acts. It is reset with the episode's seed, so its own randomness is a function of the seed as
            well.
        seeds: One per episode; taken one by one as slots become free, so an iterator may look at what came
            before.
        listeners: Are told everything, in order.
        max_steps: Cut episodes off after so many steps (beside the env's own limit).
        mark_errors: Where the agent gives an action of another shape, or one that is not finite, or raises an error of
            this library, end the episodes concerned with that `error` and go on with the next ones, instead of raising.

    Returns:
        One result per seed, in the order of the seeds.
    """
    if max_steps is not None and max_steps < 1:
        raise ConfigError(f"max_steps is {max_steps}, it must be at least 1")
    slots = slots_of(env)
    run = _Run(slots, agent, iter(seeds), listeners, max_steps, mark_errors)
    try:
        with CtrlC() as ctrl_c:
            run.fill(np.ones(slots.count, bool))
            while any(run.open):
                ctrl_c.check()
                run.fill(run.tick())
    except BaseException:
        for listener in listeners:
            listener.on_abort()
        raise
    return [run.results[index] for index in range(len(run.results))]


@dataclass
class _Open:
    """An episode under way."""

    index: int
    seed: int
    instruction: str
    started: float
    info: dict[str, Any]  # the last one
    steps: int = 0
    reward: float = 0.0

    def finish(self, terminated: bool, truncated: bool, error: str = "") -> EpisodeResult:
        info = self.info
        error = error or str(info.get("error", ""))
        plain = {
            k: v
            for k, v in info.items()
            if isinstance(v, str | bool | int | float) and k not in ("success", "task", "error")
        }
        if "success" not in info:
            plain["judged"] = False
        return EpisodeResult(
            seed=self.seed,
            task=str(info.get("task", "")),
            instruction=self.instruction,
            success=bool(info.get("success", False)) and not error,
            steps=self.steps,
            reward=self.reward,
            terminated=terminated,
            truncated=truncated,
            seconds=time.monotonic() - self.started,
            info=plain,
            error=error,
        )


class _Run:
    """One rollout under way: which episode each slot plays, and what the finished ones came to."""

    def __init__(
        self,
        slots: Slots,
        agent: Agent,
        seeds: Iterator[int],
        listeners: Sequence[Listener],
        max_steps: int | None,
        mark_errors: bool,
    ) -> None:
        self._slots, self._agent, self._listeners, self._max_steps = slots, agent, listeners, max_steps
        self._mark_errors = mark_errors
        self._seeds = enumerate(seeds)
        self.open: list[_Open | None] = [None] * slots.count
        self.results: dict[int, EpisodeResult] = {}
        self._given_up: set[int] = set()  # slots whose episode was given up in this tick
        self._free = np.zeros(slots.count, bool)

    def fill(self, ended: np.ndarray) -> None:
        """Start the next episodes in the slots that are free, those that `ended`, bool (N,), among them.

        Slots for which no seed is left idle. Where the agent plans in chunks, the others begin when it plans for those
        that play: from then on it plans for all of them in one batch, and not for each in a tick of its own.
        """
        self._free |= ended
        if not self._free.any():
            return
        playing = np.array([episode is not None for episode in self.open])
        if self._slots.can_rest and playing.any() and not self._agent.due(playing):
            if ended.any():
                self._slots.reset({}, ended)
                self._agent.idle(~playing)
            return
        free, self._free = self._free, np.zeros_like(self._free)
        mine: dict[int, tuple[int, int]] = {}
        for slot in map(int, np.flatnonzero(free)):
            following = next(self._seeds, None)
            if following is not None:
                mine[slot] = following[0], int(following[1])
        if not mine and not any(self.open):
            return
        infos = self._slots.reset({slot: seed for slot, (_, seed) in mine.items()}, free)
        self._reset_agent(mine, free)
        for slot, (index, seed) in mine.items():
            obs = self._slots.single(slot)
            self.open[slot] = _Open(
                index, seed, str(obs.get("instruction", "")), time.monotonic(), infos[slot]
            )
            for listener in self._listeners:
                listener.on_reset(slot, seed, obs, infos[slot])

    def _reset_agent(self, mine: dict[int, tuple[int, int]], free: np.ndarray) -> None:
        if self._slots.is_single:
            self._agent.reset(seed=mine[0][1])
        else:
            self._agent.reset(free, seed=[mine[slot][1] if slot in mine else 0 for slot in range(len(free))])
            self._agent.idle(np.array([not (slot in mine or self.open[slot]) for slot in range(len(free))]))

    def tick(self) -> np.ndarray:
        """Act and step once; returns the slots that are free now, bool (N,)."""
        now = self._slots.captured()
        before = [self._slots.single(slot) for slot in range(self._slots.count)]
        actions = self._act()
        free = np.array([episode is None for episode in self.open])
        if free.all():  # all were given up
            return free
        corrected = np.broadcast_to(
            np.asarray(getattr(self._agent, "intervened", False), bool), (self._slots.count,)
        ).copy()
        for slot, (reward, terminated, truncated, info) in enumerate(self._slots.step(actions)):
            episode = self.open[slot]
            if episode is None:
                free[slot] = slot in self._given_up or terminated or truncated
                continue
            episode.steps += 1
            episode.reward += reward
            episode.info = info
            truncated = truncated or (self._max_steps is not None and episode.steps >= self._max_steps)
            free[slot] = terminated or truncated
            action = actions if self._slots.is_single else actions[slot]
            after = self._slots.single(slot)
            person = bool(corrected[slot] or info.get("intervened", False))
            event = StepEvent(before[slot], action, reward, terminated, truncated, info, now, after, person)
            for listener in self._listeners:
                listener.on_step(slot, event)
            if free[slot]:
                self._end(slot, episode.finish(terminated, truncated))
        return free

    def _act(self) -> np.ndarray:
        """Actions that may be carried out; episodes in which there are none are given up or raise."""
        self._given_up.clear()
        try:
            actions = np.asarray(self._agent.act(self._slots.observation))
            self._check_shape(actions)
        except VlaAgentsError as error:
            if not self._mark_errors:
                raise
            found = getattr(error, "actions", None)
            if found is None:
                for slot in range(self._slots.count):
                    self._give_up(slot, str(error))
                return np.zeros(0)
            actions = found
        rows = actions[None] if self._slots.is_single else actions
        for slot, episode in enumerate(self.open):
            if episode is not None and not np.isfinite(rows[slot]).all():
                self._refuse(slot, episode, rows[slot])
        return np.nan_to_num(actions, nan=0.0, posinf=0.0, neginf=0.0) if self._given_up else actions

    def _give_up(self, slot: int, why: str) -> None:
        episode = self.open[slot]
        if episode is not None:
            self._given_up.add(slot)
            self._end(slot, episode.finish(False, False, why.split("\n")[0]))

    def _end(self, slot: int, result: EpisodeResult) -> None:
        episode = self.open[slot]
        assert episode is not None
        self.results[episode.index] = result
        self.open[slot] = None
        for listener in self._listeners:
            listener.on_end(slot, result)

    def _check_shape(self, actions: np.ndarray) -> None:
        expected = self._slots.action_shape
        if expected is not None and actions.shape != expected:
            raise ActionError(
                f"the agent gave actions of shape {actions.shape}, the env expects {expected}",
                "is the agent made for this env? a vector env takes one action per slot",
            )

    def _refuse(self, slot: int, episode: _Open, action: np.ndarray) -> None:
        """An action that is not finite reaches neither an env nor a file."""
        problem = (
            f"the agent gave an action that is not finite in the episode of seed {episode.seed}, "
            f"step {episode.steps}: {action.tolist()}"
        )
        if not self._mark_errors:
            raise ActionError(
                problem,
                "the env was not stepped with it; check the agent (a policy: its weights and statistics)",
            )
        self._give_up(slot, problem)
