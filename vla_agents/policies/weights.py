"""Weights into a model, strictly: what is missing, unexpected or mis-shaped is listed by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_agents.errors import CheckpointError

DEEP = (
    "backbone.",
    "qwen_vl_interface.",
)  # where four parts of a name say which module a person would speak of


@dataclass
class Misfit:
    """Where weights and a model differ.

    Args:
        missing: Names the model has and the weights have not.
        unexpected: The other way round.
        shapes: Name -> (shape in the weights, shape in the model).
        untied: Pairs of names that are one tensor in the model and two different ones in the weights.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    untied: list[tuple[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.untied)

    def report(self) -> str:
        """One line per module and kind of difference."""
        lines = [f"  missing     {group}" for group in by_module(self.missing)]
        lines += [f"  unexpected  {group}" for group in by_module(self.unexpected)]
        wrong: dict[str, list[str]] = defaultdict(list)
        for name, (found, wanted) in self.shapes.items():
            module = module_of(name)
            wrong[module].append(f"{name.removeprefix(module + '.')} is {found}, expected {wanted}")
        lines += [
            f"  mis-shaped  {module}: {'; '.join(found[:3])}{_more(found, 3)}"
            for module, found in wrong.items()
        ]
        lines += [f"  differ      {one} and {other}, which this model ties" for one, other in self.untied]
        return "\n".join(lines)


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], names: Mapping[str, str] = {}) -> Misfit:
    """Copy weights into a model, in the model's own dtypes, if they fit; else copy nothing.

    Args:
        model: The model.
        weights: Its parameters and buffers by name; of tensors that share their storage (tied weights) one suffices.
        names: What to call a name in the report, where that is not itself.

    Returns:
        Where they do not fit; false where they do.
    """
    own, given = model.state_dict(), dict(weights)
    tied = _tied(own)
    for name in own:
        twin = next((other for other in tied.get(name, ()) if other in given), None)
        if name not in given and twin is not None:
            given[name] = given[twin]
    misfit = Misfit(
        missing=[name for name in own if name not in given],
        unexpected=[names.get(name, name) for name in given if name not in own],
        shapes={
            names.get(name, name): (tuple(given[name].shape), tuple(own[name].shape))
            for name in own
            if name in given and given[name].shape != own[name].shape
        },
        untied=[
            (names.get(name, name), names.get(twin, twin))
            for name, twins in tied.items()
            for twin in twins
            if name < twin and name in weights and twin in weights
            if not torch.equal(weights[name], weights[twin])
        ],
    )
    if not misfit:
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(given[name])
    return misfit


def _tied(own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Name -> the other names of the same tensor."""
    same: dict[tuple[int, torch.Size], list[str]] = defaultdict(list)
    for name, value in own.items():
        if value.numel():
            same[value.data_ptr(), value.shape].append(name)
    groups = [group for group in same.values() if len(group) > 1]
    return {name: [other for other in group if other != name] for group in groups for name in group}


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file; `CheckpointError` where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            file, f"damaged or incomplete ({error})", "copy the checkpoint again"
        ) from error


def by_module(names: Iterable[str], show: int = 4) -> list[str]:
    """`"MODULE (n): a, b, ..."` per module of a list of parameter names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[module_of(name)].append(name.removeprefix(module_of(name) + "."))
    return [
        f"{module} ({len(found)}): {', '.join(found[:show])}{_more(found, show)}"
        for module, found in sorted(groups.items())
    ]


def module_of(name: str) -> str:
    """The first parts of a name, up to the part of the model a person would speak of."""
    parts = name.split(".")
    depth = 4 if name.startswith(DEEP) else 2
    return ".".join(parts[: min(depth, len(parts) - 1)]) if len(parts) > 1 else name


def _more(found: list[str], shown: int) -> str:
    return f", ... {len(found) - shown} more" if len(found) > shown else ""
