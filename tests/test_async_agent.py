"""Planning in the background, on a clock and an executor that tests hold in their hands."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, Future

import numpy as np
import pytest
from fake_env import BODY, FakePolicy, observation

from vla_agents.agent import PolicyAgent
from vla_agents.async_agent import AsyncAgent, asynchronous_for
from vla_agents.chunking import ActionUnits
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ActionError, ConfigError, ObservationError, PlanningError, UnknownNameError

ARM = Embodiment(
    "arm",
    action=(Part("joint", 1, "joint_position", -9, 99, "rad"), Part("grip", 1, "gripper_open_01", 0, 1)),
    state=(Part("joint", 1, "joint_position", -9, 99, "rad"),),
    control_hz=10.0,
)


class Manual(Executor):
    """Runs what was submitted when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future, object, tuple]] = []

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self.waiting.append((future, fn, args))
        return future

    def finish(self) -> None:
        future, fn, args = self.waiting.pop(0)
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)

    def shutdown(self, wait=True, *, cancel_futures=False) -> None:
        self.waiting.clear()


class Counting:
    """Plans 100, 101, 102, ... where the observation says 100."""

    embodiment = ARM
    horizon, default_execute, continues = 10, 5, False

    def __init__(self) -> None:
        self.asked: list[tuple[float, np.ndarray | None, int]] = []

    def plan(self, obs, prefix=None, committed=0):
        start = float(obs["state"][0])
        self.asked.append((start, prefix, committed))
        joint = start + np.arange(self.horizon)
        if prefix is not None:
            joint[: len(prefix)] = prefix[:, 0]
        return np.stack([joint, np.full(self.horizon, 0.25)], 1)

    def reset(self, *, seed=None) -> None:
        pass

    def close(self) -> None:
        pass


def seen(value: float, text: str = "go") -> dict:
    return {"state": np.array([value], np.float32), "instruction": text}


def made(planner=None, **options) -> tuple[AsyncAgent, Manual]:
    executor = Manual()
    agent = AsyncAgent(planner or Counting(), executor=executor, **options)
    agent.reset()
    return agent, executor


def joint(agent: AsyncAgent, value: float) -> float:
    return float(agent.act(seen(value))[0])


def test_stale_actions_are_dropped_and_the_old_chunk_plays_meanwhile():
    agent, executor = made()
    assert joint(agent, 0) == 0  # holds at the measured joint: no plan yet
    executor.finish()
    assert [joint(agent, v) for v in range(5)] == [*range(5)]  # playing time stood still while it waited
    assert len(executor.waiting) == 1  # asked for with the observation of 4
    assert [joint(agent, v) for v in (5, 6)] == [5, 6]
    executor.waiting[0][2][0]["state"][0] = 40  # so that its actions can be told from the old ones
    executor.finish()
    assert [joint(agent, v) for v in (7, 8)] == [43, 44]  # 40, 41 and 42 were for 4, 5 and 6
    report = agent.report()
    assert (report.plans, report.dropped, report.idle, report.latency) == (2, 3, 1, 3)


def test_capture_times_decide_what_is_stale():
    times = [10.0]
    agent, executor = made(capture_time=lambda: times[0])
    joint(agent, 0)
    executor.finish()
    times[0] += 0.1
    assert joint(agent, 0) == 0
    times[0] += 0.3  # three ticks at once: the loop was held up
    assert joint(agent, 0) == 3
    times[0] += 0.1
    assert joint(agent, 0) == 4


def test_without_a_new_chunk_in_time_it_holds_and_goes_on_where_it_stopped():
    agent, executor = made()
    joint(agent, 0)
    executor.finish()
    played = [joint(agent, 0) for _ in range(14)]
    assert played == [*range(10), 9, 9, 9, 9]
    assert agent.report().idle == 1 + 4
    executor.waiting[0][2][0]["state"][0] = 40
    executor.finish()  # planned from where 4 was played; 9 was the last one played
    assert joint(agent, 0) == 46
    assert agent.report().latency == 10


