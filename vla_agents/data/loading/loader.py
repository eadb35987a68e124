"""Batches ahead of time, by other processes. Which windows a batch has is decided by its step alone, so the number of
processes changes nothing but the speed, and a run is taken up again by asking for the next step.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np

from vla_agents.data.loading.orders import Order
from vla_agents.data.loading.parcels import pack, unpack
from vla_agents.errors import ConfigError, VlaAgentsError

T = TypeVar("T")


class Source(Protocol):
    """What batches are taken from: a `WindowDataset` or a `Mixture`."""

    def get_batch(self, indices: np.ndarray, /) -> dict[str, Any]:
        """Several windows at once."""


class Loader(Generic[T]):
    """The micro-batches of every optimiser step; a context manager, and an iterator over the steps from 0 on.

    Args:
        source: The windows.
        order: Which come when.
        rank: Of this process.
        world: How many processes train.
        count: Micro-batches per step.
        workers: Processes that load ahead; 0: this one loads when asked.
        prefetch: Steps that each of them works ahead.
        start_method: How they are started: `"fork"` (at once, memory is shared), `"spawn"`, `"forkserver"` (everything is
            sent to them); None: as torch does.
        finish: What to make of a batch, in the worker: preprocessing, tensors; must be picklable for `"spawn"`. Beside
            what the source gives, its batch has `rows`, int64 (B,): which windows they are.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        *,
        rank: int = 0,
        world: int = 1,
        count: int = 1,
        workers: int = 0,
        prefetch: int = 2,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
        finish: Callable[[dict[str, Any]], T] | None = None,
    ) -> None:
        if not 0 <= rank < world or count < 1 or workers < 0 or prefetch < 1:
            raise ConfigError(
                f"rank {rank} of {world}, {count} micro-batches, {workers} workers, prefetch {prefetch}",
                "0 <= rank < world, and at least 1 of the others (0 workers: this process loads)",
            )
        self._job: _Job = _Job(source, order, rank, world, count, finish)
        self._workers, self._prefetch, self._method = workers, prefetch, start_method
        self._ahead: Iterator[Any] | None = None
        self._next = 0  # the step that the workers hand out next

    def step(self, number: int) -> list[T]:
        """The micro-batches of a step. Steps in order are loaded ahead; after any other one the workers start anew."""
        if not self._workers:
            return self._job(number)
        if self._ahead is None or number != self._next:
            self.close()
            self._ahead = self._start(number)
        try:
            good, found = next(self._ahead)
        except RuntimeError as error:
            self.close()
            if "DataLoader worker" not in str(error):
                raise
            raise ConfigError(
                f"a process that loads data died at step {number}: {str(error).splitlines()[0]}",
                "often it is short of memory: use fewer workers, or a smaller prefetch",
            ) from error
        self._next = number + 1
        if not good:
            self.close()
            raise found
        return unpack(*found)

    def __iter__(self) -> Iterator[list[T]]:
        for number in itertools.count():
            yield self.step(number)

    def _start(self, first: int) -> Iterator[Any]:
        import torch
        from torch.utils.data import DataLoader

        steps: Any = itertools.count(first)
        dataset: Any = _Steps(self._job)
        return iter(
            DataLoader(
                dataset,
                batch_size=None,
                sampler=steps,
                num_workers=self._workers,
                prefetch_factor=self._prefetch,
                multiprocessing_context=self._method,
                collate_fn=_as_it_is,
                # Else it would draw from the generator of dropout whenever workers start, also when a run is resumed.
                generator=torch.Generator(),
                worker_init_fn=_leave_ctrl_c_to_the_parent,
            )
        )

    def close(self) -> None:
        """End the workers; the next step starts them again."""
        self._ahead = None  # torch ends them when their iterator goes

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Job:
    """Makes the micro-batches of a step; what the workers are given."""

    def __init__(
        self,
        source: Source,
        order: Order,
        rank: int,
        world: int,
        count: int,
        finish: Callable[[dict[str, Any]], Any] | None,
    ) -> None:
        self._source, self._order, self._finish = source, order, finish
        self._rank, self._world, self._count = rank, world, count

    def __call__(self, step: int) -> list[Any]:
        rows = self._order.rows(step, self._count, self._rank, self._world)
        batches = [self._source.get_batch(row) for row in rows]
        if self._finish is None:
            return batches
        return [self._finish({**batch, "rows": row}) for batch, row in zip(batches, rows, strict=True)]


class _Steps:
    """The job as a map-style dataset, whose errors come home as what they are (torch would send their text)."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __getitem__(self, step: int) -> tuple[bool, Any]:
        try:
            return True, pack(self._job(step))
        except VlaAgentsError as error:
            return False, error


def _as_it_is(item: Any) -> Any:
    return item


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    """Ctrl-C goes to every process of the terminal; the parent finishes its step, and needs the workers for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
