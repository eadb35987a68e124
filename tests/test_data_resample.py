"""Actions at another rate: where the arm goes stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_agents.data.loading.resample import resample
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError
from vla_agents.rotations import SIZES, from_rotation, to_rotation


def body(*parts: Part, hz: float = 10.0) -> Embodiment:
    return Embodiment("arm", parts, control_hz=hz)


def test_half_the_rate_by_hand() -> None:
    arm = body(
        Part("move", 3, "delta_xyz"), Part("at", 1, "joint_position"), Part("grip", 1, "gripper_open_01"),
        Part("speed", 1, "joint_velocity"),
    )  # fmt: skip
    t = np.arange(5.0)
    action = np.stack([t, 0 * t, t * t, 10 * t, t >= 3, t], axis=1).astype(np.float32)
    rows, found = resample(action, arm, 5.0)
    assert rows.tolist() == [0, 2, 4] and rows.dtype == np.int64 and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], [0 + 1, 2 + 3, 4])  # deltas add up; the last has nothing to add
    np.testing.assert_allclose(found[:, 2], [0 + 1, 4 + 9, 16])
    np.testing.assert_allclose(found[:, 3], [10, 30, 40])  # targets: where it is at the end of the interval
    np.testing.assert_allclose(found[:, 4], [0, 1, 1])
    np.testing.assert_allclose(found[:, 5], [0.5, 2.5, 4])  # mean speed


def test_twice_the_rate_by_hand() -> None:
    arm = body(
        Part("move", 3, "delta_xyz"), Part("at", 1, "joint_position"), Part("grip", 1, "gripper_close_pm1")
    )
    action = np.array([[1, 0, 0, 10, -1], [3, 0, 0, 20, 1], [5, 0, 0, 40, 1]], np.float32)
    rows, found = resample(action, arm, 20.0)
    assert rows.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_allclose(found[:, 0], [0.5, 0.5, 1.5, 1.5, 2.5])
    np.testing.assert_allclose(found[:, 3], [10, 10, 15, 20, 30])
    np.testing.assert_allclose(found[:, 4], [-1, -1, 1, 1, 1])


def test_rotations_turn_at_constant_speed() -> None:
    arm = body(Part("turn", 3, "delta_axis_angle"), Part("to", 4, "quaternion_xyzw"))
    half = Rotation.from_euler("z", [[0], [90], [180]], degrees=True)
    action = np.concatenate([np.tile([0, 0, 0.4], (3, 1)), half.as_quat()], axis=1).astype(np.float32)
    _, found = resample(action, arm, 20.0)
    np.testing.assert_allclose(found[:, :3], np.tile([0, 0, 0.2], (5, 1)), atol=1e-6)
    angles = to_rotation(found[:, 3:].astype(float), "quaternion_xyzw").as_euler("zyx", degrees=True)[:, 0]
    np.testing.assert_allclose(angles, [0, 0, 45, 90, 135], atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from([3.0, 5.0, 7.5, 10.0, 12.0, 15.0, 20.0, 30.0, 50.0]),
    st.sampled_from(sorted(SIZES)),
)
def test_the_same_way_at_any_rate(seed: int, length: int, hz: float, kind: str) -> None:
    """Integrating the new deltas gives the old path at the new times; targets lie on the old path."""
    rng = np.random.default_rng(seed)
    arm = body(
        Part("move", 3, "delta_xyz"), Part("turn", 3, "delta_axis_angle"), Part("joints", 2, "joint_position"),
        Part("face", SIZES[kind], kind),
    )  # fmt: skip
    faces = Rotation.from_rotvec(np.cumsum(rng.normal(scale=0.1, size=(length, 3)), axis=0))
    action = np.concatenate(
        [rng.normal(scale=0.3, size=(length, 6)), rng.normal(size=(length, 2)), from_rotation(faces, kind)],
        axis=1,
    ).astype(np.float32)
    rows, found = resample(action, arm, hz)
    if hz == 10:
        assert rows.tolist() == list(range(length))
        np.testing.assert_allclose(found[:, :8], action[:, :8], atol=1e-5)
    count = len(rows)
    assert count == len(found) >= 1 and (np.diff(rows) >= 0).all() and rows[-1] <= length - 1
    begins = np.arange(count) / hz
    assert (rows / 10 <= begins + 1e-6).all() and (begins - rows / 10 < 0.1 - 1e-6 + 1e-5).all()  # the latest
    ends = np.minimum((np.arange(count) + 1) / hz * 10, length)  # in old steps
    knots = np.arange(length + 1)
    path = np.concatenate([np.zeros((1, 3)), np.cumsum(action[:, :3].astype(float), axis=0)])
    for axis in range(3):
        expected = np.interp(ends, knots, path[:, axis])
        np.testing.assert_allclose(np.cumsum(found[:, axis].astype(float)), expected, atol=1e-4)
    turned, at_knots = Rotation.identity(), [Rotation.identity()]
    for turn in action[:, 3:6].astype(float):
        turned = Rotation.from_rotvec(turn) * turned
        at_knots.append(turned)
    here = Rotation.identity()
    for turn, end in zip(found[:, 3:6].astype(float), ends, strict=True):
        here = Rotation.from_rotvec(turn) * here
        if abs(end - round(end)) < 1e-9:  # at an old step: exactly there
            assert (here * at_knots[round(end)].inv()).magnitude() < 1e-4
    targets = np.concatenate([action[:1], action])
    for k, end in enumerate(ends):
        if abs(end - round(end)) < 1e-9:
            np.testing.assert_allclose(found[k, 6:8], targets[round(end), 6:8], atol=1e-5)
            old, new = (to_rotation(x[None, 8:].astype(float), kind) for x in (targets[round(end)], found[k]))
            assert (old * new.inv()).magnitude().max() < 1e-4


def test_what_has_no_convention_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a' .*of kind 'other': nothing says what it is at 5 Hz"):
        resample(np.zeros((3, 2), np.float32), body(Part("a", 2, "other")), 5.0)
    with pytest.raises(ConfigError, match="expected a positive one"):
        resample(np.zeros((3, 2), np.float32), body(Part("a", 2, "joint_position")), 0.0)
