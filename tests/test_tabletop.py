from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import vla_agents  # noqa: F401  (registers the ids)
from vla_agents.errors import ActionError, UnknownNameError

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


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasium_accepts_it_without_a_warning(render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, render_mode=render_mode)
        check_env(env.unwrapped, skip_render_check=False)
    env.close()


def test_the_same_seed_is_the_same_episode_bit_for_bit():
    first, second = gym.make(ID), gym.make(ID)
    run_expert(second, 11)  # what went before leaves no trace
    a, info_a = run_expert(first, 5)
    b, info_b = run_expert(second, 5)
    assert info_a == info_b and len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x["instruction"] == y["instruction"]
        np.testing.assert_array_equal(x["state"], y["state"])
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(x["images"][camera], y["images"][camera])


def test_another_instruction_leaves_the_scene_and_changes_success():
    env = gym.make(ID)
    obs, info = env.reset(seed=3)
    others = [i for i in env.unwrapped.possible_instructions() if i != info["instruction"]]
    assert len(others) == 2
    again, swapped = env.reset(seed=3, options={"instruction": others[0]})
    np.testing.assert_array_equal(obs["images"]["front"], again["images"]["front"])
    np.testing.assert_array_equal(obs["state"], again["state"])
    assert swapped["instruction"] == again["instruction"] == others[0] and swapped["target"] != info["target"]
    _, end = run_expert(env, 3, instruction=others[0])
    assert end["success"]


def test_an_impossible_instruction_names_the_possible_ones():
    env = gym.make(ID, cameras=("front",))
    with pytest.raises(UnknownNameError, match="pick up the red block"):
        env.reset(seed=3, options={"instruction": "pick up the pink block"})


@pytest.mark.parametrize(
    "action", [np.full(7, np.nan), [0, 0, 0, 0, 0, 0, np.inf], np.zeros(6), np.zeros((1, 7)), "up"]
)
def test_a_bad_action_is_refused_before_anything_moves(action):
    env = gym.make(ID, cameras=("front",)).unwrapped
    env.reset(seed=0)
    before = env._world.data.qpos.copy()
    with pytest.raises(ActionError):
        env.step(action)
    np.testing.assert_array_equal(before, env._world.data.qpos)
