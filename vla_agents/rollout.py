"""The one loop: env, agent, listeners. Evaluating, collecting and online fine-tuning differ in the listeners only.

    results = rollout(env, agent, seeds=range(100), listeners=[Recorder(writer)])

`env` is a Gymnasium env or vector env. A vector env must be made with `AutoresetMode.DISABLED`: each slot that ends is reset
with the next seed while the others go on, so an episode depends on its seed alone and not on its neighbours.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from vla_agents.agent import Agent, Observation, take
from vla_agents.errors import ConfigError


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
        info: The other plain values of the last `info`.
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

    `time` is the monotonic time at which the observation was handed to the agent.
    """

    obs: Observation
    action: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    time: float


def rollout(
    env: gymnasium.Env | VectorEnv,
    agent: Agent,
    seeds: Iterable[int],
    listeners: Sequence[Listener] = (),
    *,
    max_steps: int | None = None,
) -> list[EpisodeResult]:
    """Run one episode per seed.

    Args:
        env: A single or vector env.
        agent: Acts.
        seeds: One per episode; an episode is a function of its seed.
        listeners: Are told everything, in order.
        max_steps: Cut episodes off after so many steps (beside the env's own limit).

    Returns:
        One result per seed, in the order of the seeds.
    """
    order = [int(seed) for seed in seeds]
    slots = _VectorSlots(env) if isinstance(env, VectorEnv) else _SingleSlot(env)
    queue = deque(enumerate(order))
    results: dict[int, EpisodeResult] = {}
    open_episodes: list[_Open | None] = [None] * slots.count
    try:
        _start(slots, agent, listeners, queue, open_episodes, np.ones(slots.count, bool))
        while any(open_episodes):
            now = time.monotonic()
            actions = agent.act(slots.observation)
            before = [slots.single(slot) for slot in range(slots.count)]
            done = np.zeros(slots.count, bool)
            for slot, (reward, terminated, truncated, info) in enumerate(slots.step(actions)):
                episode = open_episodes[slot]
                done[slot] = terminated or truncated
                if episode is None:
                    continue
                episode.steps += 1
                episode.reward += reward
                truncated = truncated or (max_steps is not None and episode.steps >= max_steps)
                done[slot] = terminated or truncated
                action = actions if slots.is_single else actions[slot]
                event = StepEvent(before[slot], np.asarray(action), reward, terminated, truncated, info, now)
                for listener in listeners:
                    listener.on_step(slot, event)
                if done[slot]:
                    result = episode.finish(terminated, truncated, info)
                    results[episode.index] = result
                    open_episodes[slot] = None
                    for listener in listeners:
                        listener.on_end(slot, result)
            if done.any() and (queue or any(open_episodes)):
                _start(slots, agent, listeners, queue, open_episodes, done)
    except BaseException:
        for listener in listeners:
            listener.on_abort()
        raise
    return [results[index] for index in range(len(order))]


@dataclass
class _Open:
    """An episode under way."""

    index: int
    seed: int
    instruction: str
    started: float
    steps: int = 0
    reward: float = 0.0

    def finish(self, terminated: bool, truncated: bool, info: dict[str, Any]) -> EpisodeResult:
        plain = {k: v for k, v in info.items() if isinstance(v, str | bool | int | float) and k not in ("success", "task")}
        return EpisodeResult(
            seed=self.seed,
            task=str(info.get("task", "")),
            instruction=self.instruction,
            success=bool(info.get("success", False)),
            steps=self.steps,
            reward=self.reward,
            terminated=terminated,
            truncated=truncated,
            seconds=time.monotonic() - self.started,
            info=plain,
        )


def _start(
    slots: _Slots,
    agent: Agent,
    listeners: Sequence[Listener],
    queue: deque[tuple[int, int]],
    open_episodes: list[_Open | None],
    mask: np.ndarray,
) -> None:
    """Reset the masked slots with the next seeds; slots beyond the queue idle on seed 0, unheard."""
    mine: dict[int, tuple[int, int]] = {}
    for slot in np.flatnonzero(mask):
        if queue:
            mine[int(slot)] = queue.popleft()
    infos = slots.reset([mine.get(slot, (0, 0))[1] for slot in range(slots.count)], mask)
    agent.reset(mask if not slots.is_single else None)
    for slot, (index, seed) in mine.items():
        obs = slots.single(slot)
        open_episodes[slot] = _Open(index, seed, str(obs.get("instruction", "")), time.monotonic())
        for listener in listeners:
            listener.on_reset(slot, seed, obs, infos[slot])


_Tick = tuple[float, bool, bool, dict[str, Any]]


class _Slots(Protocol):
    count: int
    is_single: bool
    observation: Observation

    def reset(self, seeds: list[int], mask: np.ndarray) -> list[dict[str, Any]]: ...
    def step(self, actions: np.ndarray) -> list[_Tick]: ...
    def single(self, slot: int) -> Observation: ...


class _SingleSlot:
    """One env, seen as a vector of one."""

    count = 1
    is_single = True
    observation: Observation

    def __init__(self, env: gymnasium.Env) -> None:
        self._env = env

    def reset(self, seeds: list[int], mask: np.ndarray) -> list[dict[str, Any]]:
        self.observation, info = self._env.reset(seed=seeds[0])
        return [info]

    def step(self, actions: np.ndarray) -> list[_Tick]:
        self.observation, reward, terminated, truncated, info = self._env.step(actions)
        return [(float(reward), bool(terminated), bool(truncated), info)]

    def single(self, slot: int) -> Observation:
        return self.observation


class _VectorSlots:
    """A Gymnasium vector env whose slots are reset one by one."""

    is_single = False
    observation: Observation

    def __init__(self, envs: VectorEnv) -> None:
        if envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise ConfigError(
                f"the vector env resets by itself ({envs.metadata.get('autoreset_mode')}), so seeds would be lost",
                "make it with autoreset_mode=AutoresetMode.DISABLED, e.g. by vla_agents.envs.make_vec",
            )
        self._envs = envs
        self.count = envs.num_envs

    def reset(self, seeds: list[int], mask: np.ndarray) -> list[dict[str, Any]]:
        # A fresh dict each time: Gymnasium pops the mask out of it.
        self.observation, infos = self._envs.reset(seed=list(seeds), options={"reset_mask": mask.copy()})
        return [_slot_info(infos, slot) for slot in range(self.count)]

    def step(self, actions: np.ndarray) -> list[_Tick]:
        self.observation, rewards, terminated, truncated, infos = self._envs.step(actions)
        return [
            (float(rewards[slot]), bool(terminated[slot]), bool(truncated[slot]), _slot_info(infos, slot))
            for slot in range(self.count)
        ]

    def single(self, slot: int) -> Observation:
        return take(self.observation, slot)


def _slot_info(infos: dict[str, Any], slot: int) -> dict[str, Any]:
    """One slot's share of a vector env's infos; numpy scalars become Python ones."""
    mine = {}
    for key, values in infos.items():
        present = infos.get(f"_{key}")
        if key.startswith("_") or present is None or not present[slot]:
            continue
        value = values[slot] if not isinstance(values, dict) else _slot_info(values, slot)
        mine[key] = value.item() if isinstance(value, np.generic) else value
    return mine