def test_slowing_down_stretches_what_is_left():
    played, reports = {}, {}
    for when_late in ("slow", "hold"):
        agent, executor = made(when_late=when_late)
        for _ in range(3):
            joint(agent, 0)
        executor.finish()  # took 3 ticks; the next one takes longer
        played[when_late] = [joint(agent, 0) for _ in range(14)]
        reports[when_late] = agent.report()
    steps = np.diff(played["slow"])
    assert (steps >= 0).all() and (steps <= 1.0 + 1e-6).all() and 0 < steps[steps > 0].min() < 0.6
    assert reports["slow"].slow > 0 and reports["slow"].idle < reports["hold"].idle
    assert played["slow"][:5] == played["hold"][:5] == [0, 1, 2, 3, 4]  # not before it is late


class Continuing(Counting):
    continues = True


def test_real_time_chunking_commits_what_will_have_been_played():
    agent, executor = made(Continuing(), execute=6)
    joint(agent, 0)
    joint(agent, 0)
    joint(agent, 0)
    executor.finish()  # took 3 ticks: so long the next one is expected to take
    played = [joint(agent, 50 + v) for v in range(4)]
    assert played == [0, 1, 2, 3] and len(executor.waiting) == 1
    executor.finish()
    _, prefix, committed = agent.planner.asked[-1]
    assert committed == 3
    np.testing.assert_array_equal(prefix[:, 0], np.arange(prefix[0, 0], 10))  # what is left of the old chunk
    more = [joint(agent, 60) for _ in range(4)]
    assert more == [4, 5, 6, 7]  # no jump, although it now sees 50
    assert agent.report().surprises == 0
    without, executor = made(Continuing(), continue_chunks=False)
    joint(without, 0)
    executor.finish()
    for _ in range(9):
        joint(without, 0)
    executor.finish()
    assert without.planner.asked[-1][1] is None


def test_a_plan_that_took_longer_than_expected_is_counted():
    agent, executor = made(Continuing())
    joint(agent, 0)
    executor.finish()
    for _ in range(9):
        joint(agent, 0)
    executor.finish()
    joint(agent, 0)
    assert agent.report().surprises == 1


def test_errors_of_the_planning_surface_in_act():
    class Broken(Counting):
        error: Exception = ZeroDivisionError("a bug")

        def plan(self, obs, prefix=None, committed=0):
            raise self.error

    agent, executor = made(Broken())
    joint(agent, 0)
    executor.finish()
    with pytest.raises(PlanningError, match="a bug") as caught:
        agent.act(seen(0))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    Broken.error = ConfigError("not like this")
    joint(agent, 0)  # asks again
    executor.finish()
    with pytest.raises(ConfigError, match="not like this"):
        agent.act(seen(0))


@pytest.mark.parametrize("chunk", [np.full((4, 2), np.nan), np.zeros((4, 3)), np.zeros((0, 2))])
def test_chunks_that_are_no_chunks_are_refused(chunk):
    planner = Counting()
    planner.plan = lambda *_: chunk
    agent, executor = made(planner)
    joint(agent, 0)
    executor.finish()
    with pytest.raises(ActionError, match="planned"):
        agent.act(seen(0))


def test_another_instruction_and_a_new_episode_drop_what_was_planned():
    agent, executor = made()
    joint(agent, 0)
    executor.finish()
    assert joint(agent, 0) == 0 and joint(agent, 0) == 1
    assert agent.act(seen(7, "elsewhere"))[0] == 1  # holds: the old chunk is for another task
    executor.waiting.clear()
    agent._request = None
    agent.reset()
    joint(agent, 3)
    executor.finish()
    assert joint(agent, 3) == 3
    joint(agent, 3)
    while not executor.waiting:
        joint(agent, 3)
    agent.reset()
    assert joint(agent, 20) == 20
    executor.finish()  # the plan of the last episode
    assert joint(agent, 20) == 20 and agent.report().plans == 0
    executor.finish()
    assert joint(agent, 20) == 20 and agent.report().plans == 1


