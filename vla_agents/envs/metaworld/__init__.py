"""Meta-World (Yu et al., 2019) as `vla_agents/MetaWorld-v0`; see docs/metaworld.md."""

from vla_agents.envs.metaworld.env import MetaWorldEnv, metaworld_embodiment
from vla_agents.envs.metaworld.tasks import INSTRUCTIONS, MT10

__all__ = ["INSTRUCTIONS", "MT10", "MetaWorldEnv", "metaworld_embodiment"]
