"""Tiny flow policies and heads for tests."""

from __future__ import annotations

from typing import Any

import torch
from tiny import BODY, vlm_folder

from vla_agents.embodiment import Embodiment
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.checkpoint import make_policy
from vla_agents.policies.flow_policy import FlowPolicy
from vla_agents.policies.heads.flow import FlowHead, FlowHeadShape
from vla_agents.policies.heads.gr00t import GR00THead
from vla_agents.policies.heads.layerwise import LayerwiseHead
from vla_agents.policies.qwen_gr00t import QwenGR00TConfig
from vla_agents.policies.qwen_pi import QwenPIConfig

KINDS = ("gr00t", "interleaved", "cross_only")


def normalizers(body: Embodiment = BODY) -> dict[str, Normalizer]:
    """Maps that are not the identity."""
    found = {}
    for name, size in (("state", body.state_dim), ("action", body.action_dim)):
        stats = VectorStats(
            10, (0.1,) * size, (0.5,) * size, (-0.8,) * size, (0.9,) * size, (-0.7,) * size, (0.8,) * size
        )
        found[name] = Normalizer(getattr(body, name), stats)
    return found


def flow_policy(
    kind: str, family: str = "qwen3_vl", seed: int = 0, body: Embodiment = BODY, **config: Any
) -> FlowPolicy:
    """A random policy: Qwen-GR00T, or Qwen-PI in one of its semantics."""
    common = {
        "vlm": str(vlm_folder(family)),
        "horizon": 4,
        "execute": 2,
        "heads": 2,
        "hidden": 32,
        "future_tokens": 3,
        "positions": 8,
    }
    if kind == "gr00t":
        gr00t = QwenGR00TConfig(**(common | {"width": 24, "depth": 3, "output": 16} | config))
        policy = make_policy("qwen_gr00t", gr00t, body, normalizers(body), seed=seed)
    else:
        pi = QwenPIConfig(**(common | {"semantics": kind} | config))
        policy = make_policy("qwen_pi", pi, body, normalizers(body), seed=seed)
    assert isinstance(policy, FlowPolicy)
    return policy.eval()


def flow_head(kind: str, seed: int = 0, **sizes: Any) -> FlowHead:
    """A random head alone; its context is 20 wide."""
    shape = FlowHeadShape(
        **(
            {
                "action_dim": 2,
                "horizon": 8,
                "context_dim": 20,
                "width": 32,
                "heads": 2,
                "depth": 4,
                "state_dim": 3,
                "hidden": 32,
                "output": 32,
                "future_tokens": 3,
                "max_positions": 8,
            }
            | sizes
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GR00THead(shape).eval() if kind == "gr00t" else LayerwiseHead(shape, kind).eval()  # type: ignore[arg-type]
