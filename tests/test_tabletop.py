from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import vla_agents  # noqa: F401  (registers the ids)
from vla_agents.embodiment import embodiment_of
from vla_agents.errors import ActionError, ConfigError, UnknownNameError

ID = "vla_agents/Tabletop-v0"


def run_expert(env: gym.Env, seed: int, **options: str) -> tuple[list, dict]:
    """One episode of the expert: the observations, and the last info."""
    obs, info = env.reset(seed=seed, options=options or None)
    seen, done = [obs], False
    while not done:
        obs, _, terminated, truncated, info = env.step(env.unwrapped.expert_action())
        seen.append(obs)
        done = terminated or truncated
    return seen, info


def assert_same(a: dict, b: dict) -> None:
    assert a["instruction"] == b["instruction"]
    np.testing.assert_array_equal(a["state"], b["state"])
    assert a.get("images", {}).keys() == b.get("images", {}).keys()
    for camera, image in a.get("images", {}).items():
        np.testing.assert_array_equal(image, b["images"][camera])


@pytest.mark.parametrize("options", [{}, {"render_mode": "rgb_array"}, {"cameras": ()}, {"task": "all"}])
def test_gymnasium_accepts_it_without_a_warning(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, **options)
        check_env(env.unwrapped, skip_render_check=False)
    env.close()


def test_it_carries_its_embodiment():
    env = gym.make(ID, image_size=(48, 80), cameras=("wrist",))
    body = embodiment_of(env)
    assert body.name == "tabletop" and body.control_hz == 20 and body.camera_names == ("wrist",)
    assert env.action_space == body.action_space() and env.observation_space == body.observation_space()
    obs, info = env.reset(seed=0)
    assert obs in env.observation_space and obs["images"]["wrist"].shape == (48, 80, 3)
    assert obs["state"].dtype == np.float32 and obs["state"].shape == (8,)
    assert info["task"] == "lift" and info["success"] is False and info["instruction"] == obs["instruction"]


def test_people_get_a_picture_of_their_own():
    env = gym.make(ID, render_mode="rgb_array", cameras=())
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8 and picture.std() > 10
    assert env.metadata["render_fps"] == 20


def test_looking_at_it_does_not_change_what_the_policy_sees():
    plain, watched = gym.make(ID), gym.make(ID, render_mode="rgb_array")
    plain.reset(seed=2), watched.reset(seed=2)
    watched.render()
    action = np.full(7, 0.3, np.float32)
    assert_same(plain.step(action)[0], watched.step(action)[0])


@pytest.mark.parametrize("options", [{}, {"task": "all", "difficulty": "hard", "paraphrase": True}])
def test_the_same_seed_is_the_same_episode_bit_for_bit(options):
    first, second = gym.make(ID, **options), gym.make(ID, **options)
    run_expert(second, 11)  # what went before leaves no trace
    run_expert(second, 12)
    a, info_a = run_expert(first, 5)
    b, info_b = run_expert(second, 5)
    assert info_a == info_b and len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert_same(x, y)


def test_without_a_seed_episodes_go_on_from_the_last_one():
    first, second = gym.make(ID, cameras=()), gym.make(ID, cameras=())
    first.reset(seed=1), second.reset(seed=1)
    a, b = first.reset()[0], second.reset()[0]
    assert_same(a, b)
    assert not np.array_equal(a["state"], first.reset()[0]["state"])


def test_actions_mean_metres_and_radians():
    env = gym.make(ID, cameras=()).unwrapped
    obs, _ = env.reset(seed=4)
    start = obs["state"].copy()
    for _ in range(4):  # 4 times 2 cm right, 1 cm down; 0.1 rad about the vertical
        obs, *_ = env.step(np.array([0.4, 0, -0.2, 0, 0, 0.2, -1]))
    for _ in range(3):  # it comes to rest where it was told
        obs, *_ = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    moved = obs["state"] - start
    # It trails a goal that runs ahead of it, by about a quarter of the way on every step.
    assert 0.05 < moved[0] <= 0.085 and abs(moved[1]) < 1e-3 and -0.043 < moved[2] < -0.025
    assert 0.25 < moved[5] < 0.42 and np.abs(moved[3:5]).max() < 1e-2
    np.testing.assert_allclose(obs["state"][6:], 0.045, atol=1e-3)
    for _ in range(4):
        obs, *_ = env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    np.testing.assert_allclose(obs["state"][6:], 0.0, atol=2e-3)


