"""Where numbers go: a line of JSON per entry, TensorBoard, and the progress bar."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
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
    """Appends to `metrics.jsonl` (and to TensorBoard event files where wanted); flushed line by line.

    Args:
        folder: The run folder.
        tensorboard: Whether to write event files too.
        after: The step that the run goes on from; what was written of later ones is dropped.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, after: int = 0) -> None:
        truncate_after(folder / "metrics.jsonl", after)
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1 if after else None)

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


def read_entries(path: Path) -> list[dict[str, float]]:
    """The entries of a `metrics.jsonl`; a last line that a killed process left unfinished is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def truncate_after(path: Path, step: int) -> None:
    """Drop the entries after a step, so that a resumed run does not repeat them; at one stroke."""
    if not path.exists():
        return
    kept = [json.dumps(entry) + "\n" for entry in read_entries(path) if entry["step"] <= step]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def memory(device: torch.device) -> float:
    """Most memory held so far, in GB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)  # bytes there, KiB elsewhere


class TrainingBar:
    """Progress of a run: step, loss, samples/s, time left; where the output is no terminal, a line now and then.

    Args:
        total: Steps of the run.
        title: What is trained.
        start: Steps that were taken before.
        show: False for all processes but the first.
    """

    def __init__(self, total: int, title: str, *, start: int = 0, show: bool = True) -> None:
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
        self._task = self._progress.add_task(title, total=total, completed=start, status="")

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
