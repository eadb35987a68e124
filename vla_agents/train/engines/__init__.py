"""Engines: where the weights lie (one process, DDP, FSDP2, ZeRO) and how a gradient becomes a step."""

from vla_agents.train.engines.engine import Engine
from vla_agents.train.engines.launch import make_engine

__all__ = ["Engine", "make_engine"]
