"""`vla-agents serve` with a planner that needs no weights: for tests that stop, reload and kill a server.

    python serve_fake.py FOLDER [options of vla-agents serve]

`FOLDER/value` holds what its chunks are full of, `FOLDER/seconds` how long planning takes, `FOLDER/body` (where it is) the
control rate of its body.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from fake_env import BODY

from vla_agents.cli import main
from vla_agents.serving import command


class FilePlanner:
    horizon, default_execute, continues = 6, 3, False

    def __init__(self, folder: Path) -> None:
        def read(name: str, default: float) -> float:
            file = folder / name
            return float(file.read_text()) if file.exists() else default

        self.value, self.seconds = read("value", 0.0), read("seconds", 0.0)
        self.embodiment = dataclasses.replace(BODY, control_hz=read("body", BODY.control_hz))

    def generator(self, seed):
        return None

    def plan_batch(self, observations, generators, prefixes=None, committed=0):
        import time

        time.sleep(self.seconds)
        return [np.full((6, 4), self.value, np.float32)] * len(observations)


command.load_warm = lambda config: FilePlanner(Path(config.name))
if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
