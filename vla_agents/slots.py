"""A single env and a vector env, seen alike: slots that are reset one by one. The inside of `rollout`."""

from __future__ import annotations

import time
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from vla_agents.agent import Observation, take
from vla_agents.errors import ConfigError

Tick = tuple[float, bool, bool, dict[str, Any]]


class Slots(Protocol):
    """One or several envs; `observation` is the present one, as the env hands it over (vector or single)."""

    count: int
    is_single: bool
    can_rest: bool  # whether a slot may stay without an episode for a while
    observation: Observation
    action_shape: tuple[int, ...] | None

    def reset(self, seeds: dict[int, int], free: np.ndarray) -> list[dict[str, Any]]:
        """Start episodes: slot -> seed. Slots that are `free`, bool (N,), and get no seed rest. An info per slot."""

    def step(self, actions: np.ndarray) -> list[Tick]:
        """Step all with actions as the env takes them; a tick per slot."""

    def single(self, slot: int) -> Observation:
        """The observation of one slot."""

    def captured(self) -> float:
        """Monotonic time of the present observation, s: when it was captured, where the env knows, else now."""


def slots_of(env: gymnasium.Env | VectorEnv) -> Slots:
    """The slots of a single or vector env."""
    return VectorSlots(env) if isinstance(env, VectorEnv) else SingleSlot(env)


class SingleSlot:
    """One env, seen as a vector of one."""

    count = 1
    is_single = True
    can_rest = False
    observation: Observation

    def __init__(self, env: gymnasium.Env) -> None:
        self._env = env
        self.action_shape = env.action_space.shape

    def captured(self) -> float:
        """A robot's own capture time; a simulator's pictures are of now."""
        return float(getattr(self._env.unwrapped, "capture_time", time.monotonic()))

    def reset(self, seeds: dict[int, int], free: np.ndarray) -> list[dict[str, Any]]:
        """Reset with the one seed."""
        self.observation, info = self._env.reset(seed=seeds[0])
        return [_plain(info)]

    def step(self, actions: np.ndarray) -> list[Tick]:
        """Step with one action (D,)."""
        self.observation, reward, terminated, truncated, info = self._env.step(actions)
        return [(float(reward), bool(terminated), bool(truncated), _plain(info))]

    def single(self, slot: int) -> Observation:
        """The observation."""
        return self.observation


class VectorSlots:
    """A Gymnasium vector env whose slots are reset one by one."""

    is_single = False
    observation: Observation

    def __init__(self, envs: VectorEnv) -> None:
        if envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise ConfigError(
                f"the vector env resets itself ({envs.metadata.get('autoreset_mode')}): seeds would be lost",
                "make it with autoreset_mode=AutoresetMode.DISABLED, e.g. by vla_agents.envs.make_vec",
            )
        self._envs = envs
        self.can_rest = bool(getattr(envs, "can_idle", False))
        self._started = False
        self.count = envs.num_envs
        self.action_shape = envs.action_space.shape

    def reset(self, seeds: dict[int, int], free: np.ndarray) -> list[dict[str, Any]]:
        """Start an episode in the slots of `seeds`; send the other free slots to sleep.

        A slot whose episode is over may not be stepped again, yet a vector env steps all. Our own
        (`make_vec`) have slots that can sleep; others play on from an arbitrary seed, unheard. The first
        reset has to wake all of them.
        """
        infos: dict[str, Any] = {}
        awake = np.array([slot in seeds for slot in range(self.count)])
        spare = next(iter(seeds.values()), 0)
        if not self._started or not self.can_rest:
            awake = free.copy()
        if awake.any():
            infos = self._reset([seeds.get(slot, spare) for slot in range(self.count)], awake)
        asleep = np.array([bool(free[slot]) and slot not in seeds for slot in range(self.count)])
        if asleep.any() and self.can_rest:
            self._reset([spare] * self.count, asleep, idle=True)
        self._started = True
        return [_slot_info(infos, slot) for slot in range(self.count)]

    def _reset(self, seeds: list[int], mask: np.ndarray, **options: Any) -> dict[str, Any]:
        # A fresh dict each time: Gymnasium pops the mask out of it.
        self.observation, infos = self._envs.reset(
            seed=seeds,  # type: ignore[arg-type]  # its annotation forgets lists
            options={"reset_mask": mask.copy(), **options},
        )
        return infos

    def step(self, actions: np.ndarray) -> list[Tick]:
        """Step with actions (N, D)."""
        self.observation, rewards, terminated, truncated, infos = self._envs.step(actions)
        return [
            (float(rewards[slot]), bool(terminated[slot]), bool(truncated[slot]), _slot_info(infos, slot))
            for slot in range(self.count)
        ]

    def captured(self) -> float:
        """Now."""
        return time.monotonic()

    def single(self, slot: int) -> Observation:
        """One slot's share (views, no copies)."""
        return take(self.observation, slot)


def _slot_info(infos: dict[str, Any], slot: int) -> dict[str, Any]:
    """One slot's share of a vector env's infos."""
    mine = {}
    for key, values in infos.items():
        present = infos.get(f"_{key}")
        if key.startswith("_") or present is None or not present[slot]:
            continue
        mine[key] = _slot_info(values, slot) if isinstance(values, dict) else values[slot]
    return _plain(mine)


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    """numpy scalars become Python ones, so that single and vector envs tell the same."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in info.items()}
