"""The one loop: single and vector envs agree, slots that have nothing to do sleep, errors are typed."""

from __future__ import annotations

import signal
from collections import defaultdict
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from fake_env import ENV_ID, FakeEnv, FakePolicy
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from vla_agents.agent import Agent, ExpertAgent, PolicyAgent, RandomAgent
from vla_agents.chunking import Chunker, CosineEnsemble, RecedingHorizon, TemporalEnsemble
from vla_agents.embodiment import embodiment_of
from vla_agents.envs import make_env, make_vec
from vla_agents.envs.wrappers import ActionNoise, SwappedInstruction
from vla_agents.errors import ActionError, ConfigError, UnknownNameError
from vla_agents.rollout import EpisodeResult, Listener, StepEvent, rollout

SEEDS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46]
CHUNKERS: dict[str, Any] = {
    "horizon-1": lambda: RecedingHorizon(1),
    "horizon-3": lambda: RecedingHorizon(3),
    "horizon-6": lambda: RecedingHorizon(6),
    "act": lambda: TemporalEnsemble(6, decay=0.1),
    "cosine": lambda: CosineEnsemble(4, alpha=0.5),
}


class Log(Listener):
    """Everything the loop tells, by seed."""

    def __init__(self) -> None:
        self.actions: dict[int, list[np.ndarray]] = defaultdict(list)
        self.states: dict[int, list[np.ndarray]] = defaultdict(list)
        self.last: dict[int, StepEvent] = {}
        self.infos: dict[int, dict[str, Any]] = {}
        self.ended: list[int] = []
        self.aborted = 0
        self._seed: dict[int, int] = {}

    def on_reset(self, slot: int, seed: int, obs: dict[str, Any], info: dict[str, Any]) -> None:
        self._seed[slot] = seed
        self.infos[seed] = info

    def on_step(self, slot: int, step: StepEvent) -> None:
        seed = self._seed[slot]
        self.actions[seed].append(step.action.copy())
        self.states[seed].append(step.obs["state"].copy())
        self.last[seed] = step

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        assert result.seed == self._seed.pop(slot)
        self.ended.append(result.seed)

    def on_abort(self) -> None:
        self.aborted += 1


def facts(results: list[EpisodeResult]) -> list[tuple[Any, ...]]:
    """Results without wall times."""
    return [
        (r.seed, r.task, r.instruction, r.success, r.steps, r.reward, r.terminated, r.truncated, r.info)
        for r in results
    ]


def play(env: Any, agent: Agent, seeds: Any = SEEDS, **options: Any) -> tuple[list[EpisodeResult], Log]:
    log = Log()
    try:
        return rollout(env, agent, seeds, [log], **options), log
    finally:
        env.close()


def same(one: Log, other: Log) -> None:
    assert one.actions.keys() == other.actions.keys()
    for seed in one.actions:
        np.testing.assert_array_equal(one.actions[seed], other.actions[seed])
        np.testing.assert_array_equal(one.states[seed], other.states[seed])


def policy_agent(chunker: Chunker) -> PolicyAgent:
    return PolicyAgent(FakePolicy(), chunker=chunker)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CHUNKERS)
@pytest.mark.parametrize("num_envs", [2, 4, 16])
def test_vector_env_plays_every_episode_like_a_single_env(name: str, num_envs: int) -> None:
    options = {"fail_every": 5, "max_steps": 23}
    single, log = play(make_env(ENV_ID, **options), policy_agent(CHUNKERS[name]()))
    vector, vector_log = play(make_vec(ENV_ID, num_envs, **options), policy_agent(CHUNKERS[name]()))
    assert len({r.steps for r in single}) > 3, "the episodes must end at different times"
    assert facts(single) == facts(vector)
    same(log, vector_log)
    assert sorted(vector_log.ended) == sorted(SEEDS)


@pytest.mark.parametrize("name", ["horizon-3", "cosine"])
def test_processes_play_every_episode_like_a_single_env(name: str) -> None:
    greeting = "Grüße, 請 🤖: "  # nothing that Gymnasium's Text space would take
    single, log = play(make_env(ENV_ID, greeting=greeting), policy_agent(CHUNKERS[name]()))
    vector, vector_log = play(
        make_vec(ENV_ID, 3, asynchronous=True, greeting=greeting), policy_agent(CHUNKERS[name]())
    )
    assert single[0].instruction.startswith(greeting)
    assert facts(single) == facts(vector)
    same(log, vector_log)


