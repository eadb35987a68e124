"""Started by test_train_distributed.py in two processes: trains a few steps, writes what each process ended with."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from test_train import BASE
from test_train_exact import cloning
from tiny_all import framework

from vla_agents.train.trainer import Trainer

kind, out = sys.argv[1], Path(sys.argv[2])
config = replace(BASE, out=str(out), steps=4, accumulation=2, ema=0.9)
run = Trainer(framework(kind), cloning(4), config)
result = run.fit()
rank = run.engine.rank
weights = {name: float(p.detach().double().sum()) for name, p in run.policy.named_parameters()}
found = {"world": run.engine.world, "weights": weights, "val_loss": result.metrics["val_loss"]}
(out / f"rank{rank}.json").write_text(json.dumps(found))
