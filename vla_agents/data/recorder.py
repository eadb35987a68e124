"""The life of a recording (`begin`, `add`, `save` or `discard`, `close`), the same for every file format."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vla_agents.data import atomic
from vla_agents.data.episode import Step
from vla_agents.embodiment import Embodiment
from vla_agents.errors import (
    ActionError,
    ConfigError,
    DatasetExistsError,
    ObservationError,
    RecordingError,
    VlaAgentsError,
)


class StepWriter(ABC):
    """Base of the episode writers: order of calls, checks, lock, and errors of the disk made readable.

    Args:
        path: The dataset's folder; made where missing.
        embodiment: What the numbers and pixels mean.
        resume: Append to the dataset that is there.
        durable: Whether a saved episode also survives a power cut (fsync), not only `kill -9`.
        metadata: Facts stored with every episode; what `begin` is given comes on top.
    """

    marker: str  # the file, relative to the folder, whose presence makes it a dataset

    def __init__(
        self,
        path: str | Path,
        embodiment: Embodiment,
        *,
        resume: bool,
        durable: bool,
        metadata: dict[str, Any] | None,
    ) -> None:
        self.path = Path(path)
        self.embodiment = embodiment
        self.durable = durable
        self._common = dict(metadata or {})
        self._instruction: str | None = None
        self._metadata: dict[str, Any] = {}
        self._steps = 0
        self._failure: RecordingError | None = None
        self._stale = False
        self._lock: atomic.FolderLock | None = None
        json_text(self._common)
        try:
            self._open(resume)
        except OSError as error:
            self._release()
            if isinstance(error, DatasetExistsError | RecordingError):
                raise
            raise atomic.recording_error(error, self.path, "opening the dataset for writing") from error
        except BaseException:
            self._release()
            raise

    # ---- what a format supplies ---------------------------------------------------------------------------
    @abstractmethod
    def __len__(self) -> int:
        """Number of episodes saved."""

    @abstractmethod
    def _create(self) -> None:
        """Write the files of an empty dataset."""

    @abstractmethod
    def _load(self) -> None:
        """Read what is on disk, clean up after an unfinished save, and be ready for the next episode."""

    @abstractmethod
    def _start(self) -> None:
        """Begin an episode."""

    @abstractmethod
    def _append(self, images: dict[str, np.ndarray], numbers: Step) -> None:
        """Take a step that was checked; `numbers` is the rest of it, copied, vectors in float32."""

    @abstractmethod
    def _finish(self, success: bool | None) -> int:
        """Write the open episode and return its index."""

    @abstractmethod
    def _drop(self) -> None:
        """Forget the open episode."""

    # ---- the life cycle -----------------------------------------------------------------------------------
    def begin(self, instruction: str, metadata: dict[str, Any] | None = None) -> None:
        """Start an episode."""
        self._require_open()
        if self._instruction is not None:
            raise RecordingError(f"{self.path}: an episode is already open", "call save() or discard() first")
        try:
            instruction.encode()
            storable = "\0" not in instruction
        except (UnicodeEncodeError, AttributeError):
            storable = False
        if not storable:
            raise ConfigError(
                f"instruction {instruction!r} is not text that can be stored", "pass plain text"
            )
        merged = {**self._common, **(metadata or {})}
        json_text(merged)
        if self._stale:
            with _ReadableErrors(self, "reading the dataset again after an error"):
                self._load()
            self._stale = False
        self._instruction, self._metadata = instruction, merged
        self._steps, self._failure = 0, None
        try:
            with _ReadableErrors(self, "starting an episode"):
                self._start()
        except BaseException:
            self.discard()
            raise

    def add(self, step: Step) -> None:
        """Append one tick; it is checked before anything of it is kept."""
        self._require_episode()
        step.check(self.embodiment)
        if not (math.isfinite(step.time) and math.isfinite(step.reward)):
            raise ObservationError(f"step {self._steps}: time {step.time}, reward {step.reward}: not finite")
        numbers = _without_images(step)
        with _ReadableErrors(self, "recording a step"):
            self._append(step.images, numbers)
        self._steps += 1

    def save(self, success: bool | None = None) -> int:
        """Make the open episode durable and return its index. When this returns, it survives `kill -9`."""
        self._require_episode()
        if not self._steps:
            raise RecordingError(f"{self.path}: the open episode has no steps", "add() some, or discard() it")
        success = None if success is None else bool(success)
        self._stale = True
        with _ReadableErrors(self, "saving an episode"):
            index = self._finish(success)
        self._stale = False
        self._instruction = None
        return index

    def discard(self) -> None:
        """Drop the open episode; nothing happens where none is open."""
        if self._instruction is not None:
            self._instruction = None
            self._drop()

    def close(self) -> None:
        """Discard what is open and let go of the folder; may be called twice."""
        try:
            self.discard()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- opening ------------------------------------------------------------------------------------------
    def _open(self, resume: bool) -> None:
        atomic.make_folder(self.path, durable=self.durable)
        if not (self.path / self.marker).exists():
            self._refuse_foreign_files()
        self._lock = atomic.FolderLock(self.path)
        exists = (self.path / self.marker).exists()
        if exists and not resume:
            raise DatasetExistsError(
                self.path,
                "a dataset is already there",
                "pass resume=True to append to it, or choose another folder",
            )
        self._empty_temporary()
        if not exists:
            self._create()
        self._load()

    def _refuse_foreign_files(self) -> None:
        """Only what a creation that was killed leaves behind may be in the folder."""
        ours = {atomic.LOCK, atomic.TEMPORARY, "meta", "meta/embodiment.json"}
        for entry in self.path.rglob("*"):
            name = entry.relative_to(self.path).as_posix()
            if name not in ours and not name.startswith(atomic.TEMPORARY + "/"):
                raise DatasetExistsError(
                    self.path,
                    f"not a dataset, and not empty (it holds {name!r})",
                    "choose an empty or a new folder",
                )

    def _empty_temporary(self) -> None:
        atomic.remove(self.path / atomic.TEMPORARY)
        atomic.make_folder(self.path / atomic.TEMPORARY, durable=False)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _require_open(self) -> None:
        if self._lock is None:
            raise RecordingError(f"{self.path}: the writer is closed", "open a new one with resume=True")

    def _require_episode(self) -> None:
        self._require_open()
        if self._instruction is None:
            raise RecordingError(f"{self.path}: no episode is open", "call begin(instruction) first")
        if self._failure is not None:
            raise self._failure


class _ReadableErrors:
    """Turn whatever goes wrong into a `RecordingError`; the open episode can then only be discarded."""

    def __init__(self, writer: StepWriter, what: str) -> None:
        self._writer = writer
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        if value is None:
            return
        path = self._writer.path
        if isinstance(value, VlaAgentsError):
            found = RecordingError(f"{path}: {self._what} failed: {value.problem}", value.remedy)
        elif isinstance(value, OSError):
            found = atomic.recording_error(value, path, self._what)
        else:
            found = RecordingError(f"{path}: {self._what} failed: {value!r}", "discard() this episode")
        self._writer._failure = found
        if isinstance(value, Exception) and not isinstance(value, VlaAgentsError):
            raise found from value


def json_text(metadata: dict[str, Any]) -> str:
    """Metadata as JSON; numpy scalars and arrays become plain numbers and lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} {value!r}")

    try:
        return json.dumps(metadata, default=plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"metadata cannot be stored as JSON: {error}", "use text, numbers, lists and dicts"
        ) from None


def _without_images(step: Step) -> Step:
    """The step's numbers, copied, because the caller may reuse its buffers."""

    def copy(
        value: np.ndarray | None, what: str, error: type[ObservationError | ActionError]
    ) -> np.ndarray | None:
        if value is None:
            return None
        array = np.asarray(value)
        if array.dtype == np.float32:
            return array.copy()
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise error(f"{what} does not fit into float32: {np.asarray(value).tolist()}")
        return array

    action = copy(step.action, "action", ActionError)
    assert action is not None
    return Step(
        images={},
        state=copy(step.state, "state", ObservationError),
        action=action,
        reward=step.reward,
        terminated=step.terminated,
        truncated=step.truncated,
        intervened=step.intervened,
        time=step.time,
        executed=copy(step.executed, "executed action", ActionError),
        commanded=copy(step.commanded, "commanded action", ActionError),
        repeated=bool(step.repeated),
    )
