"""Online fine-tuning: who acts and who labels, a buffer that survives, and resume to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from test_strategies import logged, preparing, same_weights
from tiny import vlm_folder

from vla_agents.agent import Agent, ExpertAgent
from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.data import load_windows, open_dataset
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.vector import make_env, make_vec
from vla_agents.errors import ConfigError, TrainingError
from vla_agents.policies.checkpoint import load_policy
from vla_agents.policies.qwen_oft import QwenOFTConfig
from vla_agents.train.config import OptimizerConfig, TrainConfig
from vla_agents.train.run import train
from vla_agents.train.strategies import online as module
from vla_agents.train.strategies.advantages import advantage_weights, returns
from vla_agents.train.strategies.buffer import Buffer
from vla_agents.train.strategies.correct import Corrected, Exploring, Mixed, ScriptedHuman
from vla_agents.train.strategies.online import corrected
from vla_agents.train.strategy_config import OnlineConfig

ENV = "vla_agents/Tabletop-v0"
ARGS = {"task": "lift", "cameras": ["front"], "image_size": 32, "max_steps": 24}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("demos") / "lift"
    return str(collect(CollectConfig(out=out, env_args=ARGS, episodes=4), progress=False).path)


class Still(Agent):
    """Does nothing, with an open gripper."""

    def act(self, obs: dict[str, Any]) -> np.ndarray:
        shape = (7,) if isinstance(obs["instruction"], str) else (len(obs["instruction"]), 7)
        return np.zeros(shape, np.float32)


# ---- who acts -------------------------------------------------------------------------------------------------
def buffer(folder: Path, make_agent: Any, **changes: Any) -> Buffer:
    options: dict[str, Any] = {"episodes": 5, "num_envs": 2, "seed": 50} | changes
    return Buffer(folder, lambda: make_vec(ENV, options["num_envs"], **ARGS), make_agent, **options)


def test_dagger_labels_are_the_experts_whoever_acts(tmp_path: Path) -> None:
    kept = buffer(tmp_path, lambda env, number: Mixed(Still(), ExpertAgent(env), 0.5))
    kept.play(0)
    kept.close()
    reader = open_dataset(kept.path(0))
    assert len(reader) == 5 and kept.is_complete(0)
    assert [line["seed"] for line in kept.played(0)] == [50, 51, 52, 53, 54]
    episode = reader.read(0)
    drove = episode.intervened
    assert 0 < drove.sum() < len(drove)
    executed = np.stack([step.executed for step in episode.steps() if step.executed is not None])
    assert np.allclose(executed[drove], episode.action[drove], atol=1e-6) and not executed[~drove].any()
    env = make_env(ENV, **ARGS)  # the label is what the expert says in that very state
    env.reset(seed=50)
    for label, did in zip(episode.action, executed, strict=True):
        assert np.allclose(env.unwrapped.expert_action(), label, atol=1e-5)  # type: ignore[attr-defined]
        env.step(did)
    env.close()


def test_a_scripted_person_takes_over_and_hands_back(tmp_path: Path) -> None:
    """From the third step on (two that were off), for five steps; the chunk is planned anew afterwards."""

    class Resting(Still):
        def __init__(self) -> None:
            self.chunker = self
            self.dropped: list[Any] = []

        def reset(self, mask: Any = None, *, seed: Any = None) -> None:
            if not isinstance(mask, np.ndarray) and mask is not None:
                self.dropped.append(mask)

    policy: Any = Resting()

    def agent(env: Any, number: int) -> Corrected:
        return Corrected(
            policy, ScriptedHuman(ExpertAgent(env), embodiment_of(env), disagreement=0.6, patience=2, hold=5)
        )

    kept = buffer(tmp_path, agent, episodes=2)
    kept.play(0)
    kept.close()
    drove = open_dataset(kept.path(0)).read(0).intervened.tolist()
    assert drove[:8] == [False] * 2 + [True] * 5 + [False] and 0 in policy.dropped, drove


def test_exploration_depends_on_the_seed_and_leaves_grippers_alone() -> None:
    env = make_env(ENV, **ARGS)
    agent = Exploring(Still(), embodiment_of(env), 0.2)
    obs, _ = env.reset(seed=0)
    agent.reset(seed=3)
    first = [agent.act(obs) for _ in range(3)]
    agent.reset(seed=3)
    assert np.array_equal(first, [agent.act(obs) for _ in range(3)])
    assert np.std(np.stack(first)[:, :6]) > 0.05 and not np.stack(first)[:, 6].any()
    env.close()


# ---- the buffer -----------------------------------------------------------------------------------------------
class Dies(gymnasium.Wrapper):
    """An env that dies at a step, as often as it is told to."""

    left: Iterator[int]

    def __init__(self, env: gymnasium.Env, deaths: list[int], at: int) -> None:
        super().__init__(env)
        self._deaths, self._at, self._step = deaths, at, 0

    def step(self, action: Any) -> Any:
        self._step += 1
        if self._step == self._at and self._deaths:
            self._deaths.pop()
            raise RuntimeError("the simulator crashed")
        return self.env.step(action)


def frames(path: Path) -> list[tuple[Any, ...]]:
    reader = open_dataset(path)
    episodes = [reader.read(index) for index in range(len(reader))]
    return [
        (e.metadata["seed"], e.success, e.action.tobytes(), e.images["front"].tobytes()) for e in episodes
    ]


def test_a_dying_env_is_made_anew_and_costs_nothing(tmp_path: Path) -> None:
    whole = buffer(tmp_path / "whole", lambda env, number: ExpertAgent(env), num_envs=1)
    whole.play(0)
    deaths = [1, 2]
    options: dict[str, Any] = {"episodes": 5, "num_envs": 1, "seed": 50, "retries": 2}
    broken = Buffer(
        tmp_path / "broken",
        lambda: Dies(make_env(ENV, **ARGS), deaths, at=30),
        lambda env, number: ExpertAgent(env),
        **options,
    )
    broken.play(0)
    assert not deaths and frames(broken.path(0)) == frames(whole.path(0))
    whole.close()
    broken.close()


def test_an_env_that_keeps_dying_ends_the_run_with_everything_on_the_disk(tmp_path: Path) -> None:
    lives = iter([25, 1, 1, 1])
    made = Buffer(
        tmp_path,
        lambda: Dies(make_env(ENV, **ARGS), [1], at=next(lives)),
        lambda env, number: ExpertAgent(env),
        episodes=5,
        num_envs=1,
        seed=50,
        retries=2,
    )
    with pytest.raises(TrainingError, match=r"3 times in a row .*simulator crashed"):
        made.play(0)
    assert 0 < made.saved(0) == len(made.played(0)) < 5


def test_a_round_that_was_broken_off_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Killed within a wave, after one of its two episodes was written: it is played again, not written twice."""
    whole = buffer(tmp_path / "whole", lambda env, number: Mixed(Still(), ExpertAgent(env), 0.8))
    whole.play(0)
    broken = buffer(tmp_path / "broken", lambda env, number: Mixed(Still(), ExpertAgent(env), 0.8))
    first = frames(whole.path(0))
    assert len({entry[2] for entry in first}) == 5

    class Stop(KeyboardInterrupt):
        pass

    from vla_agents.collect.recorder import Recorder

    save, calls = Recorder._finish, []

    def stop(self: Any, tape: Any) -> None:
        save(self, tape)
        calls.append(tape)
        if len(calls) == 3:
            raise Stop

    Recorder._finish = stop  # type: ignore[method-assign]
    try:
        with pytest.raises(Stop):
            broken.play(0)
    finally:
        Recorder._finish = save  # type: ignore[method-assign]
    assert broken.saved(0) == 3 and len(broken.played(0)) == 2
    broken.play(0)
    assert frames(broken.path(0)) == first
    whole.close()
    broken.close()


