"""The judge of the wire, where a command was answered by an error: what it has to let pass, and what it must notice."""

from __future__ import annotations

import numpy as np
import pytest
from robot_fakes import checker_for
from wire_checker import WireChecker

from vla_agents.robots.limits import Axis, Limits

T = 0.01  # s, the control period
V = 2.0  # the speed it goes at, and its limit


def wire(effort: float = np.inf) -> WireChecker:
    """One axis that has run up to its largest speed; its last command was 1.0, at time 0."""
    limits = Limits((Axis("a", -3.0, 3.0, V, 8.0, 0.0, lead=9.0, effort=effort),))
    checker = checker_for(limits, T)
    checker._last, checker._last_time, checker._tried = np.array([1.0]), 0.0, 0.0
    checker._last_v, checker._last_dt = np.array([V]), T
    return checker


def tell(checker: WireChecker, time: float, position: float = 1.0, effort: float = 0.0) -> None:
    checker.measured(time, np.array([position]), np.array([effort]))
    checker.wished(time, np.array([2.9]))


def late(checker: WireChecker, step: float, tried: float = T, comes: float = 2 * T) -> list[str]:
    """A command is lost; the next one that arrives is `step` further than the last that did."""
    tell(checker, tried)
    checker.doubted(tried)
    tell(checker, comes)
    checker.sent(comes, np.array([1.0 + step]))
    return checker.unsafe


@pytest.mark.parametrize(
    "tried, comes", [(T, 2 * T), (1.95 * T, 2.6 * T), (2.4 * T, 30 * T), (2.4 * T, 2.5 * T)]
)
def test_a_lost_step_may_come_late_and_no_more_than_that(tried, comes):
    assert not late(wire(), V * tried, tried, comes)
    assert "velocity" in late(wire(), V * tried + 0.003, tried, comes)[0]  # however long nothing came


def test_a_lost_step_is_as_hard_as_any_other():
    assert "velocity" in late(wire(), (V - 0.3) * T)[0]  # 8 rad/s2 in a period are 0.08
    assert "velocity" in late(wire(), 0.0)[0]


def test_lost_steps_do_not_add_up():
    for steps in (1, 2):
        checker = wire()
        for number in (1, 2):
            tell(checker, number * T)
            checker.doubted(number * T)
        tell(checker, 3 * T)
        checker.sent(3 * T, np.array([1.0 + steps * V * T]))
        assert bool(checker.unsafe) == (steps == 2)


def test_after_a_late_step_it_begins_from_rest():
    for speed in (0.08, 0.3):
        checker = wire()
        assert not late(checker, V * T)
        tell(checker, 3 * T)
        checker.sent(3 * T, np.array([1.0 + V * T + speed * T]))
        assert bool(checker.unsafe) == (speed > 0.1)


def test_nothing_moves_on_after_a_command_that_arrived_unnoticed():
    for speed in (0.0, 0.05, V):
        checker = wire()
        tell(checker, T)
        checker.sent(T, np.array([1.0 + V * T]))
        checker.doubted(T)
        tell(checker, 2 * T)
        checker.sent(2 * T, np.array([1.0 + V * T + speed * T]))
        assert bool(checker.unsafe) == (speed > 0)


@pytest.mark.parametrize("stopped_first", [True, False])
def test_a_step_from_before_a_stop_may_come_late_one_from_after_it_not(stopped_first):
    checker = wire()
    if stopped_first:
        checker.stopped()
    tell(checker, T)
    checker.doubted(T)
    checker.stopped()
    tell(checker, 2 * T)
    checker.sent(2 * T, np.array([1.0 + V * T]))
    assert bool(checker.unsafe) == stopped_first


@pytest.mark.parametrize("pushed_first", [True, False])
def test_a_step_from_before_it_pushed_may_come_late_one_from_after_it_not(pushed_first):
    checker = wire(effort=8.0)
    efforts = (10.0, 5.0) if pushed_first else (5.0, 10.0)
    tell(checker, T, 0.9, efforts[0])
    checker.doubted(T)
    tell(checker, 2 * T, 0.9, efforts[1])
    checker.sent(2 * T, np.array([1.0 + V * T]))
    assert bool(checker.unsafe) == pushed_first
    if pushed_first:
        assert "pushes on" in checker.unsafe[0]


def test_a_first_command_that_arrived_unnoticed_is_followed_by_one_where_it_is_measured_then():
    for second in (0.4, 0.5):
        checker = wire()
        checker.cleared(0.0)
        tell(checker, T, 0.2), tell(checker, 2 * T, 0.2)
        checker.sent(2 * T, np.array([0.2]))
        checker.doubted(2 * T)
        tell(checker, 3 * T, 0.3), tell(checker, 4 * T, 0.4)
        checker.sent(4 * T, np.array([second]))
        assert bool(checker.unsafe) == (second == 0.5)


def test_who_gives_way_goes_to_where_it_is_measured_and_no_further():
    near = 0.006  # of the range: here the sign of the effort counts no more
    for step, wrong in ((-0.0008, False), (0.0008, True)):
        for sign in (
            1.0,
            -1.0,
        ):  # of the effort, which drivers get wrong: then nobody can say which way it pushes
            checker = wire(effort=8.0)
            checker._last_v = np.zeros(1)
            checker.stopped()
            tell(checker, T, 1.0 - near, 10.0 * sign)
            checker.sent(T, np.array([1.0 + step]))
            assert bool(checker.unsafe) == wrong, (step, sign)
