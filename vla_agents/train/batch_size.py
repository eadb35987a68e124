"""`vla-agents train --find-batch-size`: which micro-batch fits, and which is fastest.

Batches of 1, 2, 4, ... samples go through forward and backward pass, with the optimiser's state allocated, until memory is
short (on a GPU until it says so, on a CPU until the next one would take more than is free) or samples/s do not grow any
more. Nothing is trained: the weights are as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vla_agents.train.config import RunConfig
from vla_agents.train.failures import is_out_of_memory
from vla_agents.train.optimizers import make_optimizers

LARGEST = 1024
_GROWTH = 1.05  # times the samples/s of all smaller sizes: less is no gain ...
_PATIENCE = 2  # ... and after so many sizes without one it is over
_PASSES = 4  # of each size; the first one warms up, and of the others the fastest counts
_SHARE = 0.8  # of the free memory of a CPU that may be used


@dataclass(frozen=True)
class Tried:
    """One batch size.

    Args:
        size: Samples.
        memory: Bytes at the peak beyond what is there anyway; None where it did not fit.
        rate: Samples per second; None where it did not fit.
    """

    size: int
    memory: int | None
    rate: float | None


def find_batch_size(
    policy: nn.Module,
    make_batch: Callable[[int], Any],
    config: RunConfig,
    *,
    largest: int = LARGEST,
    free: int | None = None,
) -> list[Tried]:
    """Try sizes.

    Args:
        policy: On the device where it shall be trained.
        make_batch: A training batch of so many samples.
        config: Its optimiser and precision are used.
        largest: Where to end.
        free: Bytes of a CPU that may be used; None: most of what is free.

    Returns:
        What was tried, in order; the last one may not have fitted. `why_it_ended` says why there is no larger one.
    """
    device = next(policy.parameters()).device
    if free is None and device.type == "cpu":
        from vla_agents.data.loading.store import available_bytes

        free = int(_SHARE * (available_bytes() or 2**62))
    states = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad) * 3
    tried: list[Tried] = []
    size, random = 1, torch.get_rng_state()
    policy.train()
    try:
        while size <= largest:
            last = tried[-1].memory if tried else None
            if device.type == "cpu" and free is not None and (2 * (last or 0)) + states > free:
                return [*tried, Tried(size, None, None)]
            found = _try(policy, make_batch(size).to(device), config)
            tried.append(Tried(size, *found) if found else Tried(size, None, None))
            if found is None or not _grows(tried):
                return tried
            size *= 2
    finally:
        policy.zero_grad(set_to_none=True)
        torch.set_rng_state(random)
    return tried


def _grows(tried: list[Tried]) -> bool:
    """Whether one of the last sizes brought more samples/s than all before it."""
    rates = [row.rate for row in tried if row.rate is not None]
    return len(rates) <= _PATIENCE or max(rates[-_PATIENCE:]) >= _GROWTH * max(rates[:-_PATIENCE])


def why_it_ended(tried: list[Tried]) -> str:
    """Why no larger size was tried, in words."""
    if tried[-1].rate is None:
        return f"{tried[-1].size} samples do not fit"
    if not _grows(tried):
        return f"samples/s do not grow any more, so larger ones than {tried[-1].size} were not tried"
    return f"larger ones than {tried[-1].size} were not tried"


def _try(policy: nn.Module, batch: Any, config: RunConfig) -> tuple[int, float] | None:
    device = next(policy.parameters()).device
    seconds = []
    try:
        held = _optimizer_room(policy, config) if device.type == "cuda" else []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        kept = 0
        for _ in range(_PASSES):
            begin = time.perf_counter()
            kept = _forward_and_backward(policy, batch, config)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begin)
        del held
    except (RuntimeError, MemoryError) as error:
        policy.zero_grad(set_to_none=True)
        if not is_out_of_memory(error):
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return None
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else kept
    return peak, len(batch) / min(seconds[1:])


def _forward_and_backward(policy: nn.Module, batch: Any, config: RunConfig) -> int:
    """Returns the bytes kept for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(policy.parameters()).device
    on = config.mixed_precision == "bf16"
    keeping = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with keeping, torch.autocast(device.type, torch.bfloat16, enabled=on):
        loss = torch.stack(list(policy(batch).values())).sum()
    loss.backward()
    policy.zero_grad(set_to_none=True)
    return sum(kept.values())


def _optimizer_room(policy: nn.Module, config: RunConfig) -> list[Tensor]:
    """As much memory as gradients and optimiser state will take."""
    make_optimizers(policy, config.optimizer)  # its errors come now
    return [torch.empty_like(p) for p in policy.parameters() if p.requires_grad for _ in range(2)]


def tell(tried: list[Tried], config: RunConfig, console: Console) -> None:
    """The table, and what to choose: the smallest size within 5 % of the best rate."""
    table = Table("batch size", "memory, GB", "samples/s", title="micro-batches")
    for row in tried:
        memory = "does not fit" if row.memory is None else f"{row.memory / 1e9:.2f}"
        table.add_row(str(row.size), memory, "" if row.rate is None else f"{row.rate:.1f}")
    console.print(table)
    fitting = [(row.size, row.rate) for row in tried if row.rate is not None]
    if not fitting:
        console.print(
            "not even one sample fits: see the advice of an out-of-memory error in docs/training.md"
        )
        return
    best = max(rate for _, rate in fitting)
    size = next(size for size, rate in fitting if rate >= 0.95 * best)
    wanted = config.batch_size * config.accumulation
    pieces = max(1, round(wanted / size))
    console.print(
        f"{why_it_ended(tried)}\n"
        f"the smallest of the fastest: --batch-size {size}; for the {wanted} samples per step of this run: "
        f"--batch-size {min(size, wanted)} --accumulation {pieces}",
        highlight=False,
        soft_wrap=True,
    )
