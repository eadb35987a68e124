"""A person takes over from a policy and gives it back: who acts, what is dropped, no jump."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_env import ENV_ID, FakePolicy, make_embodiment

from vla_agents.agent import Agent, ExpertAgent, PolicyAgent
from vla_agents.async_agent import AsyncAgent
from vla_agents.chunking import RecedingHorizon
from vla_agents.collect.recorder import Recorder
from vla_agents.data import create_dataset, open_dataset
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.envs import make_env, make_vec
from vla_agents.errors import ConfigError
from vla_agents.rollout import Listener, StepEvent, rollout
from vla_agents.takeover import Takeover

JOINTS = Embodiment(
    "arm",
    (Part("joints", 2, "joint_position"), Part("gripper", 1, "gripper_open_01")),
    (),
    (Camera("c", 2, 2),),
    10.0,
)


def look(instruction: str = "go") -> dict[str, Any]:
    return {"images": {"c": np.zeros((2, 2, 3), np.uint8)}, "instruction": instruction}


class Always(Agent):
    """Says the same, and notes what it is told."""

    def __init__(self, *action: float) -> None:
        self.action = np.array(action, np.float32)
        self.acted = self.resets = self.replans = 0
        self.followed: list[np.ndarray] = []
        self.engaged = False
        self.closed = False

    def act(self, obs: Any) -> np.ndarray:
        self.acted += 1
        return self.action

    def reset(self, mask: Any = None, *, seed: Any = None) -> None:
        self.resets += 1

    def replan(self, mask: Any = None) -> None:
        self.replans += 1

    def follow(self, obs: Any, action: np.ndarray) -> None:
        self.followed.append(action)

    def close(self) -> None:
        self.closed = True


def test_only_the_driver_is_asked_and_the_other_is_told() -> None:
    policy, human = Always(0, 0, 1), Always(1, -1, 0)
    agent = Takeover(policy, human, embodiment=JOINTS, blend=0.0)
    agent.reset(seed=3)
    drivers = [False, False, True, True, True, False]
    for human.engaged in drivers:
        action = agent.act(look())
        assert agent.intervened is human.engaged
        np.testing.assert_array_equal(action, human.action if human.engaged else policy.action)
    assert (policy.acted, human.acted) == (3, 3)
    assert (len(human.followed), len(policy.followed)) == (3, 3)
    assert (agent.takeovers, policy.replans, policy.resets) == (1, 1, 1)
    agent.close()
    assert policy.closed and human.closed


def test_there_is_no_jump_at_the_seams() -> None:
    policy, human = Always(0, 0, 1), Always(1, -1, 0)
    agent = Takeover(policy, human, embodiment=JOINTS, blend=0.5)  # 5 steps of 0.2
    actions = []
    for human.engaged in [False] * 2 + [True] * 8 + [False] * 8:
        actions.append(agent.act(look()))
    path = np.array(actions)
    assert np.abs(np.diff(path[:, :2], axis=0)).max() == pytest.approx(0.2, abs=1e-6)
    np.testing.assert_allclose(path[[1, 6, 9, 14], 0], [0, 1, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(path[:, 2], [1] * 2 + [0] * 8 + [1] * 8)  # a gripper is open or closed
    agent.reset()
    human.engaged = True
    np.testing.assert_array_equal(
        agent.act(look()), human.action
    )  # an episode's first action continues nothing


def test_deltas_are_not_blended() -> None:
    body = replace(JOINTS, action=(Part("d", 3, "delta_xyz"),))
    policy, human = Always(1, 0, 0), Always(0, 1, 0)
    agent = Takeover(policy, human, embodiment=body)
    agent.act(look())
    human.engaged = True
    np.testing.assert_array_equal(agent.act(look()), [0, 1, 0])


def test_a_chunk_from_before_is_not_played_after() -> None:
    """The policy plans 4 actions; taken over after the first, it plans anew from what it then sees."""
    policy = FakePolicy()
    planned: list[float] = []
    plan = policy.plan

    def noted(observations: Any, *args: Any, **kwargs: Any) -> Any:
        planned.append(float(observations[0]["state"][0]))
        return plan(observations, *args, **kwargs)

    policy.plan = noted  # type: ignore[method-assign]
    env = make_env(ENV_ID)
    human = ExpertAgent(env)
    steps = iter([False, True, True, False, False])
    agent = Takeover(
        PolicyAgent(policy, chunker=RecedingHorizon(4)), human, takes_over=lambda obs: next(steps)
    )
    obs, _ = env.reset(seed=1)
    agent.reset(seed=1)
    for _ in range(5):
        obs, *_ = env.step(agent.act(obs))
    assert len(planned) == 2 and planned[0] != planned[1]


def test_an_asynchronous_policy_holds_what_the_person_did_until_it_has_a_plan() -> None:
    from concurrent.futures import Executor, Future

    class Later(Executor):
        """Plans when told to."""

        def __init__(self) -> None:
            self.waiting: list[tuple[Future[Any], Any]] = []

        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self.waiting.append((future, lambda: function(*args, **kwargs)))
            return future

        def work(self) -> None:
            for future, job in self.waiting:
                future.set_result(job())
            self.waiting.clear()

    class Planner:
        embodiment, horizon, default_execute, continues = JOINTS, 8, 4, False

        def plan(self, obs: Any, prefix: Any = None, committed: int = 0) -> np.ndarray:
            return np.full((8, 3), 0.25, np.float32)

        def reset(self, *, seed: Any = None) -> None: ...
        def close(self) -> None: ...

    worker, human = Later(), Always(1, -1, 0)
    policy = AsyncAgent(Planner(), executor=worker, hold=lambda: np.zeros(3))
    policy._hold_of_env = None  # nothing but what it was told
    policy._last = np.zeros(3, np.float32)
    agent = Takeover(policy, human, blend=0.0)
    agent.act(look())
    worker.work()
    assert agent.act(look())[0] == 0.25
    human.engaged = True
    agent.act(look())
    human.engaged = False
    np.testing.assert_array_equal(agent.act(look()), human.action)  # no plan yet: what the person did
    worker.work()
    assert agent.act(look())[0] == 0.25
    assert policy.report().plans == 2  # the counts went on


def test_every_step_says_who_acted(tmp_path: Any) -> None:
    env = make_env(ENV_ID)
    seen: list[bool] = []

    class Watch(Listener):
        def on_step(self, slot: int, step: StepEvent) -> None:
            seen.append(step.intervened)

    ticks = iter(range(1000))
    agent = Takeover(ExpertAgent(env), ExpertAgent(env), takes_over=lambda obs: next(ticks) % 5 in (2, 3))
    writer = create_dataset(tmp_path / "d", make_embodiment())
    rollout(env, agent, [4], [Recorder(writer), Watch()])
    writer.close()
    expected = [k % 5 in (2, 3) for k in range(len(seen))]
    assert seen == expected and any(seen)
    np.testing.assert_array_equal(open_dataset(tmp_path / "d").read(0).intervened, expected)


def test_slots_of_a_vector_env_are_taken_over_one_by_one() -> None:
    """Where the policy is lost (no action), a scripted expert corrects: all episodes succeed."""
    env = make_vec(ENV_ID, 3)

    class Lost(Agent):
        replanned = 0

        def act(self, obs: Any) -> np.ndarray:
            return np.zeros((3, *env.single_action_space.shape), np.float32)  # type: ignore[misc]

        def replan(self, mask: Any = None) -> None:
            self.replanned += int(np.sum(mask))

    seen: dict[int, list[bool]] = {0: [], 1: [], 2: []}

    class Watch(Listener):
        def on_step(self, slot: int, step: StepEvent) -> None:
            seen[slot].append(step.intervened)
            assert step.intervened == bool(np.abs(step.action).max() > 0)

    steps = iter(range(1000))

    def wanted(obs: Any) -> np.ndarray:
        step = next(steps)
        return np.array([step % 2 == 0, step % 3 == 0, True])

    policy = Lost()
    agent = Takeover(policy, ExpertAgent(env), embodiment=make_embodiment(), takes_over=wanted)
    results = rollout(env, agent, range(6), [Watch()])
    env.close()
    assert all(result.success for result in results)
    assert all(seen[2]) and 0.3 < np.mean(seen[0]) < 0.7
    assert policy.replanned > 3 and agent.takeovers > 6


def test_what_cannot_be_taken_over_is_refused() -> None:
    env = make_env(ENV_ID)
    with pytest.raises(ConfigError, match="ExpertAgent takes over"):
        Takeover(ExpertAgent(env), ExpertAgent(env))
    with pytest.raises(ConfigError, match="blend"):
        Takeover(ExpertAgent(env), Always(), blend=-1)
