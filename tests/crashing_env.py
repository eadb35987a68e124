"""An env that dies where it is told to: `crashing_env:Crashing-v0`. Its files under `folder` say how often it may."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class CrashingEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A random walk that depends on its seed; `how` it ends at `step`: segfault, exit, hang, raise; `times` in all."""

    observation_space = gymnasium.spaces.Dict(
        {"state": gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)}
    )
    action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    def __init__(
        self,
        folder: str,
        how: str = "",
        step: int = 5,
        times: int = 1,
        steady: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.folder, self.how, self.at, self.times, self.steady = Path(folder), how, step, times, steady
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.place = 0, self.np_random.normal(size=3)
        self._trouble()
        return {"state": self.place.copy()}, {"pid": os.getpid(), "options": options}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self._trouble()
        self.place = self.place + action + self.np_random.normal(size=3)
        if not self.steady:
            self.place = self.place + os.getpid()
        done = self.count == 10
        return (
            {"state": self.place.copy()},
            float(self.place[0]),
            done,
            False,
            {"success": done, "pid": os.getpid()},
        )

    def _trouble(self) -> None:
        if self.count != self.at or not self.how:
            return
        before = len(list(self.folder.glob("crash*")))
        if before >= self.times:
            return
        (self.folder / f"crash{before}").touch()
        print(f"about to {self.how}", flush=True)
        if self.how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.how == "hang":
            time.sleep(1000)
        elif self.how == "raise":
            raise ValueError("the walk went wrong")
        os._exit(3)


if "Crashing-v0" not in gymnasium.registry:
    gymnasium.register("Crashing-v0", entry_point=CrashingEnv)
