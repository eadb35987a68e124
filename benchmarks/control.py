"""The control loop on the simulated arm: does it keep its rate, and does the arm wait for the policy?

    python benchmarks/control.py                  # every rate and latency; about 4 minutes
    python benchmarks/control.py --seconds 2 --rates 100 --latencies 300 --compute

For each rate and policy latency, once synchronous (plan, carry out 8 actions, plan, ...) and once asynchronous (plan
while the last chunk plays), with the same policy: chunks of 64 targets on a smooth path, each chunk off by a
random offset, so that there are seams. Printed are

    idle        share of the agent's ticks without a new action (asynchronous: from the first chunk on)
    late        the part of it in which there was none because the next chunk was late (asynchronous planning only; the
                rest are ticks that this program was not given the processor for)
    p50 p99     interval between commands, in periods of the control loop
    missed      control ticks that were left out
    seam        largest step from one chunk to the next, as a multiple of what an axis may go in one tick
    wire        largest speed and acceleration that reached the arm, as shares of its limits, from the recorded commands
    filtered    share of the control ticks in which the safety filter changed something

It ends with status 1 where idle, p99 or wire are not what docs/robots.md says. The latency is a sleep, as when the
policy runs on a GPU or another machine; `--compute` burns a core instead.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from vla_agents.agent import Agent, Observation
from vla_agents.async_agent import AsyncAgent, asynchronous_for
from vla_agents.chunking import RecedingHorizon
from vla_agents.embodiment import Embodiment
from vla_agents.robots.env import RobotEnv
from vla_agents.robots.loop_tools import favour_this_thread
from vla_agents.robots.simulated_arm import SimulatedArm

HORIZON, EXECUTE = 64, 8


class Policy:
    """Chunks along a path that is a function of the capture time; takes `latency` seconds for each."""

    horizon, default_execute, continues = HORIZON, EXECUTE, False

    def __init__(
        self, embodiment: Embodiment, latency: float, compute: bool, captured: Callable[[], float]
    ) -> None:
        self.embodiment, self._latency, self._compute, self._captured = embodiment, latency, compute, captured
        self._rng = np.random.default_rng(0)

    def path(self, times: np.ndarray) -> np.ndarray:
        """(N,) s -> (N, 7): slow waves on all axes."""
        low, high = (
            self.embodiment.action_space().low.astype(float),
            self.embodiment.action_space().high.astype(float),
        )
        phase = np.arange(7)
        wave = np.sin(1.5 * times[:, None] + phase)
        return 0.5 * (low + high) + np.array([0.15] * 3 + [0.3] * 3 + [0.4]) * 0.5 * (high - low) * wave

    def plan(self, obs: Observation, prefix: np.ndarray | None = None, committed: int = 0) -> np.ndarray:
        """(64, 7), 0.5 % of each range off."""
        now = self._captured()
        until = time.perf_counter() + self._latency
        if self._compute:
            matrix = np.ones((400, 400), np.float32)
            while time.perf_counter() < until:
                matrix @ matrix
        elif self._latency:
            time.sleep(self._latency)
        space = self.embodiment.action_space()
        off = 0.005 * (space.high - space.low) * self._rng.uniform(-1, 1, 7)
        return (self.path(now + np.arange(HORIZON) / self.embodiment.control_hz) + off).astype(np.float32)

    def reset(self, *, seed: int | None = None) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to close."""


class Synchronous(Agent):
    """Plans when the last chunk is used up; the arm waits."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._chunker = policy, RecedingHorizon(EXECUTE)

    def act(self, obs: Observation) -> np.ndarray:
        """The next action of the chunk, or of a new one."""
        if self._chunker.needs_plan(0):
            self._chunker.add(0, self._policy.plan(obs))
        return self._chunker.next(0)


class Recording(SimulatedArm):
    """Keeps what reached it."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.wire: list[tuple[float, np.ndarray]] = []

    def command(self, target: np.ndarray) -> np.ndarray:
        """As the arm does, and kept."""
        sent = super().command(target)
        self.wire.append((time.monotonic(), sent))
        return sent


