"""What the numbers of a LeRobot dataset mean, as far as it says so.

Ours carries `meta/embodiment.json`. A dataset of GR00T carries `meta/modality.json`, which names slices of state and
action. Others have at most a name per number. What none of them states becomes a part of kind `unknown`, never a guess:
`x, y, z` may be a position or a step, in metres or not. Only LeRobot's own convention is taken at its word: a name
that ends in `.pos` is a motor's position, `.vel` its velocity, in the units of that robot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vla_agents.data.guards import COPY, read_json
from vla_agents.data.lerobot.info import Info
from vla_agents.data.lerobot.layout import EMBODIMENT, INFO, image_shape
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import DatasetError, EmbodimentError

MODALITY = "meta/modality.json"
MOTOR_UNIT = "motor units"
_SUFFIXES = {".pos": "joint_position", ".vel": "joint_velocity"}
# What GR00T's rotation types mean beyond doubt; its quaternions and 6D rotations do not say their order.
_ROTATIONS = {"axis_angle": "axis_angle"}


@dataclass
class Stored:
    """An embodiment as it was found.

    Args:
        embodiment: What the numbers and pixels mean.
        cameras: Camera name -> the feature that holds its pictures.
        notes: What was derived or left out; a sentence each.
    """

    embodiment: Embodiment
    cameras: dict[str, str]
    notes: list[str] = field(default_factory=list)


def load_embodiment(info: Info) -> Stored:
    """The dataset's embodiment: stored where we wrote it, else derived; checked against the features."""
    derived = _derive(info)
    file = info.path / EMBODIMENT
    try:
        found = Embodiment.from_dict(read_json(info.path, file), where=EMBODIMENT)
    except FileNotFoundError:
        return derived
    except EmbodimentError as error:
        raise DatasetError(file, str(error.problem), COPY) from error
    plain, cameras = derived.embodiment, {c.name for c in found.cameras}
    if not cameras <= set(derived.cameras) and cameras <= set(info.cameras):  # beside a modality.json
        derived = _derive(info, modality=False)
        plain = derived.embodiment
    for what, ours, theirs in (
        ("action values", found.action_dim, plain.action_dim),
        ("state values", found.state_dim, plain.state_dim),
        ("cameras", _sizes(found), _sizes(plain)),
    ):
        if ours != theirs:
            raise DatasetError(
                file, f"{what}: {ours} here, {theirs} in {INFO}", "one of the two files is of another dataset"
            )
    return Stored(found, derived.cameras)


def _sizes(body: Embodiment) -> list[tuple[str, int, int]]:
    return sorted((c.name, c.height, c.width) for c in body.cameras)


def _derive(info: Info, *, modality: bool = True) -> Stored:
    """What can be known of a dataset that carries no embodiment."""
    if not info.action_keys:
        raise DatasetError(
            info.path / INFO, "has no feature 'action' that holds numbers", f"it has {sorted(info.features)}"
        )
    named = _read_modality(info) if modality else {}
    notes = [f"{MODALITY}: names of parts and cameras"] if named else []
    cameras = dict(info.cameras)
    for new, key in _camera_names(info, named):
        old = next((name for name, other in cameras.items() if other == key), None)
        if old is not None and new not in cameras:
            cameras = {new if name == old else name: other for name, other in cameras.items()}
    parts = {}
    for what, keys in (("state", info.state_keys), ("action", info.action_keys)):
        parts[what] = _parts(info, what, keys, named.get(what) or {}, notes)
        unknown = [p.name for p in parts[what] if p.kind == "unknown"]
        if unknown:
            listing = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
            notes.append(f"{what}: the dataset does not state the convention of {listing}")
    body = Embodiment(
        name=str(info.raw.get("robot_type") or "unknown"),
        action=parts["action"],
        state=parts["state"],
        cameras=tuple(Camera(name, *image_shape(info.features[key])[:2]) for name, key in cameras.items()),
        control_hz=float(info.fps),
    )
    if body.cameras:
        notes.append("pictures are taken to be upright: the dataset does not say")
    return Stored(body, cameras, notes)


