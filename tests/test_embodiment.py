"""Embodiments: what is refused, with both sides and the remedy named, and what is accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_env import BODY, ENV_ID, arm, with_part
from gymnasium import spaces

from vla_agents import transforms
from vla_agents.agent import check_observation
from vla_agents.embodiment import Camera, Embodiment, Part, embodiment_of
from vla_agents.envs import make_env, make_vec
from vla_agents.errors import (
    EmbodimentError,
    EmbodimentMismatchError,
    VlaAgentsError,
)

MISMATCHES: list[tuple[Embodiment, str]] = [
    (replace(BODY, cameras=BODY.cameras[::-1]), r"camera order.*SelectCameras\(\('front', 'wrist'\)\)"),
    (replace(BODY, cameras=BODY.cameras[:1]), r"cameras: .*\['front', 'wrist'\].*\['front'\].*SelectCameras"),
    (replace(BODY, cameras=(Camera("top", 16, 16), BODY.cameras[1])), "RenameCameras"),
    (BODY.with_image_size(24, 32), r"16x16.*24x32.*ResizeImages\(16, 16\)"),
    (replace(BODY, cameras=tuple(replace(c, orientation="rotated_180") for c in BODY.cameras)), "TurnImages"),
    (
        with_part(BODY, "action", 1, kind="gripper_open_01"),
        r"GripperConvention\('gripper', 'gripper_open_01', 'gripper_close_pm1', start=3\)",
    ),
    (with_part(BODY, "action", 0, kind="xyz"), "end-effector translation per step.*position, base frame"),
    (with_part(BODY, "action", 0, unit="0.05 m"), r"unit '0\.1 m'.*unit '0\.05 m'"),
    (replace(BODY, action=BODY.action[:1]), r"4 values \['move', 'gripper'\].*3 values \['move'\]"),
    (replace(BODY, action=(*BODY.action, Part("extra", 2, "other"))), "6 values"),
    (replace(BODY, state=()), r"state.*0 values \[\]"),
    (with_part(BODY, "state", 0, kind="joint_position", size=7), r"xyz\[3\].*joint_position\[7\]"),
    (replace(BODY, control_hz=20.0), "10 Hz.*20 Hz"),
]


@pytest.mark.parametrize(("other", "message"), MISMATCHES)
def test_a_mismatch_is_refused_and_both_sides_are_named(other: Embodiment, message: str) -> None:
    with pytest.raises(EmbodimentMismatchError, match=message) as caught:
        BODY.require(other, ours="checkpoint runs/a", theirs="env x")
    assert (
        caught.value.differences and "checkpoint runs/a" in str(caught.value) and "env x" in str(caught.value)
    )
    with pytest.raises(EmbodimentMismatchError):
        other.require(BODY)


def test_what_does_not_change_the_meaning_is_accepted() -> None:
    BODY.require(BODY)
    BODY.require(replace(BODY, name="other lab"))
    BODY.require(with_part(BODY, "action", 0, name="translation", low=-2.0, high=2.0))
    joints = arm()
    with pytest.raises(EmbodimentMismatchError, match="'joints' where"):
        joints.require(with_part(joints, "state", 0, name="left_joints"), theirs="the other")


def test_the_advice_mends_the_mismatch() -> None:
    ours = arm(action=(*arm().action[:2], Part("grip", 1, "gripper_close_pm1", -1, 1)))
    theirs = arm(action=(Part("position", 3, "xyz"), Part("turn", 6, "rot6d"), arm().action[2]))
    lines = ours.differences(theirs)
    assert len(lines) == 2
    names = vars(transforms)
    advice = tuple(eval(line.split("mend: transform ")[1][:-1], names) for line in reversed(lines))
    assert ours.differences(transforms.Compose(advice).embodiment(theirs)) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Part("a", 1, "griper_open_01"), "Did you mean 'gripper_open_01'"),
        (lambda: Part("a", 2, "delta_xyz"), "size 2"),
        (lambda: Part("a", 0, "other"), "size 0"),
        (lambda: Part("a", 2, "other", low=(0.0, 0.0, 0.0)), "low has 3 values"),
        (lambda: Part("a", 1, "other", 1.0, -1.0), "low 1.0 does not lie below high -1.0"),
        (lambda: Part("a", 1, "other", float("nan"), 1.0), "low nan"),
        (lambda: Camera("a", 0, 5), "0x5"),
        (lambda: Camera("a", 5, 5, "upside_down"), "orientation"),
        (lambda: Embodiment("e", ()), "no action"),
        (lambda: Embodiment("e", (Part("a", 1, "other"),) * 2), "twice"),
        (lambda: Embodiment("e", (Part("a", 1, "other"),), control_hz=0), "control_hz"),
    ],
)
def test_an_embodiment_that_contradicts_itself_is_refused(make: Any, message: str) -> None:
    with pytest.raises(VlaAgentsError, match=message):
        make()


def test_embodiment_gives_spaces_and_slices() -> None:
    body = arm()
    assert (body.action_dim, body.state_dim, body.camera_names) == (7, 6, ("front", "wrist"))
    assert body.action_slices() == {"position": slice(0, 3), "turn": slice(3, 6), "grip": slice(6, 7)}
    space = body.observation_space()
    assert set(space.spaces) == {"images", "state", "instruction"}
    assert body.action_space().low.tolist() == [-np.inf] * 6 + [0.0]
    assert isinstance(space["state"], spaces.Box) and space["state"].shape == (6,)
    assert "put the red block on the blue pad!" in space["instruction"]  # type: ignore[operator]
    assert set(replace(body, state=()).observation_space().spaces) == {"images", "instruction"}


def test_embodiment_survives_the_disk(tmp_path: Path) -> None:
    body = arm(state=(Part("a", 2, "other", low=(-np.inf, 0.0), high=(np.inf, 1.0), unit="m"),))
    body.save(tmp_path / "e.json")
    assert Embodiment.load(tmp_path / "e.json") == body
    json.loads(
        (tmp_path / "e.json").read_text(), parse_constant=pytest.fail
    )  # no Infinity, which is not JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[]", "not an embodiment"),
        ("{}", "not an embodiment"),
        (json.dumps(BODY.to_dict() | {"action": [{"nam": "x"}]}), "unknown field 'nam'.*Did you mean 'name'"),
        (json.dumps(BODY.to_dict() | {"action": [{"name": "x", "size": 1, "kind": "y"}]}), "unknown kind"),
    ],
)
def test_a_damaged_embodiment_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "e.json").write_text(text)
    with pytest.raises(VlaAgentsError, match=message):
        Embodiment.load(tmp_path / "e.json")


def test_embodiment_of_any_env() -> None:
    env = make_env(ENV_ID)
    vector = make_vec(ENV_ID, 2)
    assert embodiment_of(env) == embodiment_of(env.unwrapped) == embodiment_of(vector) == BODY
    import gymnasium

    with pytest.raises(EmbodimentError, match="carries no embodiment"):
        embodiment_of(gymnasium.make("CartPole-v1"))


def test_a_body_without_cameras_has_no_images_in_its_space() -> None:
    blind = replace(BODY, cameras=())
    space = blind.observation_space()
    assert set(space.spaces) == {"state", "instruction"}
    check_observation(space.sample(), blind)
