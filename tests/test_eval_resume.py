"""Evaluations that are stopped and go on, in parts, with agents that fail; comparisons of two."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_env import ENV_ID
from rich.console import Console
from scipy.stats import binom

from vla_agents.agent import Agent
from vla_agents.cli import main
from vla_agents.embodiment import embodiment_of
from vla_agents.envs import make_vec
from vla_agents.envs.vector import make_env
from vla_agents.errors import ActionError, ConfigError, VlaAgentsError
from vla_agents.eval.compare import compare, mcnemar
from vla_agents.eval.evaluate import EvalConfig, evaluate
from vla_agents.eval.ledger import NAME, Ledger, read
from vla_agents.eval.report import EvalReport
from vla_agents.eval.run import merge, run_eval
from vla_agents.eval.suites import SUITES, free_options
from vla_agents.rollout import rollout


def run(out: Path, **options: Any) -> EvalReport:
    given: dict[str, Any] = {
        "env": ENV_ID,
        "env_args": {"fail_every": 4},
        "episodes": 12,
        "videos": 0,
        "num_envs": 3,
    }
    return run_eval(
        EvalConfig(out=out, **(given | options)), console=Console(file=io.StringIO()), progress=False
    )


def without_timing(out: Path) -> str:
    data = json.loads((out / "results.json").read_text())
    data.pop("timing")
    return json.dumps(data)


# ---- going on ---------------------------------------------------------------------------------------------
_SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import fake_env, time
step = fake_env.FakeEnv.step
fake_env.FakeEnv.step = lambda self, action: (time.sleep(0.02), step(self, action))[1]
from pathlib import Path
from vla_agents.eval.evaluate import EvalConfig
from vla_agents.eval.run import run_eval
options = dict(env_args={{"fail_every": 4}}, episodes=40, num_envs=3, videos=0, out=Path({out!r}))
run_eval(EvalConfig(env=fake_env.ENV_ID, **options))
"""


def test_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    script, out = tmp_path / "evaluate_.py", tmp_path / "killed"
    script.write_text(_SCRIPT.format(tests=str(Path(__file__).parent), out=str(out)))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / NAME).exists() and (out / NAME).read_bytes().count(b"\n") > 5:
            break
        time.sleep(0.02)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = read(out / NAME)[1]
    assert 5 <= len(done) < 40 and not (out / "results.json").exists()
    with pytest.raises(ConfigError, match=r"not finished.*\n.*--resume"):
        run(out, episodes=40)
    with (out / NAME).open("ab") as file:  # what a kill in the middle of a write leaves
        file.write(b'{"seed": 100')
    report = run(out, episodes=40, num_envs=2, resume=True)
    assert not report.partial and len(report.episodes) == 40
    assert [e.result.seconds for e in read(out / NAME)[1][: len(done)]] == [
        e.result.seconds for e in done
    ]  # kept
    run(tmp_path / "whole", episodes=40)
    assert without_timing(out) == without_timing(tmp_path / "whole")


def test_a_finished_evaluation_is_extended_and_not_played_again(tmp_path: Path) -> None:
    first = run(tmp_path, episodes=4)
    again = run(tmp_path, episodes=6, resume=True)
    assert again.episodes[:4] == first.episodes and again.timing.actions == sum(
        r.steps for r in again.episodes[4:]
    )
    assert run(tmp_path, episodes=6, resume=True).timing.actions == 0
    assert run(tmp_path, episodes=2).timing.actions > 0  # finished ones may be replaced without a word


