"""The ids under which Gymnasium knows our environments. Cheap to import: the env modules are loaded by `gymnasium.make`.

The version in an id goes up whenever results under it would change.
"""

from __future__ import annotations

import gymnasium

_IDS: dict[str, str] = {
    "vla_agents/Tabletop-v0": "vla_agents.envs.tabletop:TabletopEnv",
    "vla_agents/Libero-v0": "vla_agents.envs.libero:LiberoEnv",
    "vla_agents/MetaWorld-v0": "vla_agents.envs.metaworld:MetaWorldEnv",
    "vla_agents/Robosuite-v0": "vla_agents.envs.robosuite:RobosuiteEnv",
    "vla_agents/SimplerWidowX-v0": "vla_agents.envs.simpler:SimplerWidowXEnv",
    "vla_agents/SimplerOriginal-v0": "vla_agents.envs.simpler:SimplerOriginalEnv",
    "vla_agents/Isolated-v0": "vla_agents.envs.isolated:IsolatedEnv",
}
_REAL_TIME: dict[str, str] = {
    "vla_agents/Robot-v0": "vla_agents.robots.env:RobotEnv",
    "vla_agents/SimulatedArm-v0": "vla_agents.robots.simulated_arm:SimulatedArmEnv",
}


def register_all() -> None:
    """Register every id that is not registered yet."""
    for env_id, entry_point in {**_IDS, **_REAL_TIME}.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=entry_point, nondeterministic=env_id in _REAL_TIME)
