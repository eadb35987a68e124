"""The action that moves nothing, from which every device starts."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_agents.agent import Observation
from vla_agents.chunking import ActionUnits
from vla_agents.embodiment import embodiment_of
from vla_agents.errors import ConfigError, RobotStateError


class Holding:
    """How an env's body is held where it is.

    Args:
        env: With an embodiment; one with `hold_action()` (a robot) tells what it was last told, which is more than the
            state does: an arm hangs a little below its command.
    """

    def __init__(self, env: Any) -> None:
        self.embodiment = embodiment_of(env)
        self._units = ActionUnits(self.embodiment)
        self._own = getattr(getattr(env, "unwrapped", env), "hold_action", None)

    def action(self, last: np.ndarray | None, obs: Observation) -> np.ndarray:
        """The action float32 (D,) that moves nothing, after `last` or, where that is None, at `obs`."""
        told = self.told() if last is None else None
        if told is not None:
            return told
        held = self._units.hold(last, obs.get("state"))
        if held is None:
            raise ConfigError(
                f"the state of {self.embodiment.name!r} does not tell where it is, part by part of its action",
                "give the state the parts of the action, by the same names",
            )
        return held

    def told(self) -> np.ndarray | None:
        """What a robot was really told last, as an action (D,); None of an env that does not say."""
        try:
            return None if self._own is None else np.array(self._own(), np.float32)
        except RobotStateError:  # not connected
            return None
