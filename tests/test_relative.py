"""Chunks relative to the state they were planned in: what they are, and that acting undoes what training did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tiny import BODY as TINY
from tiny import tiny_policy

from vla_agents.agent import load_agent, take
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError, EmbodimentError, EmbodimentMismatchError
from vla_agents.policies.checkpoint import save_policy
from vla_agents.relative import RelativeActions, is_relative
from vla_agents.rotations import SIZES, from_rotation, to_rotation
from vla_agents.transforms import Compose, GripperConvention, ResizeImages


def pose_body(action_kind: str = "axis_angle", state_kind: str = "quaternion_xyzw") -> Embodiment:
    return Embodiment(
        "pose",
        action=(
            Part("grip", 1, "gripper_open_01"),
            Part("position", 3, "xyz", unit="m"),
            Part("turn", SIZES[action_kind], action_kind),
        ),
        state=(
            Part("eef_turn", SIZES[state_kind], state_kind),
            Part("eef_position", 3, "xyz", unit="m"),
            Part("fingers", 2, "gripper_position"),
        ),
        cameras=(Camera("front", 8, 8),),
        control_hz=10.0,
    )


def joint_body() -> Embodiment:
    """Two arms, each named alike in state and action, in another order."""
    return Embodiment(
        "arms",
        action=(
            Part("left", 2, "joint_position", unit="rad"),
            Part("left_grip", 1, "gripper_position"),
            Part("right", 2, "joint_position", unit="rad"),
            Part("base", 2, "joint_velocity"),
        ),
        state=(Part("right", 2, "joint_position", unit="rad"), Part("left", 2, "joint_position", unit="rad")),
    )


def test_joints_by_hand() -> None:
    relative = RelativeActions(joint_body())
    state = np.array([10.0, 20.0, 1.0, 2.0], np.float32)  # right, left
    chunk = np.array([[1.5, 2.5, 0.7, 11.0, 18.0, 3.0, 4.0], [1, 2, 0.1, 10, 20, 5, 6]], np.float32)
    found = relative.chunk(chunk, state)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.7, 1, -2, 3, 4], [0, 0, 0.1, 0, 0, 5, 6]], atol=1e-6)
    np.testing.assert_allclose(relative.inverse_chunk(found, state), chunk, atol=1e-6)
    made = relative.embodiment(joint_body())
    kinds = [part.kind for part in made.action]
    assert kinds == [
        "relative_joint_position",
        "gripper_position",
        "relative_joint_position",
        "joint_velocity",
    ]
    assert made.action[0].unit == "rad" and made.action[0].bounds()[0][0] == -np.inf
    assert made.state == joint_body().state and is_relative(made) and not is_relative(joint_body())


def test_rotations_by_hand() -> None:
    """A quarter turn about the base's z axis on top of a quarter turn about x is just that, wherever it started."""
    body = pose_body("rot6d", "quaternion_wxyz")
    start = Rotation.from_euler("x", 90, degrees=True)
    target = Rotation.from_euler("z", 90, degrees=True) * start
    state = np.concatenate([start.as_quat(scalar_first=True), [1, 2, 3], [0, 0]]).astype(np.float32)
    action = np.concatenate([[1], [1, 2, 4], from_rotation(Rotation.concatenate([target]), "rot6d")[0]])
    found = RelativeActions(body).chunk(action[None].astype(np.float32), state)
    np.testing.assert_allclose(found, [[1, 0, 0, 1, 0, 0, np.pi / 2]], atol=1e-6)
    assert RelativeActions(body).embodiment(body).action_dim == 7


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SIZES)),
    st.sampled_from(sorted(SIZES)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(3,), (2, 5), (2, 3, 4)]),
)
def test_acting_undoes_training(action_kind: str, state_kind: str, seed: int, shape: tuple[int, ...]) -> None:
    """For every pair of conventions and any leading axes; equal as rotations (a quaternion may change its sign)."""
    rng = np.random.default_rng(seed)
    body = pose_body(action_kind, state_kind)
    relative = RelativeActions(body)

    def turns(leading: tuple[int, ...], kind: str) -> np.ndarray:
        random = Rotation.random(int(np.prod(leading)), rng=rng)
        return from_rotation(random, kind).reshape(*leading, SIZES[kind])

    lead = shape[:-1]
    state = np.concatenate(
        [turns(lead or (1,), state_kind).reshape(*lead, -1), rng.normal(size=(*lead, 5))], axis=-1
    ).astype(np.float32)
    chunk = np.concatenate([rng.normal(size=(*shape, 4)), turns(shape, action_kind)], axis=-1)
    chunk = chunk.astype(np.float32)
    there = relative.chunk(chunk, state)
    back = relative.inverse_chunk(there, state)
    assert there.shape == (*shape, 7) and back.shape == chunk.shape
    np.testing.assert_allclose(back[..., :4], chunk[..., :4], atol=1e-5)
    size = SIZES[action_kind]
    ours, theirs = (
        to_rotation(x[..., 4:].reshape(-1, size).astype(float), action_kind) for x in (back, chunk)
    )
    assert (ours * theirs.inv()).magnitude().max() < 1e-5
    # The convention of neither side shows in the result.
    other = np.concatenate(
        [
            from_rotation(
                to_rotation(
                    state[..., : SIZES[state_kind]].reshape(-1, SIZES[state_kind]).astype(float), state_kind
                ),
                "rot6d",
            ).reshape(*lead, 6),
            state[..., SIZES[state_kind] :],
        ],
        axis=-1,
    )
    again = RelativeActions(pose_body(action_kind, "rot6d")).chunk(chunk, other)
    turn = [to_rotation(x[..., 4:].reshape(-1, 3).astype(float), "axis_angle") for x in (again, there)]
    assert (turn[0] * turn[1].inv()).magnitude().max() < 1e-4


