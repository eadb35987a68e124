"""SimplerEnv's tasks (Li et al., 2024): on ManiSkill 3 as `vla_agents/SimplerWidowX-v0`, on its own simulator as
`vla_agents/SimplerOriginal-v0`; see docs/simpler.md."""

from vla_agents.envs.simpler.env import SimplerWidowXEnv, widowx_embodiment
from vla_agents.envs.simpler.original import SimplerOriginalEnv, google_robot_embodiment
from vla_agents.envs.simpler.tasks import TASKS

__all__ = [
    "TASKS",
    "SimplerOriginalEnv",
    "SimplerWidowXEnv",
    "google_robot_embodiment",
    "widowx_embodiment",
]
