"""What a search varies: `optimizer.lr: {log: [1.0e-5, 1.0e-3]}` in YAML, and a run with other values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from vla_agents.config import from_dict, load_yaml, to_dict
from vla_agents.errors import ConfigError, suggest
from vla_agents.train.config import TrainConfig

_KINDS = ("choice", "float", "int", "log")


def load_space(file: str | Path) -> dict[str, dict[str, Any]]:
    """Field -> `{kind: values}`, checked."""
    data = load_yaml(file)
    if not isinstance(data, dict) or not data:
        raise ConfigError(
            f"{file}: expected fields and their ranges", "e.g. optimizer.lr: {log: [1.0e-5, 1.0e-3]}"
        )
    for name, entry in data.items():
        where = f"{file}: {name}"
        if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in _KINDS:
            raise ConfigError(
                f"{where}: {entry!r} is no range",
                f"one of {', '.join(_KINDS)}, e.g. {{log: [1.0e-5, 1.0e-3]}}",
            )
        kind, values = next(iter(entry.items()))
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: {kind} needs a list, got {values!r}")
        if kind != "choice":
            entry[kind] = [_number(value, where) for value in values]
            low, high = entry[kind][:2] if len(values) in (2, 3) else (1, 0)
            if low >= high or (kind == "log" and low <= 0):
                raise ConfigError(
                    f"{where}: {values} is no range",
                    "[lowest, highest], for log above 0; a third number is the step",
                )
    return data


def _number(value: Any, where: str) -> float:
    try:
        return value if isinstance(value, int) else float(value)  # YAML 1.1 reads 1e-3 as a string
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: {value!r} is no number") from None


def first_value(entry: Mapping[str, Any]) -> Any:
    """A value of a range, to try whether a run takes it."""
    kind, values = next(iter(entry.items()))
    return int(values[0]) if kind == "int" else values[0]


def ask(trial: Any, name: str, entry: Mapping[str, Any]) -> Any:
    """A value for this trial."""
    kind, values = next(iter(entry.items()))
    if kind == "choice":
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in values]))
    if kind == "int":
        return trial.suggest_int(
            name, int(values[0]), int(values[1]), step=int(values[2]) if len(values) == 3 else 1
        )
    step = values[2] if len(values) == 3 and kind == "float" else None
    return trial.suggest_float(name, values[0], values[1], log=kind == "log", step=step)


def vary(config: TrainConfig, values: Mapping[str, Any], where: str = "space") -> TrainConfig:
    """A run with other values; names are paths, as on the command line: `optimizer.lr`, `model.lora.rank`."""
    data = to_dict(config)
    for path, value in values.items():
        *parents, leaf = path.split(".")
        part, there = data, config
        for name in (*parents, leaf):
            known = (
                {field.name for field in fields(there)}
                if is_dataclass(there)
                else set(part if isinstance(part, dict) else ())
            )
            if name not in known and not (isinstance(there, dict) and name == leaf):
                raise ConfigError(
                    f"{where}: a run has no {path!r}{suggest(name, known)}",
                    f"known there: {', '.join(sorted(known))}",
                )
            if name != leaf:
                part, there = part[name], getattr(there, name) if is_dataclass(there) else there[name]
        part[leaf] = value
    return from_dict(TrainConfig, data, where=where)
