"""robosuite, played in its own environment: `vla-agents envs install robosuite`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_agents.envs.robosuite import TASKS, robosuite_embodiment
from vla_agents.envs.vector import make_env
from vla_agents.errors import ActionError, ConfigError, SimulatorError, UnknownNameError
from vla_agents.eval.suites import SUITES
from vla_agents.versions import Package

ENVS = os.environ.get("VLA_AGENTS_TEST_ENVS", "")  # this test has a home folder of its own
installed = pytest.mark.skipif(
    not (ENVS and (Path(ENVS) / "robosuite").is_dir()),
    reason="VLA_AGENTS_TEST_ENVS does not name a folder in which `vla-agents envs install robosuite` was",
)


def make(**options: Any) -> Any:
    python = str(Path(ENVS) / "robosuite" / "bin" / "python")
    return make_env("vla_agents/Isolated-v0", where=python, env="vla_agents/Robosuite-v0", **options)


@pytest.fixture(scope="module")
def lift() -> Iterator[Any]:
    env = make(task="Lift")
    yield env
    env.close()


@installed
def test_it_has_our_embodiment_and_upright_pictures(lift: Any) -> None:
    assert lift.unwrapped.embodiment == robosuite_embodiment()
    obs, info = lift.reset(seed=0)
    assert lift.observation_space.contains(obs) and info["task"] == "Lift"
    view = obs["images"]["agentview"].astype(int)
    assert view[64:].mean() > view[:16].mean() + 30  # the white table below, the dark robot above


@installed
@pytest.mark.parametrize("task", ["Lift", "NutAssemblySquare", "PickPlaceCan", "Stack", "Door"])
def test_an_episode_follows_from_its_seed_in_a_fresh_env_and_a_used_one(task: str) -> None:
    def play(env: Any, seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        states = [env.reset(seed=seed)[0]["state"]]
        for _ in range(10):
            states.append(env.step(rng.uniform(-1, 1, 7).astype(np.float32))[0]["state"])
        return states

    env, fresh = make(task=task, cameras=()), make(task=task, cameras=())
    first, _, again, other = play(env, 3), play(env, 4), play(env, 3), play(fresh, 3)
    env.close()
    fresh.close()
    assert np.array_equal(first, again) and np.array_equal(first, other)


@installed
def test_actions_move_the_hand_as_the_embodiment_says(lift: Any) -> None:
    obs, _ = lift.reset(seed=1)
    start = obs["state"]
    for _ in range(10):
        obs, *_ = lift.step(np.array([0, 0, 0.5, 0, 0, 0, -1], np.float32))
    moved = obs["state"][:3] - start[:3]
    assert moved[2] > 0.04 and np.abs(moved[:2]).max() < 0.01  # it lags behind what it is told
    opened = obs["state"][6]
    assert opened > start[6] + 0.005  # -1 opens
    for _ in range(10):
        obs, *_ = lift.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
    assert obs["state"][6] < opened - 0.02  # +1 closes
    with pytest.raises(ActionError, match="shape"):
        lift.step(np.zeros(4, np.float32))


def test_suites_and_names() -> None:
    assert {f"robosuite_{task.lower()}" for task in TASKS} <= set(SUITES)
    assert SUITES.get("robosuite_lift").env_args["where"] == "robosuite"
    with pytest.raises(UnknownNameError, match="Lift"):
        make_env("vla_agents/Robosuite-v0", task="Lif")
    for env in ("vla_agents/Robosuite-v0", "vla_agents/Tabletop-v0"):
        with pytest.raises(ConfigError, match=r"cameras is 'wrist'\n.*cameras=\[wrist\]"):
            make_env(env, cameras="wrist")
    with pytest.raises(ConfigError, match=r"needs robosuite 1.5.*\n.*envs install robosuite"):
        make_env("vla_agents/Robosuite-v0", task="Lift")


def test_a_simulator_that_does_not_run_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*arguments: Any) -> Any:
        raise AssertionError("binding_utils.py: joint type")

    dark = Package("mujoco==3.3.0", "mujoco", "3.17.0", False)
    monkeypatch.setattr("vla_agents.envs.explaining.packages", lambda extra: [dark])
    monkeypatch.setattr("vla_agents.envs.explaining.dependencies", lambda name: [])
    monkeypatch.setattr("vla_agents.envs.robosuite._require_robosuite", lambda: None)
    monkeypatch.setattr("vla_agents.envs.robosuite._make", breaks)
    with pytest.raises(
        SimulatorError, match=r"robosuite does not run with mujoco 3\.17\.0 .*\n.*mujoco==3\.3\.0"
    ):
        make_env("vla_agents/Robosuite-v0", task="Lift", cameras=())
