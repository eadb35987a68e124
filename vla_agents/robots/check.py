"""Does a driver keep to the protocol? `check_robot(robot)` tries what `vla_agents.robots.robot` asks for.

It drives the arm: every axis a little way and back, slowly, through the safety filter. `moves=False` leaves it
where it is. Run it on every new driver, on the real arm too, with a hand on the emergency stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ActionError, RobotError, RobotStateError
from vla_agents.robots.limits import Limits
from vla_agents.robots.loop import ControlLoop
from vla_agents.robots.robot import CameraSource, Reading, Robot

STILL = 0.02  # of an axis' range: what an arm that was not told to move may seem to move
WAY = 0.04  # of an axis' range that is driven
PACE = 0.25  # of the limits


def check_robot(robot: Robot, *, moves: bool = True) -> list[str]:
    """Try a robot that is not connected; it is closed in the end.

    Args:
        robot: To be tried.
        moves: Whether its axes may be driven.

    Returns:
        The names of the checks, all of which passed.

    Raises:
        RobotError: Lists every check that failed, and why. What makes all others pointless (it cannot be
            connected) is raised as it is.
    """
    check = _Checks(robot)
    try:
        check.description()
        if not check.failures:
            check.before_connect()
            robot.connect()
            check.connected()
            check.observing()
            check.commanding()
            check.refusing()
            check.home_and_stop()
            check.closing()
            if moves and not check.failures:
                check.moving()
            for source in robot.cameras:
                check.camera(source)
    finally:
        robot.close()
    if check.failures:
        listing = "\n".join(f"  - {name}: {problem}" for name, problem in check.failures)
        raise RobotError(
            f"{type(robot).__name__}: {len(check.failures)} of {len(check.names)} checks failed:\n{listing}",
            "vla_agents/robots/robot.py says what each call has to do",
        )
    return check.names


class _Checks:
    """One method per group of checks; what fails is kept, and the next one tried."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        self.names: list[str] = []
        self.failures: list[tuple[str, str]] = []

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """A check; an assertion or any other error in it is its failure."""
        self.names.append(name)
        try:
            yield
        except Exception as error:
            told = str(error).splitlines()[0] if str(error) else ""
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            self.failures.append((name, kind + told))

    # ---- before and after ---------------------------------------------------------------------------------
    def description(self) -> None:
        """Limits and embodiment are there and say the same."""
        with self.named("description"):
            limits, body = self.robot.limits, self.robot.embodiment
            assert isinstance(limits, Limits) and isinstance(body, Embodiment), "limits or embodiment missing"
            assert body.action_dim == len(limits), f"{body.action_dim} actions for {len(limits)} axes"
            space = body.action_space()
            off = ~(np.isclose(space.low, limits.low) & np.isclose(space.high, limits.high))
            wrong = [limits.names[i] for i in np.flatnonzero(off)]
            assert not wrong, f"the embodiment's bounds are not the limits' for {wrong}"
            assert not body.cameras, "cameras belong in `cameras`, not in the embodiment"

    def before_connect(self) -> None:
        """Nothing works, and closing is harmless."""
        with self.named("closing before connecting"):
            self.robot.close()
        for name, call in self._calls():
            with self.named(f"{name} before connect is refused"):
                _raises(RobotStateError, call)

    def connected(self) -> None:
        """Connecting twice is refused, and moves nothing."""
        with self.named("connecting twice is refused"):
            _raises(RobotStateError, self.robot.connect)
        with self.named("connecting moves nothing"):
            self._still(self.robot.observe().position, 0.3)

    def closing(self) -> None:
        """Closing twice is harmless; afterwards nothing works until the next connect."""
        with self.named("closing twice"):
            self.robot.close()
            self.robot.close()
        for name, call in self._calls():
            with self.named(f"{name} after close is refused"):
                _raises(RobotStateError, call)
        with self.named("connecting again"):
            self.robot.connect()
            self._reading()
            self.robot.close()

    def _calls(self) -> list[tuple[str, Callable[[], Any]]]:
        return [
            ("observe", self.robot.observe),
            ("command", lambda: self.robot.command(np.array(self.robot.limits.home))),
        ]

    # ---- measuring ----------------------------------------------------------------------------------------
    def observing(self) -> None:
        """Shapes, times, and that every reading is a new one."""
        robot, count = self.robot, len(self.robot.limits)
        with self.named("readings"):
            before = time.monotonic()
            reading = self._reading()
            after = time.monotonic()
            assert reading.position.shape == (count,), f"position has shape {reading.position.shape}"
            assert np.isfinite(reading.position).all(), "position is not finite"
            assert before - 0.05 <= reading.time <= after, (
                f"capture time {reading.time:.3f}, asked from {before:.3f} to {after:.3f} (time.monotonic)"
            )
            state = reading.position if reading.state is None else np.asarray(reading.state)
            assert state.shape == (robot.embodiment.state_dim,), f"state has shape {state.shape}"
            assert np.isfinite(state).all(), "state is not finite"
            effort = reading.effort
            assert effort is None or np.shape(effort) == (count,), f"effort has shape {np.shape(effort)}"
        with self.named("capture times grow"):
            times = [self._reading().time for _ in range(5)]
            assert (np.diff(times) > 0).all(), f"five readings at {np.round(times, 4).tolist()}"
        with self.named("a reading does not change afterwards"):
            first = self._reading()
            kept = first.position.copy()
            for _ in range(3):
                assert self._reading().position is not first.position, "one array for all readings"
            assert np.array_equal(kept, first.position), "a later reading has overwritten it"

    # ---- commanding ---------------------------------------------------------------------------------------
    def commanding(self) -> None:
        """What was sent comes back; nothing is changed; all within a period."""
        robot, limits = self.robot, self.robot.limits
        with self.named("command returns what was sent"):
            target = np.clip(self._reading().position, limits.low, limits.high)
            told = target.copy()
            sent = robot.command(target)
            assert isinstance(sent, np.ndarray) and sent.shape == (len(limits),), f"it returned {sent!r}"
            off = np.abs(sent - told)
            room = np.maximum(limits.resolution, 1e-6) * 1.01
            assert (off <= room).all(), (
                f"sent {off.max():.3g} away from the command, resolution {limits.resolution.max():.3g}"
            )
            assert np.array_equal(told, target), "command has changed its argument"
        with self.named("observe and command fit into a period"):
            period, taken = 1.0 / robot.embodiment.control_hz, []
            for _ in range(20):
                begun = time.monotonic()
                robot.command(np.clip(robot.observe().position, limits.low, limits.high))
                taken.append(time.monotonic() - begun)
            assert np.median(taken) < period, (
                f"{1e3 * float(np.median(taken)):.1f} ms of {1e3 * period:.1f} ms"
            )

    def refusing(self) -> None:
        """What is no command is refused, and the arm stays."""
        count = len(self.robot.limits)
        start = self._reading().position
        bad: dict[str, Any] = {
            "NaN": np.full(count, np.nan),
            "infinity": np.full(count, np.inf),
            "a value too few": np.zeros(count - 1),
            "a batch": np.zeros((1, count)),
            "words": np.array(["here"] * count),
        }
        for name, target in bad.items():
            with self.named(f"{name} is refused"):
                _raises(ActionError, lambda target=target: self.robot.command(target))  # type: ignore[misc]
        with self.named("what was refused moved nothing"):
            self._still(start, 0.1)

    def home_and_stop(self) -> None:
        """The way home is within the limits; asking for it, and stopping, move nothing."""
        limits = self.robot.limits
        with self.named("the way home"):
            here = self._reading().position
            way = [np.asarray(target) for target in self.robot.home(here.copy())]
            assert way and all(t.shape == (len(limits),) for t in way), "home() gives no targets"
            space = STILL * (limits.high - limits.low)
            inside = all(((t >= limits.low - space) & (t <= limits.high + space)).all() for t in way[-1:])
            assert inside, f"home {way[-1].tolist()} is outside of the limits"
            self._still(here, 0.1)
        with self.named("stop"):
            self.robot.stop()
            self._still(here, 0.2)

    def moving(self) -> None:
        """Each axis goes where it is told, alone, and comes back."""
        robot, limits = self.robot, self.robot.limits.scaled(PACE)
        with self.named("a control loop"):
            loop = ControlLoop(robot, robot.embodiment.control_hz, limits=limits)
            loop.connect()
            try:
                for index, name in enumerate(limits.names):
                    with self.named(f"axis {name} moves as told, and alone"):
                        _there_and_back(loop, index)
                assert not loop.stopped, loop.stopped
            finally:
                loop.close()

    def camera(self, source: CameraSource) -> None:
        """Pictures of the promised size, newer and newer."""
        with self.named(f"camera {source.camera.name}"):
            source.connect()
            try:
                first = source.latest()
                size = (source.camera.height, source.camera.width, 3)
                assert first.image.shape == size and first.image.dtype == np.uint8, (
                    f"{first.image.dtype} {first.image.shape}, expected uint8 {size}"
                )
                until = time.monotonic() + 2
                while source.latest().number == first.number and time.monotonic() < until:
                    time.sleep(0.01)
                assert first.time < source.latest().time <= time.monotonic(), "capture times do not grow"
            finally:
                source.close()
                source.close()

    # ---- inside -------------------------------------------------------------------------------------------
    def _reading(self) -> Reading:
        reading = self.robot.observe()
        assert isinstance(reading, Reading), f"observe() returned {type(reading).__name__}"
        return reading

    def _still(self, start: np.ndarray, seconds: float) -> None:
        until = time.monotonic() + seconds
        room = STILL * (self.robot.limits.high - self.robot.limits.low)
        while time.monotonic() < until:
            moved = np.abs(self._reading().position - start)
            assert (moved <= room).all(), f"it moved by {moved.max():.3g}"
            time.sleep(0.02)