def measure(hz: float, latency: float, asynchronous: bool, seconds: float, compute: bool) -> dict[str, float]:
    """One run."""
    arm = Recording(cameras=())
    env = RobotEnv(arm, hz=hz, instruction="wave")
    obs, _ = env.reset()
    policy = Policy(env.embodiment, latency, compute, lambda: env.capture_time)
    agent: Agent = asynchronous_for(policy, env, execute=EXECUTE) if asynchronous else Synchronous(policy)
    agent.reset()
    for _ in range(int(0.5 * hz) if asynchronous else 2):  # the first chunk, and the way to where it begins
        obs, *_ = env.step(agent.act(obs))
    missed_before, idle_before = env._missed, agent.report().idle if isinstance(agent, AsyncAgent) else 0
    steps, changed, seam, last = 0, 0, 0.0, None
    arm.wire.clear()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        action = agent.act(obs)
        if last is not None:
            seam = max(seam, float((np.abs(action - last) / (arm.limits.velocity / hz)).max()))
        last = action
        obs, *_, info = env.step(action)
        steps += 1
        changed += info["limited"]
    rate, wire = env.rate(), list(arm.wire)
    missed = env._missed - missed_before
    idle = agent.report().idle - idle_before if isinstance(agent, AsyncAgent) else 0
    env.close()
    agent.close()
    return {
        "idle": 100 * (missed + idle) / (missed + steps),
        "late": 100 * idle / (missed + steps),
        "p50": rate.p50, "p99": rate.p99, "missed": rate.missed, "seam": seam,
        **on_the_wire(arm, wire, rate.hz),
        "filtered": 100 * changed / steps,
    }  # fmt: skip


def on_the_wire(arm: SimulatedArm, wire: list[tuple[float, np.ndarray]], hz: float) -> dict[str, float]:
    """Largest speed and acceleration as shares of the limits; rounding of the device and of the clock taken off."""
    times, ways = np.array([t for t, _ in wire]), np.array([c for _, c in wire])
    dt = np.diff(times)[:, None]
    speed = np.diff(ways, axis=0) / dt
    between = 0.5 * (dt[1:] + dt[:-1])
    gain = np.abs(np.diff(speed, axis=0)) / between
    # What a millisecond between the filter's clock and this one, and 10 micrometres, can make of them.
    usual = (dt > 0.7 / hz) & (dt < 2.0 / hz)
    slack = 2 * arm.limits.resolution * hz
    fast = (np.abs(speed) - slack) / (arm.limits.velocity)
    hard = (gain - 2 * slack * hz) / arm.limits.acceleration
    near = usual[1:, 0] & usual[:-1, 0]
    return {"speed": float(fast[usual[:, 0]].max()), "gain": float(np.percentile(hard[near], 99.5))}


def main() -> int:
    """Print the table; 1 where it is not as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[30, 50, 100])
    parser.add_argument("--latencies", type=float, nargs="+", default=[0, 100, 300], help="milliseconds")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--compute", action="store_true", help="the policy burns a core instead of sleeping")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    print(
        f"scheduling: {favour_this_thread(1)}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    )
    print(
        "  Hz     ms  planning        idle    late    p50    p99  missed   seam  speed   gain  filtered   load"
    )
    wrong = []
    for hz in options.rates:
        for latency in options.latencies:
            for asynchronous in (False, True):
                got = measure(hz, latency / 1000, asynchronous, options.seconds, options.compute)
                name = "asynchronous" if asynchronous else "synchronous"
                print(
                    f"{hz:4.0f} {latency:6.0f}  {name:<13} {got['idle']:5.1f} % {got['late']:5.1f} % "
                    f"{got['p50']:6.3f} {got['p99']:6.3f} "
                    f"{got['missed']:7.0f} {got['seam']:6.2f} {got['speed']:6.2f} {got['gain']:6.2f} "
                    f"{got['filtered']:7.1f} %  {os.getloadavg()[0]:5.1f}",
                    flush=True,
                )
                wrong += [
                    f"{hz:g} Hz, {latency:g} ms, {name}: {line}"
                    for line in _wrong(got, latency, asynchronous)
                ]
    for line in wrong:
        print("not as it should be:", line)
    return 1 if wrong else 0


def _wrong(got: dict[str, float], latency: float, asynchronous: bool) -> list[str]:
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)  # then other programs decide how many ticks are missed
    checks = {
        "a chunk was late": got["late"] == 0,
        "idle ticks": not asynchronous or busy or got["idle"] < 0.5,
        "the baseline is idle less than half of the time": asynchronous or latency < 300 or got["idle"] >= 50,
        "p99 above 1.2 periods": got["p99"] <= 1.2,
        "faster than the limits": got["speed"] <= 1.3,
        "harder than the limits": got["gain"] <= 1.5,
    }
    return [name for name, fine in checks.items() if not fine]


if __name__ == "__main__":
    sys.exit(main())
