"""The health of a connected robot: how quickly and how reliably it answers, and what its motors say of themselves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from vla_agents.errors import CommunicationError
from vla_agents.robots.drivers.servo_arm import ServoArm
from vla_agents.robots.robot import Robot

EDGES_MS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 100)


@dataclass
class Health:
    """What was measured.

    Attributes:
        latency_s: Seconds that each successful `observe` took.
        failed: Calls of `observe` that gave no reading.
        asked: Packets that wanted an answer (0 where the driver does not count them).
        lost: Answers that did not come, before repetition.
        corrupt: Answers that came damaged.
        repeated: Questions that were asked again.
        motors: Name -> what the motor says of itself.
        hz: The rate at which the robot is to be driven.
    """

    hz: float
    latency_s: list[float] = field(default_factory=list)
    failed: int = 0
    asked: int = 0
    lost: int = 0
    corrupt: int = 0
    repeated: int = 0
    motors: dict[str, dict[str, float | str]] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """What keeps the robot from being driven at `hz`; empty where it is well."""
        found = []
        total = len(self.latency_s) + self.failed
        if self.failed:
            found.append(f"{self.failed} of {total} readings failed: check cables, power and the adapter")
        if self.latency_s and (slow := float(np.percentile(self.latency_s, 99))) > 0.5 / self.hz:
            found.append(
                f"a reading takes up to {1000 * slow:.1f} ms, more than half of a period at {self.hz:g} Hz: "
                "drive it slower (control_hz), or find what else runs on this machine"
            )
        if self.asked and (self.lost + self.corrupt) / self.asked > 0.01:
            share = (self.lost + self.corrupt) / self.asked
            found.append(f"{100 * share:.1f} % of the packets are lost or damaged: check cables and power")
        for name, values in self.motors.items():
            if values.get("alarm"):
                found.append(f"{name} reports: {values['alarm']}")
        return found

    def percentiles_ms(self) -> dict[str, float]:
        """p50, p95, p99 and max of the latency, ms; empty where nothing was measured."""
        if not self.latency_s:
            return {}
        values = 1000 * np.percentile(self.latency_s, [50, 95, 99, 100])
        return dict(zip(("p50", "p95", "p99", "max"), values.tolist(), strict=True))

    def histogram(self) -> list[tuple[str, int]]:
        """`(range in ms, how many)` over the range that occurs."""
        counts, _ = np.histogram(1000 * np.array(self.latency_s), (0, *EDGES_MS, np.inf))
        labels = [f"< {EDGES_MS[0]:g}"]
        labels += [f"{a:g} - {b:g}" for a, b in pairwise(EDGES_MS)]
        labels.append(f"> {EDGES_MS[-1]:g}")
        used = np.flatnonzero(counts)
        if not len(used):
            return []
        return [(labels[i], int(counts[i])) for i in range(used[0], used[-1] + 1)]


def examine(robot: Robot, seconds: float = 3.0) -> Health:
    """Measure a connected robot for some time, at its control rate. Sends no command."""
    hz = robot.embodiment.control_hz
    health, start = Health(hz), time.monotonic()
    bus = robot.bus if isinstance(robot, ServoArm) else None
    before = (0, 0, 0, 0) if bus is None else _counts(bus.stats)
    for number in range(max(1, round(seconds * hz))):
        time.sleep(max(0.0, start + number / hz - time.monotonic()))
        began = time.monotonic()
        try:
            robot.observe()
        except CommunicationError:
            health.failed += 1
        else:
            health.latency_s.append(time.monotonic() - began)
    if bus is not None and isinstance(robot, ServoArm):
        after = _counts(bus.stats)
        health.asked, health.lost, health.corrupt, health.repeated = (
            b - a for a, b in zip(before, after, strict=True)
        )
        health.motors = _motors(robot)
    return health


def _counts(stats: object) -> tuple[int, int, int, int]:
    return tuple(getattr(stats, name) for name in ("questions", "lost", "corrupt", "repeated"))  # type: ignore


def _motors(robot: ServoArm) -> dict[str, dict[str, float | str]]:
    bus = robot.bus
    assert bus is not None
    reading, table = robot.observe(), dict[str, dict[str, float | str]]()
    volts = bus.sync_read("voltage", robot.ids)
    degrees = bus.sync_read("temperature", robot.ids)
    for index, joint in enumerate(robot.joints):
        axis = robot.limits.axes[index]
        alarm = bus.alarms.get(joint.id, 0)
        table[joint.name] = {
            "id": joint.id,
            "position": float(reading.position[index]),
            "low": axis.low,
            "high": axis.high,
            "effort": float(reading.effort[index]) if reading.effort is not None else float("nan"),
            "volt": volts[joint.id] / 10.0,
            "celsius": degrees[joint.id],
            "alarm": robot.explain_alarm(bus, joint, alarm) if alarm else "",
        }
    return table
