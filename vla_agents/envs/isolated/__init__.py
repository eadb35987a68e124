"""Simulators in a Python environment and a process of their own; see docs/isolation.md."""

from vla_agents.envs.isolated.env import IsolatedEnv

__all__ = ["IsolatedEnv"]
