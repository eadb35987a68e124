"""Making envs the way the rest of the library wants them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from vla_agents.errors import ConfigError, UnknownNameError


def make_env(env_id: str, wrappers: tuple[Callable[[gymnasium.Env], gymnasium.Env], ...] = (), **kwargs: Any) -> gymnasium.Env:
    """`gymnasium.make` with a clear error for an unknown id, without Gymnasium's passive checker (which costs time).

    Args:
        env_id: A registered id, e.g. `"vla_agents/Tabletop-v0"`.
        wrappers: Applied in order.
        **kwargs: Handed to the env.
    """
    import vla_agents  # noqa: F401  registers our ids in a fresh worker process

    if env_id not in gymnasium.registry:
        raise UnknownNameError("environment", env_id, gymnasium.registry)
    env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def make_vec(
    env_id: str,
    num_envs: int,
    *,
    asynchronous: bool = False,
    wrappers: tuple[Callable[[gymnasium.Env], gymnasium.Env], ...] = (),
    **kwargs: Any,
) -> VectorEnv:
    """A vector env whose slots are reset one by one (`AutoresetMode.DISABLED`), as `rollout` needs it.

    Args:
        env_id: A registered id.
        num_envs: Number of slots.
        asynchronous: A process per env (instructions may hold any Unicode: nothing goes through shared memory).
        wrappers: Applied to every env, in order.
        **kwargs: Handed to every env.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs is {num_envs}, it must be at least 1")
    makers = [partial(make_env, env_id, wrappers, **kwargs) for _ in range(num_envs)]
    if asynchronous:
        return AsyncVectorEnv(makers, shared_memory=False, autoreset_mode=AutoresetMode.DISABLED, context="spawn")
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED, copy=True)
