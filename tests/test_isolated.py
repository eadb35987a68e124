"""Envs in a process of their own: the same results, and what a crash costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from vla_agents.agent import Agent, ExpertAgent
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.isolated import IsolatedEnv, environments
from vla_agents.envs.vector import make_env, make_vec
from vla_agents.errors import ActionError, ConfigError, SimulatorError, UnknownNameError
from vla_agents.rollout import rollout

TABLETOP: dict[str, Any] = {"task": "stack", "image_size": 32, "renderer": "raycast"}
HERE = str(Path(__file__).parent)


def walk(folder: Path, **kwargs: Any) -> IsolatedEnv:
    path = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    return IsolatedEnv(
        env="crashing_env:Crashing-v0", variables={"PYTHONPATH": path}, folder=str(folder), **kwargs
    )


def episode(env: gym.Env, seed: int = 3) -> list[Any]:
    """States, and the last info."""
    obs, info = env.reset(seed=seed)
    found: list[Any] = [obs["state"]]
    done = False
    for k in range(20):
        if done:
            break
        obs, reward, terminated, truncated, info = env.step(np.full(3, k / 10, np.float32))
        found += [obs["state"], reward]
        done = terminated or truncated
    return [*found, info]


class Still(Agent):
    """Does nothing."""

    def act(self, obs: Any) -> np.ndarray:
        return np.zeros(3, np.float32)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype


def test_isolated_and_not_are_the_same_to_the_bit() -> None:
    near = make_env("vla_agents/Tabletop-v0", **TABLETOP)
    far = make_env("vla_agents/Isolated-v0", env="vla_agents/Tabletop-v0", **TABLETOP)
    try:
        assert embodiment_of(far) == embodiment_of(near)
        assert far.observation_space == near.observation_space and far.action_space == near.action_space
        assert same(near.reset(seed=5)[0], far.reset(seed=5)[0])
        for _ in range(15):
            action = near.unwrapped.expert_action()
            assert np.array_equal(action, far.unwrapped.expert_action())
            ours, theirs = near.step(action), far.step(action)
            assert same(ours[0], theirs[0]) and ours[1:4] == theirs[1:4]
            assert {k: v for k, v in ours[4].items() if isinstance(v, str | bool)}.items() <= theirs[
                4
            ].items()
        with pytest.raises(ActionError, match="shape"):
            far.step(np.zeros(3, np.float32))
    finally:
        near.close()
        far.close()


def test_it_is_played_like_any_other_env() -> None:
    options = {"env": "vla_agents/Tabletop-v0", **TABLETOP, "cameras": ()}
    envs = make_vec("vla_agents/Isolated-v0", 2, **options)
    plain = make_vec("vla_agents/Tabletop-v0", 1, **(TABLETOP | {"cameras": ()}))
    try:
        ours = rollout(envs, ExpertAgent(envs), range(3))
        theirs = rollout(plain, ExpertAgent(plain), range(3))
    finally:
        envs.close()
        plain.close()
    assert [(r.seed, r.success, r.steps, r.reward) for r in ours] == [
        (r.seed, r.success, r.steps, r.reward) for r in theirs
    ]


@pytest.mark.parametrize("how", ["segfault", "exit", "hang"])
def test_a_simulator_that_dies_is_brought_back_to_where_it_was(how: str, tmp_path: Path) -> None:
    quiet, broken = walk(tmp_path), walk(tmp_path, how=how, step_timeout_s=2.0)
    expected, found = episode(quiet), episode(broken)
    quiet.close()
    broken.close()
    assert len(list(tmp_path.glob("crash*"))) == 1
    assert all(np.array_equal(a, b) for a, b in zip(expected[:-1], found[:-1], strict=True))
    assert found[-1]["restarts"] == 1 and "restarts" not in expected[-1] and found[-1]["success"]


def test_one_that_dies_again_and_again_costs_its_episode_and_no_other(tmp_path: Path) -> None:
    env = walk(tmp_path, how="segfault", times=3)
    results = rollout(env, Still(), [1, 2])
    env.close()
    assert "step 4" in results[0].error and "SIGSEGV" in results[0].error and not results[0].success
    assert results[1].error == "" and results[1].success and "restarts" not in results[1].info


def test_death_at_reset_is_an_error_and_the_next_reset_works(tmp_path: Path) -> None:
    env = walk(tmp_path, how="exit", step=0, times=3)
    with pytest.raises(SimulatorError, match=r"status 3.*\n.*about to exit"):
        env.reset(seed=1)
    assert env.reset(seed=1)[0]["state"].shape == (3,)
    assert env.reset(seed=2, options={"a": (1, 2)})[1]["options"] == {"a": (1, 2)}
    env.close()


def test_one_that_goes_another_way_after_a_crash_is_found_out(tmp_path: Path) -> None:
    env = walk(tmp_path, how="segfault", steady=False)
    with pytest.raises(SimulatorError, match="another way"):
        episode(env)
    env.close()


def test_errors_are_the_envs_own(tmp_path: Path) -> None:
    env = walk(tmp_path, how="raise")
    with pytest.raises(SimulatorError, match="ValueError: the walk went wrong"):
        episode(env)
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        walk(tmp_path).step(np.zeros(3))
    with pytest.raises(ConfigError, match="no option 'colour'"):
        walk(tmp_path, colour="red")
    with pytest.raises(SimulatorError, match="MemoryError"):
        tiny = IsolatedEnv(env="vla_agents/Tabletop-v0", memory_mb=1, image_size=1024, renderer="raycast")
        tiny.reset(seed=0)


def test_the_simulator_ends_with_us(tmp_path: Path) -> None:
    env = walk(tmp_path)
    env.reset(seed=0)
    pid = env.pid
    assert pid is not None and Path(f"/proc/{pid}").exists()
    del env
    assert not Path(f"/proc/{pid}").exists()


def test_what_is_not_installed_is_said_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA_AGENTS_ENVS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"absent\n.*vla-agents envs install robosuite"):
        IsolatedEnv(env="anything", where="robosuite")
    (tmp_path / "robosuite").mkdir()
    assert environments.status("robosuite") == "unfinished"
    with pytest.raises(UnknownNameError, match="robosuite"):
        IsolatedEnv(env="anything", where="robosuit")
    with pytest.raises(ConfigError, match="no Python at"):
        IsolatedEnv(env="anything", where="/nowhere/bin/python")
