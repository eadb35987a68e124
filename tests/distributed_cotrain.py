"""Started by test_cotrain.py in two processes: co-trains a few steps and writes what each process ended with."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from test_cotrain import cotrain
from test_train import BASE
from tiny import tiny_policy

from vla_agents.train.trainer import Trainer

talk, out = Path(sys.argv[1]), Path(sys.argv[2])
run = Trainer(
    tiny_policy(),
    cotrain(talk, scale=1.0),
    replace(BASE, out=str(out), steps=3, accumulation=2, validate_every=9, save_every=0),
)
run.fit()
weights = {name: float(p.detach().double().sum()) for name, p in run.policy.named_parameters()}
found = {"world": run.engine.world, "weights": weights}
(out / f"rank{run.engine.rank}.json").write_text(json.dumps(found))
