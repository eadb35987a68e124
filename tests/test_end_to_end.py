"""Collect and evaluate on the real tabletop, with a real (if untrained) Qwen-VL policy from a checkpoint."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from rich.console import Console
from tiny import tiny_policy

from vla_agents.agent import Agent, PolicyAgent
from vla_agents.chunking import make_chunker
from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.data import open_dataset
from vla_agents.embodiment import embodiment_of
from vla_agents.envs import make_env, make_vec
from vla_agents.errors import CheckpointError, ConfigError, EmbodimentMismatchError, UnknownNameError
from vla_agents.eval.evaluate import EvalConfig, PolicyEvaluator
from vla_agents.eval.report import EvalReport
from vla_agents.eval.run import run_eval
from vla_agents.policies.checkpoint import save_policy
from vla_agents.policies.qwen_oft import QwenOFT
from vla_agents.rollout import Listener, StepEvent, rollout

ENV = "vla_agents/Tabletop-v0"
ARGS: dict[str, Any] = {"task": "lift", "image_size": 32, "cameras": ["front"], "max_steps": 12}


def policy() -> QwenOFT:
    env = make_env(ENV, **ARGS)
    body = embodiment_of(env)
    env.close()
    return tiny_policy(body=body)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(policy(), tmp_path_factory.mktemp("run") / "best")


def quiet(**changes: Any) -> EvalReport:
    config = EvalConfig(**({"env": ENV, "env_args": ARGS, "episodes": 5, "num_envs": 3} | changes))
    return run_eval(config, console=Console(file=io.StringIO()), progress=False)


class Actions(Listener):
    def __init__(self) -> None:
        self.of_seed: dict[int, list[np.ndarray]] = {}
        self._seed: dict[int, int] = {}

    def on_reset(self, slot: int, seed: int, obs: Any, info: Any) -> None:
        self._seed[slot] = seed
        self.of_seed[seed] = []

    def on_step(self, slot: int, step: StepEvent) -> None:
        self.of_seed[self._seed[slot]].append(step.action.copy())


class CutOff(gymnasium.Wrapper):
    """Truncates after 4, 5 or 6 steps, by seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._left = 4 + ((seed or 1) - 1) % 3
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self._left -= 1
        obs, reward, terminated, _, info = self.env.step(action)
        return obs, reward, terminated, self._left <= 0, info


@pytest.mark.parametrize(("execute", "ensemble"), [(2, None), (4, None), (2, "act"), (2, "cosine")])
def test_a_qwen_policy_acts_in_a_vector_env_as_it_does_alone(execute: int, ensemble: str | None) -> None:
    trained = policy()
    played = []
    for num_envs in (1, 3):
        cut = (
            CutOff,
        )  # an untrained policy never succeeds: let episodes end at different times all the same
        env = make_vec(ENV, num_envs, wrappers=cut, **ARGS) if num_envs > 1 else make_env(ENV, cut, **ARGS)
        agent: Agent = PolicyAgent(trained, chunker=make_chunker(execute, trained.horizon, ensemble))
        log = Actions()
        rollout(env, agent, [1, 2, 3, 4, 5], [log])
        env.close()
        played.append(log.of_seed)
    single, vector = played
    assert [len(actions) for actions in single.values()] == [4, 5, 6, 4, 5]
    for seed in single:
        np.testing.assert_allclose(vector[seed], single[seed], atol=2e-4)


def test_eval_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    report = quiet(agent=str(checkpoint), out=tmp_path / "e", videos=2, execute=3)
    assert len(report.episodes) == 5 and report.config["execute"] == 3
    assert report.renderer in ("egl", "osmesa", "raycast")
    assert {r.task for r in report.episodes} == {"lift"}
    assert len(list((tmp_path / "e" / "videos").iterdir())) == 2
    again = quiet(agent=str(checkpoint.parent), out=tmp_path / "f", videos=0, execute=3, num_envs=1)
    assert [(r.seed, r.success, r.steps) for r in again.episodes] == [
        (r.seed, r.success, r.steps) for r in report.episodes
    ]


def test_the_expert_does_what_is_named(tmp_path: Path) -> None:
    arguments = {"task": ["lift", "place"], "image_size": 32}
    plain = quiet(agent="expert", env_args=arguments, out=tmp_path / "a", videos=0, episodes=8)
    swapped = quiet(
        agent="expert", env_args=arguments, out=tmp_path / "b", videos=0, episodes=8, swapped=True
    )
    assert plain.success == swapped.success == 1.0
    for one, other in zip(plain.episodes, swapped.episodes, strict=True):
        assert other.info["swapped_from"] == one.instruction != other.instruction
    assert set(plain.tasks) == {"lift", "place"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"env_args": ARGS | {"image_size": 48}}, EmbodimentMismatchError, "48x48.*ResizeImages"),
        (
            {"env_args": {**ARGS, "cameras": ["wrist"]}},
            EmbodimentMismatchError,
            "RenameCameras or SelectCameras",
        ),
        ({"env_args": {**ARGS, "task": "lfit"}}, UnknownNameError, "Did you mean 'lift'"),
        ({"env_args": {**ARGS, "dificulty": "hard"}}, ConfigError, "Did you mean 'difficulty'"),
        ({"execute": 9}, ConfigError, "horizon 4"),
        ({"execute": 2, "ensemble": "act"}, ConfigError, "exclude each other"),
        ({"agent": "no/such/checkpoint"}, CheckpointError, "no/such/checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quiet(**({"agent": str(checkpoint), "out": tmp_path} | changes))


def test_the_trainers_evaluator_takes_a_real_policy() -> None:
    trained = policy().train()
    evaluator = PolicyEvaluator(EvalConfig(env=ENV, env_args=ARGS, episodes=3))
    found = evaluator(trained, 1)
    evaluator.close()
    assert trained.training and set(found) == {"success", "success_low", "success_high"}


def test_demonstrations_of_the_tabletop_resume_to_the_same_dataset(tmp_path: Path) -> None:
    def record(name: str, episodes: int, resume: bool = False) -> None:
        config = CollectConfig(
            tmp_path / name,
            ENV,
            {"image_size": 32},
            episodes=episodes,
            noise=0.2,
            bursts=0.5,
            durable=False,
            resume=resume,
        )
        collect(config, console=Console(file=io.StringIO()), progress=False)

    record("whole", 4)
    record("parts", 2)
    record("parts", 4, resume=True)
    whole, parts = open_dataset(tmp_path / "whole"), open_dataset(tmp_path / "parts")
    assert len(whole) == len(parts) == 4
    for index in range(4):
        one, other = whole.read(index), parts.read(index)
        assert one.instruction == other.instruction and one.success is other.success is True
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.executed, other.executed)  # type: ignore[arg-type]
        np.testing.assert_array_equal(one.images["wrist"], other.images["wrist"])
        assert one.metadata["renderer"] == other.metadata["renderer"] != ""
