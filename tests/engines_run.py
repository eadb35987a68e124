"""Started by test_train_engines.py in two processes: for each engine an unbroken run, and one stopped and resumed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from test_train import BASE
from test_train_exact import cloning
from tiny_all import framework

from vla_agents.train.callbacks import Callback, StepReport
from vla_agents.train.trainer import Trainer

root = Path(sys.argv[1])


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if trainer.step == self._step and trainer.engine.rank == 1:  # one asks, both stop
            trainer.stop()


def make(engine: str, name: str, callbacks: Any = (), policy: str = "qwen_oft", **options: Any) -> Trainer:
    settings = {"steps": 4, "accumulation": 2, "save_every": 0, "validate_every": 4, "engine": engine}
    if not engine.startswith("zero"):
        settings["ema"] = 0.9
    optimizer = replace(BASE.optimizer, kind="adamw", lr_of={"head": 5e-4})
    config = replace(BASE, out=str(root / engine / name), optimizer=optimizer, **(settings | options))

    def evaluate(policy: Any, step: int) -> dict[str, float]:  # in the main process alone, with whole weights
        assert all(p.device.type == "cpu" and p.numel() for p in policy.parameters())
        return {"success": float(step)}

    return Trainer(framework(policy), cloning(4), config, evaluate, callbacks=callbacks)


for engine in sys.argv[2].split(","):
    whole = make(engine, "whole")
    whole.fit()
    assert make(engine, "broken", [StopAt(1)]).fit().step == 2  # after the step in which all hear of it
    torch.rand(3 + whole.engine.rank)  # other processes would have other random states
    again = make(engine, "broken", resume=True)
    result = again.fit()
    found = {
        "world": again.engine.world,
        "kind": again.engine.kind,
        "step": result.step,
        "metrics": result.metrics,
    }
    (root / engine / f"rank{again.engine.rank}.json").write_text(json.dumps(found))
    AcceleratorState._reset_state()  # it keeps one precision per process
    half: dict[str, Any] = {"steps": 3, "mixed_precision": "bf16"}
    for policy in ("qwen_gr00t", *(() if engine.startswith("zero") else ("qwen_oft", "qwen_pi"))):
        make(engine, f"half_{policy}", policy=policy, **half).fit()
    flow: dict[str, Any] = {"policy": "qwen_gr00t", **half}
    assert make(engine, "half_broken", [StopAt(1)], **flow).fit().step == 2
    make(engine, "half_broken", resume=True, **flow).fit()
    AcceleratorState._reset_state()
