"""Training on conversations: registry, scales that act on both sides, exact accumulation and resume; a VLM alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_strategies import preparing
from test_train import BASE
from tiny import ArrayWindows, random_batch, tiny_policy, vlm_folder

from vla_agents.cli import main
from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.data.conversations import Conversation, save_conversations
from vla_agents.errors import ConfigError, DatasetError, UnknownNameError
from vla_agents.policies.backbones import load_backbone
from vla_agents.policies.checkpoint import load_policy
from vla_agents.policies.qwen_oft import QwenOFTConfig
from vla_agents.train.config import OptimizerConfig, TrainConfig
from vla_agents.train.run import train
from vla_agents.train.shares import Shares
from vla_agents.train.strategies.cotrain import Cotrain, CotrainBatch, Cotrained
from vla_agents.train.strategies.talk import (
    Conversations,
    open_conversations,
    parse_use,
    same_answer,
    subsample,
)
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.strategy_config import ConversationSource, LanguageConfig
from vla_agents.train.trainer import Trainer


def picture(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen conversations: one picture, two of other sizes, text alone, several turns."""
    made = []
    for number in range(4):
        made += [
            Conversation((picture(number),), (("what is this?", "a red block"),)),
            Conversation(
                (picture(number, 32), picture(9, 64)), (("<image> or <image>?", "this"), ("sure?", "yes"))
            ),
            Conversation((), ((f"is it {number}?", "yes" if number % 2 else "no"),)),
        ]
    return save_conversations(tmp_path_factory.mktemp("talk") / "data", made)


def settings(talk: Path, **changes: Any) -> LanguageConfig:
    return replace(
        LanguageConfig(use=(str(talk),), batch_size=3, validation_share=0.2, questions=2), **changes
    )


# ---- the registry ---------------------------------------------------------------------------------------------
def test_a_part_of_a_dataset_is_always_the_same_and_part_of_a_larger_one(talk: Path) -> None:
    assert parse_use("coco%50") == ("coco", 0.5) and parse_use("a/b%c%12.5") == ("a/b%c", 0.125)
    assert parse_use("coco") == ("coco", 1.0)
    half, most = subsample(1000, 0.5, 3), subsample(1000, 0.8, 3)
    assert len(half) == 500 and set(half) <= set(most) and len(set(half)) == 500
    encoder = tiny_policy().backbone.chat_encoder()
    named = {"mine": ConversationSource(str(talk / "conversations.json"), str(talk))}
    two = LanguageConfig(datasets=named, use=("mine%50", str(talk)))
    assert open_conversations(two, encoder).sizes == [6, 12]


@pytest.mark.parametrize("text", ["coco%0", "coco%101", "coco%1.2.3", "%50"])
def test_percentages_that_are_none(text: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError)):
        open_conversations(LanguageConfig(use=(text,)), tiny_policy().backbone.chat_encoder())


