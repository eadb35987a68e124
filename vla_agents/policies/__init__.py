"""Policies: a backbone that reads pictures and words, a head that gives chunks of actions."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_agents.policies.conformance import check_policy as check_policy

# Public name -> the module that defines it; loaded on first use (torch takes seconds).
_LAZY = {"check_policy": "vla_agents.policies.conformance"}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vla_agents.policies' has no attribute {name!r}")