def test_within_a_chain_of_transforms() -> None:
    """The gripper changes before, the pictures are resized; the state goes through unchanged."""
    body = pose_body()
    first = GripperConvention("grip", "gripper_open_01", "gripper_close_pm1", 0)
    chain = Compose((ResizeImages(4, 4), first, RelativeActions(first.embodiment(body))))
    made = chain.embodiment(body)
    assert [p.kind for p in made.action] == ["gripper_close_pm1", "relative_xyz", "relative_axis_angle"]
    assert made.cameras[0].height == 4
    rng = np.random.default_rng(0)
    state = np.concatenate([[0, 0, 0, 1], rng.normal(size=5)]).astype(np.float32)
    chunk = np.concatenate([[[1.0]], rng.normal(size=(1, 6)) * 0.3], axis=1).astype(np.float32)
    found = chain.chunk(chunk, state)
    assert found[0, 0] == -1 and np.allclose(found[0, 1:4], chunk[0, 1:4] - state[4:7], atol=1e-6)
    np.testing.assert_allclose(chain.inverse_chunk(found, state), chunk, atol=1e-6)
    assert np.array_equal(Compose(()).inverse_chunk(chunk, state), chunk)


def test_refusals() -> None:
    body = pose_body()
    relative = RelativeActions(body)
    with pytest.raises(EmbodimentMismatchError, match=r"mend: transform RelativeActions"):
        relative.embodiment(body).require(body, ours="policy", theirs="env")
    with pytest.raises(EmbodimentMismatchError, match="position"):
        relative.embodiment(joint_body())
    resized = body.with_image_size(32)
    assert relative.embodiment(resized).cameras == resized.cameras  # pictures are none of its business
    with pytest.raises(ConfigError, match="the observation has none"):
        relative.chunk(np.zeros((2, 7), np.float32), None)
    for method in (relative.action, relative.inverse_action):
        with pytest.raises(ConfigError, match="relative to a state"):
            method(np.zeros(7, np.float32))
    deltas = Embodiment("d", (Part("move", 3, "delta_xyz"),), body.state)
    with pytest.raises(ConfigError, match="no absolute action"):
        RelativeActions(deltas)
    with pytest.raises(ConfigError, match="has 0 state parts"):
        RelativeActions(Embodiment("j", (Part("arm", 6, "joint_position"),), body.state))
    two = replace(body, state=(*body.state, Part("elbow", 3, "xyz", unit="m")))
    with pytest.raises(ConfigError, match=r"(?s)2 state parts.*same name"):
        RelativeActions(two)
    named = replace(two, state=(*body.state, Part("position", 3, "xyz", unit="m")))
    assert RelativeActions(named)
    with pytest.raises(ConfigError, match="in 'm', state part 'eef_position' in 'mm'"):
        RelativeActions(replace(body, state=(body.state[0], Part("eef_position", 3, "xyz", unit="mm"))))
    with pytest.raises(EmbodimentError, match="relative_xyz"):
        Part("x", 2, "relative_xyz")


class _HandOver:
    """An env as far as `load_agent` looks at it."""

    def __init__(self, body: Embodiment) -> None:
        self.embodiment = body


def test_an_agent_turns_relative_plans_into_where_to_go(tmp_path: Path) -> None:
    """From the state of its own slot, at the time the chunk was planned."""
    body = replace(
        TINY, action=(Part("position", 3, "xyz", unit="m"), TINY.action[1]), name="absolute"
    )  # its state is a position in m
    trained = RelativeActions(body).embodiment(body)
    policy = tiny_policy(body=trained)
    save_policy(policy, tmp_path / "policy")
    rng = np.random.default_rng(0)

    def look(state: np.ndarray) -> dict[str, Any]:
        count = len(state)
        images = {c.name: rng.integers(0, 255, (count, 32, 32, 3), np.uint8) for c in body.cameras}
        return {"images": images, "state": state, "instruction": ["lift it"] * count}

    agent = load_agent(tmp_path / "policy", env=_HandOver(body))
    assert agent.embodiment == body  # type: ignore[attr-defined]
    first = look(rng.uniform(-1, 1, (2, 3)).astype(np.float32))
    plan = policy.plan([take(first, slot) for slot in range(2)])
    expected = plan.copy()
    expected[..., :3] += first["state"][:, None]
    np.testing.assert_allclose(agent.act(first), expected[:, 0], atol=1e-6)
    later = look(first["state"] + 5)  # the second action of the chunk is relative to where it was planned
    np.testing.assert_allclose(agent.act(later), expected[:, 1], atol=1e-6)

    with pytest.raises(ConfigError, match="pass env="):
        load_agent(tmp_path / "policy")
    explicit = load_agent(tmp_path / "policy", embodiment=body, transforms=(RelativeActions(body),))
    np.testing.assert_allclose(explicit.act(first), expected[:, 0], atol=1e-6)
    other = replace(body, state=(Part("eef_position", 3, "xyz", unit="mm"),))
    with pytest.raises(ConfigError, match="in 'mm'"):
        load_agent(tmp_path / "policy", env=_HandOver(other))
