"""SimplerEnv's WidowX tasks, played in their own environment: `vla-agents envs install simpler`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_agents.doctor.checks import Target
from vla_agents.envs.common import checked_action
from vla_agents.envs.simpler import TASKS, widowx_embodiment
from vla_agents.envs.simpler.tasks import missing_assets, select_tasks, stand_ins
from vla_agents.envs.vector import make_env
from vla_agents.errors import ActionError, ConfigError, SimulatorError, UnknownNameError
from vla_agents.eval.suites import SUITES

ENVS = os.environ.get("VLA_AGENTS_TEST_ENVS", "")  # this test has a home folder of its own
installed = pytest.mark.skipif(
    not (ENVS and (Path(ENVS) / "simpler").is_dir() and os.environ.get("MS_ASSET_DIR")),
    reason="VLA_AGENTS_TEST_ENVS does not name the folder of `vla-agents envs install simpler`, or MS_ASSET_DIR no assets",
)


def make(**options: Any) -> Any:
    python = str(Path(ENVS) / "simpler" / "bin" / "python")
    return make_env("vla_agents/Isolated-v0", where=python, env="vla_agents/SimplerWidowX-v0", **options)


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    env = make(task="all")
    yield env
    env.close()


def play(env: Any, seed: int, steps: int = 6, killed_at: int = -1) -> str:
    """A digest of all that was seen."""
    seen, rng = hashlib.md5(usedforsecurity=False), np.random.default_rng(0)
    obs, _ = env.reset(seed=seed)
    for step in range(steps):
        seen.update(obs["images"]["third_view"].tobytes() + obs["state"].tobytes())
        if step == killed_at:
            os.kill(env.unwrapped.pid, 9)
        action = np.r_[rng.uniform(-0.06, 0.06, 3), rng.uniform(-0.1, 0.1, 3), rng.choice([-1, 1])]
        obs, *_ = env.step(action.astype(np.float32))
    return seen.hexdigest()


# ---- in its own Python ---------------------------------------------------------------------------------------
@installed
@pytest.mark.timeout(900)
def test_every_task_shows_itself(env: Any) -> None:
    for number, (name, task) in enumerate(TASKS.items()):
        obs, info = env.reset(seed=64 * number)
        assert (info["task"], obs["instruction"]) == (name, task.instruction)
        assert env.observation_space.contains(obs)
        assert obs["images"]["third_view"].std() > 20 and info["assets"]


@installed
@pytest.mark.timeout(900)
def test_an_episode_follows_from_its_seed_in_a_used_env_and_after_a_crash(env: Any) -> None:
    first = play(env, 64 + 5)
    others = {play(env, seed) for seed in (3, 128 + 7, 192 + 10, 64 + 6)}
    assert len(others) == 4 and first not in others
    assert play(env, 64 + 5) == first
    assert play(env, 64 + 5, killed_at=2) == first


@installed
@pytest.mark.timeout(900)
def test_actions_move_the_hand_in_metres_and_the_gripper(env: Any) -> None:
    obs, _ = env.reset(seed=0)
    start = obs["state"]
    for _ in range(5):
        obs, *_ = env.step(np.array([0.01, 0, 0.01, 0, 0, 0, -1], np.float32))
    moved = obs["state"] - start
    assert np.allclose(moved[[0, 2]], 0.05, atol=0.01) and abs(moved[1]) < 0.002
    assert np.abs(moved[3:6]).max() < 0.01
    assert start[6] > 0.8 and obs["state"][6] < 0.2  # -1 closes
    for _ in range(60):
        obs, reward, terminated, truncated, info = env.step(np.zeros(7, np.float32))
        if truncated:
            break
    assert truncated and not terminated and (reward, info["success"]) == (0.0, False)


@installed
@pytest.mark.timeout(900)
def test_the_expert_stacks_the_cubes(env: Any) -> None:
    env.reset(seed=128 + 9)
    for _ in range(TASKS["stack_cube"].max_steps):
        _, _, _, truncated, info = env.step(env.unwrapped.expert_action())
    assert truncated and info["success"]


# ---- here -------------------------------------------------------------------------------------------------------
def test_suites_are_the_published_placements() -> None:
    suite = SUITES.get("simpler_widowx")
    assert (suite.tasks, suite.trials) == (4, 24)
    seeds = suite.seeds(None)
    assert len(set(seeds)) == 96 and [seed // 64 % 4 for seed in seeds[::24]] == [0, 1, 2, 3]
    for number, task in enumerate(TASKS.values()):
        assert all(seed % 64 < task.layouts for seed in seeds[24 * number : 24 * (number + 1)])
    eggplant = [seed % 64 for seed in SUITES.get("simpler_widowx_eggplant_in_basket").seeds(None)]
    assert {layout % 8 for layout in eggplant} == {0, 1, 2} and {layout // 8 for layout in eggplant} == set(
        range(8)
    )


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"needs mani_skill 3, and this Python has none(.|\n)*envs install simpler"
    ):
        make_env("vla_agents/SimplerWidowX-v0")
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    monkeypatch.setattr("vla_agents.envs.simpler.tasks.version", lambda name: "3.0.1")
    with pytest.raises(SimulatorError, match=r"missing: .*widowx|missing: .*bridge(.|\n)*download_asset"):
        make_env("vla_agents/SimplerWidowX-v0")
    assert len(missing_assets()) == 2 and len(stand_ins()) == 3  # nothing there is nothing of SimplerEnv's
    monkeypatch.setattr("vla_agents.envs.simpler.tasks.version", lambda name: "2.0")
    with pytest.raises(ConfigError, match=r"this Python has 2\.0"):
        make_env("vla_agents/SimplerWidowX-v0")


def test_names_are_checked() -> None:
    assert select_tasks("all") == tuple(TASKS) and select_tasks(["stack_cube"]) == ("stack_cube",)
    with pytest.raises(UnknownNameError, match="Did you mean 'stack_cube'"):
        select_tasks("stack_cubes")
    for wrong in ((), 3, [1]):
        with pytest.raises(ConfigError, match="give a name"):
            select_tasks(wrong)


def test_actions_are_clipped_to_the_bodys_own_limits() -> None:
    body = widowx_embodiment()
    wild = np.array([5, -5, 0.5, 3, -3, 0.1, 9], np.float32)
    assert np.allclose(checked_action(wild, body), [1, -1, 0.5, np.pi / 2, -np.pi / 2, 0.1, 1])
    with pytest.raises(ActionError, match="gripper"):
        checked_action(np.array([0, 0, 0, 0, 0, 0, np.nan], np.float32), body)


def test_the_doctor_knows_what_it_draws_with() -> None:
    assert Target(where="simpler").needs_vulkan and not Target(where="simpler").needs_opengl
