"""LIBERO (Liu et al., 2023) as `vla_agents/Libero-v0`; see docs/libero.md."""

from vla_agents.envs.libero.env import LiberoEnv, libero_embodiment
from vla_agents.envs.libero.suites import SUITES, Suite, Task, load_tasks

__all__ = ["SUITES", "LiberoEnv", "Suite", "Task", "libero_embodiment", "load_tasks"]
