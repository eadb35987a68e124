"""Steps between what an env hands over and what a policy was trained on.

The same frozen dataclasses serve training (`observation`, `action`) and acting (`observation`,
`inverse_action`), and each says how it changes the embodiment, so a chain that does not lead to the
policy's embodiment is refused before anything moves. Images are uint8 (…, H, W, 3); vectors are float32 (…,
D): a leading time or batch axis is fine everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.rotations import SIZES, from_rotation, to_rotation

Observation = dict[str, Any]


class Transform:
    """Identity; subclasses override what they change."""

    def embodiment(self, source: Embodiment) -> Embodiment:
        """The embodiment after this step; raises where the step does not apply."""
        return source

    def observation(self, obs: Observation) -> Observation:
        """One observation (or a stack of them) after this step. Must not change its argument."""
        return obs

    def action(self, action: np.ndarray) -> np.ndarray:
        """An action in source units -> in the policy's units (used in training)."""
        return action

    def inverse_action(self, action: np.ndarray) -> np.ndarray:
        """An action in the policy's units -> in source units (used in acting)."""
        return action

    def state(self, state: np.ndarray | None) -> np.ndarray | None:
        """The state of an observation, float32 (..., S), after this step; None where the body has none."""
        return state

    def chunk(self, chunk: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """As `action`, for a chunk (..., H, D) and the (source) state (..., S) it was planned in."""
        return self.action(chunk)

    def inverse_chunk(self, chunk: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """The inverse of `chunk`, given the same source state."""
        return self.inverse_action(chunk)


@dataclass(frozen=True)
class Compose(Transform):
    """Several transforms, one after the other."""

    transforms: tuple[Transform, ...] = ()

    def embodiment(self, source: Embodiment) -> Embodiment:
        """After all steps."""
        for transform in self.transforms:
            source = transform.embodiment(source)
        return source

    def observation(self, obs: Observation) -> Observation:
        """All steps, first to last."""
        for transform in self.transforms:
            obs = transform.observation(obs)
        return obs

    def action(self, action: np.ndarray) -> np.ndarray:
        """All steps, first to last."""
        for transform in self.transforms:
            action = transform.action(action)
        return action

    def inverse_action(self, action: np.ndarray) -> np.ndarray:
        """All inverses, last to first."""
        for transform in reversed(self.transforms):
            action = transform.inverse_action(action)
        return action

    def state(self, state: np.ndarray | None) -> np.ndarray | None:
        """All steps, first to last."""
        for transform in self.transforms:
            state = transform.state(state)
        return state

    def chunk(self, chunk: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """All steps, first to last; each is given the state as it stands before it."""
        for transform in self.transforms:
            chunk = transform.chunk(chunk, state)
            state = transform.state(state)
        return chunk

    def inverse_chunk(self, chunk: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """All inverses, last to first."""
        states = [state]
        for transform in self.transforms[:-1]:
            states.append(transform.state(states[-1]))
        for transform, before in zip(reversed(self.transforms), reversed(states), strict=False):
            chunk = transform.inverse_chunk(chunk, before)
        return chunk


@dataclass(frozen=True)
class ResizeImages(Transform):
    """Every camera to (height, width), bicubic with antialiasing (Pillow's, as most VLA code uses)."""

    height: int
    width: int

    def embodiment(self, source: Embodiment) -> Embodiment:
        """The same cameras at the new size."""
        return source.with_image_size(self.height, self.width)

    def observation(self, obs: Observation) -> Observation:
        """Resized copies; images of the right size pass through."""
        return obs | {"images": {name: self._resize(image) for name, image in obs["images"].items()}}

    def _resize(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        if image.shape[-3:-1] == (self.height, self.width):
            return image
        flat = image.reshape(-1, *image.shape[-3:])
        size = (self.width, self.height)
        resized = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in flat]
        return np.stack(resized).reshape(*image.shape[:-3], self.height, self.width, 3)


@dataclass(frozen=True)
class TurnImages(Transform):
    """Change how pictures lie, e.g. from upright to `"mirrored"` (LIBERO as OpenVLA and StarVLA were trained on it)."""

    orientation: str = "upright"
    source: str = "rotated_180"

    def embodiment(self, source: Embodiment) -> Embodiment:
        """The same cameras, lying otherwise."""
        for camera in source.cameras:
            if camera.orientation != self.source:
                raise ConfigError(
                    f"camera {camera.name!r} is {camera.orientation}, TurnImages expects {self.source}"
                )
        if "upright" not in (self.source, self.orientation):
            raise ConfigError(
                f"TurnImages goes to or from 'upright', not {self.source!r} -> {self.orientation!r}"
            )
        cameras = tuple(dataclasses.replace(c, orientation=self.orientation) for c in source.cameras)
        return dataclasses.replace(source, cameras=cameras)

    def observation(self, obs: Observation) -> Observation:
        """Turned views."""
        turned = {self.source, self.orientation} - {"upright"}
        if not turned:
            return obs
        axes = {"rotated_180": (-3, -2), "flipped_vertically": (-3,), "mirrored": (-2,)}[turned.pop()]
        return obs | {"images": {name: np.flip(image, axes) for name, image in obs["images"].items()}}


@dataclass(frozen=True)
class SelectCameras(Transform):
    """Keep these cameras, in this order."""

    names: tuple[str, ...]

    def embodiment(self, source: Embodiment) -> Embodiment:
        """Only the named cameras."""
        by_name = {camera.name: camera for camera in source.cameras}
        for name in self.names:
            if name not in by_name:
                raise UnknownNameError("camera", name, by_name)
        return dataclasses.replace(source, cameras=tuple(by_name[name] for name in self.names))

    def observation(self, obs: Observation) -> Observation:
        """Only the named images."""
        return obs | {"images": {name: obs["images"][name] for name in self.names}}


@dataclass(frozen=True)
class RenameCameras(Transform):
    """Give cameras other names: `RenameCameras((("agentview", "front"),))`."""

    pairs: tuple[tuple[str, str], ...]

    def embodiment(self, source: Embodiment) -> Embodiment:
        """The same cameras under the new names."""
        new = dict(self.pairs)
        for old in new:
            if old not in source.camera_names:
                raise UnknownNameError("camera", old, source.camera_names)
        cameras = tuple(
            Camera(new.get(c.name, c.name), c.height, c.width, c.orientation) for c in source.cameras
        )
        return dataclasses.replace(source, cameras=cameras)

    def observation(self, obs: Observation) -> Observation:
        """The same images under the new names."""
        new = dict(self.pairs)
        return obs | {"images": {new.get(name, name): image for name, image in obs["images"].items()}}


# kind -> (value when closed, value when open)
_GRIPPERS = {
    "gripper_open_01": (0.0, 1.0),
    "gripper_close_01": (1.0, 0.0),
    "gripper_close_pm1": (1.0, -1.0),
    "gripper_open_pm1": (-1.0, 1.0),
}


@dataclass(frozen=True)
class _ActionPart(Transform):
    """A change of one action part; remembers nothing, so it needs the part's place."""

    part: str
    source: str
    target: str
    start: int

    def _checked(self, source: Embodiment) -> Part:
        slices = source.action_slices()
        if self.part not in slices:
            raise UnknownNameError("action part", self.part, slices)
        part = next(p for p in source.action if p.name == self.part)
        if part.kind != self.source or slices[self.part].start != self.start:
            raise ConfigError(
                f"action part {self.part!r} is {part.kind} at index {slices[self.part].start}; "
                f"the transform expects {self.source} at index {self.start}"
            )
        return part

    def _replaced(self, source: Embodiment, new: Part) -> Embodiment:
        return dataclasses.replace(
            source, action=tuple(new if p.name == self.part else p for p in source.action)
        )


@dataclass(frozen=True)
class GripperConvention(_ActionPart):
    """Another convention for a gripper value in the action, e.g. `gripper_close_pm1` -> `gripper_open_01`.

    Args:
        part: Name of the action part (size 1).
        source: Its kind in the env.
        target: Its kind in the policy.
        start: Index of the value in the action vector.
    """

    def embodiment(self, source: Embodiment) -> Embodiment:
        """The part with the new kind and bounds."""
        part = self._checked(source)
        if part.size != 1:
            raise ConfigError(f"action part {part.name!r} has {part.size} values, GripperConvention maps one")
        low, high = sorted(self._ends(self.target))
        return self._replaced(source, Part(part.name, part.size, self.target, low, high, part.unit))

    def action(self, action: np.ndarray) -> np.ndarray:
        """From the env's convention to the policy's."""
        return self._map(action, self.source, self.target)

    def inverse_action(self, action: np.ndarray) -> np.ndarray:
        """From the policy's convention to the env's."""
        return self._map(action, self.target, self.source)

    def _ends(self, kind: str) -> tuple[float, float]:
        if kind not in _GRIPPERS:
            raise UnknownNameError("gripper convention", kind, _GRIPPERS)
        return _GRIPPERS[kind]

    def _map(self, action: np.ndarray, source: str, target: str) -> np.ndarray:
        (closed, opened), (new_closed, new_opened) = self._ends(source), self._ends(target)
        out = np.array(action, np.float32)
        share = (out[..., self.start] - closed) / (opened - closed)
        out[..., self.start] = new_closed + share * (new_opened - new_closed)
        return out


@dataclass(frozen=True)
class RotationConvention(_ActionPart):
    """Another convention for an absolute rotation in the action, e.g. `axis_angle` -> `rot6d` (Zhou 2019)."""

    def embodiment(self, source: Embodiment) -> Embodiment:
        """The part with the new kind and size."""
        part = self._checked(source)
        for kind in (self.source, self.target):
            if kind not in SIZES:
                raise UnknownNameError("rotation convention", kind, SIZES)
        return self._replaced(source, Part(part.name, SIZES[self.target], self.target, unit=part.unit))

    def action(self, action: np.ndarray) -> np.ndarray:
        """From the env's convention to the policy's."""
        return self._map(action, self.source, self.target)

    def inverse_action(self, action: np.ndarray) -> np.ndarray:
        """From the policy's convention to the env's."""
        return self._map(action, self.target, self.source)

    def _map(self, action: np.ndarray, source: str, target: str) -> np.ndarray:
        size = SIZES[source]
        rows = np.asarray(action, np.float32).reshape(-1, np.shape(action)[-1])
        rotation = from_rotation(to_rotation(rows[:, self.start : self.start + size], source), target)
        out = np.concatenate([rows[:, : self.start], rotation, rows[:, self.start + size :]], axis=1)
        return out.reshape(*np.shape(action)[:-1], -1).astype(np.float32)


def compose(transforms: Sequence[Transform]) -> Compose:
    """`Compose` of a sequence."""
    return Compose(tuple(transforms))