# ---- what is learnt -------------------------------------------------------------------------------------------
def test_only_corrections_are_learnt(demos: str) -> None:
    windows: Any = load_windows([demos], 3)
    driven = np.zeros(len(windows), bool)
    driven[:8] = True
    driven[5] = False
    windows.__dict__["_store"] = replace(windows._store, intervened=driven)
    assert np.flatnonzero(corrected(windows))[:4].tolist() == [0, 1, 2]  # 3 and 4 reach into 5


class Fake(SimpleNamespace):
    """The numbers of a `WindowDataset`."""

    def __len__(self) -> int:
        return len(self.step_of)


def test_advantages_prefer_what_went_better_than_expected() -> None:
    """Of two instructions one is easier; what counts is success beyond that."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 15, 60)
    steps = np.concatenate([np.arange(n) for n in lengths])
    easy = np.arange(60) % 2 == 0
    success = rng.random(60) < np.where(easy, 0.9, 0.3)
    windows: Any = Fake(
        lengths=lengths,
        episode_of=np.repeat(np.arange(60), lengths),
        step_of=steps,
        successes=success.tolist(),
        instructions=["easy" if one else "hard" for one in easy],
        state=rng.normal(size=(len(steps), 3)).astype(np.float32),
    )
    gains = returns(windows, 0.9)
    ends = np.cumsum(lengths) - 1
    assert np.allclose(gains[ends], success) and np.allclose(gains[ends - 1], 0.9 * success)
    weights = advantage_weights([windows], windows, 0.9, 0.5, 20)
    good, hard = success[windows.episode_of], ~easy[windows.episode_of]
    assert weights[good].mean() > 2 * weights[~good].mean() and weights.max() <= 20
    assert weights[good & hard].mean() > weights[good & ~hard].mean()  # harder to come by
    windows.successes = [False] * 60
    assert not advantage_weights([windows], windows, 0.9, 0.5, 20).any()


# ---- whole runs -----------------------------------------------------------------------------------------------
def config(out: Path, demos: str, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        out=str(out),
        strategy="online",
        online=OnlineConfig(rounds=2, episodes=2, num_envs=2, max_steps=10),
        env=ENV,
        env_args=ARGS,
        dataset=(demos,),
        model=QwenOFTConfig(vlm=str(vlm_folder()), horizon=2, execute=1, head="mlp"),
        optimizer=OptimizerConfig(kind="muon", lr=1e-3, warmup=2),
        steps=6,
        batch_size=4,
        validate_every=2,
        log_every=1,
        save_every=0,
        validation_share=0.3,
        device="cpu",
        tensorboard=False,
    )
    return replace(base, **changes)


@pytest.mark.parametrize(
    "method",
    ["dagger", *(pytest.param(name, marks=pytest.mark.slow) for name in ("takeover", "filtered", "awr"))],
)
def test_a_run_is_killed_and_resumes_to_the_bit(demos: str, tmp_path: Path, method: str) -> None:
    """Killed at step 5, in the second round: the buffer has a round that the checkpoint (step 2) does not know of."""
    settings = OnlineConfig(method=method, rounds=2, episodes=2, num_envs=2, max_steps=10)  # type: ignore[arg-type]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config(whole, demos, online=settings), progress=False)
    assert logged(whole, "round") == [0, 1, 1]
    calls = []

    def dies(policy: Any, step: int) -> dict[str, float]:
        calls.append(step)
        if step == 4:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(config(broken, demos, online=settings), dies, progress=False)
    assert (broken / "buffer" / "round_001.done").exists()
    train(config(broken, demos, online=settings, resume=True), progress=False)
    assert logged(broken, "loss") == logged(whole, "loss")
    if method == "dagger":
        assert frames(broken / "buffer" / "round_001") == frames(whole / "buffer" / "round_001")
    ours, theirs = (load_policy(out / "last", device="cpu").state_dict() for out in (whole, broken))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_workers_preprocess_what_was_played_and_change_nothing(demos: str, tmp_path: Path) -> None:
    for workers in (0, 1):
        with preparing() as prepared:
            train(config(tmp_path / str(workers), demos, workers=workers, steps=4), progress=False)
        assert prepared == [bool(workers)] * 4
    assert logged(tmp_path / "0", "loss") == logged(tmp_path / "1", "loss")
    assert same_weights(tmp_path / "0", tmp_path / "1")


def test_a_buffer_that_went_missing_is_not_made_up(demos: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(out, demos, steps=4), progress=False)
    for file in (out / "buffer").glob("*.done"):
        file.unlink()
    (out / "buffer" / "round_000.jsonl").unlink()
    with pytest.raises(TrainingError, match="round 0 is missing"):
        train(config(out, demos, steps=6, resume=True), progress=False)


def test_settings_that_cannot_be(demos: str, tmp_path: Path) -> None:
    for changes, says in (
        ({"env": ""}, "none is given"),
        ({"online": OnlineConfig(rounds=7)}, "7 rounds in 6 steps"),
        ({"weights": (1.0,)}, "without weights"),
    ):
        with pytest.raises(ConfigError, match=says):
            train(config(tmp_path / says[:5], demos, **changes), progress=False)
    for wrong in ({"episodes": 0}, {"demonstrations": 1.5}, {"temperature": 0.0}, {"most_weight": 0.5}):
        with pytest.raises(ConfigError, match="online"):
            OnlineConfig(**wrong)  # type: ignore[arg-type]
    assert module.Pool.__doc__
