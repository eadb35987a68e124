"""Every framework learns, by the trainer and from a configuration: its actions come far nearer than the mean action."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import BASE, Fixed
from tiny import random_batch
from tiny_all import FRAMEWORKS, framework

from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.config import load_config
from vla_agents.data import WindowDataset, open_dataset
from vla_agents.demo import DemoConfig, train_config
from vla_agents.policies.checkpoint import load_policy
from vla_agents.policies.policy import Batch, Policy
from vla_agents.train.config import OptimizerConfig, TrainConfig
from vla_agents.train.run import train
from vla_agents.train.trainer import Trainer

RECIPES = Path(__file__).parent.parent / "examples" / "recipes"
every_framework = pytest.mark.parametrize("kind", FRAMEWORKS)


@torch.no_grad()
def error_share(policy: Policy, batch: Batch) -> float:
    """Mean error of the predicted actions inside their episodes, as a share of that of always saying the mean action."""
    policy.eval().seed(0)
    assert batch.action is not None
    inside = torch.ones(batch.action.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
    truth = batch.action[inside]
    spread = (truth - truth.mean(0)).abs().mean()
    return float((policy.predict_action(batch)[inside] - truth).abs().mean() / spread)


@every_framework
def test_a_few_samples_are_learnt(kind: str, tmp_path: Path) -> None:
    batch = replace(random_batch(4), mask=None)
    flow = kind in ("qwen_gr00t", "qwen_pi")
    options = {"repeats": 8} if flow else {}
    # The flow policies' share is 0.2 to 0.5 after 80 steps, by machine and number of threads; about 0.1 after 160.
    steps = 160 if flow else 80
    config = replace(
        BASE, out=str(tmp_path), steps=steps, optimizer=OptimizerConfig(kind="muon", lr=1e-2, warmup=5)
    )
    trainer = Trainer(framework(kind, **options), Fixed([batch]), config)
    first = trainer._train_step().loss
    for trainer.step in range(1, config.steps):
        losses = trainer._train_step().losses
    assert sum(losses.values()) < 0.5 * first
    assert error_share(trainer.policy, batch) < 0.5  # type: ignore[arg-type]


@every_framework
def test_recipes_are_complete_and_of_today(kind: str) -> None:
    config = load_config(TrainConfig, RECIPES / f"{kind}.yaml")
    assert config.policy == kind and config.model.vlm == "tiny" and not config.dataset


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "lift"
    env = {"task": "lift", "difficulty": "medium", "image_size": 64, "cameras": ("front",)}
    settings = {"episodes": 300, "noise": 0.3, "bursts": 0.4, "durable": False}
    collect(CollectConfig(out=folder, env_args=env, **settings), progress=False)  # type: ignore[arg-type]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "share"), [("qwen_gr00t", 0.9), ("qwen_pi", 0.9)])
def test_a_short_run_of_its_recipe_beats_the_mean_action(
    kind: str, share: float, demonstrations: Path, tmp_path: Path
) -> None:
    """On episodes held out, after a quarter of the recipe or less; success takes the whole of it. The flow policies'
    actions are samples, whose errors are larger than a mean's. Qwen-OFT's recipe is the demo (test_demo.py), Qwen-FAST's
    is in test_fast_recipe.py."""
    recipe = load_config(TrainConfig, RECIPES / f"{kind}.yaml")
    config = replace(recipe, dataset=(str(demonstrations),), out=str(tmp_path), steps=200, tensorboard=False)
    train(config, progress=False)
    _, held_out = WindowDataset(open_dataset(demonstrations), recipe.model.horizon).split(0.05, recipe.seed)
    batch = Batch.from_numpy(held_out.get_batch(range(0, len(held_out), 2)))
    assert error_share(load_policy(tmp_path / "last", device="cpu"), batch) < share


def test_the_demo_is_the_recipe_of_qwen_oft(tmp_path: Path) -> None:
    recipe, demo = (
        load_config(TrainConfig, RECIPES / "qwen_oft.yaml"),
        train_config(DemoConfig(), tmp_path, "tiny"),
    )
    place = {"dataset": demo.dataset, "out": demo.out}
    assert replace(recipe, **place) == demo
