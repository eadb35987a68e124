"""Agents: what they refuse to look at, and what stands between env and policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_env import BODY, ENV_ID, FakePolicy, observation, with_part

from vla_agents.agent import PolicyAgent, RandomAgent, batch_size, check_observation, load_agent, take
from vla_agents.arguments import make_agent
from vla_agents.embodiment import embodiment_of
from vla_agents.envs import make_env, make_vec
from vla_agents.errors import (
    ConfigError,
    EmbodimentMismatchError,
    ObservationError,
    UnknownNameError,
    VlaAgentsError,
)
from vla_agents.transforms import (
    GripperConvention,
    RenameCameras,
    ResizeImages,
)

BAD_OBSERVATIONS: list[tuple[dict[str, Any], str]] = [
    ({"instruction": "x", "state": np.zeros(3)}, "no 'images'"),
    (observation() | {"instruction": None}, "no instruction"),
    (observation() | {"instruction": 5}, "no instruction string: 5"),
    (observation() | {"images": {"front": np.zeros((16, 16, 3), np.uint8)}}, "camera 'wrist' is missing"),
    (observation(BODY.with_image_size(8)), r"uint8 \(8, 8, 3\), expected uint8 \(16, 16, 3\)"),
    (
        observation() | {"images": {c: np.zeros((16, 16, 3)) for c in BODY.camera_names}},
        "(?s)float64.*as uint8",
    ),
    (
        observation() | {"images": {c: np.zeros((3, 16, 16), np.uint8) for c in BODY.camera_names}},
        "then red, green",
    ),
    (observation() | {"state": np.zeros(4)}, r"state has shape \(4,\), expected \(3,\)"),
    ({k: v for k, v in observation().items() if k != "state"}, "state has shape None"),
    (observation() | {"state": np.array([0, np.nan, 0])}, r"not finite in \['position'\]"),
]


@pytest.mark.parametrize(("obs", "message"), BAD_OBSERVATIONS)
def test_an_observation_that_does_not_fit_is_refused(obs: dict[str, Any], message: str) -> None:
    check_observation(observation(), BODY)
    with pytest.raises(ObservationError, match=message):
        check_observation(obs, BODY)
    agent = PolicyAgent(FakePolicy())  # type: ignore[arg-type]
    with pytest.raises(ObservationError):
        agent.act(obs)


def test_the_pair_that_reset_returns_is_no_observation() -> None:
    env = make_env(ENV_ID)
    with pytest.raises(ObservationError, match=r"returns \(obs, info\)"):
        PolicyAgent(FakePolicy()).act(env.reset(seed=0))  # type: ignore[arg-type]


def test_vector_observations() -> None:
    obs, _ = make_vec(ENV_ID, 3).reset(seed=[1, 2, 3])
    single, _ = make_env(ENV_ID).reset(seed=2)
    assert (batch_size(obs), batch_size(single)) == (3, None)
    np.testing.assert_equal(take(obs, 1), single)


def test_transforms_stand_between_env_and_policy() -> None:
    env = make_env(ENV_ID, image_size=32)
    body = replace(
        embodiment_of(env),
        cameras=tuple(replace(c, name=c.name + "_cam") for c in embodiment_of(env).cameras),
    )
    chain = (RenameCameras((("front_cam", "front"), ("wrist_cam", "wrist"))), ResizeImages(16, 16))
    policy = FakePolicy()
    agent = PolicyAgent(policy, transforms=chain, embodiment=body)  # type: ignore[arg-type]
    obs, _ = env.reset(seed=3)
    obs["images"] = {name + "_cam": image for name, image in obs["images"].items()}
    assert agent.act(obs).shape == (4,) and policy.planned == 1
    with pytest.raises(EmbodimentMismatchError, match="32x32"):
        PolicyAgent(policy, transforms=chain[:1], embodiment=body)  # type: ignore[arg-type]


def test_actions_come_back_through_the_inverse_transforms() -> None:
    policy = FakePolicy()
    theirs = with_part(BODY, "action", 1, kind="gripper_open_01", low=0.0, high=1.0)
    change = GripperConvention("gripper", "gripper_open_01", "gripper_close_pm1", start=3)
    agent = PolicyAgent(policy, transforms=(change,), embodiment=theirs)  # type: ignore[arg-type]
    obs, _ = make_env(ENV_ID).reset(seed=3)
    plain = PolicyAgent(FakePolicy()).act(obs)  # type: ignore[arg-type]
    np.testing.assert_allclose(agent.act(obs), [*plain[:3], 1.0])  # -1 open becomes 1 open


def test_agents_by_name(tmp_path: Path) -> None:
    env = make_env(ENV_ID)
    assert isinstance(make_agent("random", env), RandomAgent)
    with pytest.raises(UnknownNameError, match="Did you mean 'random'"):
        make_agent("randm", env)
    with pytest.raises(ConfigError, match="execute"):
        make_agent("random", env, execute=3, device=None)
    with pytest.raises(VlaAgentsError, match=str(tmp_path / "none")):
        make_agent(str(tmp_path / "none"), env)
    with pytest.raises(ConfigError, match=r"has no option 'exectue'. Did you mean 'execute'"):
        load_agent(tmp_path, exectue=3)
    with pytest.raises(ConfigError, match="exclude each other"):
        load_agent(tmp_path, execute=3, ensemble="act")


def test_random_actions_lie_in_the_space() -> None:
    agent = RandomAgent(BODY, seed=1)
    obs, _ = make_vec(ENV_ID, 3).reset(seed=1)
    actions = agent.act(obs)
    assert actions.shape == (3, 4) and all(action in BODY.action_space() for action in actions)
    assert len({action.tobytes() for action in actions}) == 3
