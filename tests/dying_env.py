"""A test's env whose process dies, as a simulator's may: `dying_env:DyingEnv-v0`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from fake_env import FakeEnv

ENV_ID = "DyingEnv-v0"


class DyingEnv(FakeEnv):
    """Ends its process in the episode of seed `at`, as often as files can be made in `deaths`."""

    def __init__(self, at: int, deaths: str, most: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._at, self._deaths, self._most, self._now = at, Path(deaths), most, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Remember the seed."""
        self._now = -1 if seed is None else seed
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> Any:
        """Die, or go on."""
        if self._now == self._at and len(list(self._deaths.iterdir())) < self._most:
            (self._deaths / str(os.getpid())).touch()
            os._exit(1)
        return super().step(action)


if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, DyingEnv)