@pytest.mark.parametrize("name", ["horizon-3", "act"])
def test_policy_plans_for_no_idle_slot(name: str) -> None:
    alone, together = FakePolicy(), FakePolicy()
    play(make_env(ENV_ID), PolicyAgent(alone, chunker=CHUNKERS[name]()))  # type: ignore[arg-type]
    play(make_vec(ENV_ID, 8), PolicyAgent(together, chunker=CHUNKERS[name]()))  # type: ignore[arg-type]
    assert together.planned == alone.planned
    assert len(together.batches) < len(alone.batches) / 3, "slots that need a plan share a batch"


class CountingEnv(FakeEnv):
    """Counts the steps that reach it."""

    steps = 0

    def step(self, action: Any) -> Any:
        CountingEnv.steps += 1
        return super().step(action)


def test_episodes_begin_when_the_others_plan() -> None:
    """Every plan is for all that play, although the episodes end at different times."""
    policy = FakePolicy()
    results, _ = play(make_vec(ENV_ID, 4), PolicyAgent(policy, chunker=RecedingHorizon(6)))  # type: ignore[arg-type]
    assert len({result.steps % 6 for result in results}) > 2, "the episodes must end between plans"
    assert policy.batches[:8] == [4] * 8
    assert policy.batches == sorted(policy.batches, reverse=True)  # in the end there is no next one


