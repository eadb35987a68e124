"""The four policies over tiny random VLMs of every family."""

from __future__ import annotations

from typing import Any

from tiny import BODY, random_batch, vlm_folder
from tiny_flow import normalizers

from vla_agents.policies.backbones import load_backbone
from vla_agents.policies.checkpoint import POLICIES, make_policy
from vla_agents.policies.policy import Policy
from vla_agents.policies.tiny import FAMILIES, SMALL_FAMILIES

EVERY_FAMILY = FAMILIES + SMALL_FAMILIES
KINDS = ("qwen_oft", "qwen_gr00t", "qwen_pi", "qwen_fast")
PAIRS = [
    (kind, family) for family in EVERY_FAMILY for kind in KINDS if kind != "qwen_fast" or family != "clip"
]
QUICK = {
    ("qwen_oft", "florence2"),
    ("qwen_oft", "clip"),
    ("qwen_gr00t", "clip"),
    ("qwen_gr00t", "qwen3_5"),
    ("qwen_pi", "qwen2_5_vl"),
    ("qwen_pi", "florence2"),
    ("qwen_fast", "florence2"),
    ("qwen_fast", "qwen3_vl"),
}  # the others take minutes together: marker `long`
_SHAPES: dict[str, dict[str, Any]] = {
    "qwen_oft": {"head_width": 32, "head_blocks": 1},
    "qwen_gr00t": {"width": 24, "heads": 2, "depth": 3, "output": 16, "hidden": 32, "future_tokens": 3},
    "qwen_pi": {"heads": 2, "hidden": 32, "future_tokens": 3, "semantics": "cross_only"},
    "qwen_fast": {"fast_vocab": 300},
}


def make(kind: str, family: str, **config: Any) -> Policy:
    """A random policy in eval mode, over a tiny VLM of a family or over what a folder holds."""
    vlm = vlm_folder(family) if family in EVERY_FAMILY else family
    settings = {"vlm": str(vlm), "horizon": 4, "execute": 2} | _SHAPES[kind] | config
    policy = make_policy(kind, POLICIES.get(kind).config_class(**settings), BODY, normalizers())
    policy.prepare(random_batch(300, seed=5).action.numpy())  # type: ignore[union-attr]
    return policy.eval()


def backbone(family: str, **options: Any) -> Any:
    """A tiny VLM with its random, but fixed, weights."""
    return load_backbone(vlm_folder(family), weights=True, **options).eval()
