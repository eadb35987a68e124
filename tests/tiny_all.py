"""The four frameworks, tiny: one list that tests of all policies share."""

from __future__ import annotations

from typing import Any

from tiny import BODY, random_batch, vlm_folder
from tiny_flow import normalizers

from vla_agents.policies.checkpoint import make_policy
from vla_agents.policies.policy import Policy
from vla_agents.policies.qwen_fast import QwenFASTConfig
from vla_agents.policies.qwen_gr00t import QwenGR00TConfig
from vla_agents.policies.qwen_oft import QwenOFTConfig
from vla_agents.policies.qwen_pi import QwenPIConfig

FRAMEWORKS = ("qwen_fast", "qwen_gr00t", "qwen_oft", "qwen_pi")
_FLOW: dict[str, Any] = {"heads": 2, "hidden": 32, "future_tokens": 3, "positions": 8, "repeats": 2}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen_fast": (QwenFASTConfig, {"fast_vocab": 300}),
    "qwen_gr00t": (QwenGR00TConfig, _FLOW | {"width": 24, "depth": 3, "output": 16}),
    "qwen_oft": (QwenOFTConfig, {"head": "mlp", "head_width": 64}),
    "qwen_pi": (QwenPIConfig, _FLOW),
}


def framework_config(kind: str, **changes: Any) -> Any:
    """The configuration of a tiny one; horizon 4, a random VLM."""
    cls, options = CONFIGS[kind]
    return cls(**({"vlm": str(vlm_folder()), "horizon": 4, "execute": 2} | options | changes))


def framework(kind: str, seed: int = 0, **changes: Any) -> Policy:
    """A random policy, prepared, in eval mode."""
    policy = make_policy(kind, framework_config(kind, **changes), BODY, normalizers(), seed=seed)
    policy.prepare(random_batch(300, seed=5).action.numpy())  # type: ignore[union-attr]
    return policy.eval()