def test_act_does_not_wait_for_a_policy_that_does_not_answer():
    release = threading.Event()

    class Stuck(Counting):
        def plan(self, obs, prefix=None, committed=0):
            release.wait(20)
            return super().plan(obs)

    agent = AsyncAgent(Stuck())
    agent.reset()
    begun = time.monotonic()
    for _ in range(50):
        joint(agent, 5)
    assert time.monotonic() - begun < 5  # the policy takes 20
    assert agent.report().idle == 50
    release.set()
    agent.close()


def test_it_plans_with_a_policy_agent_and_real_threads():
    policy = FakePolicy()
    with AsyncAgent(PolicyAgent(policy)) as agent:
        agent.reset(seed=1)
        obs = observation(BODY)
        obs["instruction"] = "fly to the red target"
        for _ in range(200):
            action = agent.act(obs)
            if agent.report().plans:
                break
            time.sleep(0.01)
        assert policy.planned >= 1
        np.testing.assert_allclose(action, PolicyAgent(FakePolicy()).act(obs))
        with pytest.raises(ObservationError):
            agent.act({"instruction": "no pictures"})
        with pytest.raises(ConfigError, match="one env"):
            agent.act(observation(BODY, lead=(2,)) | {"instruction": ["a", "b"]})


def test_options_that_do_not_go_together():
    with pytest.raises(UnknownNameError, match="when_late"):
        AsyncAgent(Counting(), when_late="never")
    with pytest.raises(ConfigError, match="execute"):
        AsyncAgent(Counting(), execute=11)
    with pytest.raises(ConfigError, match="continue"):
        AsyncAgent(Counting(), continue_chunks=True)
    with pytest.raises(ConfigError, match="one env"):
        asynchronous_for(Counting(), type("Vector", (), {"num_envs": 2})())


# ---- what numbers mean ------------------------------------------------------------------------------------
def test_holding_and_stretching_follow_the_embodiment():
    body = Embodiment(
        "mixed",
        action=(
            Part("step", 3, "delta_xyz"),
            Part("joint", 1, "joint_position"),
            Part("grip", 1, "gripper_close_pm1", -1, 1),
        ),
    )
    units = ActionUnits(body)
    chunk = np.array([[1.0, 2, 3, 10, -1], [1, 2, 3, 20, 1]])
    np.testing.assert_allclose(units.between(chunk, 0.25, pace=0.5), [0.5, 1, 1.5, 12.5, -1])
    np.testing.assert_allclose(units.between(chunk, 1.0), chunk[1])
    np.testing.assert_allclose(units.hold(chunk[1], None), [0, 0, 0, 20, 1])
    assert units.hold(None, None) is None  # where is the joint?
    known = ActionUnits(ARM)
    np.testing.assert_allclose(known.hold(None, np.array([0.5])), [0.5, 1.0])  # at the joint, open


def test_a_body_that_cannot_hold_waits_for_its_first_plan_only():
    body = Embodiment("blind", action=(Part("joint", 1, "joint_position", -9, 9),), control_hz=10)
    planner = Counting()
    planner.embodiment = body
    planner.plan = lambda obs, prefix=None, committed=0: np.arange(10.0)[:, None]
    agent = AsyncAgent(planner)
    agent.reset()
    assert agent.act({"instruction": "go"}) == 0
    assert agent.report().idle == 0
    agent.close()


@pytest.mark.slow
def test_a_flow_policy_goes_on_from_what_is_committed():
    from tiny import BODY as TINY
    from tiny_flow import flow_policy

    planner = PolicyAgent(flow_policy("gr00t"))
    assert planner.continues and not PolicyAgent(FakePolicy()).continues
    planner.reset(seed=3)
    obs = observation(TINY)
    obs["instruction"] = "go"
    first = planner.plan(obs)
    assert first.shape == (4, TINY.action_dim)
    second = planner.plan(obs, prefix=first[1:], committed=2)
    np.testing.assert_array_equal(second[:2], first[1:3])
    assert np.abs(second[2:] - first[2:]).max() > 0  # beyond them it is a plan of its own
    with pytest.raises(ConfigError, match="prefix"):
        planner.plan(obs, prefix=first[1:], committed=0)
