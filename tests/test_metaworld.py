"""Meta-World on the real simulator."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import vla_agents  # noqa: F401  (registers the ids)
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.metaworld import tasks
from vla_agents.errors import ActionError, ConfigError, UnknownNameError
from vla_agents.eval.suites import SUITES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None,
    reason="Meta-World is not installed: pip install 'vla-agents[metaworld]'",
)
ID = "vla_agents/MetaWorld-v0"
# Mean grey level of the first picture of drawer-open, seed 0, 128 x 128, mujoco 3.3.0 on EGL.
DRAWER_OPEN_MEAN = 104.03


def make(**kwargs: Any) -> Any:
    return gym.make(ID, disable_env_checker=True, **kwargs).unwrapped


@pytest.fixture(scope="module")
def blind() -> Iterator[Any]:
    env = make(task="mt50", cameras=())
    yield env
    env.close()


def expert_episode(env: Any, seed: int) -> list[np.ndarray]:
    states = [env.reset(seed=seed)[0]["state"]]
    done = False
    while not done:
        obs, _, terminated, truncated, info = env.step(env.expert_action())
        assert info["success"] == terminated
        states.append(obs["state"])
        done = terminated or truncated
    return states


def test_the_tasks_are_the_packages() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

    assert {f"{name}-v3" for name in tasks.INSTRUCTIONS} == set(ALL_V3_ENVIRONMENTS)
    assert tuple(f"{name}-v3" for name in tasks.MT10) == tuple(MT10_V3)


def test_it_is_a_gymnasium_env_with_a_picture_and_an_instruction() -> None:
    env = make(task="drawer-open-v3", cameras=("corner2", "wrist"), image_size=64)
    check_env(env, skip_render_check=True)
    assert embodiment_of(env).camera_names == ("corner2", "wrist")
    obs, info = env.reset(seed=0)
    assert obs["instruction"] == "open the drawer" and info["task"] == "drawer-open"
    assert obs["images"]["corner2"].shape == (64, 64, 3)
    env.close()


def test_the_picture_has_the_brightness_it_had() -> None:
    env = make(task="drawer-open")
    obs, info = env.reset(seed=0)
    env.close()
    if info["renderer"] != "egl":
        pytest.skip("measured with EGL")
    assert obs["images"]["corner2"].mean() == pytest.approx(DRAWER_OPEN_MEAN, abs=2.0)


def test_seeds_decide_task_and_layout_and_nothing_is_left_over(blind: Any) -> None:
    seeds = [50 * tasks.GROUPS["mt50"].index(name) + 7 for name in ("drawer-open", "push")]
    first = [expert_episode(blind, seed) for seed in seeds]
    again = [expert_episode(blind, seed) for seed in reversed(seeds)][::-1]
    fresh_env = make(task="mt50", cameras=())
    fresh = [expert_episode(fresh_env, seeds[1])]
    fresh_env.close()
    for states, other in [*zip(first, again, strict=True), (first[1], fresh[0])]:
        assert np.array_equal(states, other)
    blind.reset(seed=seeds[1])
    goal = blind._full[-3:].copy()
    blind.reset(seed=seeds[1] + 1)
    assert not np.array_equal(goal, blind._full[-3:])


@pytest.mark.parametrize(
    "name", ["button-press-topdown", "door-open", "drawer-close", "reach", "window-open"]
)
def test_the_packages_experts_solve_five_tasks(blind: Any, name: str) -> None:
    first = 50 * tasks.GROUPS["mt50"].index(name)
    ends = [len(expert_episode(blind, first + trial)) <= 500 and blind._success for trial in range(3)]
    assert sum(ends) == 3


@pytest.mark.slow
def test_every_task_loads_and_its_expert_mostly_succeeds(blind: Any) -> None:
    solved = 0
    for index in range(50):
        expert_episode(blind, 50 * index)
        solved += blind._success
    assert solved >= 47  # seen: 49


def test_suites_give_every_task_its_trials(blind: Any) -> None:
    suite = SUITES.get("metaworld_mt10")
    seeds = suite.seeds()
    assert len(seeds) == 500 and suite.env == ID
    env = make(task="mt10", cameras=())
    assert [env.tasks[seed // 50 % 10] for seed in seeds] == [task for task in tasks.MT10 for _ in range(50)]
    assert len(set(seeds)) == 500 and min(seeds) >= 1_000_000
    env.close()


def test_bad_input_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="drawer-open"):
        make(task="drawer-opn")
    with pytest.raises(ConfigError, match="mt50"):
        make(task=())
    with pytest.raises(UnknownNameError, match="corner2"):
        make(cameras=("corner9",))
    with pytest.raises(ConfigError, match="max_steps"):
        make(max_steps=501)
    env = make(task="reach", cameras=())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(4, np.float32))
    env.reset(seed=0)
    with pytest.raises(ActionError, match="shape"):
        env.step(np.zeros(7, np.float32))
    with pytest.raises(ActionError, match="finite"):
        env.step(np.full(4, np.nan, np.float32))
    with pytest.raises(UnknownNameError, match="option"):
        env.reset(options={"goal": 1})
    env.close()
