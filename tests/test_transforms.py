"""Transforms: shapes as announced, inverses that invert, conventions that mean what they say."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from fake_env import arm, observation
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_agents.errors import (
    VlaAgentsError,
)
from vla_agents.transforms import (
    Compose,
    GripperConvention,
    RenameCameras,
    ResizeImages,
    RotationConvention,
    SelectCameras,
    Transform,
    TurnImages,
)

TRANSFORMS: list[Transform] = [
    Transform(),
    ResizeImages(24, 20),
    TurnImages("rotated_180", "upright"),
    TurnImages("flipped_vertically", "upright"),
    SelectCameras(("wrist", "front")),
    SelectCameras(("wrist",)),
    RenameCameras((("front", "wrist"), ("wrist", "front"))),
    GripperConvention("grip", "gripper_open_01", "gripper_close_pm1", start=6),
    RotationConvention("turn", "axis_angle", "rot6d", start=3),
    RotationConvention("turn", "axis_angle", "quaternion_wxyz", start=3),
    Compose(
        (
            RotationConvention("turn", "axis_angle", "rot6d", 3),
            GripperConvention("grip", "gripper_open_01", "gripper_open_pm1", 9),
        )
    ),
]


@pytest.mark.parametrize(
    "transform", TRANSFORMS, ids=lambda t: "Transform" if type(t) is Transform else str(t)
)
def test_a_transform_does_what_its_embodiment_says(transform: Transform) -> None:
    body = arm()
    target = transform.embodiment(body)
    for lead in ((), (5,), (2, 3)):
        obs = observation(body, lead=lead)
        kept = copy.deepcopy(obs)
        out = transform.observation(obs)
        assert {n: i.shape for n, i in out["images"].items()} == {
            c.name: (*lead, c.height, c.width, 3) for c in target.cameras
        }
        assert list(out["images"]) == list(target.camera_names) or isinstance(transform, RenameCameras)
        np.testing.assert_equal(obs, kept, "the argument is left as it was")
        rng = np.random.default_rng(1)
        action = rng.uniform(-0.5, 0.5, (*lead, body.action_dim)).astype(np.float32)
        before = action.copy()
        there = transform.action(action)
        assert there.shape == (*lead, target.action_dim) and there.dtype == np.float32
        np.testing.assert_allclose(transform.inverse_action(there), action, atol=2e-6)
        np.testing.assert_array_equal(action, before)


KINDS = ("axis_angle", "euler_xyz", "quaternion_xyzw", "quaternion_wxyz", "rot6d")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.lists(st.floats(-1.4, 1.4), min_size=3, max_size=3),
)
def test_every_rotation_convention_leads_to_every_other(
    source: str, target: str, angles: list[float]
) -> None:
    from scipy.spatial.transform import Rotation

    from vla_agents.rotations import from_rotation

    turn = Rotation.from_euler("xyz", [angles])
    start = from_rotation(turn, source)[0].astype(np.float32)
    transform = RotationConvention("turn", source, target, start=1)
    action = np.concatenate([[7.0], start, [8.0]]).astype(np.float32)
    there = transform.action(action)
    np.testing.assert_allclose(there[1:-1], from_rotation(turn, target)[0], atol=3e-6)
    assert (there[0], there[-1]) == (7.0, 8.0)
    np.testing.assert_allclose(transform.inverse_action(there), action, atol=3e-6)


def test_rot6d_is_made_orthonormal() -> None:
    raw = np.array([[2.0, 0.1, 0.0, 0.3, 1.5, 0.2]], np.float32)
    vector = RotationConvention("turn", "axis_angle", "rot6d", start=0).inverse_action(raw)
    again = RotationConvention("turn", "axis_angle", "rot6d", start=0).action(vector)[0]
    first, second = again[:3], again[3:]
    np.testing.assert_allclose([first @ first, second @ second, first @ second], [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(first, raw[0, :3] / np.linalg.norm(raw[0, :3]), atol=1e-6)


@pytest.mark.parametrize(
    "target", ["gripper_open_01", "gripper_close_01", "gripper_close_pm1", "gripper_open_pm1"]
)
def test_gripper_conventions(target: str) -> None:
    transform = GripperConvention("grip", "gripper_open_01", target, start=6)
    part = transform.embodiment(arm()).action[2]
    closed, opened = (transform.action(np.array([0] * 6 + [v], np.float32))[6] for v in (0.0, 1.0))
    assert {closed, opened} == {part.low, part.high}
    assert (opened > closed) == ("open" in target)


def test_turning_pictures() -> None:
    obs = observation()
    image = obs["images"]["front"]
    rotated = TurnImages("rotated_180", "upright").observation(obs)["images"]["front"]
    np.testing.assert_array_equal(rotated[0, 0], image[-1, -1])
    flipped = TurnImages("flipped_vertically", "upright").observation(obs)["images"]["front"]
    np.testing.assert_array_equal(flipped[0, 3], image[-1, 3])
    back = TurnImages().observation({"images": {"front": rotated}})["images"]["front"]
    np.testing.assert_array_equal(back, image)


def test_resizing_is_pillows_bicubic() -> None:
    from PIL import Image

    obs = observation()
    expected = Image.fromarray(obs["images"]["front"]).resize((9, 7), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        ResizeImages(7, 9).observation(obs)["images"]["front"], np.asarray(expected)
    )
    same = ResizeImages(16, 16).observation(obs)["images"]["front"]
    assert same is obs["images"]["front"], "pictures of the right size are not touched"


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (SelectCameras(("frnt",)), "Did you mean 'front'"),
        (RenameCameras((("frnt", "x"),)), "Did you mean 'front'"),
        (RenameCameras((("front", "wrist"),)), "twice"),
        (TurnImages("upright", "rotated_180"), "is upright"),
        (TurnImages("rotated_180", "flipped_vertically"), "is upright"),
        (GripperConvention("grp", "gripper_open_01", "gripper_open_pm1", 6), "Did you mean 'grip'"),
        (GripperConvention("grip", "gripper_open_01", "gripper_open_pm1", 5), "index 6"),
        (GripperConvention("grip", "gripper_close_01", "gripper_open_pm1", 6), "is gripper_open_01"),
        (GripperConvention("grip", "gripper_open_01", "open", 6), "gripper convention"),
        (RotationConvention("turn", "axis_angle", "rot9d", 3), "rotation convention 'rot9d'"),
        (RotationConvention("turn", "rot6d", "axis_angle", 3), "is axis_angle"),
    ],
)
def test_a_transform_that_does_not_apply_is_refused(transform: Transform, message: str) -> None:
    with pytest.raises(VlaAgentsError, match=message):
        transform.embodiment(arm())
