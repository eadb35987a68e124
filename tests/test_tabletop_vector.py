from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

import vla_agents  # noqa: F401  (registers the ids)

ID = "vla_agents/Tabletop-v0"
QUEUES = [[7, 8], [9, 10, 11]]  # the seeds of each slot's episodes


def make() -> gym.Env:
    return gym.make(ID, task=("lift", "reach"), cameras=("front",))


def record(obs: dict[str, Any], reward: float, info: dict[str, Any], slot: int | None = None) -> tuple:
    pick: Callable[[Any], Any] = (lambda value: value) if slot is None else (lambda value: value[slot])
    image, state = pick(obs["images"]["front"]), pick(obs["state"])
    return (
        image.tobytes(),
        state.tobytes(),
        pick(obs["instruction"]),
        float(reward),
        bool(pick(info["success"])),
    )


def alone(seed: int) -> list[tuple]:
    """What the expert's episode looks like in a single env."""
    env, done = make(), False
    obs, info = env.reset(seed=seed)
    steps = [record(obs, 0.0, info)]
    while not done:
        obs, reward, terminated, truncated, info = env.step(env.unwrapped.expert_action())
        steps.append(record(obs, reward, info))
        done = terminated or truncated
    env.close()
    return steps


def together(envs: VectorEnv) -> dict[int, list[tuple]]:
    """The episodes of `QUEUES`, each slot at its own pace."""
    queues = [[*queue, 0] for queue in QUEUES]  # a slot that is through goes on with seed 0
    now = [queue.pop(0) for queue in queues]
    obs, info = envs.reset(seed=now)
    found = {seed: [record(obs, 0.0, info, slot)] for slot, seed in enumerate(now)}
    while any(queues):
        obs, rewards, terminated, truncated, info = envs.step(np.stack(envs.call("expert_action")))
        for slot, seed in enumerate(now):
            found[seed].append(record(obs, rewards[slot], info, slot))
        over = terminated | truncated
        if over.any():
            now = [(queues[slot] or [0]).pop(0) if over[slot] else seed for slot, seed in enumerate(now)]
            seeds = [seed if over[slot] else None for slot, seed in enumerate(now)]
            obs, info = envs.reset(seed=seeds, options={"reset_mask": over})
            for slot in np.flatnonzero(over):
                found[now[slot]] = [record(obs, 0.0, {"success": [False] * 2}, slot)]
    return found


def build(kind: str) -> VectorEnv:
    if kind == "sync":
        return SyncVectorEnv([make, make], autoreset_mode=AutoresetMode.DISABLED)
    return AsyncVectorEnv(
        [make, make], shared_memory=False, autoreset_mode=AutoresetMode.DISABLED, context=kind
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["sync", "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_episodes_in_a_vector_are_those_of_a_single_env(kind):
    # This process has drawn pictures when the vector env forks: the children must not wait for its threads.
    wanted = {seed: alone(seed) for queue in QUEUES for seed in queue}
    envs = build(kind)
    found = together(envs)
    envs.close()
    for seed, episode in wanted.items():
        assert found[seed] == episode, seed
