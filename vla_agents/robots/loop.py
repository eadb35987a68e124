"""The thread that drives a robot: measure, filter, command, at a fixed rate, whatever the rest of the program does.

Nothing else talks to the robot between `connect` and `close`. Others say where the arm shall be (`aim`), see what
came of it (`now`), stop it (`stop`, from any thread) and take the stop back (`clear`). When they fall silent the
safety filter holds the arm; when the loop ends, for whatever reason, it brakes first and then closes the robot.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from vla_agents.errors import (
    ActionError,
    CalibrationError,
    CommunicationError,
    EmergencyStopError,
    RobotError,
    RobotStateError,
)
from vla_agents.robots.estop import EStop
from vla_agents.robots.limits import Limits
from vla_agents.robots.loop_tools import Aim, Now, RareLog, favour_this_thread, quick_switching
from vla_agents.robots.robot import Reading, Robot
from vla_agents.robots.safety import SafetyFilter, Target
from vla_agents.robots.timing import RateReport, Ticker

logger = logging.getLogger(__name__)

OUTSIDE = 0.1  # of an axis' range: an arm that is further out than this is not calibrated


class ControlLoop:
    """Drives a robot.

    Args:
        robot: Not connected yet.
        hz: Rate of the loop.
        limits: To keep to; by default the robot's own. Tighter ones are fine: `robot.limits.scaled(0.3)`.
        estop: Emergency stops it obeys, beside its own `stop`.
        clock: Monotonic time; the robot's readings carry times of the same clock.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        robot: Robot,
        hz: float,
        *,
        limits: Limits | None = None,
        estop: EStop | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.robot, self.limits = robot, limits or robot.limits
        self.estop = estop or EStop()
        self._clock, self._sleep = clock, sleep
        self._ticker = Ticker(hz, clock, sleep)
        self.period = self._ticker.period
        self._filter = SafetyFilter(self.limits, self.period)
        self._log = RareLog()
        self._thread: threading.Thread | None = None
        self._started = False
        self._ended = threading.Event()
        self._ticked = threading.Condition()
        self._aim: Aim | None = None
        self._clear = False  # asked for
        self._stop = ""  # asked for, and why
        self._fault: Exception | None = None
        self._lost: dict[str, float] = {}  # "observe", "command" -> since when it fails
        self._reading: Reading | None = None
        self.now = Now(0, clock(), None, None, "waiting")

    # ---- the caller's side --------------------------------------------------------------------------------
    def connect(self, timeout: float = 3.0, *, thread: bool = True) -> None:
        """Connect the robot and start the loop; returns when the first command (stay where you are) is out.

        Args:
            timeout: For that, s.
            thread: Start a thread. Without one the caller calls `tick`.

        Raises:
            RobotStateError: Started already; a loop is used once.
            CalibrationError: The arm claims to be where it cannot be.
            RobotError: What the driver raises, or no readings that agree. The robot is closed again.
        """
        if self._started or self._ended.is_set():
            raise RobotStateError("this control loop was started before", "make a new one")
        self.robot.connect()
        self._started = True
        if not thread:
            return
        self._thread = threading.Thread(target=self._run, name="robot", daemon=True)
        self._thread.start()
        try:
            self._until(lambda: self.now.command is not None, timeout)
            self.check()
            if self.now.command is None:
                raise CommunicationError(
                    f"the robot gave no two readings in {timeout:g} s that agree", "check cables and power"
                )
            self._check_posture(self.now.command)
        except BaseException:
            self.close()
            raise

    def _check_posture(self, position: np.ndarray) -> None:
        room = OUTSIDE * (self.limits.high - self.limits.low)
        wrong = (position < self.limits.low - room) | (position > self.limits.high + room)
        if wrong.any():
            listing = ", ".join(
                f"{axis.name} at {value:.3g} {axis.unit}, range {axis.low:.3g} .. {axis.high:.3g}"
                for axis, value, bad in zip(self.limits.axes, position, wrong, strict=True)
                if bad
            )
            raise CalibrationError(
                f"the arm claims to be where it cannot be: {listing}", "calibrate this arm anew"
            )

    def aim(self, target: np.ndarray | None, ticks: int = 0, *, drive: bool = False) -> None:
        """Where the arm shall be: at once, or in a straight line within so many ticks. None: hold.

        Counts as a sign of life of the agent. Not checked here: everything passes the safety filter.

        Args:
            target: (J,)
            ticks: See above.
            drive: It is a place to drive to as fast as may be; that velocity and acceleration are limited is meant so, and
                not logged (it is counted).

        Raises:
            RobotError: The loop has ended, the stop is latched, or the robot has failed.
        """
        self.check()
        now = self.now
        if target is None or now.command is None:
            self._aim = None
            return
        goal, last = np.array(target, np.float64), self._aim
        start = now.command
        if goal.shape != start.shape:
            raise ActionError(f"a target of shape {goal.shape}, expected {start.shape}")
        if last is not None:
            ideal = last.at(now.number)
            near = np.abs(ideal - start) <= 2 * self.limits.velocity * self.period
            start = np.where(near, ideal, start)
        self._aim = Aim(start, goal, now.number, ticks, self._clock(), drive)

    def wait(self, number: int, timeout: float = 1.0) -> Now:
        """Wait until tick `number` is over.

        Raises:
            RobotError: As `aim`; or the loop stands still.
        """
        if not self._until(lambda: self.now.number >= number, timeout + self.period):
            raise RobotError("the control loop stands still", "a driver call blocks: it needs a timeout")
        self.check()
        return self.now

    def _until(self, done: Callable[[], bool], timeout: float) -> bool:
        with self._ticked:
            return self._ticked.wait_for(
                lambda: done() or self._ended.is_set() or self._fault is not None, timeout
            )

    def check(self) -> None:
        """Raise what keeps the arm from moving, if anything does.

        Raises:
            RobotStateError: The loop does not run.
            EmergencyStopError: The stop is latched.
            RobotError: The robot has failed; the driver's own error.
        """
        if self._fault is not None:
            raise self._fault
        if not self.running:
            raise RobotStateError("the robot is not connected", "call connect() (RobotEnv: reset()) first")
        reason = self.stopped
        if reason:
            raise EmergencyStopError(f"stopped: {reason}", "when it is safe: clear(), then reset()")

    @property
    def running(self) -> bool:
        """Whether it drives the robot."""
        return self._started and not self._ended.is_set()

    @property
    def stopped(self) -> str:
        """Why the stop is latched, or about to be; empty where it is not."""
        return self._stop or self.estop.reason or self._filter.reason

    def stop(self, reason: str = "stop() was called") -> None:
        """Latch the stop, from any thread or signal handler: the arm brakes with its next tick and holds."""
        self._stop = self._stop or reason

    def clear(self, timeout: float = 5.0) -> None:
        """Take the stop back: the loop measures where the arm is and holds it there.

        Raises:
            RobotError: The arm still moves, or the robot still fails.
        """
        if not self.running:
            raise RobotStateError("the robot is not connected", "make the env anew")
        self._aim, self._stop, self._fault = None, "", None
        self.estop.clear()
        self._clear = True
        if not self._until(lambda: not self._clear and self.now.command is not None, timeout):
            raise RobotError(
                "the stop could not be cleared: no readings that agree", "check cables and power"
            )
        self.check()

    def report(self) -> RateReport:
        """How well the rate was kept."""
        return self._ticker.report()

    def close(self, timeout: float = 5.0) -> None:
        """Brake, end the loop, close the robot. May be called twice, from any thread."""
        begun = self.running
        self._ended.set()
        thread = self._thread
        if thread is None and begun:  # connected without one
            self._brake()
            self._close_robot()
        if thread is None or thread is threading.current_thread():  # garbage is collected in any thread
            return
        thread.join(timeout)
        if thread.is_alive():
            logger.error("a driver call blocks for more than %g s: closing the robot all the same", timeout)
            self._close_robot()
            self._thread = None

    # ---- the loop's side ----------------------------------------------------------------------------------
    def _run(self) -> None:
        logger.debug("scheduling: %s", favour_this_thread())
        with quick_switching():
            while not self._ended.is_set():
                self.tick()
            self._brake()
        self._close_robot()
        with self._ticked:
            self._ticked.notify_all()

    def _brake(self) -> None:
        """Tick on until the commands have come to rest."""
        slowest = float((self.limits.velocity / self.limits.acceleration).max())
        for _ in range(int((slowest + 0.1) / self.period) + 3):
            self._filter.stop("the control loop ends")
            self.tick()
            if not self._filter.moving:
                return

    def _close_robot(self) -> None:
        for last in (self.robot.stop, self.robot.close) if self._lost or self._fault else (self.robot.close,):
            try:
                last()
            except Exception as error:
                logger.error("%s.%s failed: %s", type(self.robot).__name__, last.__name__, error)

    def tick(self) -> None:
        """Wait for the next period; measure, decide, send. Called by the loop's thread, or where it was connected
        without one, by the caller."""
        now = self._ticker.wait()
        try:
            self._tick(now)
        except Exception as error:  # a mistake in here must not end the thread that holds the arm
            self._failed("control", error, now)

    def _tick(self, now: float) -> None:
        self._observe(now)
        reason = self._stop or self.estop.reason
        if reason:
            self._filter.stop(reason)
            self._clear = False  # stopped again since clear() was called
        elif self._clear:
            self._filter.stop("")  # also where a stop is taken back before it was carried out: begin anew
            self._clear = not self._filter.clear(now)
        number = self._ticker.number
        aim = self._aim if "command" not in self._lost else None  # what does not get through is not followed
        decision = self._filter.step(
            now, self._reading, None if aim is None else Target(aim.at(number), aim.time)
        )
        command = None
        if decision.command is not None:
            command = self._command(decision.command, now)
        if not self._ended.is_set():
            meant = ("velocity", "acceleration") if aim is not None and aim.drive else ()
            for line in self._log.lines(tuple(n for n in decision.interventions if n not in meant), now):
                logger.warning("safety: %s", line)
        with self._ticked:
            self.now = Now(number, now, self._reading, command, decision.state, Counter(self._filter.counts))
            self._ticked.notify_all()

    def _observe(self, now: float) -> None:
        try:
            self._reading = self.robot.observe()
        except Exception as error:
            self._failed("observe", error, now)
        else:
            self._lost.pop("observe", None)

    def _command(self, target: np.ndarray, now: float) -> np.ndarray | None:
        """What was really sent, or the last that is known to have been."""
        try:
            sent = np.array(self.robot.command(target.copy()), np.float64)
            if sent.shape != target.shape or not np.isfinite(sent).all():
                raise RobotError(
                    f"the driver says that it sent {sent.tolist()}", "command() returns what it sent"
                )
        except Exception as error:
            self._filter.unsure()
            self._failed("command", error, now)
            return self.now.command
        self._lost.pop("command", None)
        self._filter.sent(sent)
        return sent

    def _failed(self, call: str, error: Exception, now: float) -> None:
        """A lost connection may come back for a while; everything else latches the stop."""
        since = self._lost.setdefault(call, now)
        passing = isinstance(error, CommunicationError) and now - since < self.limits.give_up
        if passing or self._fault is not None:
            return
        logger.error("%s.%s failed: %s", type(self.robot).__name__, call, error)
        self._filter.stop(f"{call} failed: {error}")
        if isinstance(error, CommunicationError) and call == "command":
            with contextlib.suppress(Exception):  # what failed is told already
                self.robot.stop()
        self._fault = error
