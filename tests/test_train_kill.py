"""`kill -9` at any step, also in the middle of a save: the resumed run gives the same losses and weights, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vla_agents.train.metrics import read_entries

_TIMES = ("samples_per_second", "data_wait", "memory_gb")


def entries(out: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in entry.items() if k not in _TIMES} for entry in read_entries(out / "metrics.jsonl")
    ]


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("kills", "seed"),
    [pytest.param(4, 0, marks=pytest.mark.slow), pytest.param(60, 1, marks=pytest.mark.long)],
)
def test_a_killed_run_equals_the_unbroken_one(kills: int, seed: int, tmp_path: Path) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "kill_run.py"), str(tmp_path), str(kills), str(seed)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    killed = json.loads((tmp_path / "kills.json").read_text())
    assert killed, "nothing was killed"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert entries(broken) == entries(whole) and len(entries(whole)) == 12 + 2
    for file in ("model.safetensors", "training/state-00001.safetensors"):
        ours, theirs = load_file(whole / "last" / file), load_file(broken / "last" / file)
        assert sorted(ours) == sorted(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file
    kept = sorted(path.name for path in (broken / "checkpoints").iterdir())
    assert {"step_000004", "step_000008", "step_000012"} <= set(kept)
    assert not [name for name in kept if name.startswith(".")]
