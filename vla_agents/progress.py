"""A progress bar for rollouts: episodes, successes, time left."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vla_agents.rollout import EpisodeResult, Listener


class ProgressBar(Listener):
    """Shows how a rollout gets on; a context manager.

    Args:
        title: What is under way, e.g. `"collecting"`.
        total: Number of episodes.
        done: How many of them were there before.
        count: The number of episodes that count so far; None: every episode that ended counts.
        console: Where to draw; None takes rich's default (nothing moves where it is not a terminal).
        visible: False draws nothing.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        count: Callable[[], int] | None = None,
        console: Console | None = None,
        visible: bool = True,
    ) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[success]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not visible,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, rate="", success="")
        self._before, self._count = done, count
        self._ended = self._succeeded = 0

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """Move on."""
        self._ended += 1
        self._succeeded += result.success
        completed = self._before + self._ended if self._count is None else self._count()
        elapsed = self._progress.tasks[0].elapsed or 0.0
        rate = f"{self._ended / elapsed:.1f} episodes/s" if elapsed > 0 else ""
        success = f"success {100 * self._succeeded / self._ended:.1f} %"
        self._progress.update(self._task, completed=completed, rate=rate, success=success)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
