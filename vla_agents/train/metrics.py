"""Where numbers go: a line of JSON per entry, TensorBoard, and the progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class MetricsLog:
    """Appends to `metrics.jsonl` (and to TensorBoard event files where wanted); flushed line by line."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, **values: float) -> None:
        """One entry."""
        rounded = {key: float(f"{value:.6g}") for key, value in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def truncate_after(path: Path, step: int) -> None:
    """Drop the entries after a step, so that a resumed run does not repeat them."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line and json.loads(line)["step"] <= step]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


class TrainingBar:
    """Progress of a run: step, loss, samples/s, time left; where the output is no terminal, a line now and then.

    Args:
        total: Steps of the run.
        title: What is trained.
        show: False for all processes but the first.
    """

    def __init__(self, total: int, title: str, *, show: bool = True) -> None:
        self._console = Console(stderr=True)
        self._show, self._title, self._total = show, title, total
        self._live = show and self._console.is_terminal
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(title, total=total, status="")

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, step: int, **values: float | str) -> None:
        """Show where we are."""
        status = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        self._progress.update(self._task, completed=step, status=status)
        if self._show and not self._live and time.monotonic() - self._last_line > 15:
            self._last_line = time.monotonic()
            self._console.print(f"{self._title}: step {step}/{self._total}  {status}", highlight=False)

    def message(self, text: str) -> None:
        """A line above the bar."""
        if self._show:
            self._console.print(text, highlight=False)
