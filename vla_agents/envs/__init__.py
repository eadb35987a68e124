"""Simulated environments, each a `gymnasium.Env` with an `embodiment` and, where there is one, a scripted expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_agents.envs.vector import make_env as make_env
    from vla_agents.envs.vector import make_vec as make_vec

__all__ = ["make_env", "make_vec"]


def __getattr__(name: str) -> Any:  # lazy: `import vla_agents` comes through here
    if name in __all__:
        from vla_agents.envs import vector

        return getattr(vector, name)
    raise AttributeError(f"module 'vla_agents.envs' has no attribute {name!r}")
