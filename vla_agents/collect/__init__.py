"""Recording demonstrations: a rollout whose listener writes episodes."""

from vla_agents.collect.collect import CollectConfig, CollectResult, collect
from vla_agents.collect.recorder import Recorder

__all__ = ["CollectConfig", "CollectResult", "Recorder", "collect"]
