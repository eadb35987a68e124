"""A progress bar for work on files, and the columns of this library's bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


def columns(title: str = "{task.description}") -> tuple[ProgressColumn, ...]:
    """What is done, how far, since when, and for how long yet."""
    from rich import progress as rich

    kinds = rich.BarColumn, rich.MofNCompleteColumn, rich.TimeElapsedColumn, rich.TimeRemainingColumn
    return rich.TextColumn(title), *(kind() for kind in kinds)


@contextmanager
def bar(title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Yields the function that advances the bar by one; nothing is drawn where `shown` is False or there is no terminal."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(*columns(), console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
