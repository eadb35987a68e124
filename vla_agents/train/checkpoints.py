"""Training state beside a policy checkpoint, without pickle: tensors in safetensors, the rest in JSON."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor

from vla_agents.errors import CheckpointError

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer


def save_checkpoint(trainer: Trainer, raw: dict[str, Tensor] | None) -> Path:
    """Write `checkpoints/step_NNNNNN`: the policy as it is now, and the training state.

    Args:
        trainer: Its policy may hold averaged weights at this moment ...
        raw: ... then these are the ones training goes on with.
    """
    folder = trainer.out / "checkpoints" / f"step_{trainer.step:06d}"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.training")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tensors, plain = _flatten(trainer)
        if raw is not None:
            tensors |= {f"raw/{name}": value.contiguous() for name, value in raw.items()}
        save_file(tensors, str(temporary / "state.safetensors"))
        (temporary / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            folder, f"could not be written ({error})", "free some space; older checkpoints are intact"
        ) from error
    # The model's own writer renames a complete folder into place; the training state goes in with it.
    return trainer.save(
        trainer.policy,
        folder,
        extra={"step": trainer.step, "metrics": trainer.metrics},
        attach={"training": temporary},
    )


def load_training_state(trainer: Trainer, folder: Path) -> None:
    """Put a trainer back to where `save_checkpoint` found it."""
    state = folder / "training"
    try:
        tensors = load_file(str(state / "state.safetensors"))
        plain = json.loads((state / "state.json").read_text(encoding="utf-8"))
        load_model(trainer.policy, str(folder / "model.safetensors"))
    except Exception as error:
        raise CheckpointError(
            state, f"the training state cannot be read ({error})", "resume from an older step"
        ) from error
    if trainer.ema:
        trainer.ema = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
        trainer._set_weights({k.removeprefix("raw/"): v for k, v in tensors.items() if k.startswith("raw/")})
    for index, optimizer in enumerate(trainer.optimizers):
        restored = plain["optimizers"][index]
        entries: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in restored["state"].items()}
        for key, value in tensors.items():
            if key.startswith(f"optimizer{index}/"):
                _, parameter, name = key.split("/")
                entries.setdefault(int(parameter), {})[name] = value
        optimizer.load_state_dict({"state": entries, "param_groups": restored["param_groups"]})
    for schedule, entry in zip(trainer.schedules, plain["schedules"], strict=True):
        schedule.load_state_dict(entry)
    trainer.strategy.load_state_dict(plain["strategy"])
    trainer.step, trainer.best_score = plain["step"], plain["best_score"]
    trainer.metrics = plain["metrics"]
    _restore_rng(tensors, plain)


def newest_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint of a run that can be resumed, or None."""
    folders = sorted((out / "checkpoints").glob("step_*"))
    complete = [
        f for f in folders if (f / "policy.yaml").is_file() and (f / "training" / "state.json").is_file()
    ]
    return complete[-1] if complete else None


def point(link: Path, folder: Path) -> None:
    """Make `link` a relative link to `folder`, at one stroke."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(folder, link.parent))
    os.replace(temporary, link)


def prune(out: Path) -> None:
    """Keep what `best` and `last` point to; remove the other checkpoints and left-overs of killed writers."""
    keep = {(out / name).resolve() for name in ("best", "last")}
    for folder in (out / "checkpoints").iterdir():
        if folder.resolve() not in keep:
            shutil.rmtree(folder, ignore_errors=True)


def _flatten(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {"rng/torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    optimizers = []
    for index, optimizer in enumerate(trainer.optimizers):
        state = optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for parameter, entry in state["state"].items():
            for name, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer{index}/{parameter}/{name}"] = value.detach().cpu().contiguous()
                else:
                    plain.setdefault(str(parameter), {})[name] = value
        optimizers.append({"state": plain, "param_groups": state["param_groups"]})
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return tensors, {
        "step": trainer.step,
        "best_score": trainer.best_score,
        "metrics": trainer.metrics,
        "optimizers": optimizers,
        "schedules": [_plain_schedule(schedule) for schedule in trainer.schedules],
        "strategy": trainer.strategy.state_dict(),
        "rng_numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "rng_python": random.getstate(),
    }


def _plain_schedule(schedule: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in schedule.state_dict().items()
        if isinstance(value, int | float | bool | list)
    }


def _restore_rng(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["rng/torch"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    kind, keys, position, has_gauss, gauss = plain["rng_numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = plain["rng_python"]
    random.setstate((version, tuple(internal), gauss_next))
