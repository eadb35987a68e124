"""Checks of when things were recorded: order, gaps, rate, jitter, and the cameras against the rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_agents.data.check.findings import Finding
from vla_agents.data.episode import CAMERA_TIME, Episode

GAP = 3.0  # periods
JITTER = 0.25  # of a period
OFF_RATE = 0.1  # share
NOMINAL = 1e-3  # seconds a stored stamp may be off
_SLOW = "the control loop did not keep its rate: record with fewer or smaller cameras, or lower the rate"


def simulated(episodes: Mapping[int, Episode], fps: float) -> list[Finding]:
    """Whether the times are those of a simulator that runs as fast as it can: then rate, gaps and jitter say nothing.

    It is one where the recorder noted a renderer, or where most episodes were faster than `fps` by half, and uneven.
    """
    steps = [np.diff(episode.time) for episode in episodes.values() if len(episode) >= 4]
    steps = [found for found in steps if (found > 0).all()]
    if not steps:
        return []
    noted = all("renderer" in episode.metadata for episode in episodes.values())
    period = float(np.median([np.median(found) for found in steps]))
    uneven = float(np.median([np.quantile(np.abs(found / np.median(found) - 1), 0.9) for found in steps]))
    if not noted and not (period * fps < 1 / 1.5 and uneven > JITTER):
        return []
    return [
        Finding(
            "simulated",
            "note",
            f"times are those of a simulator ({1 / period:.0f} steps per second instead of {fps:g})",
            value=1 / period,
            remedy="nothing to mend: rate, gaps and jitter are not judged",
        )
    ]


def order(number: int, episode: Episode) -> list[Finding]:
    """Times that do not increase."""
    bad = np.flatnonzero(~(np.diff(episode.time) > 0))
    if not len(bad):
        return []
    if not np.ptp(episode.time):
        return [
            Finding(
                "no_times",
                "note",
                "all times are the same: when the steps were taken was not recorded",
                number,
                remedy="nothing to mend; the nominal rate is used",
            )
        ]
    at = int(bad[0])
    return [
        Finding(
            "time_order",
            "error",
            f"time goes from {episode.time[at]:.4f} s to {episode.time[at + 1]:.4f} s",
            number,
            at + 1,
            float(episode.time[at + 1] - episode.time[at]),
            len(bad),
            remedy="rows were shuffled, or a clock was set back: leave the episode out, and record with a monotonic clock",
            leave_out=True,
        )
    ]


def rhythm(number: int, episode: Episode, fps: float) -> list[Finding]:
    """Rate against `fps`, gaps and jitter; of an episode whose times increase."""
    steps = np.diff(episode.time)
    if len(steps) < 4 or not (steps > 0).all():
        return []
    found, period = [], float(np.median(steps))
    mean = float(steps[steps <= GAP * period].mean())
    if abs(mean * fps - 1) > OFF_RATE:
        found.append(
            Finding(
                "rate",
                "warning",
                f"recorded at {1 / mean:.2f} steps per second, the dataset says {fps:g}",
                number,
                value=1 / mean,
                remedy=f"a copy that says so has the right speed: --fps {1 / mean:.3g}; or record again",
            )
        )
    gaps = np.flatnonzero(steps > GAP * period)
    if len(gaps):
        found.append(
            Finding(
                "gap",
                "warning",
                f"nothing for {steps[gaps].max():.3f} s, {steps[gaps].max() / period:.1f} periods",
                number,
                int(gaps[0]) + 1,
                float(steps[gaps].max()),
                len(gaps),
                _SLOW,
                leave_out=True,
            )
        )
    rest = np.abs(steps[steps <= GAP * period] / period - 1)
    if len(rest) >= 10 and np.quantile(rest, 0.9) > JITTER:
        found.append(
            Finding(
                "jitter",
                "warning",
                f"a tenth of the steps is off by more than {np.quantile(rest, 0.9):.0%} of a period",
                number,
                int(np.argmax(np.abs(steps / period - 1))) + 1,
                float(np.quantile(rest, 0.9)),
                int((rest > JITTER).sum()),
                _SLOW,
            )
        )
    return found


def stamps(number: int, timestamps: np.ndarray, fps: float) -> list[Finding]:
    """LeRobot's `timestamp` column, which has to be frame / fps: it is what pictures are looked up by."""
    off = np.abs(timestamps.astype(np.float64) - np.arange(len(timestamps)) / fps)
    bad = np.flatnonzero(~(off < NOMINAL))
    if not len(bad):
        return []
    at = int(bad[0])
    return [
        Finding(
            "timestamp",
            "error",
            f"timestamp is {timestamps[at]:.4f} s where {at / fps:.4f} s belongs: its picture is "
            "another one's, or none",
            number,
            at,
            float(timestamps[at]),
            len(bad),
            remedy="it was edited by hand or shifted while merging: make the dataset again, or leave the episode out",
            leave_out=True,
        )
    ]


def cameras(number: int, episode: Episode) -> list[Finding]:
    """Cameras whose pictures are older or newer than their rows, or the same picture twice."""
    steps = np.diff(episode.time)
    if len(steps) < 4 or not (steps > 0).all():
        return []
    period, found = float(np.median(steps)), []
    for key, taken in episode.extras.items():
        if not key.startswith(CAMERA_TIME) or taken.shape != episode.time.shape:
            continue
        name, late = key.removeprefix(CAMERA_TIME), episode.time - taken
        bad = np.flatnonzero(np.abs(late) > 2 * period)
        if len(bad):
            worst = late[bad][np.abs(late[bad]).argmax()]
            found.append(
                Finding(
                    "camera_late",
                    "warning",
                    f"camera {name!r}: a picture is {worst:+.3f} s older than its row",
                    number,
                    int(bad[0]),
                    float(worst),
                    len(bad),
                    remedy="the camera was slower than the loop, or stopped: check its cable, rate and exposure time",
                    leave_out=True,
                )
            )
        back = np.flatnonzero(np.diff(taken) < 0)
        if len(back):
            found.append(
                Finding(
                    "camera_order",
                    "error",
                    f"camera {name!r}: its pictures go back in time",
                    number,
                    int(back[0]) + 1,
                    float(np.diff(taken)[back[0]]),
                    len(back),
                    remedy="pictures of a buffer came out of order: leave the episode out",
                    leave_out=True,
                )
            )
    return found
