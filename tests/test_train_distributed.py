"""Two processes on one CPU (gloo): they stay one model, and their step is that of all their batches together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import BASE, losses
from test_train_exact import cloning, run
from tiny_all import FRAMEWORKS, framework

from vla_agents.policies.checkpoint import load_policy

_ENV = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FRAMEWORKS)
def test_two_processes_take_the_step_of_one(kind: str, tmp_path: Path) -> None:
    """Two processes of two micro-batches each, and one of four: the same samples, noise and losses."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(here / "distributed_run.py"), kind, str(tmp_path / "two")],
        env=os.environ
        | _ENV
        | {"PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    first, second = (json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["world"] == 2
    assert first == second

    alone = run(
        tmp_path / "one", framework(kind), cloning(4), steps=4, accumulation=4, batch_size=BASE.batch_size
    )
    alone.fit()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    ours, theirs = (dict(p.named_parameters()) for p in (load_policy(tmp_path / "two"), framework(kind)))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
