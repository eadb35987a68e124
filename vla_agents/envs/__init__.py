"""Simulated environments, each a `gymnasium.Env` with an `embodiment` and, where there is one, a scripted expert."""

from vla_agents.envs.vector import make_env, make_vec

__all__ = ["make_env", "make_vec"]
