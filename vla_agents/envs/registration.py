"""The ids under which Gymnasium knows our environments. Cheap to import: the env modules are loaded by `gymnasium.make`.

The version in an id goes up whenever results under it would change.
"""

from __future__ import annotations

import gymnasium

_IDS: dict[str, str] = {
    "vla_agents/Tabletop-v0": "vla_agents.envs.tabletop:TabletopEnv",
    "vla_agents/Libero-v0": "vla_agents.envs.libero:LiberoEnv",
}


def register_all() -> None:
    """Register every id that is not registered yet."""
    for env_id, entry_point in _IDS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=entry_point)
