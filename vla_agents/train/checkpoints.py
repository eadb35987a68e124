"""Training state beside a policy checkpoint, without pickle: tensors in safetensors, the rest in JSON.

    training/state.json                step, schedules, strategy, RNG of every process, ...
    training/state-00001.safetensors   optimiser state and, beside averages, the raw weights; as many files as needed

All tensors are whole and bear their parameter's name, whichever engine wrote them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_agents.errors import CheckpointError
from vla_agents.policies.weights import read_safetensors
from vla_agents.train import rng
from vla_agents.train.engines import processes
from vla_agents.train.keep import step_of

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer

FORMAT = 2
_FILE_BYTES = 4 * 2**30  # of state that is held before it is written
_log = logging.getLogger(__name__)


def save_checkpoint(trainer: Trainer) -> Path | None:
    """Write `checkpoints/step_NNNNNN`: the policy as it is now, and the training state. All processes must call it.

    Returns:
        The folder; None on all processes but the main one.

    Raises:
        CheckpointError: On every process, where the main one cannot write. Older checkpoints are intact.
    """
    folder = trainer.out / "checkpoints" / f"step_{trainer.step:06d}"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.training")
    problem = ""
    plain = _plain_state(trainer)
    state = _tensors(trainer)
    try:
        if trainer.engine.is_main:
            _write_state(temporary, state, plain)
    except (OSError, SafetensorError) as error:  # the latter on a full disk
        problem = str(error)
    for _ in state:  # the other processes take part in gathering; so must the main one if it gave up
        pass
    with trainer.engine.complete_policy(trainer.averages) as policy:
        if policy is not None and not problem:
            try:
                trainer.save(
                    policy,
                    folder,
                    extra={"step": trainer.step, "metrics": trainer.metrics},
                    attach={"training": temporary},
                )
            except (OSError, CheckpointError) as error:
                problem = str(error)
    problem = processes.from_main(problem, trainer.engine.device)
    if problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            folder, f"could not be written ({problem})", "free some space; older checkpoints are intact"
        )
    return folder if trainer.engine.is_main else None


def load_training_state(trainer: Trainer, folder: Path) -> None:
    """Put a trainer back to where `save_checkpoint` found it; every process reads it."""
    state = folder / "training"
    try:
        tensors: dict[str, Tensor] = {}
        for file in sorted(state.glob("state*.safetensors")):
            tensors |= load_file(str(file))
        plain = json.loads((state / "state.json").read_text(encoding="utf-8"))
        if plain.get("format") != FORMAT:
            raise ValueError(f"format {plain.get('format')}, this version reads {FORMAT}")
        weights, buffers = _saved_weights(trainer, folder)
    except Exception as error:
        raise CheckpointError(
            state, f"the training state cannot be read ({error})", "resume from an older step"
        ) from error
    trainer.engine.set_weights(weights)
    for name, buffer in trainer.policy.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
    if trainer.ema is not None:
        trainer.ema.restart()
        raw = {k.removeprefix("raw/"): v for k, v in tensors.items() if k.startswith("raw/")}
        trainer.engine.set_weights(raw or weights)
    prefix = "optimizer/"
    trainer.engine.set_optimizer_state(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    )
    _set_schedules(trainer, plain)
    trainer.strategy.load_state_dict(plain["strategy"])
    trainer.step, trainer.best_score = plain["step"], plain["best_score"]
    trainer.metrics = plain["metrics"]
    rng.restore(plain["rng"], trainer.engine.rank)


def newest_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint of a run that can be resumed, or None; damaged ones are passed over, loudly."""
    folders = [f for f in (out / "checkpoints").glob("step_*") if step_of(f) is not None]
    for folder in sorted(folders, key=lambda f: step_of(f) or 0, reverse=True):
        problem = _incomplete(folder)
        if not problem:
            return folder
        _log.warning("%s is passed over: %s", folder, problem)
    return None


def _incomplete(folder: Path) -> str:
    """What a checkpoint lacks to be resumed from; empty where nothing."""
    for name in ("policy.yaml", "model.safetensors", "training/state.json"):
        if not (folder / name).is_file():
            return f"{name} is missing"
    try:
        files = json.loads((folder / "training" / "state.json").read_text(encoding="utf-8")).get("files", {})
    except ValueError as error:
        return f"training/state.json is damaged ({error})"
    for file in (folder / "model.safetensors", *(folder / "training" / name for name in files)):
        size, expected = file.stat().st_size if file.is_file() else 0, _expected_bytes(file)
        if size != expected:
            return f"{file.name} has {size} of {expected} bytes"
    return ""


def _expected_bytes(file: Path) -> int:
    """The size that a safetensors file announces in its head; -1 where that is damaged."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            head = json.loads(handle.read(min(length, 2**27)))
        return (
            8
            + length
            + max((v["data_offsets"][1] for k, v in head.items() if k != "__metadata__"), default=0)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _tensors(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the state, one after the other."""
    for key, value in trainer.engine.optimizer_state():
        yield f"optimizer/{key}", value
    if trainer.ema is not None:
        for name, value in trainer.engine.weights().items():
            yield f"raw/{name}", value


def _write_state(folder: Path, state: Iterator[tuple[str, Tensor]], plain: dict[str, Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    held: dict[str, Tensor] = {}
    files: list[str] = []

    def flush() -> None:
        files.append(f"state-{len(files) + 1:05d}.safetensors")
        save_file(held, str(folder / files[-1]))
        held.clear()

    for key, value in state:
        held[key] = value.to("cpu", copy=True).contiguous()
        if sum(tensor.nbytes for tensor in held.values()) > _FILE_BYTES:
            flush()
    flush()
    (folder / "state.json").write_text(json.dumps(plain | {"files": files}), encoding="utf-8")
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _plain_state(trainer: Trainer) -> dict[str, Any]:
    engine = trainer.engine
    return {
        "format": FORMAT,
        "engine": engine.kind,
        "world": engine.world,
        "step": trainer.step,
        "best_score": trainer.best_score,
        "metrics": trainer.metrics,
        "schedules": [_plain_schedule(schedule) for schedule in engine.schedules],
        "strategy": trainer.strategy.state_dict(),
        "rng": processes.everyones(rng.capture(), engine.device),
    }


def _plain_schedule(schedule: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in schedule.state_dict().items()
        if isinstance(value, int | float | bool | list)
    }


def _set_schedules(trainer: Trainer, plain: dict[str, Any]) -> None:
    for schedule, entry in zip(trainer.engine.schedules, plain["schedules"], strict=True):
        schedule.load_state_dict(entry)
        rates = schedule.get_last_lr()
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _saved_weights(trainer: Trainer, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters by the names that the policy has for them (a tied one is saved under one of its names), and the rest."""
    saved = read_safetensors(folder / "model.safetensors")
    names: dict[int, list[str]] = {}
    for name, parameter in trainer.policy.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found = {}
    for name, parameter in trainer.policy.named_parameters():
        there = next((twin for twin in names[id(parameter)] if twin in saved), None)
        if there is None:
            raise ValueError(f"model.safetensors lacks {name}")
        found[name] = saved[there]
    return found, {name: value for name, value in saved.items() if name not in found}
