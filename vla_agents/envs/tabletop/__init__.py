"""`vla_agents/Tabletop-v0`: coloured blocks, a two-finger gripper, and an instruction in plain English.

| file | holds |
| --- | --- |
| `scene.py` | colours, sizes, difficulties, the MJCF text, where things lie |
| `world.py` | reading and driving the simulated scene |
| `tasks.py` | the families: instructions, success, what counts as the wrong thing done |
| `expert.py` | the scripted expert |
| `env.py` | the `gymnasium.Env` |
"""

from vla_agents.envs.tabletop.env import TabletopEnv
from vla_agents.envs.tabletop.scene import DIFFICULTIES
from vla_agents.envs.tabletop.tasks import FAMILIES

__all__ = ["DIFFICULTIES", "FAMILIES", "TabletopEnv"]
