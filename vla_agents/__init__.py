"""Gymnasium-compatible agents from vision-language-action models, for simulated and real robots.

    import gymnasium as gym
    import vla_agents

    env = gym.make("vla_agents/Tabletop-v0")
    agent = vla_agents.load_agent("runs/demo/best", env=env)
    obs, _ = env.reset(seed=1)
    action = agent.act(obs)

Importing this package registers the environments with Gymnasium and nothing else: torch and the simulators are loaded
when something needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vla_agents.envs.registration import register_all

if TYPE_CHECKING:
    from vla_agents.agent import Agent as Agent
    from vla_agents.agent import ExpertAgent as ExpertAgent
    from vla_agents.agent import PolicyAgent as PolicyAgent
    from vla_agents.agent import RandomAgent as RandomAgent
    from vla_agents.agent import load_agent as load_agent
    from vla_agents.embodiment import Camera as Camera
    from vla_agents.embodiment import Embodiment as Embodiment
    from vla_agents.embodiment import Part as Part

__version__ = "0.1.0"

# Public name -> the module that defines it; loaded on first use (PEP 562).
_LAZY = {
    "Agent": "vla_agents.agent",
    "Camera": "vla_agents.embodiment",
    "Embodiment": "vla_agents.embodiment",
    "ExpertAgent": "vla_agents.agent",
    "Part": "vla_agents.embodiment",
    "PolicyAgent": "vla_agents.agent",
    "RandomAgent": "vla_agents.agent",
    "load_agent": "vla_agents.agent",
    "load_policy": "vla_agents.policies.checkpoint",
    "open_dataset": "vla_agents.data",
}
__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vla_agents' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_all()
