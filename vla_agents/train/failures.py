"""When a step fails: which samples make the loss not finite, and what to change where memory is short."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla_agents.errors import OutOfMemoryError
from vla_agents.train.config import RunConfig
from vla_agents.train.strategy import TrainingBatch

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer

_log = logging.getLogger(__name__)
_MOST = 8  # samples that are named
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad_alloc|DefaultCPUAllocator", re.I
)


@torch.no_grad()
def name_bad_samples(
    model: Any, batches: Sequence[TrainingBatch], strategy: Any, device: Any
) -> tuple[str, bool]:
    """Which samples have a loss that is not finite, each looked at alone, in words; and whether all have, so that it is
    the weights that are at fault.

    Args:
        model: Maps a batch to named losses.
        batches: Of the failed step.
        strategy: Where it has `describe(rows)`, that says which episodes the samples are of.
        device: Of the model.
    """
    bad: list[str] = []
    whole: list[str] = []
    for number, batch in enumerate(batches):
        for row in range(_length(batch)):
            where = f"micro-batch {number}, sample {row}{_origin(batch, row, strategy)}"
            whole.append(where)
            one = _sample(batch, row)
            if one is not None and not _finite(model(one.to(device))):
                bad.append(where)
    if bad and len(bad) < len(whole):
        return f"{len(bad)} of {len(whole)} samples alone: " + "; ".join(bad[:_MOST]) + _more(bad), False
    what = f"all {len(whole)} samples, so the weights are at fault" if bad else "no sample alone"
    return f"{what}; the batch: " + "; ".join(whole[:_MOST]) + _more(whole), bool(bad)


def describe_rows(batch: Any, strategy: Any) -> str:
    """` (the batch: episode 3 of data/lift, step 17; ...)`, as far as it is known."""
    rows, describe = getattr(batch, "rows", None), getattr(strategy, "describe", None)
    if rows is None or describe is None:
        return ""
    return f"\n  the batch: {'; '.join(describe(rows.tolist()))}"


def _finite(losses: dict[str, Tensor]) -> bool:
    return all(math.isfinite(float(loss)) for loss in losses.values())


def _more(found: Sequence[str]) -> str:
    return f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""


def _length(batch: Any) -> int:
    return len(batch) if hasattr(batch, "__len__") else 0


def _origin(batch: Any, row: int, strategy: Any) -> str:
    """` (episode 3 of data/lift, step 17: 'pick up the red block')`, as far as it is known."""
    known = []
    rows = getattr(batch, "rows", None)
    describe = getattr(strategy, "describe", None)
    if rows is not None and describe is not None:
        known.append(describe([int(rows[row])])[0])
    instructions = getattr(batch, "instructions", None)
    if instructions:
        known.append(repr(instructions[row]))
    return f" ({': '.join(known)})" if known else ""


def _sample(batch: Any, row: int) -> Any:
    """One sample of a batch as a batch; None where the batch is of an unknown kind."""
    cut = getattr(batch, "sample", None)
    if cut is not None:
        return cut(row)
    return None


@contextlib.contextmanager
def nothing_lost(trainer: Trainer) -> Iterator[None]:
    """Where something fails within, the weights as they are after the last whole step are saved, and the error goes on.

    Of several processes the others do not know of it, and nothing is saved. Out of memory is told with what to change.
    """
    try:
        yield
    except Exception as error:
        no_memory, alone = is_out_of_memory(error), trainer.engine.world == 1
        if no_memory:
            trainer.policy.zero_grad(set_to_none=True)
        if alone and trainer.step > trainer.saved_step and not trainer.spoilt:
            trainer.save_state()
            _log.info("step %d is saved in %s; --resume goes on", trainer.step, trainer.out / "last")
        if no_memory:
            raise out_of_memory(error, trainer.config, trainer.step, trainer.engine.world) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU or a CPU."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def out_of_memory(error: BaseException, config: RunConfig, step: int, world: int) -> OutOfMemoryError:
    """The same error with what to change."""
    advice = []
    if config.batch_size > 1:
        half = config.batch_size // 2
        advice.append(
            f"--batch-size {half} --accumulation {config.accumulation * config.batch_size // half} "
            "(the same step in smaller pieces; --find-batch-size tries what fits)"
        )
    model = getattr(config, "model", None)
    if model is not None and not model.gradient_checkpointing:
        advice.append("--model.gradient-checkpointing (activations are computed again)")
    if model is not None and not model.lora.rank:
        advice.append("--model.lora.rank 32, or --model.freeze (fewer weights have optimiser state)")
    if config.mixed_precision == "no":
        advice.append("--mixed-precision bf16 (activations take half)")
    if config.ema:
        advice.append("leave out --ema (it is a copy of the weights)")
    advice.append(
        "several GPUs with --engine fsdp2 or zero3"
        if world == 1
        else "more GPUs with --engine fsdp2 or zero3"
    )
    listing = "\n     ".join(advice)
    first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return OutOfMemoryError(f"step {step}: out of memory ({first})", f"in this order:\n     {listing}")
