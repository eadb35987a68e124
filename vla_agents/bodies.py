"""What lies between a policy and each body it was trained on, kept with the checkpoint: acting does what training did.

A policy may see smaller pictures than the body's cameras give, plan actions relative to the state, or speak for several
bodies at once. `bodies.json` of a checkpoint says for each body of its training data which transforms lead from it to
the policy; `load_agent` takes those of the body that the env has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_agents.common_body import IntoCommonBody
from vla_agents.embodiment import Embodiment
from vla_agents.errors import CheckpointError, ConfigError, EmbodimentMismatchError
from vla_agents.relative import RelativeActions
from vla_agents.transforms import Compose, ResizeImages, Transform

FILE = "bodies.json"


@dataclass(frozen=True)
class Body:
    """A body, and the way to the policy.

    Args:
        embodiment: What it senses and does.
        transforms: From it to the policy, in order.
    """

    embodiment: Embodiment
    transforms: tuple[Transform, ...] = ()


def can_be_kept(transforms: tuple[Transform, ...]) -> bool:
    """Whether transforms are of the kinds that `bodies.json` knows."""
    return all(isinstance(step, ResizeImages | RelativeActions | IntoCommonBody) for step in transforms)


def fitting_body(policy: Any, there: Embodiment, theirs: str) -> Body:
    """The body of a policy at hand that an env has; `theirs` is what to call the env in errors.

    Raises:
        EmbodimentMismatchError: There is none.
        ConfigError: Several fit and differ in what lies between.
    """
    bodies = getattr(policy, "bodies", {})
    found = Body(policy.embodiment)
    if bodies:
        found = choose_body(bodies, policy.embodiment, there, policy="policy")
    found.embodiment.require(there, ours="policy", theirs=theirs)
    return found


def choose_body(
    bodies: Mapping[str, Body], direct: Embodiment, wanted: Embodiment | None, *, policy: str
) -> Body:
    """The body to act with.

    Args:
        bodies: Those of a checkpoint.
        direct: The policy's own embodiment: a body like it needs no transforms.
        wanted: The env's; None: the only one there is.
        policy: What to call the policy in errors.

    Raises:
        ConfigError: There are several, and nothing says which; or several fit and differ in what lies between.
        EmbodimentMismatchError: None is like the one wanted.
    """
    if wanted is None:
        if len(bodies) == 1:
            return next(iter(bodies.values()))
        raise ConfigError(
            f"{policy} was trained on several bodies: {sorted(bodies)}", "pass env=..., or embodiment=..."
        )
    if not direct.differences(wanted):
        return Body(wanted)
    fitting = {name: body for name, body in bodies.items() if not body.embodiment.differences(wanted)}
    if not fitting:
        listing = [
            f"{name}: {line}"
            for name, body in bodies.items()
            for line in body.embodiment.differences(wanted, ours=name, theirs="env")
        ]
        raise EmbodimentMismatchError(policy, "env", listing)
    ways = {json.dumps([_to_dict(step) for step in body.transforms]) for body in fitting.values()}
    if len(ways) > 1:
        raise ConfigError(
            f"{policy}: the env's body is that of {sorted(fitting)}, which were normalised differently",
            "pass transforms=load_bodies(checkpoint)[name].transforms of the one you mean",
        )
    return next(iter(fitting.values()))


def save_bodies(folder: Path, bodies: Mapping[str, Body]) -> None:
    """Write `bodies.json` into a checkpoint; nothing where there is nothing between."""
    if not any(body.transforms for body in bodies.values()):
        return
    data = {
        name: {
            "embodiment": body.embodiment.to_dict(),
            "transforms": [_to_dict(step) for step in body.transforms],
        }
        for name, body in bodies.items()
    }
    (folder / FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def load_bodies(folder: str | Path) -> dict[str, Body]:
    """What `save_bodies` wrote; empty where there is nothing.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = Path(folder) / FILE
    if not file.exists():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(name): Body(
                Embodiment.from_dict(entry["embodiment"], where=str(file)),
                tuple(_from_dict(step) for step in entry["transforms"]),
            )
            for name, entry in data.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(file, f"cannot be read ({error!r})", "copy the checkpoint again") from error


def check_bodies(bodies: Mapping[str, Body], policy: Embodiment, file: str | Path) -> None:
    """Raise `EmbodimentMismatchError` unless each way leads to the policy's embodiment."""
    for name, body in bodies.items():
        policy.require(
            Compose(body.transforms).embodiment(body.embodiment), ours=str(file), theirs=f"body {name!r}"
        )


def _to_dict(step: Transform) -> dict[str, Any]:
    if isinstance(step, ResizeImages):
        return {"kind": "resize", "height": step.height, "width": step.width}
    if isinstance(step, RelativeActions):
        return {"kind": "relative", "source": step.source.to_dict()}
    if isinstance(step, IntoCommonBody):
        return {"kind": "common", **step.to_dict()}
    raise ConfigError(
        f"the transform {type(step).__name__} cannot be kept with a checkpoint", "pass it to load_agent"
    )


def _from_dict(data: Mapping[str, Any]) -> Transform:
    if data["kind"] == "resize":
        return ResizeImages(int(data["height"]), int(data["width"]))
    if data["kind"] == "relative":
        return RelativeActions(Embodiment.from_dict(data["source"]))
    if data["kind"] == "common":
        return IntoCommonBody.from_dict(data)
    raise ValueError(f"unknown transform {data['kind']!r}")