# ---- names in info.json -----------------------------------------------------------------------------------
def _parts(
    info: Info, what: str, keys: tuple[str, ...], named: dict[str, Any], notes: list[str]
) -> tuple[Part, ...]:
    parts: list[Part] = []
    for key in keys:
        feature = info.features[key]
        if len(feature["shape"]) != 1:
            raise DatasetError(
                info.path / INFO,
                f"feature {key!r} has shape {feature['shape']}, expected one dimension",
                "flatten it",
            )
        found = _modality_parts(info, what, key, named, notes) if len(keys) == 1 else None
        parts += found if found is not None else _named_parts(feature, what if len(keys) == 1 else key)
    names = [part.name for part in parts]
    return tuple(parts) if len(set(names)) == len(names) else _numbered(parts)


def _named_parts(feature: dict[str, Any], name: str) -> list[Part]:
    size, names = feature["shape"][0], _names(feature.get("names"))
    if names is None or len(names) != size or len(set(names)) != size:
        return [Part(name, size, "unknown")]
    return [_motor(n) for n in names]


def _motor(name: str) -> Part:
    kind = next((kind for end, kind in _SUFFIXES.items() if name.endswith(end)), "unknown")
    if kind == "joint_position" and "gripper" in name:
        kind = "gripper_position"
    return Part(name, 1, kind, unit="" if kind == "unknown" else MOTOR_UNIT)


def _names(names: Any) -> list[str] | None:
    """A name per number, whichever way they are written: a list, lists by group, or name -> position."""
    if isinstance(names, dict):
        if names and all(type(v) is int for v in names.values()):
            names = sorted(names, key=lambda name: names[name])
        else:
            groups = [v for v in names.values() if isinstance(v, list)]
            names = [n for group in groups for n in group] if groups else None
    return [str(n) for n in names] if isinstance(names, list) and names else None


def _numbered(parts: list[Part]) -> tuple[Part, ...]:
    return tuple(Part(f"{k}_{p.name}", p.size, p.kind, p.low, p.high, p.unit) for k, p in enumerate(parts))


# ---- GR00T's modality.json --------------------------------------------------------------------------------
def _read_modality(info: Info) -> dict[str, Any]:
    try:
        found = read_json(info.path, info.path / MODALITY)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise DatasetError(info.path / MODALITY, "is not an object of objects", COPY)
    return found


def _camera_names(info: Info, named: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, entry in (named.get("video") or {}).items():
        key = entry.get("original_key", f"observation.images.{name}") if isinstance(entry, dict) else ""
        if key not in info.features:
            raise DatasetError(
                info.path / MODALITY, f"video {name!r} is of {key!r}, which {INFO} does not have", COPY
            )
        yield name, key


def _modality_parts(
    info: Info, what: str, key: str, named: dict[str, Any], notes: list[str]
) -> list[Part] | None:
    """The slices of a vector in order, gaps included; None where they do not name this feature."""
    size, slices = info.features[key]["shape"][0], []
    for name, entry in named.items():
        start, end = (entry.get(k) for k in ("start", "end")) if isinstance(entry, dict) else (None, None)
        if isinstance(entry, dict) and entry.get("original_key", key) not in (key, None):
            notes.append(f"{MODALITY}: {what} {name!r} is of {entry['original_key']!r}, and left out")
            continue
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= size:
            raise DatasetError(
                info.path / MODALITY, f"{what} {name!r} is [{start}:{end}] of {size} values in {key!r}", COPY
            )
        slices.append((start, end, name, entry))
    slices.sort(key=lambda item: item[:2])
    if any(a[1] > b[0] for a, b in itertools.pairwise(slices)):
        notes.append(f"{MODALITY}: slices of {what} overlap, so they were not used")
        return None
    parts, at = [], 0
    for start, end, name, entry in slices:
        if start > at:
            parts.append(Part(f"unnamed_{at}", start - at, "unknown"))
        kind = _ROTATIONS.get(str(entry.get("rotation_type")), "unknown")
        if what == "action" and entry.get("absolute") is not True:  # a step, or nobody says
            kind = (
                "delta_axis_angle" if kind == "axis_angle" and entry.get("absolute") is False else "unknown"
            )
        parts.append(Part(name, end - start, kind if end - start == 3 else "unknown"))
        at = end
    if parts and at < size:
        parts.append(Part(f"unnamed_{at}", size - at, "unknown"))
    return parts or None
