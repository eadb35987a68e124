"""What may change between a run and its continuation: `--resume` with other options than the folder's run.yaml has."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vla_agents.config import load_yaml, to_dict
from vla_agents.errors import ConfigError
from vla_agents.train.config import RunConfig

_log = logging.getLogger(__name__)
# Another one of these would not be this run: what was learnt, and the state of the optimiser, belong to them.
_FIXED = (
    "policy", "strategy", "dataset", "mix", "fps", "actions", "image_size", "normalization", "optimizer.kind",
    "curriculum.stages",
)  # fmt: skip
# Mappings whose keys are the user's: one value each. (model.tasks follows from multitask.tasks.)
_VALUES = (
    "normalization",
    "env_args",
    "optimizer.lr_of",
    "multitask.tasks",
    "multitask.weights",
    "model.tasks",
)
# How a run is computed and looked at, not what it learns. The checkpoint decides the model's options (see `run`).
_FREE = (
    "out", "resume", "model", "device", "engine", "threads", "workers", "cache", "cache_format", "tensorboard", "track",
    "log_every", "save_every", "keep", "init_from", "modules", "dry_run", "find_batch_size",
)  # fmt: skip


def check_resumed(config: RunConfig) -> None:
    """Refuse to go on as another run; tell of other options that changed.

    Raises:
        ConfigError: Naming the fields, with their values here and there.
    """
    file = Path(config.out) / "run.yaml"
    if not file.is_file():
        return
    before, now = _flat(load_yaml(file)), _flat(to_dict(config))
    other = {
        name: f"{name} {value!r} (there {before[name]!r})"
        for name, value in now.items()
        if name in before and before[name] != value
    }
    fixed = [text for name, text in other.items() if name in _FIXED]
    if fixed:
        raise ConfigError(
            f"--resume with other options than {file} has: {', '.join(fixed)}",
            f"give the same (--config {file} --resume has them all; where a folder was moved, correct it there), or "
            f"start a run of its own from these weights: --init-from {Path(config.out) / 'last'} --out ANOTHER",
        )
    model = [
        f"{name} {before[name]!r}" for name in other if name.startswith("model.") and name != "model.tasks"
    ]
    if model:
        _log.info("the model's options are those of the checkpoint: %s", ", ".join(model))
    told = [text for name, text in other.items() if name.partition(".")[0] not in _FREE]
    if told:
        _log.info("the run goes on with other options: %s", ", ".join(told))


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `optimizer.lr: 0.001`; what a user names the keys of is one value."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and path not in _VALUES:
            found |= _flat(value, f"{path}.")
        else:
            found[path] = value
    return found