def test_idle_slots_do_not_step_their_env(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gymnasium.registry["vla_agents_tests/Fake-v0"]
    monkeypatch.setattr(spec, "entry_point", CountingEnv)
    for env in (make_env(ENV_ID), make_vec(ENV_ID, 8)):
        CountingEnv.steps = 0
        results, _ = play(env, ExpertAgent(env))
        assert CountingEnv.steps == sum(r.steps for r in results)


def test_a_foreign_vector_env_without_sleeping_slots_gives_the_same() -> None:
    env = SyncVectorEnv([partial(make_env, ENV_ID)] * 4, autoreset_mode=AutoresetMode.DISABLED)
    single, log = play(make_env(ENV_ID), policy_agent(RecedingHorizon(2)))
    vector, vector_log = play(env, policy_agent(RecedingHorizon(2)))
    assert facts(single) == facts(vector)
    same(log, vector_log)


def test_a_vector_env_that_resets_itself_is_refused() -> None:
    env = SyncVectorEnv([partial(make_env, ENV_ID)] * 2)
    with pytest.raises(ConfigError, match="DISABLED"):
        play(env, ExpertAgent(env))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_random_agent_is_a_function_of_the_seed(num_envs: int) -> None:
    def once(seeds: list[int]) -> Log:
        env = make_vec(ENV_ID, num_envs, max_steps=9)
        return play(env, RandomAgent(embodiment_of(env)), seeds)[1]

    single_env = make_env(ENV_ID, max_steps=9)
    single = play(single_env, RandomAgent(embodiment_of(single_env)), SEEDS)[1]
    forwards, backwards = once(SEEDS), once(SEEDS[::-1])
    same(forwards, backwards)
    same(forwards, single)
    first, second = (np.array(forwards.actions[seed]) for seed in SEEDS[:2])
    assert not np.array_equal(first, second)


def test_results_tell_what_happened() -> None:
    env = make_env(ENV_ID, fail_every=7, max_steps=30)
    results, log = play(env, ExpertAgent(env), [6, 7])
    good, bad = results
    assert (good.success, good.terminated, good.truncated, good.reward) == (True, True, False, 1.0)
    assert (bad.success, bad.terminated, bad.truncated, bad.steps) == (False, False, True, 30)
    assert good.task in ("red", "blue") and good.task in good.instruction
    assert good.info == {"wrong": False, "renderer": "none"}
    assert good.seconds > 0
    assert log.infos[6]["renderer"] == "none"
    assert log.last[6].info["success"] is True
    before, after = log.last[6].obs["state"], log.last[6].next_obs["state"]
    np.testing.assert_allclose(after - before, 0.1 * log.last[6].action[:3], atol=1e-6)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_max_steps_cuts_off(num_envs: int) -> None:
    env = make_vec(ENV_ID, num_envs)
    results, log = play(env, ExpertAgent(env), range(5), max_steps=3)
    assert [(r.steps, r.truncated, r.success) for r in results] == [(3, True, False)] * 5
    assert all(step.truncated for step in log.last.values())
    with pytest.raises(ConfigError, match="max_steps"):
        play(make_env(ENV_ID), ExpertAgent(make_env(ENV_ID)), max_steps=0)


def test_seeds_are_taken_one_by_one() -> None:
    log = Log()
    seen: list[int] = []

    def seeds() -> Any:
        seed = 0
        while len(log.ended) < 3:
            seen.append(len(log.ended))
            yield seed
            seed += 1

    env = make_env(ENV_ID)
    results = rollout(env, ExpertAgent(env), seeds(), [log])
    assert [r.seed for r in results] == [0, 1, 2]
    assert seen == [0, 1, 2], "the next seed is asked for when the last episode is over"


@pytest.mark.parametrize("num_envs", [1, 3])
def test_no_seeds_no_episodes(num_envs: int) -> None:
    env = make_vec(ENV_ID, num_envs)
    assert play(env, ExpertAgent(env), [])[0] == []


class Bad(Agent):
    """Gives one action, then something that must not reach the env."""

    def __init__(self, value: Any, after: int = 1) -> None:
        self._value, self._left = value, after

    def act(self, obs: Any) -> np.ndarray:
        self._left -= 1
        return np.zeros(4, np.float32) if self._left >= 0 else self._value


@pytest.mark.parametrize("value", [np.array([0, np.nan, 0, 0]), np.array([0, 0, np.inf, 0])])
def test_actions_that_are_not_finite_are_refused(value: np.ndarray) -> None:
    log = Log()
    env = make_env(ENV_ID)
    with pytest.raises(ActionError, match="seed 15, step 1"):
        rollout(env, Bad(value), [15], [log])
    assert log.aborted == 1 and len(log.actions[15]) == 1


def test_actions_of_another_shape_are_refused() -> None:
    with pytest.raises(ActionError, match=r"\(3,\).*\(4,\)"):
        play(make_env(ENV_ID), Bad(np.zeros(3)))
    with pytest.raises(ActionError, match=r"\(4,\).*\(2, 4\)"):
        play(make_vec(ENV_ID, 2), Bad(np.zeros(4)))


def test_an_error_in_a_worker_process_keeps_its_type() -> None:
    env = make_vec(ENV_ID, 2, asynchronous=True, broken_seed=5)
    with pytest.raises(UnknownNameError, match="unknown scene 5") as caught:
        play(env, ExpertAgent(env), [1, 2, 5])
    assert caught.value.known == ["1", "2"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_options_an_env_does_not_have_are_refused_with_a_suggestion(asynchronous: bool) -> None:
    with pytest.raises(ConfigError, match=r"'tsak'\. Did you mean 'task'"):
        make_vec(ENV_ID, 2, asynchronous=asynchronous, tsak="red")
    with pytest.raises(UnknownNameError, match="Did you mean 'red'"):
        make_vec(ENV_ID, 2, asynchronous=asynchronous, task="rad")


def test_unknown_environments_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'vla_agents/Tabletop-v0'"):
        make_env("vla_agents/TableTop-v0")
    with pytest.raises(ConfigError, match="no_such_module"):
        make_env("no_such_module:Some-v0")
    with pytest.raises(ConfigError, match="num_envs"):
        make_vec(ENV_ID, 0)


def test_an_expert_is_asked_of_envs_that_have_one() -> None:
    env = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.DISABLED)
    for candidate in (env, env.envs[0]):
        with pytest.raises(ConfigError, match="no scripted expert"):
            ExpertAgent(candidate)


def test_a_new_instruction_drops_the_old_chunk() -> None:
    policy = FakePolicy()
    agent = PolicyAgent(policy, chunker=RecedingHorizon(6))  # type: ignore[arg-type]
    env = make_env(ENV_ID, task="red")
    obs, _ = env.reset(seed=1)
    agent.reset()
    agent.act(obs)
    agent.act(obs)
    assert policy.planned == 1
    other = agent.act(obs | {"instruction": "fly to the blue target"})
    assert policy.planned == 2
    agent.reset()
    np.testing.assert_array_equal(agent.act(obs | {"instruction": "fly to the blue target"}), other)


def test_reset_by_mask_leaves_the_other_slots_alone() -> None:
    policy = FakePolicy()
    agent = PolicyAgent(policy, chunker=RecedingHorizon(6))  # type: ignore[arg-type]
    env = make_vec(ENV_ID, 3)
    obs, _ = env.reset(seed=[1, 2, 3])
    agent.reset()
    agent.act(obs)
    agent.reset(np.array([False, True, False]))
    agent.act(obs)
    assert policy.batches == [3, 1]
    agent.idle(np.array([True, False, True]))
    assert not agent.act(obs)[[0, 2]].any() and agent.act(obs)[1].any()


# ---- wrappers --------------------------------------------------------------------------------------------
def test_noise_is_executed_and_told_and_a_function_of_the_seed() -> None:
    def once() -> Log:
        env = make_env(ENV_ID, (partial(ActionNoise, std=0.3),))
        return play(env, ExpertAgent(env), [4, 5])[1]

    one, other = once(), once()
    same(one, other)
    step = one.last[4]
    executed = step.info["executed"]
    assert not np.allclose(executed[:3], step.action[:3]) and executed[3] == step.action[3]
    np.testing.assert_allclose(step.next_obs["state"] - step.obs["state"], 0.1 * executed[:3], atol=1e-6)
    assert np.all(np.abs(executed) <= 1)


def test_bursts_are_executed_and_the_label_goes_on() -> None:
    env = make_env(ENV_ID, (partial(ActionNoise, std=0.0, bursts=1.0),))

    class Trace(Log):
        def on_step(self, slot: int, step: StepEvent) -> None:
            super().on_step(slot, step)
            steps.append(not np.allclose(step.info["executed"], step.action))

    met = 0
    for seed in range(20):
        steps: list[bool] = []
        results = rollout(env, ExpertAgent(env), [seed], [Trace()])
        assert results[0].success, "the expert recovers"
        disturbed = np.flatnonzero(steps)
        met += len(disturbed) > 0  # a burst may begin later than a short episode ends
        assert len(disturbed) <= 6 and np.all(np.diff(disturbed) == 1), "a few steps in a row"
    assert 5 <= met < 20


def test_swapped_instruction_keeps_the_scene() -> None:
    plain, swapped = make_env(ENV_ID), make_env(ENV_ID, (SwappedInstruction,))
    for seed in range(5):
        obs, _ = plain.reset(seed=seed)
        other, info = swapped.reset(seed=seed)
        assert info["swapped_from"] == obs["instruction"] != other["instruction"]
        np.testing.assert_array_equal(obs["images"]["front"], other["images"]["front"])
    results, _ = play(swapped, ExpertAgent(swapped), range(5))
    assert all(r.success for r in results), "success judges the new instruction"
    with pytest.raises(ConfigError, match="seed"):
        make_env(ENV_ID, (SwappedInstruction,)).reset()
    with pytest.raises(ConfigError, match=r"possible_instructions\(\)"):
        make_vec("CartPole-v1", 2, wrappers=(SwappedInstruction,))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_falls_into_a_destructor_is_not_lost() -> None:
    class Trap:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)  # Python prints what is raised in here, and goes on

    class Listening(Listener):
        steps = aborted = 0

        def on_step(self, slot: int, step: StepEvent) -> None:
            self.steps += 1
            if self.steps == 3:
                Trap()

        def on_abort(self) -> None:
            self.aborted += 1

    heard, env = Listening(), make_env(ENV_ID)
    with pytest.raises(KeyboardInterrupt):
        rollout(env, ExpertAgent(env), range(100), [heard])
    assert (heard.steps, heard.aborted) == (3, 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("after", range(5))
def test_closing_ends_wherever_ctrl_c_has_fallen(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two messages to and from the workers."""
    env = make_vec(ENV_ID, 2, asynchronous=True)
    env.reset(seed=[1, 2])
    left = [after]

    class Interrupted:
        def __init__(self, pipe: Any) -> None:
            self._pipe = pipe

        def __getattr__(self, name: str) -> Any:
            return getattr(self._pipe, name)

        def send(self, message: Any) -> None:
            self._count()
            self._pipe.send(message)

        def recv(self) -> Any:
            self._count()
            return self._pipe.recv()

        def _count(self) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt

    env.parent_pipes = [Interrupted(pipe) for pipe in env.parent_pipes]  # type: ignore[attr-defined]
    processes = list(env.processes)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        for _ in range(3):
            env.step(np.zeros(env.action_space.shape, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="interrupted"):
        env.step(np.zeros(env.action_space.shape, np.float32))  # type: ignore[arg-type]
    env.close()
    assert not any(process.is_alive() for process in processes)
