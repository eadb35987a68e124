"""Several bodies in one: a vector in which every part of every body has its slot, so that one policy can learn from all.

Parts that mean the same (name, kind, size and unit) share a slot; parts of one name that differ get one each. What a body
lacks is zero, and a mask says so; a camera that it lacks is black. The same transform acts: it picks the body's own
parts out of what the policy plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.transforms import Observation, Transform

Vector = Literal["state", "action"]
NORMALIZED = "normalized"  # the unit of parts whose values were normalised with their own body's statistics


@dataclass(frozen=True)
class IntoCommonBody(Transform):
    """From one body to the common one, and back.

    Args:
        source: The body.
        target: The common one (see `common_body`).
        slots: `{"state": {part of source: part of target}, "action": ...}`.
        normalizers: Of `"state"` and `"action"` in the body's own units, applied on the way in and undone on the way out;
            empty where the common body keeps the units.
    """

    source: Embodiment
    target: Embodiment
    slots: dict[str, dict[str, str]]
    normalizers: dict[str, Normalizer]

    def embodiment(self, source: Embodiment) -> Embodiment:
        """The common body."""
        self.source.require(source, ours=f"body {self.source.name!r}", theirs=f"embodiment {source.name!r}")
        return self.target

    def observation(self, obs: Observation) -> Observation:
        """All cameras and the whole state; what the body lacks is black, or zero."""
        images, some = obs["images"], next(iter(obs["images"].values()), np.zeros((0, 0, 3)))
        lead = some.shape[:-3]
        found = {
            c.name: images[c.name] if c.name in images else np.zeros((*lead, c.height, c.width, 3), np.uint8)
            for c in self.target.cameras
        }
        state = self.state(obs.get("state"))
        return obs | {"images": found} | ({} if state is None else {"state": state})

    def state(self, state: np.ndarray | None) -> np.ndarray | None:
        """float32 (..., S) of the body -> (..., S') of the common one."""
        if not self.target.state:
            return None
        if not self.source.state:  # there is nothing to say how many there are, but for a single one
            return np.zeros(
                (*(() if state is None else np.shape(state)[:-1]), self.target.state_dim), np.float32
            )
        return self._spread("state", np.asarray(state, np.float32))

    def action(self, action: np.ndarray) -> np.ndarray:
        """float32 (..., D) of the body -> (..., D') of the common one."""
        return self._spread("action", np.asarray(action, np.float32))

    def inverse_action(self, action: np.ndarray) -> np.ndarray:
        """float32 (..., D') of the common body -> (..., D) of this one."""
        found = np.asarray(action, np.float32)[..., self._places["action"]]
        return self.normalizers["action"].unnormalize(found) if "action" in self.normalizers else found

    def mask(self, vector: Vector) -> np.ndarray:
        """bool (S',) or (D',): which values of the common vector this body has."""
        found = np.zeros(getattr(self.target, f"{vector}_dim"), bool)
        found[self._places[vector]] = True
        return found

    def camera_mask(self) -> dict[str, bool]:
        """Camera of the common body -> whether this one has it."""
        return {name: name in self.source.camera_names for name in self.target.camera_names}

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        """Where each value of the body's own vectors lies in the common ones."""
        found = {}
        for vector in ("state", "action"):
            slices = getattr(self.target, f"{vector}_slices")()
            own = [slices[self.slots[vector][part.name]] for part in getattr(self.source, vector)]
            found[vector] = np.concatenate([np.arange(s.start, s.stop) for s in own] or [np.zeros(0, int)])
        return found

    def _spread(self, vector: Vector, values: np.ndarray) -> np.ndarray:
        if vector in self.normalizers:
            values = self.normalizers[vector].normalize(values)
        out = np.zeros((*values.shape[:-1], getattr(self.target, f"{vector}_dim")), np.float32)
        out[..., self._places[vector]] = values
        return out

    # ---- on disk ------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        normalizers = {
            name: {"modes": n.modes, "stats": asdict(n.stats)} for name, n in self.normalizers.items()
        }
        bodies = {"source": self.source.to_dict(), "target": self.target.to_dict()}
        return bodies | {"slots": self.slots, "normalizers": normalizers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> IntoCommonBody:
        """The inverse of `to_dict`."""
        source = Embodiment.from_dict(data["source"])
        normalizers = {}
        for name, entry in data["normalizers"].items():
            stats: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in entry["stats"].items()
            }
            normalizers[name] = Normalizer(getattr(source, name), VectorStats(**stats), entry["modes"])
        return cls(source, Embodiment.from_dict(data["target"]), data["slots"], normalizers)


