"""Whatever agents, sensors and clocks do: nothing unsafe is sent, and what is safe passes unchanged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from robot_fakes import checker_for, planar_limits
from wire_checker import WireChecker

from vla_agents.errors import ConfigError
from vla_agents.robots.limits import Axis, Limits
from vla_agents.robots.motion import Motion
from vla_agents.robots.robot import Reading
from vla_agents.robots.safety import HOLDING, RUNNING, STOPPED, WAITING, Decision, SafetyFilter, Target

PERIOD = 0.01
LIMITS = planar_limits()
HOME = LIMITS.home


class Arm:
    """A filter, an arm that follows its commands with a lag, and a checker between the two."""

    def __init__(self, limits: Limits = LIMITS, start: np.ndarray | None = None) -> None:
        self.limits = limits
        self.filter = SafetyFilter(limits, PERIOD)
        self.wire: WireChecker = checker_for(limits, PERIOD)
        self.position = np.array(limits.home if start is None else start, float)
        self.goal = self.position
        self.now = 100.0
        self.reading: Reading | None = None
        self.target: Target | None = None
        self.decision = Decision(None, WAITING)
        self.failing = False  # the last command was answered by an error

    def measure(self, **changes: object) -> None:
        """A new reading; `changes` of it."""
        self.reading = Reading(**({"position": self.position.copy(), "time": self.now} | changes))  # type: ignore[arg-type]
        self.wire.measured(self.reading.time, self.reading.position, self.reading.effort)

    def aim(self, position: np.ndarray, age: float = 0.0) -> None:
        self.target = Target(np.asarray(position, float), self.now - age)
        self.wire.wished(self.target.time, self.target.position)

    def stop(self) -> None:
        self.filter.stop("test")
        self.wire.stopped()

    def clear(self) -> bool:
        latched = bool(self.filter.reason)
        done = self.filter.clear(self.now)
        if latched and done:
            self.wire.cleared(self.now)
        return done

    def tick(self, dt: float = PERIOD, follow: float = 0.4, fails: str = "") -> Decision:
        """Time passes, the arm follows its last goal, the filter decides, the command goes out; or it is "lost", or
        arrives "unnoticed", both with an error, as `ControlLoop` would tell the filter."""
        self.now += dt
        self.position = self.position + follow * (self.goal - self.position)
        self.decision = self.filter.step(self.now, self.reading, None if self.failing else self.target)
        why = self.decision.interventions
        assert len(set(why)) == len(why) and (self.limits.workspace is not None or "workspace" not in why)
        if self.decision.command is not None:
            step = self.limits.resolution
            sent = self.decision.command.copy()
            sent = np.where(step > 0, np.round(sent / np.where(step > 0, step, 1)) * step, sent)
            if fails != "lost":
                self.wire.sent(self.now, sent)
                self.goal = sent
            self.failing = bool(fails)
            if fails:
                self.wire.doubted(self.now)
                self.filter.unsure()
            else:
                self.filter.sent(sent)
        if self.filter.reason:
            self.wire.stopped()
        return self.decision

    def run(self, target: np.ndarray | None, ticks: int) -> list[Decision]:
        """Measure, aim and tick."""
        found = []
        for _ in range(ticks):
            self.now += PERIOD
            self.measure()
            if target is not None:
                self.aim(target)
            self.now -= PERIOD
            found.append(self.tick())
        return found

    @property
    def commands(self) -> np.ndarray:
        return self.goal


def ready(box: bool = True) -> Arm:
    arm = Arm(planar_limits(box))
    arm.run(HOME, 5)
    assert arm.decision.state == RUNNING
    return arm


# ---- one thing at a time ----------------------------------------------------------------------------------
def test_nothing_is_sent_before_two_readings_agree():
    arm = Arm()
    assert arm.tick().command is None
    arm.measure()
    assert arm.tick().command is None  # one reading
    assert arm.tick().command is None  # the same one again
    arm.measure(position=arm.position + 1.0)
    assert arm.tick().command is None  # a glitch
    arm.measure(position=arm.position + 1.0)
    decision = arm.tick()
    np.testing.assert_array_equal(decision.command, arm.position + 1.0)
    assert decision.state == HOLDING


def test_the_first_command_is_where_the_arm_is_measured_not_where_the_agent_wants_it():
    arm = Arm(start=np.array([-0.2, 1.5, 0.1, 0.0]))
    (*_, first) = arm.run(HOME, 2)
    np.testing.assert_array_equal(first.command, [-0.2, 1.5, 0.1, 0.0])
    arm.run(HOME, 400)
    np.testing.assert_allclose(arm.goal, HOME, atol=1e-9)
    assert not arm.wire.unsafe


def test_what_is_within_all_limits_passes_unchanged():
    arm = ready()
    for k in range(300):
        wave = HOME + 0.1 * (1 - np.cos(k * PERIOD * 2.0)) * np.array([-1, -1, 0.3, -1])
        (decision,) = arm.run(wave, 1)
        np.testing.assert_array_equal(decision.command, wave)
        assert decision.interventions == ()


def test_a_jump_becomes_a_motion_at_the_limits_that_ends_at_the_target():
    arm = ready(box=False)
    target = np.array([-0.9, -0.5, 0.3, 0.0])
    found = arm.run(target, 300)
    assert {"velocity", "acceleration"} <= set(arm.filter.counts)
    np.testing.assert_allclose(found[-1].command, target, atol=1e-9)
    ways = np.array([d.command for d in found])
    speeds = np.abs(np.diff(ways, axis=0) / PERIOD).max(0)
    assert (speeds[:3] > 0.9 * np.minimum(LIMITS.velocity[:3], 1.2)).all()  # not slower than need be
    overshoot = (ways - target) * np.sign(target - HOME)
    assert (overshoot.max(0) < 0.01 * (LIMITS.high - LIMITS.low)).all()
    assert not arm.wire.unsafe


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_target_that_is_not_finite_brakes(bad):
    arm = ready()
    arm.run(HOME + 1.0, 10)
    assert arm.filter.moving
    (decision,) = arm.run(np.array([0, bad, 0, 0]), 1)
    assert decision.state == HOLDING and decision.interventions == ("not_finite",)
    arm.run(np.array([0, bad, 0, 0]), 50)
    assert not arm.filter.moving and not arm.wire.unsafe


def test_a_silent_policy_and_a_blind_robot_stop_within_a_period_and_the_timeout():
    for silent in ("watchdog", "stale_reading"):
        arm = ready()
        arm.run(HOME - np.array([1.5, 0, 0, 0]), 10)
        limit = LIMITS.watchdog if silent == "watchdog" else LIMITS.stale_after
        last = arm.now
        while not arm.filter.counts[silent]:
            if silent == "watchdog":
                arm.measure(time=arm.now + PERIOD)
            else:
                arm.aim(HOME - np.array([1.5, 0, 0, 0]))
            arm.tick()
        assert arm.decision.state == HOLDING
        assert limit <= arm.now - last <= limit + 2 * PERIOD
        arm.run(None if silent == "watchdog" else HOME, 1)
        arm.run(HOME, 300)
        assert arm.decision.state == RUNNING  # goes on by itself
        np.testing.assert_allclose(arm.goal, HOME, atol=1e-9)
        assert not arm.wire.unsafe


def test_a_stop_is_latched_until_clear_and_fresh_readings_and_a_fresh_target():
    arm = ready()
    arm.run(HOME + 0.5, 10)
    arm.stop()
    arm.run(HOME + 0.5, 1)
    assert not arm.clear()  # it still brakes
    arm.run(HOME + 0.5, 100)
    assert arm.decision.state == STOPPED and arm.decision.interventions == ("stop",)
    assert arm.clear()
    for _ in range(10):  # no new reading, no new target
        assert arm.tick() == Decision(None, WAITING)
    held = arm.position
    for tick in range(10):  # readings, and the target of before
        arm.measure(time=arm.now + PERIOD)
        assert arm.tick().state == (HOLDING if tick else WAITING)
        np.testing.assert_allclose(arm.goal, held, atol=1e-6)
    arm.run(HOME, 200)
    assert arm.decision.state == RUNNING
    np.testing.assert_allclose(arm.goal, HOME, atol=1e-9)
    assert not arm.wire.unsafe


def test_an_arm_that_was_moved_while_nobody_looked_is_not_commanded_back():
    arm = ready()
    arm.aim(HOME)
    for _ in range(40):
        arm.tick()  # no readings
    assert "stale_reading" in arm.decision.interventions
    arm.position = arm.goal = HOME + np.array([0, 1.8, 0, 0])
    arm.measure()
    decision = arm.tick()
    assert decision.command is None and decision.state == STOPPED
    assert "not where it was" in arm.filter.reason
    arm.run(HOME, 20)
    assert arm.decision.command is None
    arm.clear()
    arm.run(HOME, 3)
    assert np.abs(arm.goal - arm.position)[1] < 0.05  # begins where it is
    assert not arm.wire.unsafe


@pytest.mark.parametrize("sign", [1, -1])  # -1: a driver that got it wrong
def test_a_gripper_that_pushes_too_hard_gives_way(sign):
    arm = ready()
    closed = HOME * [1, 1, 1, 0]
    arm.run(closed, 20)
    blocked = arm.position[3] + 0.05
    depths = []
    for _ in range(200):
        arm.now += PERIOD
        push = -20.0 * max(blocked - arm.goal[3], 0.0)  # a spring between command and object
        arm.measure(
            position=np.array([*arm.position[:3], blocked]), effort=np.array([np.nan, 0, 0, sign * push])
        )
        arm.aim(closed)
        arm.now -= PERIOD
        arm.tick()
        depths.append(push)
    assert arm.filter.counts["effort"]
    assert min(depths[-50:]) > -6.0 and max(depths[-50:]) < -2.0  # holds it, near the limit of 5
    assert not arm.wire.unsafe


def test_a_blocked_joint_is_not_pushed_further_than_the_lead():
    arm = ready(box=False)
    stuck = arm.position.copy()
    for _ in range(300):
        arm.now += PERIOD
        arm.measure(position=stuck)
        arm.aim(HOME - np.array([1.7, 0, 0, 0]))
        arm.now -= PERIOD
        arm.tick()
    assert abs(arm.goal[0] - stuck[0]) <= LIMITS.lead[0] + 1e-9
    assert arm.filter.counts["lead"]


def test_the_tip_stays_in_the_box_and_slides_along_it():
    arm = ready()
    arm.run(np.array([0.0, 0.0, 0.39, 1.0]), 300)  # stretched out, over the box' edge in x and z
    assert arm.filter.counts["workspace"]
    tip = LIMITS.workspace.points(arm.goal[None])[0, 1]
    assert 0.40 < tip[0] <= 0.5 and 0.34 < tip[2] <= 0.35
    assert not arm.wire.unsafe


def test_a_late_tick_is_no_leap():
    arm = ready()
    arm.run(HOME - 1.0, 20)
    before = arm.goal
    arm.measure(time=arm.now + 0.15)
    arm.aim(HOME - 1.0)
    arm.tick(0.15)
    assert (np.abs(arm.goal - before) <= LIMITS.velocity * PERIOD).all()
    assert arm.tick(0.0).command is None and arm.tick(-1.0).command is None


def test_a_driver_that_sends_something_else_is_followed():
    arm = ready()
    arm.run(HOME + 0.3, 5)
    arm.filter.sent(arm.goal - 0.02)
    moved = arm.goal - 0.02
    arm.now += PERIOD
    arm.measure(), arm.aim(HOME + 0.3)
    command = arm.filter.step(arm.now, arm.reading, arm.target).command
    assert (np.abs(command - moved) <= LIMITS.acceleration * PERIOD**2 + 1e-12).all()


def test_limits_that_make_no_sense_are_refused():
    for wrong in (
        {"low": 1, "high": 0},
        {"velocity": 0},
        {"home": 5},
        {"acceleration": np.nan},
        {"lead": -1},
    ):
        with pytest.raises(ConfigError):
            Axis(**({"name": "a", "low": -1, "high": 1, "velocity": 1, "acceleration": 1, "home": 0} | wrong))
    with pytest.raises(ConfigError, match="different names"):
        Limits(axes=(LIMITS.axes[0], LIMITS.axes[0]))
    with pytest.raises(ConfigError, match="period"):
        SafetyFilter(LIMITS, 0)
    with pytest.raises(ConfigError, match="factors"):
        LIMITS.scaled(2.0)
    assert (LIMITS.scaled(0.5).velocity == LIMITS.velocity / 2).all()


# ---- commands that fail ------------------------------------------------------------------------------------
def one_axis(velocity: float, acceleration: float, effort: float = np.inf) -> Arm:
    axis = Axis("a", -2.0, 2.0, velocity, acceleration, 0.1, effort=effort)
    arm = Arm(Limits((axis,)))
    arm.run(arm.limits.home, 5)
    return arm


def step(arm: Arm, dt: float = PERIOD, fails: str = "", **measured: object) -> None:
    """Measure, aim at the end of the range, tick."""
    arm.now += dt
    arm.measure(**measured), arm.aim(np.array([1.9]))
    arm.now -= dt
    arm.tick(dt, fails=fails)


def test_a_long_step_that_was_lost_is_made_up_for_by_one_of_its_length():
    arm = one_axis(2.0, 8.0)
    for _ in range(40):
        step(arm)
    before = arm.goal
    step(arm, 1.95 * PERIOD, "lost")
    step(arm, 0.6 * PERIOD)  # more than 2.5 periods after the last that arrived
    assert arm.goal - before == pytest.approx(2.0 * 1.95 * PERIOD)
    step(arm), step(arm)
    assert not arm.wire.unsafe


def test_an_axis_that_comes_to_push_while_its_step_is_lost_goes_on_by_that_step_at_most():
    arm = one_axis(2.0, 8.0, effort=8.0)
    for _ in range(20):
        step(arm)
    goal = arm.goal
    step(arm, 1.95 * PERIOD, "lost", position=goal - 0.02, effort=np.array([5.0]))
    lost = arm.filter.command
    for _ in range(5):
        step(arm, 0.6 * PERIOD, position=goal - 0.02, effort=np.array([10.0]))
        assert (arm.goal < lost).all()  # it gives way from there
    assert not arm.wire.unsafe


@pytest.mark.parametrize("fails", ["lost", "unnoticed"])
def test_a_first_command_that_failed_is_measured_anew_where_the_arm_moves_on(fails):
    arm = one_axis(6.0, 80.0)
    for _ in range(20):
        step(arm)
    arm.stop()
    arm.run(arm.goal, 20)
    assert arm.clear()
    step(arm)
    step(arm, fails=fails)
    for _ in range(4):
        arm.position = arm.position + 0.1
        step(arm)
    assert arm.filter.moving and not arm.wire.unsafe


# ---- everything at once -----------------------------------------------------------------------------------
def random_limits(rng: np.random.Generator) -> Limits:
    """The planar arm, or one to three axes without a box; with and without rounding."""
    if rng.random() < 0.5:
        return planar_limits(stale_after=rng.uniform(0.02, 0.2), watchdog=rng.uniform(0.02, 0.3))
    axes = []
    for index in range(rng.integers(1, 4)):
        low, width = rng.uniform(-2, 1), rng.uniform(0.1, 3)
        effort = rng.choice([np.inf, 1.0])
        speed = rng.uniform(0.1, 4)
        axes.append(
            Axis(f"a{index}", low, low + width, speed, rng.uniform(0.2, 40), low + width * rng.random(),
                 lead=rng.choice([None, 0.05]), effort=effort, resolution=rng.choice([0.0, 0.0015]))
        )  # fmt: skip
    return Limits(tuple(axes), stale_after=rng.uniform(0.02, 0.2), watchdog=rng.uniform(0.02, 0.3))


def adversary(rng: np.random.Generator, steps: int = 24, failing: float = 0.0) -> Arm:
    """One case: a random robot, and a random history of wishes, readings, pauses, stops, and of commands of which the
    share `failing` is lost, and as many arrive unnoticed."""
    limits = random_limits(rng)
    start = rng.uniform(limits.low - 0.1 * rng.integers(2), limits.high + 0.1 * rng.integers(2))
    arm = Arm(limits, start)
    wild, drift = rng.random(), rng.normal(0, 0.02, len(limits))
    target = start.copy()
    for _ in range(steps):
        gap = rng.choice([1.0, rng.uniform(0.2, 2.4), rng.uniform(2.6, 20)], p=[0.7, 0.25, 0.05]) * PERIOD
        arm.now += gap
        if rng.random() < 0.9:
            _measure(arm, rng)
        if rng.random() < wild:
            target = rng.uniform(limits.low - 1, limits.high + 1)
        target = target + drift
        if rng.random() < 0.03:
            target = np.where(
                rng.random(len(limits)) < 0.5, rng.choice([np.nan, np.inf, 1e300, -1e9]), target
            )
        if rng.random() < 0.9:
            arm.aim(target, age=rng.choice([0.0, 0.5], p=[0.95, 0.05]))
        elif rng.random() < 0.1:
            arm.target = None
            arm.wire.wished(-np.inf, np.zeros(1))
        if rng.random() < 0.02:
            arm.stop()
        if rng.random() < 0.05:
            arm.clear()
        arm.now -= gap
        follow, luck = rng.choice([0.0, 0.4, 1.0]), rng.random() if failing else 0.5
        arm.tick(gap, follow, "lost" if luck < failing else "unnoticed" if luck > 1 - failing else "")
        if rng.random() < 0.01:  # pushed by somebody
            arm.position = arm.position + rng.normal(0, 0.3, len(limits))
    return arm


def _measure(arm: Arm, rng: np.random.Generator) -> None:
    kind = rng.random()
    position = arm.position + rng.normal(0, 1e-3, len(arm.limits))
    effort = rng.choice([None, 1]) and rng.normal(0, rng.choice([0.5, 5]), len(arm.limits))
    if kind < 0.90:
        arm.measure(position=position, effort=effort)
    elif kind < 0.93:
        arm.measure(position=position * np.nan)
    elif kind < 0.95:
        arm.measure(position=position[:-1])
    elif kind < 0.97:
        arm.measure(position=rng.uniform(-9, 9, len(position)))
    elif kind < 0.98:
        arm.measure(position=position, time=arm.now + 5)  # a clock that runs ahead
    else:
        arm.measure(position=position, time=arm.now - 0.5)


def run_cases(count: int, seed: int, failing: float = 0.0) -> tuple[int, int]:
    """Cases with seeds seed ... seed + count - 1; returns numbers of commands and interventions."""
    commands = interventions = 0
    for case in range(seed, seed + count):
        arm = adversary(np.random.default_rng(case), failing=failing)
        assert not arm.wire.unsafe, f"case {case}: {arm.wire.unsafe[:3]}"
        commands += arm.wire.commands
        interventions += arm.filter.counts.total()
    return commands, interventions


@pytest.mark.parametrize("share", range(2))
def test_random_cases_send_nothing_unsafe(share):
    commands, interventions = run_cases(150, seed=150 * share)
    assert commands > 1_500 and interventions > 700  # the cases are neither empty nor tame


def test_random_cases_with_commands_that_fail_send_nothing_unsafe():
    commands, _ = run_cases(100, seed=5_000, failing=0.1)
    assert commands > 1_000


def _only_rests(self: SafetyFilter) -> None:
    if self._motion is not None:
        self._motion.rest()


@pytest.mark.parametrize(
    "unsure",
    [lambda self: None, _only_rests],
    ids=["lost steps add up", "first command is not measured anew"],
)
def test_the_checker_sees_when_commands_that_fail_are_taken_for_sent(unsure, monkeypatch):
    monkeypatch.setattr(SafetyFilter, "unsure", unsure)
    assert any(adversary(np.random.default_rng(case), failing=0.1).wire.unsafe for case in range(100))


SABOTAGE = {
    "velocity": ("vla_agents.robots.limits.Limits.velocity", property(lambda self: 1.3 * self._column("velocity"))),
    "acceleration": ("vla_agents.robots.motion.Motion.gain", lambda self, dt: 3 * self._limits.acceleration * dt),
    "range": ("vla_agents.robots.motion.Motion._accept", lambda self, way: True),
    "box": ("vla_agents.robots.motion._Box.accept", lambda self, positions: True),
    "lead and effort": ("vla_agents.robots.safety.SafetyFilter._bounded", lambda self, motion, wish, *rest: wish),
    "effort": ("vla_agents.robots.safety.SafetyFilter._yielding", lambda self, wish, *rest: wish),
    "stale": ("vla_agents.robots.safety.SafetyFilter._usable", lambda self, reading, now: reading),
    "stop": ("vla_agents.robots.safety.SafetyFilter._why_hold", lambda self, fresh, target: []),
    "first command": ("vla_agents.robots.safety.Motion", lambda limits, start: Motion(limits, limits.home)),
    "gaps": ("vla_agents.robots.safety.LONGEST", 1e9),
}  # fmt: skip


@pytest.mark.parametrize("part", [*SABOTAGE, "watchdog"])
def test_the_checker_sees_when_a_part_of_the_filter_is_missing(part, monkeypatch):
    if part == "watchdog":
        monkeypatch.setattr(SafetyFilter, "__init__", _deaf_to_watchdog)
    else:
        monkeypatch.setattr(*SABOTAGE[part])
    caught = 0
    for case in range(300):
        try:
            caught += bool(adversary(np.random.default_rng(case)).wire.unsafe)
        except (ValueError, TypeError, FloatingPointError):
            continue  # numbers of a reading that the filter would have refused
        if caught:
            return
    pytest.fail(f"300 cases without {part}: nothing unsafe was seen")


def _deaf_to_watchdog(self: SafetyFilter, limits: Limits, period: float) -> None:
    _INIT(self, dataclasses.replace(limits, watchdog=9.0), period)


_INIT = SafetyFilter.__init__


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(4))
def test_a_hundred_thousand_random_cases_send_nothing_unsafe(part):
    run_cases(20_000, seed=10_000 + 25_000 * part)
    run_cases(5_000, seed=30_000 + 25_000 * part, failing=0.1)


class FilterMachine(RuleBasedStateMachine):
    """The same, with hypothesis looking for the shortest history that breaks a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.arm = Arm()

    @initialize(start=st.lists(st.floats(-0.05, 1.05), min_size=4, max_size=4), box=st.booleans())
    def begin(self, start: list[float], box: bool) -> None:
        limits = planar_limits(box)
        self.arm = Arm(limits, limits.low + np.array(start) * (limits.high - limits.low))

    @rule(gap=st.floats(0.001, 0.04), follow=st.sampled_from([0.0, 0.5, 1.0]), seen=st.booleans())
    def time_passes(self, gap: float, follow: float, seen: bool) -> None:
        self.arm.now += gap
        if seen:
            self.arm.measure()
        self.arm.now -= gap
        self.arm.tick(gap, follow)

    @rule(ticks=st.integers(2, 30), share=st.lists(st.floats(-0.2, 1.2), min_size=4, max_size=4))
    def goes_somewhere(self, ticks: int, share: list[float]) -> None:
        limits = self.arm.limits
        self.arm.run(limits.low + np.array(share) * (limits.high - limits.low), ticks)

    @rule(wish=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4))
    def aims(self, wish: list[float]) -> None:
        self.arm.aim(np.array(wish))

    @rule(axis=st.integers(0, 3), push=st.floats(-20, 20))
    def pushes(self, axis: int, push: float) -> None:
        effort = np.zeros(4)
        effort[axis] = push
        self.arm.now += PERIOD
        self.arm.measure(effort=effort)
        self.arm.now -= PERIOD
        self.arm.tick()

    @rule()
    def stops(self) -> None:
        self.arm.stop()

    @rule()
    def clears(self) -> None:
        self.arm.clear()

    @rule(axis=st.integers(0, 3), by=st.floats(-1, 1))
    def somebody_moves_it(self, axis: int, by: float) -> None:
        self.arm.position = self.arm.position + by * np.eye(4)[axis]

    @invariant()
    def nothing_unsafe_was_sent(self) -> None:
        assert not self.arm.wire.unsafe, self.arm.wire.unsafe[0]


TestStateMachine = FilterMachine.TestCase
TestStateMachine.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.long
def test_the_state_machine_for_longer():
    run_state_machine_as_test(
        FilterMachine,
        settings=settings(max_examples=2_000, stateful_step_count=40, deadline=None,
                          suppress_health_check=list(HealthCheck)),
    )  # fmt: skip
