"""Training on mixtures, relative actions, small pictures and workers; and acting with what came out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_examples import picture
from fake_env import ENV_ID
from test_data_loading import ARM, example
from tiny import random_batch, tiny_policy, vlm_folder

from vla_agents.agent import load_agent
from vla_agents.bodies import load_bodies
from vla_agents.data import Mixture, Step, WindowDataset, create_dataset, load_windows, open_dataset
from vla_agents.data.loading import load as loading
from vla_agents.data.video.frames import VideoFrames
from vla_agents.embodiment import Camera, Embodiment, Part, embodiment_of
from vla_agents.envs import make_env
from vla_agents.errors import ConfigError, EmbodimentMismatchError, UnknownNameError
from vla_agents.eval.evaluate import EvalConfig, PolicyEvaluator
from vla_agents.policies.policy import Batch
from vla_agents.policies.qwen_oft import QwenOFTConfig
from vla_agents.train.config import TrainConfig
from vla_agents.train.run import train
from vla_agents.train.strategy import BehaviourCloning

JOINTS = Embodiment(
    "joints",
    action=(Part("joints", 2, "joint_position"), Part("grip", 1, "gripper_open_01", 0, 1)),
    state=(Part("joints", 2, "joint_position"),),
    cameras=(Camera("front", 40, 40),),
    control_hz=20.0,
)


@pytest.fixture(scope="module")
def joints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("train") / "joints", np.random.default_rng(0)
    with create_dataset(path, JOINTS, durable=False) as writer:
        for k in range(3):
            writer.begin(f"fold {k}")
            for t in range(6):
                state, action = rng.normal(size=2).astype(np.float32), rng.uniform(size=3).astype(np.float32)
                writer.add(Step({"front": picture(rng, 40, 40)}, state, action, time=t / 20))
            writer.save(True)
    return path


class _Env:
    def __init__(self, body: Embodiment) -> None:
        self.embodiment = body


def config(out: Path, **changes: Any) -> TrainConfig:
    model = QwenOFTConfig(vlm=str(vlm_folder()), horizon=2, execute=1)
    values: dict[str, Any] = {
        "out": str(out), "model": model, "steps": 2, "batch_size": 4, "validate_every": 2, "save_every": 0,
        "tensorboard": False, "device": "cpu", "validation_share": 0.25,
    }  # fmt: skip
    return TrainConfig(**(values | changes))


def test_a_run_on_two_bodies_and_acting_with_both(joints: Path, tmp_path: Path) -> None:
    arm = example()[0]
    settings = config(
        tmp_path / "run", dataset=(str(arm.path), str(joints)), weights=(1.0, 2.0), mix="per_dataset", fps=10.0,
        actions="relative", image_size=32, cache=str(tmp_path / "cache"), workers=1,
    )  # fmt: skip
    result = train(settings, progress=False)
    assert result.step == 2 and np.isfinite(result.metrics["val_loss"])
    assert len([f for f in (tmp_path / "cache").iterdir() if f.is_dir()]) == 2
    bodies = load_bodies(result.last)
    assert [body.embodiment.name for body in bodies.values()] == ["pose", "joints"]
    for body in (ARM, replace(JOINTS, control_hz=10.0)):
        agent = load_agent(result.last, env=_Env(body))
        rng = np.random.default_rng(0)
        images = {c.name: rng.integers(0, 255, (c.height, c.width, 3), np.uint8) for c in body.cameras}
        state = np.ones(body.state_dim, np.float32) / np.sqrt(4)
        action = agent.act({"images": images, "state": state, "instruction": "go"})
        assert action.shape == (body.action_dim,) and np.isfinite(action).all()
    with pytest.raises(EmbodimentMismatchError, match="control rate"):
        load_agent(result.last, env=_Env(JOINTS))


def test_a_run_is_evaluated_with_what_lies_between(tmp_path: Path) -> None:
    """Pictures of the env are made as small as those that the policy learns from."""
    body = embodiment_of(make_env(ENV_ID))
    rng = np.random.default_rng(0)
    with create_dataset(tmp_path / "set", body, durable=False) as writer:
        for _ in range(4):
            writer.begin("fly to the red target")
            for t in range(4):
                images = {c.name: picture(rng, c.height, c.width) for c in body.cameras}
                state, action = (
                    rng.normal(size=3).astype(np.float32),
                    rng.uniform(-1, 1, 4).astype(np.float32),
                )
                writer.add(Step(images, state, action, time=t / 10))
            writer.save(True)
    settings = config(tmp_path / "run", dataset=(str(tmp_path / "set"),), image_size=32)
    evaluator = PolicyEvaluator(EvalConfig(env=ENV_ID, episodes=1, max_steps=3, num_envs=1))
    result = train(settings, evaluator, progress=False)
    assert body.cameras[0].height == 16 and "success" in result.metrics
    assert load_agent(result.last, env=make_env(ENV_ID)).embodiment == body  # type: ignore[attr-defined]


def test_workers_change_nothing_in_a_run(joints: Path, tmp_path: Path) -> None:
    weights = []
    for workers in (0, 2):
        run = train(config(tmp_path / str(workers), dataset=(str(joints),), workers=workers), progress=False)
        weights.append((run.last / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_draws_of_behaviour_cloning_with_shares(joints: Path) -> None:
    arm = example()[0]
    mixture = load_windows([arm.path, joints], 2, weights=(3, 1), mix="pooled", fps=10.0, image_size=16)
    assert isinstance(mixture, Mixture)
    strategy = BehaviourCloning(mixture, None, 500, seed=1, first_steps=1, first_steps_weight=4.0)
    (batch,) = strategy.batches(0, 1)
    assert batch.action_mask is not None
    arms = batch.action_mask.sum(1) == ARM.action_dim
    assert abs(float(arms.float().mean()) - 0.75) < 0.06
    rows = strategy._order.rows(0)[0]
    first = mixture.step_of[rows] == 0
    assert 0.3 < first.mean() < 0.75  # 4 of 18 and 3 of 9 windows, drawn 4 times as often
    assert batch.to("cpu").action_mask is not None and not batch.find_nonfinite()


def test_values_that_a_body_lacks_do_not_count() -> None:
    policy = tiny_policy()
    batch = random_batch(3)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 1:3] = mask[2, 3] = False
    masked = replace(batch, action_mask=mask)
    loss = policy(masked)["action_l1"]
    assert batch.action is not None and batch.mask is not None
    other = batch.action.clone()
    other[0, :, 1:3] += 7
    other[2, :, 3] -= 5
    assert torch.equal(policy(replace(masked, action=other))["action_l1"], loss)
    assert not torch.equal(policy(replace(batch, action=other))["action_l1"], policy(batch)["action_l1"])
    error = torch.arange(24.0).reshape(2, 3, 4)  # two draws of one sample
    one = Batch({}, ["x"], action_mask=torch.tensor([[True, False, False, True]]))
    assert torch.equal(one.mean_over_values(error), error[..., [0, 3]].mean(-1))
    assert torch.equal(Batch({}, ["x"]).mean_over_values(error), error.mean(-1))


def test_where_pictures_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = example()[0]
    needed = 18 * 32 * 80 * 3

    def chosen(free: float | None, cache: str = "auto", **options: Any) -> str:
        monkeypatch.setattr(loading, "available_bytes", lambda: free if free is None else int(free))
        return loading.choose_pictures([reader], cache, **options).source

    assert chosen(4.2 * needed) == chosen(None) == chosen(4.2 * needed, "off") == "memory"
    assert chosen(3.8 * needed) == "cache" and chosen(3.8 * needed, "off") == "files"
    assert chosen(1.2 * needed, image_size=16) == "memory"
    assert chosen(3.8 * needed, cameras=["wrist"]) == "memory"
    assert chosen(1e12, str(tmp_path)) == "cache"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each process would hold them
    assert chosen(4.2 * needed) == "cache"


def test_several_datasets_together(joints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = example()[0].path
    one = load_windows([arm], 2)
    assert isinstance(one, WindowDataset)
    two = load_windows([arm, arm], 2)
    assert isinstance(two, WindowDataset) and len(two) == 36
    weighed = load_windows([arm, arm], 2, weights=(1, 3))
    assert (
        isinstance(weighed, Mixture)
        and len(set(weighed.names)) == 2
        and weighed.shares.tolist() == [0.25, 0.75]
    )
    assert weighed.embodiment == one.embodiment
    for options in ({}, {"weights": (1, 1)}):
        with pytest.raises(EmbodimentMismatchError, match="joints"):
            load_windows([arm, joints], 2, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"10 Hz, 'joints' at 20 Hz"):
        load_windows([arm, joints], 2, mix="pooled", image_size=16)
    with pytest.raises(ConfigError, match="1 weights for 2 datasets"):
        load_windows([arm, joints], 2, weights=(1,))
    with pytest.raises(ConfigError, match="no dataset"):
        load_windows([], 2)
    with pytest.raises(UnknownNameError, match="gripp"):
        load_windows([arm, joints], 2, mix="per_dataset", fps=10.0, image_size=16, modes={"gripp": "none"})
    monkeypatch.setattr(loading, "available_bytes", lambda: 1000)
    off = load_windows([open_dataset(arm)], 2, cache="off")
    assert isinstance(off, WindowDataset) and isinstance(off._store.frames["front"], VideoFrames)
