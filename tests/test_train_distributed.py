"""Two processes on one CPU (gloo): they stay one model, and their step is that of all their batches together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import BASE, Fixed, bc, losses, trainer
from tiny import tiny_policy

from vla_agents.policies.checkpoint import load_policy


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(here / "distributed_run.py"), str(tmp_path / "two")],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["world"] == 2
    assert first == second

    draws = bc()

    class Both(Fixed):
        def batches(self, step: int, count: int, rank: int, world: int) -> list:
            return [*draws.batches(step, 2, 0, 2), *draws.batches(step, 2, 1, 2)]

    alone = trainer(tmp_path / "one", BASE, Both([]), steps=4, accumulation=4)
    alone.fit()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    ours, theirs = (dict(run.named_parameters()) for run in (load_policy(tmp_path / "two"), tiny_policy()))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