def test_actions_beyond_the_box_are_clipped():
    a, b = gym.make(ID, cameras=()).unwrapped, gym.make(ID, cameras=()).unwrapped
    a.reset(seed=0), b.reset(seed=0)
    assert_same(a.step(np.full(7, 50.0))[0], b.step(np.ones(7))[0])


BAD = [np.full(7, np.nan), [0, 0, 0, 0, 0, 0, np.inf], np.zeros(6), np.zeros((1, 7)), "up", None]


@pytest.mark.parametrize("action", BAD)
def test_a_bad_action_is_refused_before_anything_moves(action):
    env = gym.make(ID, cameras=()).unwrapped
    env.reset(seed=0)
    before = env._world.data.qpos.copy()
    with pytest.raises(ActionError):
        env.step(action)
    np.testing.assert_array_equal(before, env._world.data.qpos)


def test_random_actions_stay_within_the_observation_space():
    env = gym.make(ID, cameras=(), task="all", difficulty="hard").unwrapped
    random = np.random.default_rng(0)
    for seed in range(10):
        env.reset(seed=seed)
        push = random.uniform(-1, 1, 7)
        for _ in range(40):
            obs, *_ = env.step(np.clip(push + random.normal(0, 0.5, 7), -1, 1))
            assert obs in env.observation_space
        assert not any(warning.number for warning in env._world.data.warning)


def test_another_instruction_leaves_the_scene_and_changes_success():
    env = gym.make(ID)
    obs, info = env.reset(seed=3)
    others = [i for i in env.unwrapped.possible_instructions() if i != info["instruction"]]
    assert len(others) == 2
    again, swapped = env.reset(seed=3, options={"instruction": others[0]})
    np.testing.assert_array_equal(obs["images"]["front"], again["images"]["front"])
    np.testing.assert_array_equal(obs["state"], again["state"])
    assert swapped["instruction"] == again["instruction"] == others[0]
    assert swapped["target"] != info["target"]
    _, end = run_expert(env, 3, instruction=others[0])
    assert end["success"]


def test_an_impossible_instruction_names_the_possible_ones():
    env = gym.make(ID, cameras=())
    with pytest.raises(UnknownNameError, match="pick up the red block"):
        env.reset(seed=3, options={"instruction": "pick up the pink block"})


WRONG = [
    ({"task": "lft"}, UnknownNameError, "Did you mean 'lift'"),
    ({"task": ()}, ConfigError, "no task"),
    ({"difficulty": "impossible"}, UnknownNameError, "medium"),
    ({"split": "test"}, UnknownNameError, "heldout"),
    ({"split": "heldout"}, ConfigError, "names one thing only"),
    ({"cameras": ("top",)}, UnknownNameError, "front, wrist"),
    ({"image_size": 4}, ConfigError, "16 to 1024"),
    ({"image_size": (64, 64, 3)}, ConfigError, "16 to 1024"),
    ({"max_steps": 0}, ConfigError, "max_steps"),
    ({"distractors": 9}, ConfigError, "distractors"),
    ({"renderer": "vulkan"}, UnknownNameError, "raycast"),
    ({"render_mode": "human"}, UnknownNameError, "rgb_array"),
]


@pytest.mark.parametrize(("options", "error", "says"), WRONG)
def test_a_wrong_option_is_named(options, error, says):
    from vla_agents.envs.tabletop import TabletopEnv

    with pytest.raises(error, match=says):
        TabletopEnv(**options)


def test_what_comes_before_reset_is_refused():
    env = gym.make(ID, cameras=()).unwrapped
    for call in (lambda: env.step(np.zeros(7)), env.expert_action, env.possible_instructions):
        with pytest.raises(ConfigError, match="reset"):
            call()
    with pytest.raises(UnknownNameError, match="reset option"):
        env.reset(options={"instructions": "pick up the red block"})


def test_a_limit_on_steps_truncates():
    env = gym.make(ID, cameras=(), max_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(7, np.float32))[3] for _ in range(3)]
    assert ends == [False, False, True]


def test_registering_it_loads_no_simulator():
    code = "import sys, vla_agents, vla_agents.envs.tabletop; print('mujoco' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
