"""Where numbers go: a line of JSON per entry, and TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger(__name__)


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
        self._failed = False
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1 if after else None)

    def write(self, step: int, **values: float) -> None:
        """One entry. Where the disk is full it is missing, which is told once: a run does not end for its log."""
        rounded = {key: float(f"{value:.6g}") for key, value in values.items()}

        def put() -> None:
            self._file.write(json.dumps({"step": step, **rounded}) + "\n")
            self._file.flush()
            if self._board is not None:
                for key, value in values.items():
                    self._board.add_scalar(key, value, step)

        self._try(put)

    def close(self) -> None:
        """Finish the files."""
        self._try(self._file.close)
        if self._board is not None:
            self._try(self._board.close)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            if not self._failed:
                _log.warning("metrics are not written: %s", error)
            self._failed = True


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
