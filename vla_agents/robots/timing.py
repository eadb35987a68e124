"""Keeping a rate: deadlines on the monotonic clock, counted from one start, so that nothing adds up."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_agents.errors import ConfigError

KEPT = 1 << 17  # intervals a report is made from: the newest


@dataclass(frozen=True)
class RateReport:
    """How well a rate was kept. Intervals are from one tick to the next, in periods; 1.0 is perfect.

    Args:
        hz: The rate that was asked for.
        ticks: Ticks that were carried out.
        missed: Ticks that were left out because an earlier one took too long.
        p50: Median interval.
        p99: 99th percentile of the intervals.
        longest: Longest interval.
        busy: Median share of the period that the work of a tick took.
    """

    hz: float
    ticks: int
    missed: int
    p50: float
    p99: float
    longest: float
    busy: float

    def __str__(self) -> str:
        return (
            f"{self.hz:g} Hz: {self.ticks} ticks, {self.missed} missed; interval p50 {self.p50:.3f}, p99 {self.p99:.3f}, "
            f"longest {self.longest:.2f} periods; busy {100 * self.busy:.0f} %"
        )


class Ticker:
    """Waits for tick after tick.

    Tick n is due at start + n / hz, however late the ones before it were. One that is late by more than half a
    period is left out and counted, together with all that are due by then: no burst makes up for them.

    Args:
        hz: Ticks per second.
        clock: Monotonic time, s.
        sleep: Waits for so many seconds.

    Attributes:
        number: Of the last tick; counts the missed ones too.
        missed: How many were left out.
    """

    def __init__(
        self,
        hz: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not (math.isfinite(hz) and 0 < hz <= 2000):
            raise ConfigError(f"a rate of {hz} Hz", "it must lie between 0 and 2000 Hz")
        self.hz, self.period = hz, 1.0 / hz
        self._clock, self._sleep = clock, sleep
        self._start = self._last = self._begun = -math.inf
        self.number = self.missed = self._ticks = 0
        self._intervals, self._work = array("d"), array("d")

    def wait(self) -> float:
        """Sleep until the next tick is due; returns the time at which it begins, s."""
        now = self._clock()
        if self._start == -math.inf:
            self._start = now - self.period
        else:
            _keep(self._work, now - self._begun, self._ticks - 1)
        upcoming = self.number + 1
        if now - self._due(upcoming) > 0.5 * self.period:
            skipped = math.floor((now - self._start) * self.hz) + 1 - upcoming
            self.missed += skipped
            upcoming += skipped
        while (left := self._due(upcoming) - now) > 0:  # a sleep may end early
            self._sleep(left)
            now = self._clock()
        self.number = upcoming
        if self._last > -math.inf:
            _keep(self._intervals, now - self._last, self._ticks - 1)
        self._last = self._begun = now
        self._ticks += 1
        return now

    def _due(self, number: int) -> float:
        return self._start + number * self.period

    def report(self) -> RateReport:
        """The newest ticks, summed up."""
        intervals = np.array(self._intervals) * self.hz if self._intervals else np.full(1, np.nan)
        work = np.array(self._work) * self.hz if self._work else np.full(1, np.nan)
        p50, p99 = np.percentile(intervals, [50, 99])
        return RateReport(
            self.hz,
            self._ticks,
            self.missed,
            float(p50),
            float(p99),
            float(intervals.max()),
            float(np.median(work)),
        )


def _keep(ring: array[float], value: float, index: int) -> None:
    if len(ring) < KEPT:
        ring.append(value)
    else:
        ring[index % KEPT] = value
