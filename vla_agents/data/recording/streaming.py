"""A thread per camera that encodes while the recording goes on, behind a bounded line of pictures.

No picture is ever dropped, so rows and frames cannot drift apart: where the line is full, the recording waits, or
(`late_frames="repeat"`) the last picture in line is shown once more in place of the new one, which is told to the
caller, who marks the row.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from vla_agents.data.atomic import TempFile
from vla_agents.data.recording.status import Late
from vla_agents.data.video.encode import PacketLog, VideoEncoder, VideoSettings

LINE = 16  # pictures that may wait per camera
PATIENCE = 10.0  # seconds after which an encoder that takes nothing is given up


class PictureSink(Protocol):
    """Takes the pictures of a camera, one per row, and gives a video in the end."""

    @property
    def frames(self) -> int:
        """Frames the video has."""

    @property
    def extradata(self) -> bytes:
        """What a decoder must know beforehand."""

    def add(self, image: np.ndarray) -> bool:
        """Take a picture, uint8 (H, W, 3); returns whether another is shown in its place."""

    def finish(self) -> bytes:
        """Complete the video; returns it where it is kept in memory."""

    def abandon(self) -> None:
        """Stop and delete what was written."""


class FrameLine:
    """Pictures on their way to the encoder, each with the number of frames it stands for."""

    def __init__(self, length: int, *, repeat: bool) -> None:
        self._length, self._repeat = length, repeat
        self._items: deque[list] = deque()  # [picture, frames it stands for]
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, image: np.ndarray) -> tuple[bool, float]:
        """Line up a copy of a picture; `(whether the one before is repeated instead, seconds waited)`."""
        with self._changed:
            waited = 0.0
            if len(self._items) >= self._length:
                if self._repeat:
                    self._items[-1][1] += 1
                    return True, 0.0
                started = time.monotonic()
                if not self._changed.wait_for(lambda: len(self._items) < self._length, PATIENCE):
                    raise TimeoutError(
                        f"the encoder has taken no picture for {PATIENCE:g} s; is the disk stuck?"
                    )
                waited = time.monotonic() - started
            self._items.append([image.copy(), 1])
            self._changed.notify_all()
            return False, waited

    def close(self) -> None:
        """No more pictures will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget those that wait, and take no more."""
        with self._changed:
            self._items.clear()
        self.close()

    def take(self) -> tuple[np.ndarray, int] | None:
        """The next picture and its number of frames; waits for one; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            if not self._items:
                return None
            image, times = self._items.popleft()
            self._changed.notify_all()
            return image, times


class EncoderThread:
    """A `VideoEncoder` in a thread of its own.

    Args:
        settings: Size, rate and codec.
        target: Where the mp4 goes; None keeps it in memory.
        log: Is told of each compressed picture.
        repeat: What happens where the line is full: repeat the picture before, or wait.
        on_error: Is told at once, in the encoder's thread, when something goes wrong.
    """

    def __init__(
        self,
        settings: VideoSettings,
        target: TempFile | None,
        log: PacketLog | None = None,
        *,
        repeat: bool = False,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        self.late = Late()
        self._target, self._on_error = target, on_error
        self._line = FrameLine(LINE, repeat=repeat)
        self._error: BaseException | None = None
        self._abandoned = False
        self._content = b""
        self._added = 0
        self._encoder = VideoEncoder(settings, target, log)
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    @property
    def frames(self) -> int:
        """Frames encoded so far."""
        return self._encoder.frames

    @property
    def extradata(self) -> bytes:
        """What a decoder must know beforehand."""
        return self._encoder.extradata

    @property
    def waiting(self) -> int:
        """Pictures that wait in line."""
        return len(self._line)

    def add(self, image: np.ndarray) -> bool:
        """Hand over one picture, uint8 (H, W, 3), which is copied; returns whether another is shown in its place."""
        self._raise()
        repeated, seconds = self._line.put(image)
        if repeated:
            self.late.repeated.append(self._added)
        if seconds:
            self.late.waited += 1
            self.late.seconds += seconds
        self._added += 1
        return repeated

    def close(self) -> None:
        """No more pictures will come: the thread may complete the file while others do the same."""
        self._line.close()

    def finish(self) -> bytes:
        """Wait until all is encoded and the file complete; returns it where it is kept in memory."""
        self._line.close()
        self._thread.join()
        self._raise()
        return self._content

    def abandon(self) -> None:
        """Stop without finishing; does not wait for the thread, which may hang in the disk."""
        self._abandoned = True
        self._line.clear()
        if self._target is not None:
            self._target.path.unlink(missing_ok=True)
        if not self._thread.is_alive():
            self._encoder.stop()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._line.take()) is not None:
            self._try(self._encoder.add, *item)
        self._try(self._finish)
        if self._abandoned:
            self._encoder.stop()

    def _finish(self) -> None:
        self._content = self._encoder.finish()

    def _try(self, call: Callable[..., object], *arguments: object) -> None:
        """Unless something went wrong before; then the line is emptied, so that nobody waits."""
        if self._error is not None or self._abandoned:
            return
        try:
            call(*arguments)
        except BaseException as error:
            told = self._target.error if self._target is not None else None
            self._error = told or error  # the disk's own, not what the muxer makes of it
            if self._on_error is not None and not self._abandoned:
                self._on_error(self._error)
