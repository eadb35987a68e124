"""StarVLA's parameter names -> ours, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vla_agents.errors import CheckpointError
from vla_agents.policies.starvla.run import FRAMEWORKS, guess_framework
from vla_agents.policies.weights import put_weights

VLM = ("qwen_vl_interface.model.", "backbone.vlm.")


def our_name(name: str, framework: str) -> str:
    """A StarVLA parameter's name in our policy of that framework."""
    if name.startswith(VLM[0]):
        return VLM[1] + name.removeprefix(VLM[0])
    prefix = "action_model.model." if framework == "qwen_oft" else "action_model."
    return "head." + name.removeprefix(prefix) if name.startswith(prefix) else name


def starvla_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ours under StarVLA's names, as far as a framework is known by them."""

    def theirs(name: str) -> str:
        if name.startswith(VLM[1]):
            return VLM[0] + name.removeprefix(VLM[1])
        prefix = "action_model.model." if name.startswith(("head.fc", "head.hidden")) else "action_model."
        return prefix + name.removeprefix("head.") if name.startswith("head.") else name

    return {theirs(name): value for name, value in weights.items()}


def load_weights(policy: nn.Module, weights: Mapping[str, Tensor], file: Path, framework: str) -> None:
    """Copy StarVLA's weights into a policy, in the policy's own dtypes.

    Raises:
        CheckpointError: The two do not have the same parameters.
    """
    mapped = {our_name(name, framework): value for name, value in weights.items()}
    misfit = put_weights(policy, mapped, {our_name(name, framework): name for name in weights})
    if misfit:
        looks = guess_framework(weights)
        problem = f"the weights do not fit a {FRAMEWORKS.get(framework, framework)}; they look like "
        problem += FRAMEWORKS[looks] if looks else "none of StarVLA's four"
        raise CheckpointError(file, f"{problem}\n{misfit.report()}", _advice(misfit.shapes))


def _advice(shapes: Mapping[str, object]) -> str:
    if any("embed_tokens" in name or "lm_head" in name for name in shapes):
        return "vlm= is another size or has another vocabulary (FAST checkpoints need one extended by action tokens)"
    if any(name.startswith(VLM[0]) for name in shapes):
        return "vlm= is not the architecture it was trained from: see framework.qwenvl.base_vlm in its config.yaml"
    return "give the framework it was trained as (framework=...), or the config.yaml it was trained with"