def test_a_registry_that_contradicts_itself_is_refused(talk: Path) -> None:
    encoder = tiny_policy().backbone.chat_encoder()
    for changes, says in (
        ({"use": ()}, "no conversations"),
        ({"use": (str(talk), f"{talk}%50")}, "twice"),
        ({"weights": (1.0, 2.0)}, "2 language.weights for 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            open_conversations(settings(talk, **changes), encoder)
    with pytest.raises(UnknownNameError, match="cocoo"):
        open_conversations(
            settings(talk, use=("cocoo",), datasets={"coco": ConversationSource("x")}), encoder
        )
    with pytest.raises(DatasetError, match="leaves none"):
        open_conversations(settings(talk, use=(f"{talk}%1",)), encoder)
    with pytest.raises(ConfigError, match="not both 0"):
        LanguageConfig(action_scale=0, scale=0)
    with pytest.raises(ConfigError, match="not negative"):
        LanguageConfig(scale=float("nan"))


def test_conversations_about_one_picture_stay_together(tmp_path: Path) -> None:
    """A picture that was trained on is not one to be tested on."""
    shared = [picture(number) for number in range(5)]
    several = [Conversation((image,), ((text, "yes"),)) for image in shared for text in ("a?", "b?", "c?")]
    data = save_conversations(tmp_path / "data", several)
    every = open_conversations(settings(data), tiny_policy().backbone.chat_encoder())
    train_set, held_out = every.split(0.4, 0)
    assert (len(train_set), len(held_out)) == (9, 6)
    seen, kept = (
        {part.chat(n).images[0].tobytes() for n in range(len(part))} for part in (train_set, held_out)
    )
    assert not seen & kept


def test_answers_are_compared_word_by_word() -> None:
    assert same_answer("A  red block", "a red block")
    assert not same_answer("a red", "a red block")
    assert same_answer("31 52", "33 50", 2) and not same_answer("31 52", "34 52", 2)
    assert not same_answer("nan 1", "3 1", 5)


# ---- one step -------------------------------------------------------------------------------------------------
def cotrain(talk: Path, **changes: Any) -> Cotrain:
    options = settings(talk, **changes)
    every = open_conversations(options, tiny_policy().backbone.chat_encoder())
    windows = BehaviourCloning(ArrayWindows(random_batch(20)), None, 4)
    return Cotrain(windows, *every.split(0.2, 0), options)


def gradients(talk: Path, **changes: Any) -> dict[str, torch.Tensor]:
    strategy, policy = cotrain(talk, **changes), tiny_policy()
    learner = strategy.learner(policy)
    (batch,) = strategy.batches(0, 1)
    losses = Shares(learner, [batch]).weigh(0, learner(batch))
    assert set(losses) == {"action_l1", "language"}
    torch.stack(list(losses.values())).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_scales_act_on_both_sides(talk: Path) -> None:
    """The gradient is action_scale times that of acting plus scale times that of answering; none is ignored."""
    acting, answering = gradients(talk, scale=0.0), gradients(talk, action_scale=0.0, scale=1.0)
    both = gradients(talk, action_scale=0.5, scale=3.0)
    assert any(grad.abs().max() > 0 for grad in answering.values())
    assert float(answering["head.fc2.weight"].abs().max()) == 0 < float(acting["head.fc2.weight"].abs().max())
    for name, grad in both.items():
        assert torch.allclose(grad, 0.5 * acting[name] + 3 * answering[name], atol=1e-5), name


def test_micro_batches_take_the_step_of_one_large_batch(talk: Path) -> None:
    """Answers of other lengths: each token counts once, however they are cut."""
    strategy, policy = cotrain(talk, scale=1.0), tiny_policy()
    learner = strategy.learner(policy)
    batches = strategy.batches(0, 2)
    shares = Shares(learner, batches)
    parts = [shares.weigh(number, learner(batch)) for number, batch in enumerate(batches)]
    language = sum(float(part["language"]) for part in parts)
    counts = [batch.talk.weight for batch in batches if batch.talk]
    each = [float(learner(CotrainBatch(None, batch.talk))["language"]) for batch in batches]
    assert language == pytest.approx(
        sum(c * e for c, e in zip(counts, each, strict=True)) / sum(counts), rel=1e-5
    )


def test_what_acting_does_not_use_learns_again_unless_frozen(talk: Path) -> None:
    policy = tiny_policy(freeze=("layers.0",))
    norm = policy.backbone.vlm.model.language_model.norm.weight
    norm.requires_grad_(False)  # as a policy does that reads before it
    Cotrained(policy, settings(talk))
    learns = {name: p.requires_grad for name, p in policy.named_parameters()}
    assert norm.requires_grad and not any(value for name, value in learns.items() if "layers.0" in name)


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(talk: Path, tmp_path: Path) -> None:
    """Every weight has its gradient in every backward pass, and each token counts once."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [*command, str(here / "distributed_cotrain.py"), str(talk), str(tmp_path / "two")],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first["world"] == 2
    changes: dict[str, Any] = {"steps": 3, "accumulation": 4, "validate_every": 9, "save_every": 0}
    alone = replace(BASE, out=str(tmp_path / "one"), **changes)
    Trainer(tiny_policy(), cotrain(talk, scale=1.0), alone).fit()
    for key in ("action_l1", "language"):
        ours, theirs = ([e[key] for e in lines(tmp_path / run) if key in e] for run in ("one", "two"))
        assert theirs == pytest.approx(ours, rel=1e-4)


# ---- whole runs -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> str:
    args = {"task": "lift", "cameras": ["front"], "image_size": 32}
    out = tmp_path_factory.mktemp("episodes") / "lift"
    made = CollectConfig(out=out, env_args=args, episodes=3, only_success=False, max_steps=8)
    return str(collect(made, progress=False).path)


def config(out: Path, talk: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        out=str(out),
        strategy="cotrain",
        language=settings(talk),
        model=QwenOFTConfig(vlm=str(vlm_folder()), horizon=2, execute=1, head="mlp"),
        optimizer=OptimizerConfig(kind="muon", lr=1e-3, warmup=2),
        steps=4,
        batch_size=4,
        accumulation=2,
        validate_every=2,
        log_every=1,
        save_every=0,
        validation_share=0.4,
        device="cpu",
        tensorboard=False,
    )
    return replace(base, **changes)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["cotrain", "vlm"])
def test_a_run_reports_both_sides_and_resumes_to_the_bit(
    talk: Path, episodes: str, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    changes: dict[str, Any] = {"strategy": strategy, "dataset": (episodes,) if strategy == "cotrain" else ()}
    train(config(whole, talk, **changes), progress=False)
    found = lines(whole)
    if strategy == "cotrain":
        assert {"action_l1", "language"} <= set(found[0])
        assert {"val_loss/actions", "val_loss/language", "answers_right"} <= set(found[-1])
    else:
        assert {"val_loss", "answers_right", "success"} <= set(found[-1])
    with monkeypatch.context() as patched:
        patched.setattr("vla_agents.train.trainer.Trainer._validate", dying_at(4))
        with pytest.raises(KeyboardInterrupt):
            train(config(broken, talk, **changes), progress=False)
    train(config(broken, talk, **changes, resume=True), progress=False)
    ours, theirs = ([e["loss"] for e in lines(out) if "loss" in e] for out in (broken, whole))
    assert ours == theirs
    if strategy == "cotrain":
        policies = [load_policy(out / "last", device="cpu").state_dict() for out in (whole, broken)]
        assert all(torch.equal(value, policies[1][name]) for name, value in policies[0].items())


@pytest.mark.parametrize("strategy", ["cotrain", "vlm"])
def test_workers_prepare_both_sides_and_change_nothing(
    talk: Path, episodes: str, tmp_path: Path, strategy: str
) -> None:
    changes: dict[str, Any] = {"strategy": strategy, "dataset": (episodes,) if strategy == "cotrain" else ()}
    for workers in (0, 1):
        with preparing() as prepared:
            train(config(tmp_path / str(workers), talk, **changes, workers=workers, steps=2), progress=False)
        assert prepared == ([bool(workers)] * 4 if strategy == "cotrain" else [])
    ours, theirs = (
        [[e[key] for e in lines(tmp_path / run) if key in e] for key in ("loss", "val_loss")]
        for run in ("0", "1")
    )
    assert ours == theirs and ours[0] and ours[1]


def dying_at(step: int) -> Any:
    validate = Trainer._validate

    def dies(trainer: Trainer, *args: Any) -> None:
        if trainer.step == step:
            raise KeyboardInterrupt
        validate(trainer, *args)

    return dies


def test_a_vlm_trained_alone_is_a_vlm_for_the_next_run(talk: Path, tmp_path: Path) -> None:
    out = tmp_path / "vlm"
    train(config(out, talk, strategy="vlm"), progress=False)
    before = load_backbone(vlm_folder(), weights=True).vlm.state_dict()
    after = load_backbone(out / "model", weights=True).vlm.state_dict()
    assert set(before) == set(after) and any(not torch.equal(before[name], after[name]) for name in before)
    tiny = QwenOFTConfig(vlm=str(out / "model"), horizon=2, execute=1)
    assert tiny_policy().config.vlm != tiny.vlm
    with pytest.raises(ConfigError, match="conversations alone"):
        train(config(tmp_path / "b", talk, strategy="vlm", dataset=("x",)), progress=False)


def test_questions_and_answers_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tmp_path / "questions")
    assert main(["questions", "--out", data, "--scenes", "6", "--per-scene", "2"]) == 0
    assert main(["answers", "--model", "tiny", "--use", f"{data}%50", "--tolerance", "5"]) == 0
    assert "of 6 questions right" in capsys.readouterr().out
    assert main(["questions", "--out", data, "--scenes", "0"]) == 1


def test_conversations_need_a_split_that_leaves_some(talk: Path) -> None:
    every = open_conversations(settings(talk), tiny_policy().backbone.chat_encoder())
    assert isinstance(every, Conversations)
    with pytest.raises(ConfigError, match="cannot hold"):
        every.split(0.99, 0)
