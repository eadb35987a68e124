"""Recording into formats that hold many episodes in one file, or cannot be appended to safely.

While a recording goes on, its episodes lie in one of our own formats in `<path>.recording`, where each is on disk
whole or not at all and survives whatever happens. `close` makes the dataset of them, under another name until it is
complete. After a death in between, `resume=True` goes on, and the next `close` makes it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vla_agents.data import atomic
from vla_agents.data.convert.convert import convert
from vla_agents.data.convert.targets import TargetOptions, target_class
from vla_agents.data.episode import EpisodeWriter, Step
from vla_agents.data.hdf5.writer import Hdf5Writer
from vla_agents.data.lerobot.writer import LeRobotWriter
from vla_agents.data.open import open_dataset
from vla_agents.embodiment import Embodiment
from vla_agents.errors import DatasetExistsError

PARTS = ".recording"  # appended to the name
_TARGET = {field.name for field in dataclasses.fields(TargetOptions)}


class AssembledWriter:
    """Records episodes, and writes the dataset when it is closed.

    Args:
        path: The new dataset: a folder or file, as its format wants it.
        embodiment: What the numbers and pixels mean.
        format: One of `vla_agents.data.convert.targets.TARGETS`.
        resume: Go on with a recording that was not closed.
        options: Of `TargetOptions`, and of the writer that records (`LeRobotWriter` for LeRobot v2.x, else `Hdf5Writer`).
    """

    def __init__(
        self, path: str | Path, embodiment: Embodiment, *, format: str, resume: bool = False, **options: Any
    ) -> None:
        self.path, self.embodiment, self.format = Path(path), embodiment, format
        target_class(format)
        self.parts = self.path.with_name(self.path.name + PARTS)
        if self.path.exists() or self.path.is_symlink():
            raise DatasetExistsError(
                self.path,
                f"is there already, and {format} cannot be appended to",
                "record into a new one, and put them together with `vla-agents data merge`",
            )
        if self.parts.exists() and not resume:
            raise DatasetExistsError(
                self.parts, "holds a recording that was not closed", "pass resume=True to go on with it"
            )
        self._options = TargetOptions(**{k: v for k, v in options.items() if k in _TARGET})
        writing = {k: v for k, v in options.items() if k not in _TARGET or k in ("fps", "codec")}
        self._inner: EpisodeWriter = (LeRobotWriter if format.startswith("lerobot") else Hdf5Writer)(
            self.parts, embodiment, resume=resume, **writing
        )
        self._closed = False

    def __len__(self) -> int:
        return len(self._inner)  # type: ignore[arg-type]

    def begin(self, instruction: str, metadata: dict[str, Any] | None = None) -> None:
        """Start an episode."""
        self._inner.begin(instruction, metadata)

    def add(self, step: Step) -> None:
        """Append one tick; it is checked before anything of it is kept."""
        self._inner.add(step)

    def save(self, success: bool | None = None) -> int:
        """Make the open episode durable and return its index. When this returns, it survives `kill -9`."""
        return self._inner.save(success)

    def discard(self) -> None:
        """Drop the open episode; nothing happens where none is open."""
        self._inner.discard()

    def close(self) -> None:
        """Discard what is open, and make the dataset of what was saved; may be called twice.

        Raises:
            RecordingError: The disk is full or not writable. The episodes are still in `parts`: `resume=True`, and
            close again.
        """
        if self._closed:
            return
        self._inner.close()
        self._closed = True
        reader = open_dataset(self.parts)
        if len(reader):
            convert(reader, self.path, self.format, self._options)
        try:
            atomic.remove(self.parts)
        except OSError as error:
            raise atomic.recording_error(
                error, self.parts, "removing what the dataset was made of"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None or isinstance(value, KeyboardInterrupt):
            self.close()
        else:  # keep the parts: what went wrong may be the disk
            self._inner.close()
