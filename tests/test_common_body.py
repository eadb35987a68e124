"""Several bodies in one vector: which slot each part has, what is missing, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from vla_agents.common_body import NORMALIZED, IntoCommonBody, common_body
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError, EmbodimentMismatchError
from vla_agents.normalize import Normalizer, VectorStats

ARM = Embodiment(
    "arm",
    action=(Part("move", 3, "delta_xyz", -1, 1), Part("grip", 1, "gripper_open_01", 0, 1)),
    state=(Part("eef", 3, "xyz", unit="m"),),
    cameras=(Camera("front", 8, 8), Camera("wrist", 8, 8)),
)
JOINTS = Embodiment(
    "joints",
    action=(Part("joints", 2, "joint_position"), Part("grip", 1, "gripper_open_01", -0.5, 0.8)),
    state=(Part("joints", 2, "joint_position"), Part("eef", 3, "xyz", unit="mm")),
    cameras=(Camera("front", 8, 8), Camera("side", 8, 8)),
)
BLIND = Embodiment("blind", action=(Part("move", 3, "delta_xyz", -2, 1),))


def test_slots_by_hand() -> None:
    arm, joints, blind = common_body([ARM, JOINTS, BLIND])
    body = arm.target
    assert body == joints.target == blind.target and body.name == "arm+joints+blind"
    assert [p.name for p in body.action] == ["move", "grip", "joints"]
    assert [p.name for p in body.state] == ["eef", "joints", "eef of joints"]  # another unit, another slot
    assert body.camera_names == ("front", "wrist", "side")
    assert body.action[0].bounds()[0].tolist() == [-2, -2, -2] and body.action[1].low == (-0.5,)
    assert np.array_equal(arm.action(np.array([1, 2, 3, 0.5])), np.array([1, 2, 3, 0.5, 0, 0], np.float32))
    assert joints.action(np.array([[7, 8, 1]])).tolist() == [[0, 0, 0, 1, 7, 8]]
    assert arm.mask("action").tolist() == [True] * 4 + [False] * 2
    assert joints.mask("state").tolist() == [False] * 3 + [True] * 5
    assert blind.mask("state").tolist() == [False] * 8
    assert joints.camera_mask() == {"front": True, "wrist": False, "side": True}
    np.testing.assert_allclose(joints.state(np.arange(5.0)), [0, 0, 0, 0, 1, 2, 3, 4])
    assert blind.state(None).tolist() == [0] * 8 and blind.state(np.zeros((4, 0))).shape == (4, 8)


@pytest.mark.parametrize("lead", [(), (3,), (2, 5)])
def test_there_and_back(lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for way in common_body([ARM, JOINTS, BLIND]):
        size = way.source.action_dim
        action = rng.normal(size=(*lead, size)).astype(np.float32)
        there = way.action(action)
        assert there.shape == (*lead, 6) and np.array_equal(way.inverse_action(there), action)
        assert not there[..., ~way.mask("action")].any()
        images = {n: rng.integers(1, 255, (*lead, 8, 8, 3), np.uint8) for n in way.source.camera_names}
        obs = {"images": images, "state": rng.normal(size=(*lead, way.source.state_dim)), "instruction": "go"}
        seen = way.observation(obs)
        assert list(seen["images"]) == ["front", "wrist", "side"] and seen["instruction"] == "go"
        for name, has in way.camera_mask().items():
            if has:
                assert seen["images"][name] is images[name]
            elif way.source.cameras:
                assert seen["images"][name].shape == (*lead, 8, 8, 3) and not seen["images"][name].any()
        assert seen["state"].shape == (*lead, 8) and list(obs) == ["images", "state", "instruction"]


def test_equal_bodies_share_everything() -> None:
    one, two = common_body([ARM, replace(ARM, name="another")])
    assert one.target.action == ARM.action and one.target.state == ARM.state
    assert one.mask("action").all() and two.mask("state").all()
    ARM.require(one.target)


def test_names_that_collide_with_made_ones() -> None:
    other = replace(ARM, action=(Part("grip", 2, "other"), Part("grip of arm", 1, "other")))
    _, second, third = common_body([ARM, other, replace(other, action=(Part("grip", 3, "other"),))])
    names = [p.name for p in second.target.action]
    assert len(set(names)) == len(names) == 5 and [p.size for p in second.target.action] == [3, 1, 2, 1, 3]
    assert third.action(np.array([1, 2, 3])).tolist() == [0] * 7 + [1, 2, 3]


def test_values_normalised_by_each_body_itself() -> None:
    def stats(size: int, half: float) -> VectorStats:
        low, high = (5 - half,) * size, (5 + half,) * size
        return VectorStats(9, (5.0,) * size, (half,) * size, low, high, low, high)

    normalizers = [
        {"action": Normalizer(body.action, stats(body.action_dim, half), {"*": "min_max"})}
        for body, half in ((ARM, 2.0), (JOINTS, 4.0))
    ]
    arm, joints = common_body([ARM, JOINTS], normalizers)
    assert {p.unit for p in arm.target.action} == {NORMALIZED} and arm.target.state[0].unit == "m"
    assert [p.name for p in arm.target.action] == ["move", "grip", "joints"]
    np.testing.assert_allclose(arm.action(np.array([5, 7, 3, 5.0])), [0, 1, -1, 0, 0, 0])
    np.testing.assert_allclose(joints.action(np.array([5, 7, 9.0])), [0, 0, 0, 1, 0, 0.5])
    action = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(joints.inverse_action(joints.action(action)), action, atol=1e-5)
    with pytest.raises(EmbodimentMismatchError, match=NORMALIZED):
        arm.target.require(common_body([ARM, JOINTS])[0].target)
    again = IntoCommonBody.from_dict(json.loads(json.dumps(joints.to_dict())))
    assert (again.source, again.target, again.slots) == (joints.source, joints.target, joints.slots)
    assert np.array_equal(again.action(action), joints.action(action))
    assert np.array_equal(
        again.inverse_action(again.action(action)), joints.inverse_action(joints.action(action))
    )


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"20 Hz, 'joints' at 10 Hz"):
        common_body([ARM, replace(JOINTS, control_hz=10.0)])
    with pytest.raises(ConfigError, match="camera 'front' is 8x8 upright in one body, 16x16 upright"):
        common_body([ARM, JOINTS.with_image_size(16)])
    turned = replace(JOINTS, cameras=(Camera("front", 8, 8, "mirrored"),))
    with pytest.raises(ConfigError, match="mirrored"):
        common_body([ARM, turned])
    (way,) = common_body([ARM])
    with pytest.raises(EmbodimentMismatchError):
        way.embodiment(JOINTS)
