"""How a recording stands: what came late, what is left of the disk, what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from vla_agents.errors import RecordingError


class WriterOptions(TypedDict, total=False):
    """Options of every writer; see `StepWriter`."""

    resume: bool
    durable: bool
    metadata: dict[str, Any] | None
    late_frames: Literal["wait", "repeat"]
    repairable: bool
    keep_unfinished: bool
    on_error: Callable[[RecordingError], None] | None


@dataclass(frozen=True)
class RecordingStatus:
    """How a recording stands, for the operator.

    Args:
        episodes: Episodes in the dataset.
        steps: Steps of the open episode; None where none is open.
        in_line: Pictures that wait for an encoder now.
        waited: How often the recording had to wait for an encoder, since the writer was made.
        seconds_waited: For how long, altogether.
        repeated: Pictures shown twice because an encoder was late, since the writer was made.
        free: Free bytes on the disk.
        error: What went wrong with the last episode.
    """

    episodes: int
    steps: int | None
    in_line: int
    waited: int
    seconds_waited: float
    repeated: int
    free: int
    error: RecordingError | None


@dataclass
class Late:
    """What a camera could not keep up with, in one episode.

    Args:
        waited: How often the recording waited for the encoder.
        seconds: For how long, altogether.
        repeated: Rows whose picture is that of an earlier one.
    """

    waited: int = 0
    seconds: float = 0.0
    repeated: list[int] = field(default_factory=list)


class LateCounter:
    """What came late in the open episode, and in those before."""

    def __init__(self) -> None:
        self._now: dict[str, Late] = {}
        self._waited = self._repeated = 0
        self._seconds = 0.0

    @property
    def waited(self) -> int:
        """How often the recording waited."""
        return self._waited + sum(late.waited for late in self._now.values())

    @property
    def seconds(self) -> float:
        """For how long, altogether."""
        return self._seconds + sum(late.seconds for late in self._now.values())

    @property
    def repeated(self) -> int:
        """Pictures that were repeated."""
        return self._repeated + sum(len(late.repeated) for late in self._now.values())

    def begin(self, cameras: dict[str, Late]) -> None:
        """An episode begins; its cameras' counts are filled while it lasts."""
        self._now = cameras

    def end(self) -> None:
        """The episode is over."""
        self._waited, self._seconds, self._repeated = self.waited, self.seconds, self.repeated
        self._now = {}

    def metadata(self) -> dict[str, Any]:
        """What is stored with the open episode; nothing where no camera has a thread that could be late."""
        if not self._now:
            return {}
        late = {name: found for name, found in self._now.items() if found.waited or found.repeated}
        counts: dict[str, Any] = {
            "waited": sum(found.waited for found in late.values()),
            "repeated": sum(len(found.repeated) for found in late.values()),
        }
        if late:
            counts["seconds_waited"] = round(sum(found.seconds for found in late.values()), 3)
            counts["repeated_rows"] = {name: found.repeated for name, found in late.items() if found.repeated}
        return {"recording": counts}
