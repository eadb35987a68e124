"""`vla-agents convert starvla RUN OUT --vlm MODEL`: a StarVLA checkpoint in our format."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from vla_agents.embodiment import Embodiment
from vla_agents.errors import CheckpointError
from vla_agents.policies.checkpoint import save_policy
from vla_agents.policies.starvla.load import load_starvla
from vla_agents.policies.starvla.options import StarVLAOptions


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(StarVLAOptions):
    """Write a StarVLA checkpoint in our format; it then loads with the same numbers and without any of these flags."""

    format: Positional[Literal["starvla"]]
    """What it is."""
    run: Positional[str]
    """StarVLA's run folder, or a weights file in it."""
    out: Positional[str]
    """Folder to write."""
    embodiment: str | None = None
    """embodiment.json that says what observations and actions mean; by default LIBERO's where it is, else no convention."""


def run_convert(config: ConvertConfig) -> Path:
    """The command; returns the folder."""
    if Path(config.out).exists():
        raise CheckpointError(config.out, "there is something here already", "give another folder")
    names = [field.name for field in dataclasses.fields(StarVLAOptions)]
    options = StarVLAOptions(**{name: getattr(config, name) for name in names})
    body = Embodiment.load(config.embodiment) if config.embodiment else None
    return convert(config.run, config.out, options, embodiment=body)


def convert(
    path: str | Path, out: str | Path, options: StarVLAOptions, *, embodiment: Embodiment | None = None
) -> Path:
    """Load with `load_starvla`, write with `save_policy`; what was asked for is kept in policy.yaml."""
    policy = load_starvla(path, options, embodiment=embodiment, device="cpu")
    given: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(options).items()
        if value is not None
    }
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return save_policy(policy, out, extra={"starvla": {"path": str(path)} | given})
