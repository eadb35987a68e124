"""Evaluation: intervals against known values, reports that depend on the seeds alone, clear refusals."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_env import ENV_ID, FakePolicy
from rich.console import Console

from vla_agents.agent import Agent, ExpertAgent, PolicyAgent
from vla_agents.chunking import RecedingHorizon
from vla_agents.config import load_config
from vla_agents.envs import make_env, make_vec
from vla_agents.errors import ConfigError, EmbodimentMismatchError, UnknownNameError
from vla_agents.eval.evaluate import EvalConfig, PolicyEvaluator, evaluate
from vla_agents.eval.report import EvalReport
from vla_agents.eval.run import run_eval
from vla_agents.eval.stats import aggregate, by_task, wilson
from vla_agents.rollout import EpisodeResult


def result(seed: int, success: bool, task: str = "lift", steps: int = 10, **info: Any) -> EpisodeResult:
    return EpisodeResult(
        seed, task, f"{task} it", success, steps, float(success), success, not success, 0.1, info
    )


# ---- intervals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score without continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_wilson_agrees_with_published_values(successes: int, episodes: int, low: float, high: float) -> None:
    assert wilson(successes, episodes) == pytest.approx((low, high), abs=6e-5)


def test_wilson_is_where_the_score_test_just_accepts() -> None:
    z = 1.959963984540054
    for successes, episodes in [(3, 10), (99, 100), (150, 200)]:
        share = successes / episodes
        for end in wilson(successes, episodes):
            assert abs(share - end) / math.sqrt(end * (1 - end) / episodes) == pytest.approx(z, abs=1e-9)


def test_wilson_properties() -> None:
    for episodes in (1, 2, 7, 100, 10_000):
        for successes in {0, 1, episodes // 3, episodes}:
            low, high = wilson(successes, episodes)
            assert 0 <= low <= successes / episodes <= high <= 1
            mirrored = wilson(episodes - successes, episodes)
            assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))
            wider = wilson(successes, episodes, 0.99)
            assert wider[0] <= low and high <= wider[1]
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(100, 100)[1] == 1.0 and wilson(0, 100)[0] == 0.0
    for bad in ((5, 4), (-1, 4)):
        with pytest.raises(ConfigError, match="successes"):
            wilson(*bad)
    with pytest.raises(ConfigError, match="confidence"):
        wilson(1, 2, 1.0)


def test_aggregates() -> None:
    results = [
        result(1, True, "lift", 8, wrong=False),
        result(2, False, "lift", 20, wrong=True),
        result(3, True, "push", 12, wrong=False),
        result(4, False, "push", 20, note="text"),
    ]
    found = aggregate(results)
    assert (found.episodes, found.successes, found.success) == (4, 2, 0.5)
    assert (found.low, found.high) == wilson(2, 4)
    assert (found.mean_steps, found.mean_steps_success, found.mean_reward) == (15.0, 10.0, 0.5)
    assert found.rates == {"wrong": 0.25}
    tasks = by_task(results[::-1])
    assert list(tasks) == ["lift", "push"]
    assert tasks["push"].mean_steps_success == 12.0
    cautious = [replace(one, info={**one.info, "caution": "a stand-in table"}) for one in results]
    assert EvalReport(tuple(cautious)).summary().count("caution: a stand-in table") == 1
    assert "caution" not in EvalReport(tuple(results)).summary()
    none = aggregate([])
    assert (none.success, none.low, none.high, none.mean_steps_success) == (0.0, 0.0, 1.0, None)


# ---- reports ---------------------------------------------------------------------------------------------
def quiet(config: EvalConfig) -> tuple[EvalReport, str]:
    console = Console(file=io.StringIO(), width=120)
    report = run_eval(config, console=console, progress=False)
    return report, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_report_depends_on_the_seeds_alone(tmp_path: Path) -> None:
    def once(name: str, num_envs: int) -> dict[str, Any]:
        config = EvalConfig(
            env=ENV_ID,
            env_args={"fail_every": 4},
            episodes=13,
            num_envs=num_envs,
            out=tmp_path / name,
            videos=0,
        )
        quiet(config)
        return json.loads((tmp_path / name / "results.json").read_text())

    first, second, single = once("a", 4), once("b", 4), once("c", 1)
    assert first.pop("timing")["actions"] == sum(row["steps"] for row in first["episodes"])
    second.pop("timing")
    assert json.dumps(first) == json.dumps(second)
    assert first["episodes"] == single["episodes"] and first["tasks"] == single["tasks"]
    assert [row["seed"] for row in first["episodes"]] == list(range(100_000, 100_013))
    assert first["overall"]["successes"] == 9 and first["overall"]["rates"] == {"wrong": 0.0}
    assert first["schema"] == "vla_agents.eval/1" and first["partial"] is False
    assert first["renderer"] == "none" and first["config"]["env_args"] == {"fail_every": 4}
    assert set(first["tasks"]) == {"red", "blue"}


def test_run_eval_writes_and_prints(tmp_path: Path) -> None:
    config = EvalConfig(env=ENV_ID, env_args={"fail_every": 3}, episodes=9, out=tmp_path / "e", videos=2)
    report, text = quiet(config)
    assert report.success == pytest.approx(6 / 9)
    assert re.search(r"all.*66\.7 %.*35\.4 - 87\.9 %.*6/9", text)
    assert str(tmp_path / "e" / "report.html") in text
    assert load_config(EvalConfig, tmp_path / "e" / "run.yaml") == config
    videos = sorted(path.name for path in (tmp_path / "e" / "videos").iterdir())
    assert sorted(name.split("_")[1] for name in videos) == ["failure.mp4", "success.mp4"]
    quiet(EvalConfig(env=ENV_ID, episodes=1, out=tmp_path / "e", videos=0))
    assert not (tmp_path / "e" / "videos").exists(), "videos of an earlier evaluation would mislead"


def test_a_report_survives_the_disk(tmp_path: Path) -> None:
    report, _ = quiet(EvalConfig(env=ENV_ID, episodes=5, out=tmp_path, videos=0))
    loaded = EvalReport.load(tmp_path / "results.json")
    assert loaded.to_dict() == report.to_dict()
    assert loaded.timing == report.timing
    odd = EvalReport((result(1, True, weight=float("nan")),))
    odd.save(tmp_path / "odd.json")
    assert json.loads((tmp_path / "odd.json").read_text())["episodes"][0]["info"] == {"weight": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "not a report"),
        ('{"schema": "x"}', "schema 'x'"),
        ("[]", "not a report"),
    ],
)
def test_files_that_are_no_report(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        EvalReport.load(tmp_path / "r.json")


def test_evaluate_with_a_policy_takes_the_agents_time() -> None:
    class Slow(Agent):
        def __init__(self, agent: Agent) -> None:
            self.agent = agent
            self.seeds: list[Any] = []

        def reset(self, mask: Any = None, *, seed: Any = None) -> None:
            self.seeds.append(seed)
            self.agent.reset(mask, seed=seed)

        def act(self, obs: Any) -> np.ndarray:
            time.sleep(0.005)
            return self.agent.act(obs)

    env = make_env(ENV_ID)
    agent = Slow(PolicyAgent(FakePolicy(), chunker=RecedingHorizon(3)))  # type: ignore[arg-type]
    report = evaluate(env, agent, [5, 3, 4], progress=False, config={"note": "x"})
    assert [r.seed for r in report.episodes] == agent.seeds == [5, 3, 4]
    assert report.timing.act_seconds >= 0.005 * report.timing.actions
    assert report.timing.seconds >= report.timing.act_seconds
    wall, infer = report.timing.per_action()
    assert 5 <= infer <= wall
    assert report.config == {"note": "x"} and report.versions["numpy"] == np.__version__


def test_swapped_instructions_are_followed_by_an_agent_that_reads(tmp_path: Path) -> None:
    class Deaf(FakePolicy):
        def _chunk(self, obs: dict[str, Any]) -> np.ndarray:
            return super()._chunk(obs | {"instruction": "fly to the red target"})

    for policy, expected in ((FakePolicy(), 1.0), (Deaf(), 0.0)):
        config = EvalConfig(env=ENV_ID, env_args={"task": "red"}, episodes=10, swapped=True, execute=1)
        evaluator = PolicyEvaluator(config)
        found = evaluator(policy, 7)
        evaluator.close()
        assert found["success"] == expected
        assert evaluator.reports[7].overall.rates["wrong"] == 1.0 - expected


def test_policy_evaluator_is_what_a_trainer_calls() -> None:
    evaluator = PolicyEvaluator(EvalConfig(env=ENV_ID, env_args={"fail_every": 2}, episodes=8, execute=2))
    policy = FakePolicy()
    first, second = evaluator(policy, 100), evaluator(policy, 200)
    evaluator.close()
    assert policy.training, "the policy's mode is as it was"
    assert first == second and set(first) - {"success", "success_low", "success_high"} == {
        "success/red",
        "success/blue",
    }
    assert (first["success"], first["success_low"], first["success_high"]) == (0.5, *wilson(4, 8))
    assert sorted(evaluator.reports) == [100, 200]
    with pytest.raises(EmbodimentMismatchError, match="24x24"):
        PolicyEvaluator(EvalConfig(env=ENV_ID, env_args={"image_size": 24}, episodes=2))(policy, 1)
    with pytest.raises(EmbodimentMismatchError, match="24x24"):  # and before the first step
        PolicyEvaluator(EvalConfig(env=ENV_ID, env_args={"image_size": 24}, episodes=2)).check(policy)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"episodes": 0}, ConfigError, "episodes"),
        ({"num_envs": 0}, ConfigError, "num_envs"),
        ({"videos": -1}, ConfigError, "videos"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"env_args": {"tsak": "red"}}, ConfigError, "Did you mean 'task'"),
        ({"env_args": {"task": "gren"}}, UnknownNameError, "unknown task 'gren'"),
        ({"env": "CartPole-v1"}, Exception, "embodiment"),
        ({"agent": "expart"}, UnknownNameError, "Did you mean 'expert'"),
        ({"execute": 3}, ConfigError, "execute: the agent 'expert' has no such option"),
        ({"ensemble": "act"}, ConfigError, "ensemble"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    values: dict[str, Any] = {"env": ENV_ID, "episodes": 2, "out": tmp_path}
    with pytest.raises(error, match=re.escape(message)):
        quiet(EvalConfig(**(values | changes)))


# ---- interruption ----------------------------------------------------------------------------------------
class Impatient(ExpertAgent):
    """Ctrl-C after some actions."""

    left = 12

    def act(self, obs: Any) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().act(obs)


def test_an_interrupted_evaluation_raises_unless_asked_to_keep_what_it_has() -> None:
    env = make_vec(ENV_ID, 3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(env, Impatient(env), range(50), progress=False)
    report = evaluate(env, Impatient(env), range(50), progress=False, keep_partial=True)
    whole = evaluate(env, ExpertAgent(env), range(50), progress=False)
    assert report.partial and not whole.partial
    assert 0 < len(report.episodes) < 50
    seeds = [r.seed for r in report.episodes]
    assert seeds == sorted(seeds)
    by_seed = {r.seed: r.steps for r in whole.episodes}
    assert [by_seed[r.seed] for r in report.episodes] == [r.steps for r in report.episodes]
    assert "interrupted" in report.summary()


_SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import fake_env, time
step = fake_env.FakeEnv.step
fake_env.FakeEnv.step = lambda self, action: (time.sleep(0.01), step(self, action))[1]
from pathlib import Path
from vla_agents.eval import evaluate as module
from vla_agents.eval.evaluate import EvalConfig
from vla_agents.eval.run import run_eval
from vla_agents.rollout import Listener
class Mark(module._Finished):
    def on_end(self, slot, result):
        super().on_end(slot, result)
        Path({out!r}, "mark").touch()
module._Finished = Mark
if __name__ == "__main__":
    options = dict(episodes=5000, num_envs=2, asynchronous={asynchronous}, out=Path({out!r}))
    run_eval(EvalConfig(env=fake_env.ENV_ID, **options))
"""


@pytest.mark.parametrize("asynchronous", [False, True])
def test_ctrl_c_writes_what_is_finished(tmp_path: Path, asynchronous: bool) -> None:
    script, out = tmp_path / "evaluate_.py", tmp_path / "e"
    out.mkdir()
    script.write_text(
        _SCRIPT.format(tests=str(Path(__file__).parent), out=str(out), asynchronous=asynchronous)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (out / "mark").exists():
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    report = EvalReport.load(out / "results.json")
    assert report.partial and 0 < len(report.episodes) < 5000
    assert "Interrupted: only the finished episodes" in (out / "report.html").read_text()
    assert f"Stopped: {len(report.episodes)} finished episodes" in " ".join(text.split())
    assert "Process SpawnProcess" not in text
