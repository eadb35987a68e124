"""Evaluations on a Ray cluster, here one of this machine alone."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from dying_env import ENV_ID
from rich.console import Console

from vla_agents.errors import ConfigError, SimulatorError, VlaAgentsError
from vla_agents.eval.evaluate import EvalConfig, RayConfig
from vla_agents.eval.ledger import NAME, read
from vla_agents.eval.report import EvalReport
from vla_agents.eval.run import run_eval

TESTS = str(Path(__file__).parent)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster():
    """Two workers' worth of cores; the workers find the tests' envs."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vla-agents[ray]'")
    paths = os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield ray
    ray.shutdown()


def run(out: Path, deaths: Path, workers: int = 2, at: int = -1, most: int = 1, **options: Any) -> EvalReport:
    deaths.mkdir(exist_ok=True)
    args = {"fail_every": 4, "at": at, "deaths": str(deaths), "most": most}
    given: dict[str, Any] = {"env": f"dying_env:{ENV_ID}", "env_args": args, "episodes": 20, "num_envs": 2}
    given |= {"videos": 0, "seed": 0, "ray": RayConfig(workers, cpus=0.5, retries=1), **options}
    config = EvalConfig(out=out, **given)
    return run_eval(config, console=Console(file=io.StringIO()), progress=False)


def episodes(out: Path) -> str:
    data = json.loads((out / "results.json").read_text())
    data.pop("timing")
    data["config"].pop("env_args")  # which seed dies
    return json.dumps(data)


def test_results_are_those_of_one_process_also_when_a_worker_dies(cluster, tmp_path):
    one = run(tmp_path / "one", tmp_path / "none", workers=0, num_envs=1)
    assert len(one.episodes) == 20 and 0 < one.success < 1
    run(tmp_path / "ray", tmp_path / "none", videos=2)
    assert episodes(tmp_path / "ray") == episodes(tmp_path / "one")
    assert (
        len(list((tmp_path / "ray" / "videos").glob("*.mp4"))) == 2
        and (tmp_path / "ray" / "report.html").exists()
    )
    run(tmp_path / "died", tmp_path / "deaths", at=7)
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert episodes(tmp_path / "died") == episodes(tmp_path / "one")


def test_a_scene_that_kills_every_worker_ends_the_run_and_the_rest_is_kept(cluster, tmp_path):
    with pytest.raises(SimulatorError, match=r"workers died 2 times while they played seed .*\n.*--resume"):
        run(tmp_path / "out", tmp_path / "deaths", at=13, most=9)
    done = read(tmp_path / "out" / NAME)[1]
    assert done and 13 not in [entry.result.seed for entry in done]


def test_what_cannot_begin_leaves_nothing_and_says_why(cluster, tmp_path):
    with pytest.raises(VlaAgentsError, match="expart"):
        run(tmp_path / "out", tmp_path / "none", agent="expart")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="negative"):
        run(tmp_path / "out", tmp_path / "none", workers=-1)


def evaluating(*options: str) -> subprocess.Popen:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "vla_agents.cli", "eval", "--agent", "expert", "--env-args", "task=lift"]
    command += ["cameras=[]", "--videos", "0", "--ray.workers", "1", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--ray.gpus", "64"), "1 workers of 64 GPU each are more than the 0 of the cluster"),
        (("--ray.address", "127.0.0.1:9"), "no Ray cluster at"),
    ],
)
def test_a_cluster_that_is_too_small_or_not_there(tmp_path, options, message):
    pytest.importorskip("ray")
    process = evaluating(*options, "--out", str(tmp_path / "out"))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and message in said, said
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    process = evaluating("--episodes", "4000", "--num-envs", "1", "--out", str(out))
    until = time.monotonic() + 120
    while time.monotonic() < until and not (
        (out / NAME).exists() and (out / NAME).read_bytes().count(b"\n") > 4
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume goes on" in said, said
    kept = EvalReport.load(out / "results.json")
    assert kept.partial and 4 <= len(kept.episodes) < 4000
