"""SimplerEnv's WidowX tasks (Li et al., 2024) as `vla_agents/SimplerWidowX-v0`; see docs/simpler.md."""

from vla_agents.envs.simpler.env import SimplerWidowXEnv, widowx_embodiment
from vla_agents.envs.simpler.tasks import TASKS

__all__ = ["TASKS", "SimplerWidowXEnv", "widowx_embodiment"]
