"""What is exact for every framework: accumulation, processes, resume, validation."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from test_train import BASE, Fixed, losses
from tiny import ArrayWindows, random_batch, rows
from tiny_all import FRAMEWORKS, framework

from vla_agents.errors import TrainingError
from vla_agents.policies.policy import Batch, Policy
from vla_agents.train.shares import Shares, loss_weights
from vla_agents.train.strategy import BehaviourCloning, Strategy, with_seeds
from vla_agents.train.trainer import Trainer

every_framework = pytest.mark.parametrize("kind", FRAMEWORKS)


def run(out: Path, policy: Policy, strategy: Strategy, **changes: Any) -> Trainer:
    return Trainer(policy, strategy, replace(BASE, out=str(out), **changes))


def cloning(batch_size: int, seed: int = 0) -> BehaviourCloning:
    return BehaviourCloning(
        ArrayWindows(random_batch(40)), ArrayWindows(random_batch(9, seed=5)), batch_size, seed
    )


@every_framework
def test_accumulation_equals_the_large_batch(kind: str, tmp_path: Path) -> None:
    """Micro-batches of unequal size, chunks past the end, answers of unequal length: the same loss and gradient."""
    whole = random_batch(10)
    parts = [rows(whole, [0, 1]), rows(whole, [2, 3, 4, 5, 6]), rows(whole, [7, 8, 9])]
    one, many = (
        run(tmp_path / name, framework(kind), Fixed(batches), accumulation=len(batches))
        for name, batches in (("one", [whole]), ("many", parts))
    )
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    for name, trainer in (("one", one), ("many", many)):
        trainer.engine.clip = lambda *_: 1.0  # type: ignore[method-assign]
        for optimizer in trainer.engine.optimizers:
            optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign]
        loss = trainer._train_step().losses
        gradients[name] = {n: p.grad for n, p in trainer.policy.named_parameters() if p.grad is not None}
        gradients[name]["loss"] = torch.tensor(sum(loss.values()))
    scale = max(float(g.abs().max()) for g in gradients["one"].values())
    for name, expected in gradients["one"].items():
        torch.testing.assert_close(gradients["many"][name], expected, rtol=1e-3, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize(
    "kind", [kind for kind in FRAMEWORKS if kind != "qwen_oft"]
)  # that one: test_train.py
def test_a_resumed_run_equals_the_unbroken_one_to_the_bit(kind: str, tmp_path: Path) -> None:
    short = {"steps": 4, "validate_every": 2, "save_every": 0}
    whole = run(tmp_path / "whole", framework(kind), cloning(4), **short)
    whole.fit()
    first = run(tmp_path / "broken", framework(kind), cloning(4), **short)
    first.strategy.observe = lambda step, metrics: setattr(first, "stopping", step == 2)  # type: ignore[method-assign]
    assert first.fit().step == 2
    torch.rand(7)  # another process would have another random state
    second = run(tmp_path / "broken", framework(kind, seed=9), cloning(4), resume=True, **short)
    assert second.fit().step == 4
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert second.metrics == whole.metrics
    for (name, ours), theirs in zip(second.policy.named_parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@every_framework
def test_the_validation_loss_repeats_and_does_not_depend_on_the_batches(kind: str, tmp_path: Path) -> None:
    policy, held_out = framework(kind), random_batch(9, seed=5)

    def loss(*sizes: int) -> float:
        ends = np.cumsum((0, *sizes))
        batches = [rows(held_out, list(range(a, b))) for a, b in pairwise(ends)]
        trainer = run(tmp_path, policy, Fixed(batches))
        return trainer._validation_loss(with_seeds(batches, (0,)))

    assert loss(9) == loss(9)
    assert loss(2, 3, 4) == pytest.approx(loss(9), rel=1e-5)
    assert loss(9) != loss(8)


def test_the_samples_of_a_step_do_not_depend_on_how_they_are_cut() -> None:
    """Four samples at once, in two micro-batches, on two processes: the same ones with the same seeds."""

    def step(batch_size: int, count: int, world: int) -> tuple[np.ndarray, np.ndarray]:
        strategy = cloning(batch_size, seed=3)
        found: list[Batch] = []
        for rank in range(world):
            drawn = strategy.batches(5, count, rank, world)
            found += with_seeds(drawn, (3, 5), rank, world)  # type: ignore[arg-type]
        return (
            torch.cat([b.action for b in found]).numpy(),  # type: ignore[misc]
            torch.cat([b.seeds for b in found]).numpy(),  # type: ignore[misc]
        )

    actions, seeds = step(8, 1, 1)
    assert len(set(seeds.tolist())) == 8
    for cut in ((4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)):
        others, theirs = step(*cut)
        np.testing.assert_array_equal(others, actions)
        np.testing.assert_array_equal(theirs, seeds)
    assert not np.array_equal(with_seeds([random_batch(8)], (3, 6))[0].seeds, seeds)  # type: ignore[attr-defined]
    kept = replace(random_batch(2), seeds=torch.tensor([1, 2]))
    assert with_seeds([kept], (0,))[0] is kept and with_seeds([], (0,)) == []


def test_fast_counts_the_tokens_of_its_answers() -> None:
    policy, batch = framework("qwen_fast"), random_batch(3)
    _, labels = policy.answered(batch)  # type: ignore[operator]
    assert loss_weights(policy, batch) == {"": int((labels >= 0).sum())}
    assert loss_weights(framework("qwen_oft"), batch) == {"": int(batch.mask.sum())}  # type: ignore[union-attr]


def test_losses_that_count_different_things_have_a_share_each() -> None:
    class Two(torch.nn.Module):
        def loss_weight(self, batch: Batch) -> dict[str, int]:
            return {"a": len(batch), "b": len(batch) - 2}

    shares = Shares(Two(), [random_batch(2), random_batch(4)])
    one = torch.tensor(1.0)
    assert shares.names == ["a", "b"]
    assert shares.weigh(0, {"a": one, "b": one}) == {"a": pytest.approx(2 / 6), "b": 0}
    assert shares.weigh(1, {"a": one, "b": one}) == {"a": pytest.approx(4 / 6), "b": 1}
    with pytest.raises(TrainingError, match="counts only"):
        shares.weigh(0, {"c": one})


@every_framework
def test_half_precision_takes_nearly_the_same_steps(kind: str, tmp_path: Path) -> None:
    """bf16 under autocast: weights stay float32, the losses are those of float32 to the precision of bf16."""
    found = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)  # it keeps one precision per process
        trainer = run(tmp_path / precision, framework(kind), cloning(6), steps=3, mixed_precision=precision)
        trainer.fit()
        AcceleratorState._reset_state(reset_partial_state=True)
        assert all(p.dtype == torch.float32 for p in trainer.policy.parameters())
        found[precision] = losses(tmp_path / precision)
    assert found["bf16"] != found["no"]
    assert found["bf16"] == pytest.approx(found["no"], rel=0.05)