def test_another_evaluation_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path, episodes=3)
    with pytest.raises(ConfigError, match=r"another evaluation: config.env_args.fail_every was 4, now 5"):
        run(tmp_path, episodes=3, env_args={"fail_every": 5}, resume=True)
    (tmp_path / NAME).write_text('{"schema": "vla_agents.ledger/1"}\nnonsense\n')
    with pytest.raises(ConfigError, match=r"line 2 is damaged"):
        run(tmp_path, episodes=3, resume=True)
    (tmp_path / NAME).write_text("nonsense\n")
    with pytest.raises(ConfigError, match="not a ledger"):
        run(tmp_path, episodes=3, resume=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        run(tmp_path, episodes=3, resume=True, overwrite=True)
    assert len(run(tmp_path, episodes=3, overwrite=True).episodes) == 3


def test_a_run_that_cannot_begin_leaves_what_is_there(tmp_path: Path) -> None:
    run(tmp_path, episodes=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for wrong in ({"agent": "expart"}, {"env_args": {"tsak": 1}}, {"agent": str(tmp_path / "no_checkpoint")}):
        with pytest.raises(VlaAgentsError):
            run(tmp_path, episodes=3, **wrong)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(VlaAgentsError):
        run(tmp_path / "new", agent="expart")
    assert len(run(tmp_path / "new", episodes=2).episodes) == 2  # nothing stands in the way


# ---- in parts ---------------------------------------------------------------------------------------------
def test_parts_put_together_are_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "whole")
    for part in (1, 2, 3):
        run(tmp_path / f"part{part}", shard=f"{part}/3", num_envs=part)
    merged = merge([tmp_path / f"part{part}" for part in (1, 2, 3)], tmp_path / "merged")
    assert without_timing(tmp_path / "merged") == without_timing(tmp_path / "whole")
    assert len(merged.episodes) == 12
    run(tmp_path / "other", env_args={"fail_every": 5}, shard="1/3")
    with pytest.raises(ConfigError, match=r"not parts of one evaluation: config.env_args.fail_every"):
        merge([tmp_path / "part1", tmp_path / "other"], tmp_path / "mixed")
    with pytest.raises(ConfigError, match="holds an evaluation already"):
        merge([tmp_path / "part1"], tmp_path / "merged")
    for shard in ("0/3", "4/3", "x", "1/13"):
        with pytest.raises(ConfigError, match="PART/PARTS"):
            run(tmp_path / "none", shard=shard)
    assert (
        main(["eval", "merge", str(tmp_path / "again"), str(tmp_path / "part1"), str(tmp_path / "part2")])
        == 0
    )
    assert "8 episodes" in capsys.readouterr().out


# ---- agents that fail -------------------------------------------------------------------------------------
class Failing(Agent):
    """Says NaN in the third step of every episode whose seed is a multiple of three; batches carry all rows."""

    def __init__(self, how: str) -> None:
        self.how, self.seeds, self.steps = how, {}, {}
        self.inner: Any = None

    def reset(self, mask: np.ndarray | None = None, *, seed: Any = None) -> None:
        slots = range(len(seed)) if mask is not None else [0]
        for slot in slots:
            if mask is None or mask[slot]:
                self.seeds[slot], self.steps[slot] = (seed[slot] if mask is not None else seed), 0

    def act(self, obs: Any) -> np.ndarray:
        count = len(obs["instruction"]) if not isinstance(obs["instruction"], str) else 1
        actions = np.zeros((count, self.dim), np.float32)
        bad = []
        for slot in range(count):
            self.steps[slot] += 1
            if self.seeds[slot] % 3 == 0 and self.steps[slot] == 3:
                bad.append(slot)
        if bad and self.how == "shape":
            return np.zeros((count, self.dim + 1), np.float32)
        actions[bad] = np.nan
        if bad and self.how == "raise":
            error = ActionError("the policy gave a non-finite action")
            error.actions = actions if self.batched else actions[0]
            raise error
        return actions if self.batched else actions[0]


@pytest.mark.parametrize("how", ["nan", "raise"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_episode_without_an_action_is_an_error_and_the_run_goes_on(how: str, num_envs: int) -> None:
    env = make_env(ENV_ID) if num_envs == 1 else make_vec(ENV_ID, num_envs)
    agent = Failing(how)
    agent.dim, agent.batched = embodiment_of(env).action_dim, num_envs > 1
    results = rollout(env, agent, range(12), mark_errors=True)
    assert [bool(r.error) for r in results] == [seed % 3 == 0 for seed in range(12)]
    assert all("not finite" in r.error and "seed" in r.error and r.steps == 2 for r in results if r.error)
    report = evaluate(env, agent, range(12), mark_errors=True, progress=False)
    assert (report.overall.errors, report.overall.episodes) == (4, 8)
    assert "4 episodes are errors" in report.summary()
    lone = make_env(ENV_ID)
    quiet = Failing("nan")
    quiet.dim, quiet.batched = agent.dim, False
    for result in results:  # the others do not notice
        if not result.error:
            (alone,) = rollout(lone, quiet, [result.seed])
            assert replace(alone, seconds=0.0) == replace(result, seconds=0.0)
    with pytest.raises(ActionError, match=r"not finite|non-finite"):
        rollout(env, agent, range(12))
    env.close()


def test_a_wrong_shape_ends_the_open_episodes(tmp_path: Path) -> None:
    env = make_vec(ENV_ID, 2)
    agent = Failing("shape")
    agent.dim, agent.batched = embodiment_of(env).action_dim, True
    results = rollout(env, agent, (1, 2, 4, 5, 7, 3), mark_errors=True)
    assert len(results) == 6 and "of shape" in results[-1].error
    assert not results[0].error  # played before anybody was to blame
    env.close()


# ---- comparisons ------------------------------------------------------------------------------------------
def test_mcnemar_is_the_binomial_test_of_the_unequal_pairs() -> None:
    found = mcnemar(both=40, only_a=3, only_b=15, neither=2)
    assert found.p == pytest.approx(2 * binom.cdf(3, 18, 0.5)) and found.difference == pytest.approx(12 / 60)
    assert found.low < found.difference < found.high and found.low > 0
    assert found.verdict.startswith("B is better, by 20.0 points")
    mirrored = mcnemar(both=40, only_a=15, only_b=3, neither=2)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert mirrored.verdict.startswith("A is better")
    unsure = mcnemar(both=90, only_a=3, only_b=5, neither=2)
    assert "not distinguishable from chance at n = 100" in unsure.verdict and unsure.needed > 500
    assert mcnemar(10, 0, 0, 0).p == 1.0 and mcnemar(10, 0, 0, 0).needed is None


def test_the_interval_and_the_number_needed_hold_what_they_say() -> None:
    rng = np.random.default_rng(0)
    cells = [0.5, 0.1, 0.2, 0.2]
    draws = [mcnemar(*map(int, counts)) for counts in rng.multinomial(150, cells, 2000)]
    inside = np.mean([d.low <= 0.1 <= d.high for d in draws])
    assert 0.935 <= inside <= 0.975
    needed = mcnemar(500, 100, 200, 200).needed
    assert needed is not None
    power = np.mean([mcnemar(*map(int, counts)).p < 0.05 for counts in rng.multinomial(needed, cells, 2000)])
    assert 0.74 <= power <= 0.84  # the exact test is a little more careful than the formula


def test_comparing_two_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "a", episodes=40, env_args={"fail_every": 4})
    run(tmp_path / "b", episodes=40, env_args={"fail_every": 4}, agent="random")
    a, b = (EvalReport.load(tmp_path / name / "results.json") for name in "ab")
    found = compare(a, b)
    assert found[""].episodes == 40 and set(found) == {"", "red", "blue"}
    assert found[""].both + found[""].only_a == a.overall.successes
    command = [
        "eval",
        "compare",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "--json",
        str(tmp_path / "c.json"),
    ]
    assert main([*command, "--page", str(tmp_path / "c.html")]) == 0
    assert found[""].verdict.split(" (")[0] in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "c.json").read_text())["tasks"]["all"]["verdict"] == found[""].verdict
    assert found[""].verdict.split(" (")[0] in (tmp_path / "c.html").read_text()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    whole = run(tmp_path / "a", episodes=6)
    with pytest.raises(ConfigError, match=r"different protocols: env_args.fail_every was 4, now 3"):
        compare(whole, run(tmp_path / "b", episodes=6, env_args={"fail_every": 3}))
    with pytest.raises(ConfigError, match="no episode that both"):
        compare(whole, run(tmp_path / "c", episodes=6, seed=5))
    other = replace(whole, digests=(("0" * 16, ""), *whole.digests[1:]))
    with pytest.raises(ConfigError, match="seed 100000 began with another scene"):
        compare(whole, other)


