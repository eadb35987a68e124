"""What the processes of a run tell each other: sums, short texts, nothing pickled."""

from __future__ import annotations

import atexit
import json
import os
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from vla_agents.errors import TrainingError


def is_running() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if is_running() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, 0 being the main one."""
    return dist.get_rank() if is_running() else int(os.environ.get("RANK", "0"))


def start(device: torch.device) -> None:
    """Join the process group that `torchrun` or `accelerate launch` has prepared, where there is one."""
    if world() > 1 and not is_running():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        leave_at_exit()


def leave_at_exit() -> None:
    """Take this process' group apart when it ends, not while the interpreter is torn down around its threads."""
    if is_running():
        atexit.unregister(_leave)
        atexit.register(_leave)


def _leave() -> None:
    if is_running():
        dist.destroy_process_group()


def local_device(wanted: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> this process' device."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if wanted == "cpu" or (wanted == "auto" and (on_cpu or not torch.cuda.is_available())):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainingError(
            "device cuda: torch finds no CUDA GPU here",
            "--device cpu, or see `vla-agents doctor` for what is missing",
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def add_up(values: Tensor) -> Tensor:
    """Summed over all processes; on every one of them."""
    if world() == 1 or not is_running():
        return values
    summed = values.clone()
    dist.all_reduce(summed)
    return summed


def from_main(value: Any, device: torch.device) -> Any:
    """Plain data as the main process has it."""
    if not is_running() or world() == 1:
        return value
    return everyones(value if rank() == 0 else None, device)[0]


def everyones(value: Any, device: torch.device) -> list[Any]:
    """Plain data of all processes, in their order."""
    if not is_running() or world() == 1:
        return [value]
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(text)], device=device))
    padded = text.new_zeros(max(int(size) for size in sizes))
    padded[: len(text)] = text
    found = [torch.zeros_like(padded) for _ in range(world())]
    dist.all_gather(found, padded)
    return [
        json.loads(bytes(row[: int(size)].cpu().tolist())) for row, size in zip(found, sizes, strict=True)
    ]


def wait() -> None:
    """Until all processes are here."""
    if is_running() and world() > 1:
        dist.barrier()
