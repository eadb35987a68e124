"""Started by test_train_distributed.py in two processes: trains a few steps, writes what each process ended with."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from test_train import BASE, bc
from tiny import tiny_policy

from vla_agents.train.trainer import Trainer

out = Path(sys.argv[1])
config = replace(BASE, out=str(out), steps=4, accumulation=2, ema=0.9)
run = Trainer(tiny_policy(), bc(), config)
result = run.fit()
rank = run.accelerator.process_index
weights = {name: float(p.detach().double().sum()) for name, p in run.policy.named_parameters()}
found = {"world": run.accelerator.num_processes, "weights": weights, "val_loss": result.metrics["val_loss"]}
(out / f"rank{rank}.json").write_text(json.dumps(found))
