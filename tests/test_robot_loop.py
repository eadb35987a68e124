"""The control loop: its rate, its errors, its ends; nothing but what the filter lets through reaches the robot."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from robot_fakes import Clock, RecordingRobot, planar_limits

from vla_agents.errors import (
    CalibrationError,
    CommunicationError,
    ConfigError,
    EmergencyStopError,
    MotorError,
    RobotError,
    RobotStateError,
)
from vla_agents.robots.estop import EStop
from vla_agents.robots.loop import ControlLoop
from vla_agents.robots.timing import Ticker

HZ = 100.0


def made(**options) -> tuple[ControlLoop, RecordingRobot, Clock]:
    """A loop without a thread, on a clock that only passes when it sleeps."""
    clock = Clock()
    robot = RecordingRobot(clock=clock, period=1 / HZ, **options)
    return ControlLoop(robot, HZ, clock=clock, sleep=clock.sleep), robot, clock


def started(ticks: int = 5, **options) -> tuple[ControlLoop, RecordingRobot, Clock]:
    loop, robot, clock = made(**options)
    loop.connect(thread=False)
    for _ in range(ticks):
        loop.tick()
    return loop, robot, clock


# ---- the rate ---------------------------------------------------------------------------------------------
def test_deadlines_do_not_drift():
    clock = Clock(5.0)
    ticker = Ticker(50.0, clock, clock.sleep)
    begun = []
    for tick in range(100):
        begun.append(ticker.wait())
        clock.now += 0.001 * (tick % 15)  # work of 0 to 14 ms
    np.testing.assert_allclose(np.diff(begun), 0.02)
    assert begun[-1] == pytest.approx(5.0 + 99 / 50) and ticker.missed == 0
    report = ticker.report()
    assert report.p50 == pytest.approx(1.0) and report.longest == pytest.approx(1.0)
    assert report.busy == pytest.approx(0.35, abs=0.05) and "50 Hz: 100 ticks, 0 missed" in str(report)


def test_ticks_that_come_too_late_are_left_out_and_counted():
    clock = Clock()
    ticker = Ticker(100.0, clock, clock.sleep)
    first = ticker.wait()
    clock.now += 0.057
    assert ticker.wait() == pytest.approx(first + 0.06)
    assert (ticker.number, ticker.missed) == (7, 5)
    clock.now += 0.012  # less than half a period late: carried out at once
    assert ticker.wait() == pytest.approx(first + 0.072)
    assert ticker.wait() == pytest.approx(first + 0.08)
    assert ticker.missed == 5
    with pytest.raises(ConfigError, match="rate"):
        Ticker(0)


def test_the_loop_keeps_its_rate_in_real_time():
    robot = RecordingRobot(hz=50)
    loop = ControlLoop(robot, 50)
    loop.connect()
    time.sleep(0.6)
    loop.close()
    report = loop.report()
    assert report.ticks + report.missed >= 28
    assert report.p50 == pytest.approx(1.0, abs=0.2)
    assert robot.calls[-1] == "close"


# ---- what reaches the robot -------------------------------------------------------------------------------
def test_a_target_is_approached_in_a_straight_line():
    loop, robot, _ = started()
    home = robot.limits.home
    goal = home + np.array([0.001, -0.002, 0.0002, -0.003])
    for _ in range(4):
        loop.aim(home + 0.0)
        loop.tick()
    loop.aim(goal, ticks=4)
    sent = []
    for _ in range(6):
        loop.tick()
        sent.append(loop.now.command)
    np.testing.assert_allclose(
        sent, [home + s * (goal - home) for s in (0.25, 0.5, 0.75, 1, 1, 1)], atol=2e-3
    )
    np.testing.assert_allclose(sent[-1], goal)
    np.testing.assert_array_equal(sent[-1], robot.wire[-1][1])


def test_the_robot_sees_nothing_but_filtered_commands():
    loop, robot, clock = started()
    rng = np.random.default_rng(0)
    checker = robot.checker
    for tick in range(400):
        target = rng.uniform(-9, 9, 4) if tick % 7 else np.full(4, np.nan)
        loop.aim(target)
        checker.wished(clock.now, target)
        loop.tick()
    for at, command in robot.wire:
        assert np.isfinite(command).all() and at <= clock.now
    assert (np.abs(np.diff([c for _, c in robot.wire], axis=0)) <= robot.limits.velocity / HZ + 1e-9).all()
    assert loop.now.counts["velocity"] and loop.now.counts["not_finite"]


def test_a_driver_cannot_change_the_filters_numbers():
    loop, robot, _ = started()
    robot.trouble["command"] = lambda: None
    original = robot.command

    def meddling(target: np.ndarray) -> np.ndarray:
        sent = original(target).copy()
        target += 100.0
        return sent

    robot.command = meddling
    for _ in range(3):
        loop.aim(robot.limits.home)
        loop.tick()
    np.testing.assert_array_equal(robot.wire[-1][1], robot.limits.home)


def test_a_driver_that_sends_something_far_from_what_it_was_told_is_stopped():
    loop, robot, _ = started()
    original = robot.command
    robot.command = lambda target: original(target) + np.array([0, 2.0, 0, 0])
    loop.aim(robot.limits.home)
    loop.tick()
    loop.tick()
    with pytest.raises(EmergencyStopError, match="told"):
        loop.check()


# ---- stops ------------------------------------------------------------------------------------------------
def test_stop_from_another_thread_is_latched_until_clear():
    loop, robot, _ = started()
    for _ in range(10):
        loop.aim(robot.limits.home - 1)
        loop.tick()
    thread = threading.Thread(target=loop.stop, args=("red button",))
    thread.start()
    thread.join()
    with pytest.raises(EmergencyStopError, match="red button"):
        loop.aim(robot.limits.home)
    for _ in range(60):
        loop.tick()
    assert loop.now.state == "stopped"
    rest = loop.now.command
    loop.tick()
    np.testing.assert_array_equal(loop.now.command, rest)


def test_an_estop_stops_every_robot_that_obeys_it():
    estop = EStop()
    loops = [ControlLoop(RecordingRobot(hz=50), 50, estop=estop) for _ in range(2)]
    for loop in loops:
        loop.connect()
    estop.trip("both")
    for loop in loops:
        with pytest.raises(EmergencyStopError, match="both"):
            loop.wait(loop.now.number + 3)
        deadline = time.monotonic() + 2
        while loop.now.state != "stopped" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert loop.now.state == "stopped"
    for loop in loops:
        loop.clear()
        assert loop.now.state in ("holding", "waiting") and not loop.stopped
        loop.close()


# ---- trouble ----------------------------------------------------------------------------------------------
def test_a_lost_connection_that_comes_back_is_bridged():
    loop, robot, _ = started()
    loop.aim(robot.limits.home)
    loop.tick()
    robot.trouble["observe"] = CommunicationError("no answer")
    for _ in range(40):
        loop.aim(robot.limits.home)
        loop.tick()
    assert loop.now.state == "holding" and loop.now.counts["stale_reading"]
    del robot.trouble["observe"]
    for _ in range(3):
        loop.aim(robot.limits.home)
        loop.tick()
    assert loop.now.state == "running"


@pytest.mark.parametrize("call", ["observe", "command"])
def test_a_connection_that_stays_lost_reaches_the_caller_and_latches(call):
    loop, robot, _ = started()
    robot.trouble[call] = CommunicationError("no answer")
    for _ in range(int(HZ * robot.limits.give_up) - 5):
        loop.aim(robot.limits.home)
        loop.tick()
    for _ in range(10):
        loop.tick()
    with pytest.raises(CommunicationError, match="no answer"):
        loop.aim(robot.limits.home)
    assert loop.stopped
    del robot.trouble[call]
    loop.tick()
    with pytest.raises(CommunicationError):  # latched all the same
        loop.check()


def test_commands_that_do_not_get_through_do_not_add_up():
    loop, robot, _ = started(limits=planar_limits(box=False))
    for _ in range(30):
        loop.aim(robot.limits.home - 1)
        loop.tick()
    last, step = robot.wire[-1][1], np.abs(robot.wire[-1][1] - robot.wire[-2][1])
    robot.trouble["command"] = CommunicationError("lost")
    for _ in range(20):
        loop.aim(robot.limits.home - 1)
        loop.tick()
    del robot.trouble["command"]
    loop.aim(robot.limits.home - 1)
    loop.tick()
    # The first that gets through is the one that was lost first: a step away, not twenty.
    assert (np.abs(robot.wire[-1][1] - last) <= 1.1 * step + 1e-9).all()
    for _ in range(3):
        loop.aim(robot.limits.home - 1)
        loop.tick()
    assert loop.now.state == "running"


@pytest.mark.parametrize("nonsense", [None, np.full(4, np.nan), np.zeros(3)])
def test_a_driver_that_does_not_say_what_it_sent_is_stopped(nonsense):
    loop, robot, _ = started()
    robot.command = lambda target: nonsense
    loop.tick()
    with pytest.raises((RobotError, TypeError), match="says that it sent"):
        loop.check()
    assert np.isfinite(loop.now.command).all()


def test_a_stop_that_comes_after_clear_wins():
    estop = EStop()
    loop, _, _ = started()
    loop.estop = estop
    loop.stop("first")
    for _ in range(3):
        loop.tick()
    with pytest.raises(RobotError):
        loop.clear(timeout=0.0)
    estop.trip("again")
    loop.tick()
    estop.clear()
    for _ in range(5):
        loop.tick()
    assert loop.stopped == "first" and loop.now.state == "stopped"


@pytest.mark.parametrize("error", [MotorError("motor 3 is overheated"), ZeroDivisionError("a bug")])
def test_any_other_error_latches_at_once(error):
    loop, robot, _ = started()
    robot.trouble["observe"] = error
    loop.tick()
    with pytest.raises(type(error), match=str(error)):
        loop.check()
    sent = len(robot.wire)
    loop.tick()
    assert len(robot.wire) == sent + 1  # it goes on holding


def test_an_arm_that_claims_to_be_elsewhere_is_refused_and_closed():
    robot = RecordingRobot(hz=50, start=np.array([0.3, 9.0, 0.2, 1.0]))
    with pytest.raises(CalibrationError, match="elbow at 9"):
        ControlLoop(robot, 50).connect()
    assert robot.calls[-1] == "close"
    assert np.ptp([c[1] for _, c in robot.wire]) == 0  # it was not moved


def test_a_robot_that_cannot_be_read_is_refused_and_closed():
    robot = RecordingRobot(hz=50, limits=planar_limits(give_up=5.0))
    robot.trouble["observe"] = CommunicationError("no answer")
    with pytest.raises(CommunicationError, match="no two readings"):
        ControlLoop(robot, 50).connect(timeout=0.3)
    assert robot.calls[-1] == "close" and not robot.wire


def test_connecting_twice_and_calls_in_the_wrong_order():
    loop, robot, _ = made()
    with pytest.raises(RobotStateError, match="not connected"):
        loop.aim(robot.limits.home)
    loop.connect(thread=False)
    with pytest.raises(RobotStateError, match="started before"):
        loop.connect()
    loop.close()
    loop.close()
    with pytest.raises(RobotStateError):
        loop.aim(robot.limits.home)
    with pytest.raises(RobotStateError):
        loop.clear()


def test_closing_brakes_first():
    loop, robot, _ = started(limits=planar_limits(box=False))
    for _ in range(30):
        loop.aim(robot.limits.home - 1)
        loop.tick()
    loop.close()
    assert robot.calls[-1] == "close"
    ways = np.array([c for _, c in robot.wire])
    speeds = np.abs(np.diff(ways, axis=0)) * HZ
    assert (speeds[-1] == 0).all() and (speeds[28] > 0.5 * robot.limits.velocity[:1]).any()
    assert (np.abs(np.diff(speeds, axis=0)) <= robot.limits.acceleration / HZ * 1.001).all()


def test_a_driver_that_blocks_does_not_block_close_for_ever():
    robot = RecordingRobot(hz=50)
    loop = ControlLoop(robot, 50)
    loop.connect()
    release = threading.Event()
    robot.trouble["observe"] = lambda: release.wait(20)
    time.sleep(0.1)
    with pytest.raises(RobotError, match="stands still"):
        loop.wait(loop.now.number + 2, timeout=0.2)
    loop.close(timeout=0.3)
    assert robot.calls[-1] == "close"
    release.set()