def common_body(
    bodies: Sequence[Embodiment], normalizers: Sequence[Mapping[str, Normalizer]] | None = None
) -> list[IntoCommonBody]:
    """One body that has the parts and cameras of all, and each body's way into it.

    Args:
        bodies: At one control rate; cameras of one name must have one size.
        normalizers: For each body, its own of `"state"` and `"action"`; None: values keep their units.

    Raises:
        ConfigError: Rates or cameras differ.
    """
    first = bodies[0]
    for body in bodies:
        if abs(body.control_hz - first.control_hz) > 1e-6:
            raise ConfigError(
                f"{first.name!r} is at {first.control_hz:g} Hz, {body.name!r} at {body.control_hz:g} Hz",
                "bring the datasets to one rate: fps=...",
            )
    plans = [dict(entry) for entry in normalizers] if normalizers is not None else [{} for _ in bodies]
    parts: dict[str, list[Part]] = {}
    slots: list[dict[str, dict[str, str]]] = [{} for _ in bodies]
    for vector in ("state", "action"):
        parts[vector], names = _slots_of(
            [_parts(body, vector, plan) for body, plan in zip(bodies, plans, strict=True)],
            [body.name for body in bodies],
        )
        for slot, given in zip(slots, names, strict=True):
            slot[vector] = given
    labels = list(dict.fromkeys(body.name for body in bodies))
    target = Embodiment(
        name=labels[0] if len(labels) == 1 else "+".join(labels),
        action=tuple(parts["action"]),
        state=tuple(parts["state"]),
        cameras=_cameras(bodies),
        control_hz=first.control_hz,
    )
    return [
        IntoCommonBody(*entry) for entry in zip(bodies, [target] * len(bodies), slots, plans, strict=True)
    ]


def _parts(body: Embodiment, vector: str, plan: Mapping[str, Normalizer]) -> list[Part]:
    parts = getattr(body, vector)
    if vector not in plan:
        return list(parts)
    return [Part(part.name, part.size, part.kind, unit=NORMALIZED) for part in parts]


def _slots_of(
    vectors: Sequence[Sequence[Part]], bodies: Sequence[str]
) -> tuple[list[Part], list[dict[str, str]]]:
    """The parts of the common vector; and for each body, its part -> common part."""
    found: dict[str, Part] = {}
    names: list[dict[str, str]] = []
    for parts, body in zip(vectors, bodies, strict=True):
        given: dict[str, str] = {}
        for part in parts:
            name, tries = part.name, 0
            while name in given.values() or (name in found and not _same(found[name], part)):
                tries += 1
                name = f"{part.name} of {body}" + (f" {tries}" if tries > 1 else "")
            found[name] = _wider(found.get(name, part), part, name)
            given[part.name] = name
        names.append(given)
    return list(found.values()), names


def _same(ours: Part, theirs: Part) -> bool:
    return (ours.kind, ours.size, ours.unit) == (theirs.kind, theirs.size, theirs.unit)


def _wider(ours: Part, theirs: Part, name: str) -> Part:
    """A part with room for the values of both."""
    (low, high), (other_low, other_high) = ours.bounds(), theirs.bounds()
    if np.array_equal(low, other_low) and np.array_equal(high, other_high):
        return replace(ours, name=name)
    least, most = np.minimum(low, other_low), np.maximum(high, other_high)
    return replace(ours, name=name, low=tuple(least.tolist()), high=tuple(most.tolist()))


def _cameras(bodies: Sequence[Embodiment]) -> tuple[Camera, ...]:
    found: dict[str, Camera] = {}
    for body in bodies:
        for camera in body.cameras:
            known = found.setdefault(camera.name, camera)
            if known != camera:
                raise ConfigError(
                    f"camera {camera.name!r} is {known.height}x{known.width} {known.orientation} in one body, "
                    f"{camera.height}x{camera.width} {camera.orientation} in {body.name!r}",
                    "give all pictures one size (Pictures(size=...)), turn them (TurnImages), or rename one",
                )
    return tuple(found.values())