# ---- suites -----------------------------------------------------------------------------------------------
def test_a_part_of_a_suite_is_spread_over_its_tasks() -> None:
    suite = SUITES.get("libero_object")
    assert suite.seeds(12) == [0, 1, 50, 51, 100, 150, 200, 250, 300, 350, 400, 450], "a task at a time"
    assert sorted(suite.seeds()) == list(range(500)) and suite.episodes == 500
    for count in (0, 501):
        with pytest.raises(ConfigError, match="libero_object has 500"):
            suite.seeds(count)


def test_the_protocol_of_a_suite_stands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    suite = SUITES.get("tabletop_hard")
    assert free_options(suite, {"image_size": 64})["difficulty"] == "hard"
    for wrong in ({"difficulty": "easy"}, {"max_steps": 5}):
        with pytest.raises(ConfigError, match="contradicts the protocol of suite 'tabletop_hard'"):
            free_options(suite, wrong)
    with pytest.raises(ConfigError, match="--max-steps contradicts"):
        run_eval(EvalConfig(suite="tabletop_hard", max_steps=3, out=tmp_path))
    assert main(["eval", "--suite", "tabletop_hrad", "--out", str(tmp_path)]) == 1
    assert "did you mean 'tabletop_hard'" in capsys.readouterr().err.lower()
    assert main(["eval", "suites", "libero_goal"]) == 0 and "300 actions" in capsys.readouterr().out


def test_a_suite_is_played(tmp_path: Path) -> None:
    config = EvalConfig(suite="tabletop_easy", episodes=3, num_envs=1, videos=0, out=tmp_path)
    config = replace(config, env_args={"cameras": []})
    report = run_eval(config, console=Console(file=io.StringIO()), progress=False)
    assert report.success == 1.0 and [r.seed for r in report.episodes] == [100_000, 100_001, 100_002]
    assert "reset seeds 100000" in (tmp_path / "report.html").read_text()


def test_the_ledger_flushes_every_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {"config": {}})
    ledger.open()
    assert read(tmp_path / NAME) == ({"config": {}}, [], (tmp_path / NAME).stat().st_size)
    ledger.close()
