"""StarVLA's parameter names -> ours, strictly: what is missing, unexpected or mis-shaped is listed by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_agents.errors import CheckpointError
from vla_agents.policies.starvla_run import FRAMEWORKS, guess_framework

VLM = ("qwen_vl_interface.model.", "backbone.vlm.")
_LM_HEAD, _EMBEDDING = "backbone.vlm.lm_head.weight", "backbone.vlm.model.language_model.embed_tokens.weight"


def our_name(name: str, framework: str) -> str:
    """A StarVLA parameter's name in our policy of that framework."""
    if name.startswith(VLM[0]):
        return VLM[1] + name.removeprefix(VLM[0])
    prefix = "action_model.model." if framework == "qwen_oft" else "action_model."
    return "head." + name.removeprefix(prefix) if name.startswith(prefix) else name


def load_weights(policy: nn.Module, weights: Mapping[str, Tensor], file: Path, framework: str) -> None:
    """Copy StarVLA's weights into a policy, in the policy's own dtypes.

    Raises:
        CheckpointError: The two do not have the same parameters.
    """
    own = policy.state_dict()
    mapped = {our_name(name, framework): value for name, value in weights.items()}
    if (
        _LM_HEAD not in mapped
        and _EMBEDDING in mapped
        and own[_LM_HEAD].data_ptr() == own[_EMBEDDING].data_ptr()
    ):
        mapped[_LM_HEAD] = mapped[_EMBEDDING]  # tied: safetensors keep one of the two
    names = {our_name(name, framework): name for name in weights}
    missing = [name for name in own if name not in mapped]
    unexpected = [names.get(name, name) for name in mapped if name not in own]
    shapes = {
        names.get(name, name): (tuple(mapped[name].shape), tuple(own[name].shape))
        for name in own
        if name in mapped and mapped[name].shape != own[name].shape
    }
    if missing or unexpected or shapes:
        raise CheckpointError(file, _report(missing, unexpected, shapes, weights, framework), _advice(shapes))
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(mapped[name])


def _report(
    missing: Iterable[str],
    unexpected: Iterable[str],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    weights: Mapping[str, Tensor],
    framework: str,
) -> str:
    looks = guess_framework(weights)
    lines = [f"the weights do not fit a {FRAMEWORKS.get(framework, framework)}"]
    lines[0] += (
        f"; they look like {FRAMEWORKS[looks]}" if looks else "; they look like none of StarVLA's four"
    )
    lines += [f"  missing     {group}" for group in by_module(missing)]
    lines += [f"  unexpected  {group}" for group in by_module(unexpected)]
    wrong: dict[str, list[str]] = defaultdict(list)
    for name, (found, wanted) in shapes.items():
        wrong[_module(name)].append(f"{name.removeprefix(_module(name) + '.')} is {found}, expected {wanted}")
    lines += [
        f"  mis-shaped  {module}: {'; '.join(found[:3])}{_more(found, 3)}" for module, found in wrong.items()
    ]
    return "\n".join(lines)


def by_module(names: Iterable[str], show: int = 4) -> list[str]:
    """`"MODULE (n): a, b, ..."` per module of a list of parameter names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_module(name)].append(name.removeprefix(_module(name) + "."))
    return [
        f"{module} ({len(found)}): {', '.join(found[:show])}{_more(found, show)}"
        for module, found in sorted(groups.items())
    ]


def _module(name: str) -> str:
    """The first parts of a name, up to the part of the model a person would speak of."""
    parts = name.split(".")
    depth = 4 if name.startswith((*VLM, "qwen_vl_interface")) else 2
    return ".".join(parts[: min(depth, len(parts) - 1)]) if len(parts) > 1 else name


def _more(found: list[str], shown: int) -> str:
    return f", ... {len(found) - shown} more" if len(found) > shown else ""


def _advice(shapes: Mapping[str, object]) -> str:
    if any("embed_tokens" in name or "lm_head" in name for name in shapes):
        return "vlm= is another size or has another vocabulary (FAST checkpoints need one extended by action tokens)"
    if any(name.startswith(VLM[0]) for name in shapes):
        return "vlm= is not the architecture it was trained from: see framework.qwenvl.base_vlm in its config.yaml"
    return "give the framework it was trained as (framework=...), or the config.yaml it was trained with"
