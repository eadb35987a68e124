"""What stops a run keeps its last good state and says what to do: NaN, memory, damaged checkpoints, signals."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import BASE, losses
from tiny import ArrayWindows, random_batch, tiny_policy

from vla_agents.config import from_dict, save_yaml
from vla_agents.errors import ConfigError, DatasetError, OutOfMemoryError, TrainingError
from vla_agents.policies.checkpoint import load_policy
from vla_agents.policies.policy import Batch
from vla_agents.train import failures
from vla_agents.train.callbacks import Callback, StepReport
from vla_agents.train.checkpoints import newest_checkpoint
from vla_agents.train.config import OptimizerConfig, TrainConfig
from vla_agents.train.keep import Keep
from vla_agents.train.metrics import read_entries, truncate_after
from vla_agents.train.resuming import check_resumed
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.trainer import Trainer

MUON = OptimizerConfig(kind="muon")


class Described(ArrayWindows):
    def describe(self, rows: Any) -> list[str]:
        return [f"episode {int(row) // 7} of data/lift, step {int(row) % 7}" for row in rows]


def trainer(out: Path, *callbacks: Callback, windows: Any = None, **changes: Any) -> Trainer:
    strategy = BehaviourCloning(windows or Described(random_batch(40)), None, 4, 0)
    return Trainer(tiny_policy(), strategy, replace(BASE, out=str(out), **changes), callbacks=callbacks)


def test_a_loss_that_is_not_finite_names_its_samples_and_keeps_the_state_before(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_every=0, validate_every=100, steps=9)
    good: dict[str, torch.Tensor] = {}
    real = run.policy.forward

    def forward(batch: Batch) -> dict[str, torch.Tensor]:
        found = real(batch)
        if run.step == 3 and bool((batch.rows == run_rows[1]).any()):  # one sample spoils the batch
            found = {name: loss * float("nan") for name, loss in found.items()}
        return found

    rows = run.strategy.batches(3, 1, 0, 1)[0].rows
    assert rows is not None
    run_rows = rows.tolist()
    run.policy.forward = forward  # type: ignore[method-assign]
    run.callbacks.append(Keeper(good))
    with pytest.raises(TrainingError) as caught:
        run.fit()
    text = str(caught.value)
    assert text.startswith("step 3: not finite: losses {'action_l1': nan}")
    row = run_rows[1]
    assert f"sample 1 (episode {row // 7} of data/lift, step {row % 7}" in text and "last good state" in text
    assert "sample 0 (" not in text
    saved = load_policy(tmp_path / "last", device="cpu")
    assert newest_checkpoint(tmp_path).name == "step_000003"  # type: ignore[union-attr]
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, good[name]), name
    assert trainer(tmp_path, steps=5, resume=True).fit().step == 5  # somebody mended it


class Keeper(Callback):
    def __init__(self, found: dict[str, torch.Tensor]) -> None:
        self._found = found

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if trainer.step == 3:
            self._found |= {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}


def test_weights_at_fault_and_nan_in_the_data_are_told_apart(tmp_path: Path) -> None:
    run = trainer(tmp_path / "weights")
    with torch.no_grad():
        next(run.policy.head.parameters()).fill_(float("inf"))
    with pytest.raises(
        TrainingError, match=r"all 4 samples, so the weights are at fault.*data/lift(.|\n)*not saved"
    ):
        run.fit()
    assert newest_checkpoint(tmp_path / "weights") is None  # no good state, and none that says it is one
    batch = random_batch(40)
    assert batch.action is not None
    batch.action[:, 1, 0] = float("nan")
    with pytest.raises(
        TrainingError, match=r"action of sample 0 .*\n  the batch: episode \d of data/lift, step \d"
    ):
        trainer(tmp_path / "data", windows=Described(batch)).fit()


def test_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    run = trainer(tmp_path, ema=0.9)

    def forward(batch: Batch) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    run.policy.forward = forward  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError) as caught:
        run.fit()
    text = str(caught.value)
    for word in (
        "step 0",
        "20.00 GiB",
        "--batch-size 2 --accumulation 2",
        "gradient-checkpointing",
        "--ema",
        "fsdp2",
    ):
        assert word in text, word
    assert failures.is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )
    assert not failures.is_out_of_memory(RuntimeError("shapes differ"))


def test_sigterm_ends_the_step_and_saves(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    class Terminate(Callback):
        def on_step(self, trainer: Trainer, report: StepReport) -> None:
            if trainer.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    result = trainer(tmp_path, Terminate(), steps=50).fit()
    assert result.interrupted and result.step == 2 and signal.getsignal(signal.SIGTERM) is before
    assert newest_checkpoint(tmp_path).name == "step_000002"  # type: ignore[union-attr]


def test_damaged_checkpoints_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, steps=6, keep="all", save_every=2, validate_every=6).fit()
    whole = losses(tmp_path)

    def damage(step: int, name: str, size: int) -> None:
        file = tmp_path / "checkpoints" / f"step_{step:06d}" / name
        file.write_bytes(file.read_bytes()[:size])

    damage(6, "model.safetensors", 1000)
    assert newest_checkpoint(tmp_path).name == "step_000004"  # type: ignore[union-attr]
    assert "step_000006 is passed over: model.safetensors has 1000 of" in caplog.text
    damage(4, "training/state-00001.safetensors", 5)
    assert newest_checkpoint(tmp_path).name == "step_000002"  # type: ignore[union-attr]
    trainer(tmp_path, steps=6, resume=True, validate_every=6, keep="all").fit()
    assert losses(tmp_path) == whole
    for step in (2, 4):
        damage(step, "training/state.json", 20)
    (tmp_path / "checkpoints" / "step_000006" / "training" / "state.json").unlink()
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints" / "step_1000000").mkdir()  # by number, not by name
    with pytest.raises(TrainingError, match="nothing to resume"):
        trainer(tmp_path, resume=True).fit()


def test_what_is_kept(tmp_path: Path) -> None:
    scores = iter([0.9, 0.1, 0.1, 0.1])
    run = Trainer(
        tiny_policy(),
        BehaviourCloning(ArrayWindows(random_batch(40)), None, 4, 0),
        replace(BASE, out=str(tmp_path), steps=8, save_every=1, validate_every=2, keep="best,last,every=3"),
        lambda policy, step: {"success": next(scores)},
    )
    run.fit()
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [2, 3, 6, 8]
    assert (
        Keep.parse("last") == Keep(best=False)
        and Keep.parse("all").all
        and Keep.parse("best, every=10").every == 10
    )
    for bad in ("bset", "every=", "every=0", "every=x", ""):
        with pytest.raises(ConfigError, match="none of best, last, every=N, all"):
            Keep.parse(bad)


def test_a_line_that_was_never_finished_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    assert len(read_entries(file)) == 2
    truncate_after(file, 1)
    assert file.read_text() == '{"step": 1, "loss": 2}\n'


def test_workers_preprocess_and_change_nothing(tmp_path: Path) -> None:
    from tiny_all import FRAMEWORKS, framework

    for kind in FRAMEWORKS:
        policy, batch = framework(kind), replace(random_batch(3), seeds=torch.arange(3))
        before = policy.preprocess(batch)
        assert before.inputs is not None and before.inputs["pixel_values"].dtype == torch.uint8
        with torch.no_grad():
            plain, weight = policy(batch), policy.loss_weight(batch)
            policy.backbone.tokenizer = policy.backbone.prompts = None  # nothing is left for them to do
            made = policy(replace(before, images={n: torch.zeros_like(v) for n, v in batch.images.items()}))
        assert {n: float(v) for n, v in plain.items()} == {n: float(v) for n, v in made.items()}, kind
        assert weight == policy.loss_weight(before)
    curves = []
    for workers in (0, 1):
        policy = tiny_policy()
        strategy = BehaviourCloning(
            ArrayWindows(random_batch(40)), None, 4, 0, workers=workers,
            preprocess=policy.preprocess if workers else None,
        )  # fmt: skip
        first = strategy.batches(0, 1)[0]
        assert (first.inputs is not None) == bool(workers) and np.array_equal(
            first.rows, strategy._order.rows(0)[0]
        )
        Trainer(policy, strategy, replace(BASE, out=str(tmp_path / str(workers)), steps=2)).fit()
        strategy.close()
        curves.append(losses(tmp_path / str(workers)))
    assert curves[0] == curves[1]


def test_whatever_ends_a_run_the_steps_before_it_are_kept(tmp_path: Path) -> None:
    reading = trainer(tmp_path / "read", save_every=0, validate_every=100, steps=9)
    real = reading.strategy.batches

    def batches(step: int, *cut: Any) -> Any:
        if step == 3:
            raise DatasetError("data/a.png", "not a readable picture")
        return real(step, *cut)

    reading.strategy.batches = batches  # type: ignore[method-assign]
    with pytest.raises(DatasetError, match="not a readable picture"):
        reading.fit()
    assert newest_checkpoint(tmp_path / "read") == tmp_path / "read/checkpoints/step_000003"

    acting = trainer(tmp_path / "act", save_every=0, validate_every=4, steps=9)
    acting.evaluate = lambda policy, step: {"success": 1 / (step - 8)}  # its simulator dies in the second one
    with pytest.raises(ZeroDivisionError):
        acting.fit()
    assert newest_checkpoint(tmp_path / "act") == tmp_path / "act/checkpoints/step_000008"
    assert (tmp_path / "act/best").resolve().name == "step_000004"

    stepping = trainer(tmp_path / "half", save_every=0, validate_every=100, steps=9)
    taken = stepping.engine.step

    def step() -> None:
        taken()
        if stepping.step == 3:  # the weights are neither those of step 3 nor those of step 4
            raise MemoryError

    stepping.engine.step = step  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError):
        stepping.fit()
    assert newest_checkpoint(tmp_path / "half") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"validate_every": -1}, "validate_every is -1"),
        ({"ema": 1.5}, "ema is 1.5"),
        ({"keep": "bset"}, "'bset' is none of"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr is -1.0"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr is nan"),
        ({"optimizer": {"lr_of": {"head": 0.0}}}, "'head' has the rate 0.0"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused_at_once(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(TrainConfig, changes)
    assert told in str(caught.value) and "-> " in str(caught.value)


def test_a_run_goes_on_as_itself_or_not_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    began = TrainConfig(out=str(tmp_path), dataset=("data/a",), normalization={"gripper": "none"})
    save_yaml(began, tmp_path / "run.yaml")
    tasks = replace(
        began.model, tasks={"lift": "^pick up"}
    )  # as multitask.embedding has put them into run.yaml
    save_yaml(replace(began, model=tasks), tmp_path / "run.yaml")
    check_resumed(replace(began, resume=True, workers=2, log_every=1))
    assert not caplog.records
    save_yaml(began, tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"dataset \['data/b'\] \(there \['data/a'\]\)(.|\n)*--init-from"):
        check_resumed(replace(began, dataset=("data/b",)))
    changes: list[dict[str, Any]] = [
        {"normalization": {"gripper": "q01_q99"}},
        {"normalization": {}},
        {"optimizer": MUON},
    ]
    for other in [replace(began, **change) for change in changes]:
        with pytest.raises(ConfigError, match="--resume with other options"):
            check_resumed(other)
    with caplog.at_level("INFO", "vla_agents.train"):
        check_resumed(replace(began, steps=50, batch_size=8, model=replace(began.model, horizon=5)))
    assert "steps 50 (there 2000), batch_size 8 (there 32)" in caplog.text
    assert f"those of the checkpoint: model.horizon {began.model.horizon}" in caplog.text
