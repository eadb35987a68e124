"""The numbers an operator wants to see: is the rate kept, are pictures fresh, how long has it been."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

WINDOW_S = 2.0


class Meters:
    """Told every step; asked a few times a second, by another thread.

    Args:
        hz: The rate that should be kept.
        clock: Monotonic time, s.

    Attributes:
        steps: Of this episode.
        late: Periods of this episode that were missed.
        repeated: Pictures of this episode that were no newer than those of the step before.
    """

    def __init__(self, hz: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.wanted = hz
        self._clock = clock
        self.begin()

    def begin(self, info: dict[str, Any] | None = None) -> None:
        """An episode begins; `info` of its reset."""
        self.steps = self.late = self.repeated = 0
        self._started = self._clock()
        self._times: deque[float] = deque([self._started], maxlen=1000)
        self._captured = dict((info or {}).get("capture_times", {}))

    def step(self, info: dict[str, Any], late: int = 0) -> None:
        """A step is over.

        Args:
            info: The env's; `missed_ticks` and `capture_times` of a robot.
            late: Missed periods of this episode, where the env does not tell.
        """
        now = self._clock()
        self.steps += 1
        self.late = int(info.get("missed_ticks", late))
        times = info.get("capture_times", {})
        self.repeated += sum(
            name != "state" and self._captured.get(name) == when for name, when in times.items()
        )
        self._captured = dict(times)
        self._times.append(now)

    @property
    def seconds(self) -> float:
        """Since the episode began."""
        return self._clock() - self._started

    @property
    def hz(self) -> float:
        """Steps per second over the last two seconds; 0 before there are any."""
        times = list(self._times)
        recent = [t for t in times if times[-1] - t <= WINDOW_S]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else 0.0
