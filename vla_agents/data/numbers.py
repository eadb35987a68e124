"""Small things the writers share: metadata as JSON, the numbers of a step as they are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.episode import Step
from vla_agents.errors import ActionError, ConfigError, ObservationError


def json_text(metadata: dict[str, Any]) -> str:
    """Metadata as JSON; numpy scalars and arrays become plain numbers and lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} {value!r}")

    try:
        return json.dumps(metadata, default=plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"metadata cannot be stored as JSON: {error}", "use text, numbers, lists and dicts"
        ) from None


def without_images(step: Step) -> Step:
    """The step's numbers, copied, because the caller may reuse its buffers."""

    def copy(
        value: np.ndarray | None, what: str, error: type[ObservationError | ActionError]
    ) -> np.ndarray | None:
        if value is None:
            return None
        array = np.asarray(value)
        if array.dtype == np.float32:
            return array.copy()
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise error(f"{what} does not fit into float32: {np.asarray(value).tolist()}")
        return array

    action = copy(step.action, "action", ActionError)
    assert action is not None
    return Step(
        images={},
        state=copy(step.state, "state", ObservationError),
        action=action,
        reward=step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        intervened=step.intervened,
        time=step.time,
        executed=copy(step.executed, "executed action", ActionError),
        commanded=copy(step.commanded, "commanded action", ActionError),
        repeated=bool(step.repeated),
        camera_times={name: float(value) for name, value in step.camera_times.items()},
    )