def _there_and_back(loop: ControlLoop, index: int) -> None:
    """A little way to the side where there is more room, and back; the measured position has to follow."""
    limits, now = loop.limits, loop.now
    assert now.command is not None and now.reading is not None
    start, seen = now.command.copy(), now.reading.position.copy()
    way = WAY * (limits.high[index] - limits.low[index])
    middle = 0.5 * (limits.low[index] + limits.high[index])
    target = start.copy()
    target[index] += way if start[index] < middle else -way
    moved = (_drive(loop, target) - seen) / (limits.high - limits.low)
    share = float(moved[index] / (target - start)[index] * (limits.high - limits.low)[index])
    assert share > 0.5, f"told to go {way:.3g}, it went {share:.0%} of that"
    others = np.delete(np.abs(moved), index)
    assert not len(others) or others.max() < max(0.5 * WAY, STILL), "another axis moved"
    back = np.abs(_drive(loop, start) - seen) / (limits.high - limits.low)
    assert back[index] < 0.5 * WAY, "it did not come back"


def _drive(loop: ControlLoop, target: np.ndarray) -> np.ndarray:
    """Where the arm is measured when it has had time to get there."""
    limits = loop.limits
    assert loop.now.command is not None
    seconds = float(
        (
            np.abs(target - loop.now.command) / limits.velocity + 2 * limits.velocity / limits.acceleration
        ).max()
    )
    until = time.monotonic() + seconds + 0.3
    while time.monotonic() < until:
        loop.aim(target)
        loop.wait(loop.now.number + 1)
    assert loop.now.reading is not None
    return loop.now.reading.position


def _raises(kind: type[Exception], call: Callable[[], Any]) -> None:
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"it raised {type(error).__name__} ({error}), not {kind.__name__}") from error
    raise AssertionError(f"it was accepted; expected {kind.__name__}")
