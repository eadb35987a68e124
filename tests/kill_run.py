"""Started by test_train_kill.py: trains in child processes that are killed with SIGKILL, until the run is complete.

The imports are done once; every child is a fork of this process, which itself computes nothing.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from test_train import BASE
from tiny import ArrayWindows, random_batch
from tiny_all import framework

from vla_agents.train.checkpoints import newest_checkpoint
from vla_agents.train.keep import step_of
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.trainer import Trainer

root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
STEPS = 12


def train(out: Path, resume: bool) -> None:
    """Dropout, averages, a loader worker, and checkpoints at every second step."""
    data, held_out = ArrayWindows(random_batch(40)), ArrayWindows(random_batch(9, seed=5))
    strategy = BehaviourCloning(data, held_out, 4, 0, workers=1)
    settings = {"steps": STEPS, "save_every": 2, "validate_every": 6, "ema": 0.9, "resume": resume}
    config = replace(BASE, out=str(out), keep="best,last,every=4", **settings)
    policy = framework("qwen_gr00t", dropout=0.1)
    Trainer(policy, strategy, config).fit()
    strategy.close()


def child(out: Path, resume: bool) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            import torch

            torch.set_num_threads(1)
            torch.manual_seed(0 if not resume else os.getpid())  # what a new process has does not matter
            train(out, resume)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid


def ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def lines(out: Path) -> int:
    with contextlib.suppress(OSError):
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def saving(out: Path) -> bool:
    """Whether a checkpoint is half written at this moment."""
    with contextlib.suppress(OSError):
        return any(path.name.startswith(".step_") for path in (out / "checkpoints").iterdir())
    return False


def kill_somewhere(out: Path, pid: int, rng: random.Random) -> str | None:
    """SIGKILL at some step, half of the times within a save; None where the child ended before."""
    target, within = lines(out) + rng.randint(1, 4), rng.random() < 0.5
    while ended_with(pid) is None:
        if lines(out) >= target and (not within or saving(out)):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "within a save" if within else "at a step"
        time.sleep(0.0005)
    return None


_statuses: dict[int, int] = {}


def ended_with(pid: int) -> int | None:
    if pid not in _statuses:
        status = ended(pid)
        if status is None:
            return None
        _statuses[pid] = status
    return _statuses[pid]


def wait(pid: int) -> int:
    while ended_with(pid) is None:
        time.sleep(0.01)
    return _statuses[pid]


assert wait(child(root / "whole", resume=False)) == 0
rng, out, done = random.Random(seed), root / "broken", []
while len(done) < kills:
    newest = newest_checkpoint(out) if out.exists() else None
    if newest is not None and step_of(newest) == STEPS:
        break
    if newest is None and (out / "metrics.jsonl").exists():
        (out / "metrics.jsonl").unlink()  # killed before the first checkpoint: a new run
    pid = child(out, resume=newest is not None)
    how: Any = kill_somewhere(out, pid, rng)
    if how is None:
        assert wait(pid) == 0, "the training process failed"
        break
    done.append([how, str(newest)])
newest = newest_checkpoint(out) if out.exists() else None
if newest is None or step_of(newest) != STEPS:
    if newest is None and (out / "metrics.jsonl").exists():
        (out / "metrics.jsonl").unlink()
    assert wait(child(out, resume=newest is not None)) == 0
(root / "kills.json").write_text(json.dumps(done))
