"""The life of a recording (`begin`, `add`, `save` or `discard`, `close`), the same for every file format."""

from __future__ import annotations

import base64
import contextlib
import logging
import math
import shutil
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from vla_agents.data import atomic
from vla_agents.data.episode import Step
from vla_agents.data.numbers import json_text, without_images
from vla_agents.data.recording import unfinished
from vla_agents.data.recording.journal import FILE, STEP, Journal, pack_step
from vla_agents.data.recording.status import Late, LateCounter, RecordingStatus
from vla_agents.embodiment import Embodiment
from vla_agents.errors import (
    ConfigError,
    DatasetExistsError,
    ObservationError,
    RecordingError,
    VlaAgentsError,
)

logger = logging.getLogger(__name__)


class StepWriter(ABC):
    """Base of the episode writers: order of calls, checks, lock, and errors of the disk made readable.

    Args:
        path: The dataset's folder; made where missing.
        embodiment: What the numbers and pixels mean.
        resume: Append to the dataset that is there.
        durable: Whether a saved episode also survives a power cut (fsync), not only `kill -9`.
        metadata: Facts stored with every episode; what `begin` is given comes on top.
        late_frames: What `add` does where an encoder is late by more than its line of pictures: `"wait"` for it, or
            `"repeat"` the picture before, mark the row, and come back at once. Both are counted.
        repairable: Keep a journal of the open episode, from which `repair` makes an episode if the process dies.
        keep_unfinished: Whether opening a dataset keeps what such a death left, for `repair`; False deletes it.
        on_error: Is told at once when the disk or an encoder fails, also between two calls (then in another thread).
            Whatever is called next raises the same error, until the episode is dropped.
    """

    marker: str  # the file, relative to the folder, whose presence makes it a dataset

    def __init__(
        self,
        path: str | Path,
        embodiment: Embodiment,
        *,
        resume: bool = False,
        durable: bool = True,
        metadata: dict[str, Any] | None = None,
        late_frames: Literal["wait", "repeat"] = "wait",
        repairable: bool = True,
        keep_unfinished: bool = True,
        on_error: Callable[[RecordingError], None] | None = None,
    ) -> None:
        if late_frames not in ("wait", "repeat"):
            raise ConfigError(f"late_frames is {late_frames!r}, it must be 'wait' or 'repeat'")
        self.path = Path(path)
        self.embodiment = embodiment
        self.durable = durable
        self._common = dict(metadata or {})
        self._repeat, self._repairable = late_frames == "repeat", repairable
        self._keep_unfinished, self._on_error = keep_unfinished, on_error
        self._journal = Journal(self.path / atomic.TEMPORARY / FILE, durable=durable, on_error=self._fail)
        self._instruction: str | None = None
        self._metadata: dict[str, Any] = {}
        self._steps = 0
        self._lateness = LateCounter()
        self._failure: RecordingError | None = None
        self._failing = threading.Lock()
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
        """Take a step that was checked; `numbers` is the rest of it, copied, vectors in float32.

        Marks `numbers.repeated` where a camera repeats a picture instead.
        """

    @abstractmethod
    def _finish(self, success: bool | None) -> int:
        """Write the open episode and return its index."""

    @abstractmethod
    def _drop(self) -> None:
        """Forget the open episode."""

    def _options(self) -> dict[str, Any]:
        """What the constructor must be given to go on with an episode of this writer (JSON)."""
        return {}

    def _extradata(self) -> dict[str, bytes]:
        """What a decoder must know of each camera's video, while an episode is open."""
        return {}

    def _files(self) -> list[atomic.TempFile]:
        """Files that grow while the episode is open."""
        return []

    def _late(self) -> dict[str, Late]:
        """What each camera of the open episode could not keep up with."""
        return {}

    def _in_line(self) -> int:
        """Pictures that wait for an encoder now."""
        return 0

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
            with ReadableErrors(self, "reading the dataset again after an error"):
                self._load()
            self._stale = False
        self._instruction, self._metadata = instruction, merged
        self._steps, self._failure = 0, None
        try:
            with ReadableErrors(self, "starting an episode"):
                self._start()
                self._lateness.begin(self._late())
                if self._repairable:
                    self._begin_journal(instruction, merged)
        except BaseException:
            self.discard()
            raise

    def add(self, step: Step) -> None:
        """Append one tick; it is checked before anything of it is kept."""
        self._require_episode()
        step.check(self.embodiment)
        if not all(map(math.isfinite, (step.time, step.reward, *step.camera_times.values()))):
            times = ", ".join(map(str, (step.time, *step.camera_times.values())))
            raise ObservationError(f"step {self._steps}: time {times}, reward {step.reward}: not finite")
        numbers = without_images(step)
        with ReadableErrors(self, "recording a step"):
            self._append(step.images, numbers)
            if self._repairable:
                self._journal.append(STEP, pack_step(numbers, self.embodiment.camera_names))
            self._steps += 1

    def save(self, success: bool | None = None) -> int:
        """Make the open episode durable and return its index. When this returns, it survives `kill -9`."""
        self._require_episode()
        if not self._steps:
            raise RecordingError(f"{self.path}: the open episode has no steps", "add() some, or discard() it")
        success = None if success is None else bool(success)
        self._stale = True
        self._metadata = self._lateness.metadata() | self._metadata
        with ReadableErrors(self, "saving an episode"):
            index = self._finish(success)
        self._stale = False
        self._close_episode()
        return index

    def discard(self) -> None:
        """Drop the open episode; nothing happens where none is open."""
        if self._instruction is not None:
            try:
                self._drop()
            finally:
                self._close_episode()

    def status(self) -> RecordingStatus:
        """How the recording stands; may be called from any thread."""
        free = 0
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.path).free
        return RecordingStatus(
            episodes=len(self),
            steps=None if self._instruction is None else self._steps,
            in_line=self._in_line(),
            waited=self._lateness.waited,
            seconds_waited=self._lateness.seconds,
            repeated=self._lateness.repeated,
            free=free,
            error=self._failure,
        )

    def close(self) -> None:
        """Discard what is open and let go of the folder; may be called twice."""
        try:
            self.discard()
            self._journal.close()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- an episode ---------------------------------------------------------------------------------------
    def _begin_journal(self, instruction: str, metadata: dict[str, Any]) -> None:
        head = {
            "id": uuid.uuid4().hex,
            "index": len(self),
            "instruction": instruction,
            "metadata": dict(metadata),
            "cameras": list(self.embodiment.camera_names),
            "options": self._options(),
            "extradata": {name: base64.b64encode(data).decode() for name, data in self._extradata().items()},
        }
        self._journal.begin(lambda: json_text(head), self._files())

    def _close_episode(self) -> None:
        self._instruction = None
        self._lateness.end()
        self._journal.end()

    def _fail(self, error: BaseException, what: str = "recording") -> RecordingError:
        """Something went wrong, perhaps in a thread: whoever wants to know is told, and every further call raises it."""
        with self._failing:
            if self._failure is not None:
                return self._failure
            found = self._failure = _readable(error, self.path, what)
        if self._on_error is not None and isinstance(error, Exception):
            self._on_error(found)
        return found

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
        if not exists:
            self._empty_temporary()
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
        """Remove what was not finished; an episode that can be repaired is put aside."""
        if self._keep_unfinished and (found := unfinished.put_aside(self.path, len(self))):
            logger.warning(
                "%s: the episode %r was not finished. To make an episode of what is left: vla-agents data repair %s",
                self.path,
                found.instruction,
                self.path,
            )
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


class ReadableErrors:
    """Turn whatever goes wrong into a `RecordingError`; the open episode can then only be discarded."""

    def __init__(self, writer: StepWriter, what: str) -> None:
        self._writer = writer
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        if value is None:
            return
        found = self._writer._fail(value, self._what)
        if isinstance(value, Exception) and not isinstance(value, VlaAgentsError):
            raise found from value


def _readable(error: BaseException, path: Path, what: str) -> RecordingError:
    if isinstance(error, VlaAgentsError):
        return RecordingError(f"{path}: {what} failed: {error.problem}", error.remedy)
    if isinstance(error, OSError):
        return atomic.recording_error(error, path, what)
    return RecordingError(f"{path}: {what} failed: {error!r}", "discard() this episode")
