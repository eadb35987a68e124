"""Strategies on one Trainer: shares of tasks, stages that advance by success, and resume in the middle of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_policy, vlm_folder

from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.config import load_config
from vla_agents.data import create_dataset, load_windows, open_dataset
from vla_agents.errors import ConfigError, EmbodimentMismatchError, UnknownNameError
from vla_agents.policies.checkpoint import load_policy, save_policy
from vla_agents.policies.qwen_oft import QwenOFTConfig
from vla_agents.train.config import OptimizerConfig, TrainConfig
from vla_agents.train.run import train
from vla_agents.train.strategies.curriculum import stage_shares
from vla_agents.train.strategies.ingredients import Ingredients, behaviour_cloning
from vla_agents.train.strategies.multitask import task_numbers, task_shares, weigh_groups
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.strategy_config import STRATEGIES, CurriculumConfig, MultitaskConfig, StageConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two families and a larger set of one of them, few steps each."""
    root = tmp_path_factory.mktemp("data")
    made = {}
    for name, task, episodes in (("lift", "lift", 6), ("push", "push", 2), ("more", "lift", 4)):
        args = {"task": task, "cameras": ["front"], "image_size": 32}
        made[name] = str(
            collect(
                CollectConfig(
                    out=root / name, env_args=args, episodes=episodes, only_success=False, max_steps=12
                ),
                progress=False,
            ).path
        )
    return made


def config(out: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        out=str(out),
        model=QwenOFTConfig(vlm=str(vlm_folder()), horizon=2, execute=1, head="mlp"),
        optimizer=OptimizerConfig(kind="adamw", lr=1e-3, warmup=2),
        steps=8,
        batch_size=4,
        validate_every=2,
        save_every=0,
        log_every=1,
        validation_share=0.2,
        device="cpu",
        tensorboard=False,
    )
    return replace(base, **changes)


def logged(out: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = (load_policy(folder / "last", device="cpu").state_dict() for folder in (a, b))
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("name", ["multitask", "curriculum", "cotrain", "vlm", "online"])
def test_recipes_are_of_today(name: str) -> None:
    file = Path(__file__).parent.parent / "examples" / "recipes" / f"{name}.yaml"
    assert load_config(TrainConfig, file).strategy == name in STRATEGIES


def test_a_strategy_of_ones_own_joins_by_name(data: dict[str, str], tmp_path: Path) -> None:
    """And one that nobody registered is refused with those that are."""
    with pytest.raises(ConfigError, match="curiculum"):
        load_yaml_config(tmp_path, "strategy: curiculum")
    made = []

    def build(parts: Ingredients) -> BehaviourCloning:
        made.append(parts)
        return behaviour_cloning(parts)

    STRATEGIES.register("mine", build)
    run = config(tmp_path / "run", dataset=(data["lift"],), strategy="mine", steps=1)
    train(run, progress=False)
    assert made[0].config.strategy == "mine"


def load_yaml_config(folder: Path, text: str) -> TrainConfig:
    (folder / "run.yaml").write_text(text)
    return load_config(TrainConfig, folder / "run.yaml")


@contextlib.contextmanager
def preparing() -> Iterator[list[bool]]:
    """Whether each batch that the strategies give was made ready for the VLM by those who loaded it."""
    found: list[bool] = []
    real = BehaviourCloning.batches

    def batches(self: Any, *cut: int) -> list[Any]:
        made = real(self, *cut)
        found.extend(batch.inputs is not None for batch in made)
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BehaviourCloning, "batches", batches)
        yield found


@pytest.mark.parametrize("strategy", ["multitask", "curriculum"])
def test_workers_preprocess_for_tasks_and_stages_and_change_nothing(
    data: dict[str, str], tmp_path: Path, strategy: str
) -> None:
    """With task tokens in the prompts; and with workers that are ended when a stage is over."""
    tasks = MultitaskConfig(tasks={"lift": "^pick up", "push": "^push"}, embedding=True)
    changes: dict[str, Any] = {
        "strategy": strategy,
        "dataset": (data["lift"], data["push"]),
        "multitask": tasks,
    }
    if strategy == "curriculum":
        changes = curriculum(data, max_steps=2)
    for workers in (0, 1):
        run = config(tmp_path / str(workers), **changes, steps=4, workers=workers)
        with preparing() as prepared:
            train(run, make_evaluate=scripted([0.1] * 9), progress=False)
        assert prepared == [bool(workers)] * 4
    for key in ("loss", "val_loss"):
        assert logged(tmp_path / "0", key) == logged(tmp_path / "1", key)
    assert same_weights(tmp_path / "0", tmp_path / "1")


# ---- multitask ------------------------------------------------------------------------------------------------
def test_shares_follow_weights_or_temperature() -> None:
    counts = {"a": 900, "b": 100}
    assert task_shares(MultitaskConfig(), counts) == pytest.approx({"a": 0.9, "b": 0.1})
    assert task_shares(MultitaskConfig(temperature=2), counts) == pytest.approx({"a": 0.75, "b": 0.25})
    assert task_shares(MultitaskConfig(temperature=1e9), counts)["a"] == pytest.approx(0.5)
    assert task_shares(MultitaskConfig(weights={"a": 1, "b": 3}), counts)["b"] == pytest.approx(0.75)


def test_windows_weigh_what_their_task_does() -> None:
    weights = weigh_groups(np.array([0, 0, 0, 1, -1]), [0.2, 0.8], np.array([1.0, 1, 2, 5, 1]))
    assert weights == pytest.approx([0.05, 0.05, 0.1, 0.8, 0])


@pytest.mark.parametrize(
    ("settings", "counts", "says"),
    [
        ({}, {"a": 3, "b": 0}, "'b'"),
        ({"weights": {"a": 1}}, {"a": 3, "b": 1}, "no weight for b"),
        ({"weights": {"a": 1, "b": 0}}, {"a": 3, "b": 1}, "above 0"),
        ({"weights": {"a": 1, "b": float("nan")}}, {"a": 3, "b": 1}, "nan"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(settings: dict, counts: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        task_shares(MultitaskConfig(**settings), counts)


def test_contradictory_settings_are_refused(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contradict"):
        MultitaskConfig(weights={"a": 1}, temperature=2)
    with pytest.raises(ConfigError, match=r"needs multitask\.tasks"):
        MultitaskConfig(embedding=True)
    with pytest.raises(UnknownNameError, match="lifft"):
        task_shares(MultitaskConfig(weights={"lifft": 1}), {"lift": 1})
    one = config(tmp_path / "one", strategy="multitask", dataset=(data["lift"],))
    with pytest.raises(ConfigError, match="nothing that tells tasks apart"):
        train(one, progress=False)
    with pytest.raises(ConfigError, match="twice"):
        train(replace(one, dataset=(data["lift"], data["lift"])), progress=False)
    with pytest.raises(ConfigError, match="contradict"):
        tasks = MultitaskConfig(tasks={"lift": "pick", "push": "push"})
        train(
            replace(one, dataset=(data["lift"], data["push"]), multitask=tasks, weights=(1.0, 1.0)),
            progress=False,
        )


def test_an_instruction_without_a_task_is_named(data: dict[str, str]) -> None:
    windows = load_windows([data["lift"], data["push"]], 2)
    with pytest.raises(ConfigError, match="push the"):
        task_numbers(windows, {"lift": "^pick up"})
    with pytest.raises(ConfigError, match="no regular expression"):
        task_numbers(windows, {"lift": "("})


def test_datasets_of_other_rates_are_refused(data: dict[str, str], tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    reader = open_dataset(data["push"])
    with contextlib.closing(create_dataset(fast, replace(reader.embodiment, control_hz=10.0))) as writer:
        episode = reader.read(0)
        writer.begin(episode.instruction, {})
        for step in episode.steps():
            writer.add(step)
        writer.save(True)
    run = config(tmp_path / "run", strategy="multitask", dataset=(data["lift"], str(fast)))
    with pytest.raises((EmbodimentMismatchError, ConfigError), match=r"control_hz|Hz"):
        train(run, progress=False)


def test_multitask_reports_every_task_and_embeds_it(data: dict[str, str], tmp_path: Path) -> None:
    """By dataset: each has a validation loss. By instruction: the token of the task stands in the prompt and learns."""
    out = tmp_path / "by_dataset"
    train(config(out, strategy="multitask", dataset=(data["lift"], data["push"]), steps=2), progress=False)
    line = {k: logged(out, k)[-1] for k in ("val_loss", "val_loss/lift", "val_loss/push")}
    assert line["val_loss"] == pytest.approx((line["val_loss/lift"] + line["val_loss/push"]) / 2, rel=1e-4)
    tasks = MultitaskConfig(tasks={"lift": "^pick up", "push": "^push"}, embedding=True)
    out = tmp_path / "embedded"
    changes: dict[str, Any] = {"strategy": "multitask", "dataset": (data["lift"], data["push"])}
    train(config(out, **changes, multitask=tasks, steps=2), progress=False)
    policy = load_policy(out, device="cpu")
    ids = policy.backbone.tokenizer("<|task_push|>push it", add_special_tokens=False)["input_ids"]
    assert ids[0] == policy.backbone.token_id("<|task_push|>")
    assert policy.config.told("push the red block to the left").startswith("<|task_push|>")
    with pytest.raises(ConfigError, match="none of the tasks"):
        policy.config.told("open the drawer")
    before = load_policy(save_policy(policy, tmp_path / "again"), device="cpu")
    assert torch.equal(
        before.backbone.vlm.get_input_embeddings().weight, policy.backbone.vlm.get_input_embeddings().weight
    )


def test_frozen_embeddings_cannot_tell_tasks() -> None:
    with pytest.raises(ConfigError, match="task embeddings could not learn"):
        tiny_policy(tasks={"lift": "."}, freeze=("embed_tokens",))


# ---- curriculum -----------------------------------------------------------------------------------------------
def scripted(successes: list[float]) -> Callable[..., Any]:
    """Evaluation whose success in the first stage's env (easy) is a list, and 0.5 elsewhere."""
    told = iter(successes)

    def make(env: str, env_args: dict[str, Any]) -> Any:
        return lambda policy, step: {"success": next(told) if env_args["difficulty"] == "easy" else 0.5}

    return make


def curriculum(data: dict[str, str], **changes: Any) -> dict[str, Any]:
    stages = (
        StageConfig("easy", (data["lift"],), {"difficulty": "easy"}),
        StageConfig("hard", (data["push"], data["more"]), {"difficulty": "hard"}),
    )
    return {
        "strategy": "curriculum",
        "env": "vla_agents/Tabletop-v0",
        "curriculum": CurriculumConfig(stages=stages, threshold=0.8, **changes),
    }


def test_earlier_stages_keep_a_share() -> None:
    assert stage_shares(0, 3, 0.3) == [1, 0, 0]
    assert stage_shares(2, 3, 0.3) == pytest.approx([0.15, 0.15, 0.7])


def test_a_stage_is_over_by_success(data: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(out, **curriculum(data, max_steps=100)), make_evaluate=scripted([0.1, 0.9]), progress=False)
    assert logged(out, "stage") == [0, 0, 1, 1]
    state = json.loads((out / "last" / "training" / "state.json").read_text())["strategy"]
    assert [(e["step"], e["what"]) for e in state["history"]] == [(4, "advanced")]


def test_a_stage_that_never_succeeds_is_left_at_its_cap(data: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(out, **curriculum(data, max_steps=4)), make_evaluate=scripted([0.1] * 9), progress=False)
    assert logged(out, "stage") == [0, 0, 1, 1]


def test_it_goes_back_where_nothing_succeeds_but_not_for_ever(data: dict[str, str], tmp_path: Path) -> None:
    def make(env: str, env_args: dict[str, Any]) -> Any:
        return lambda policy, step: {"success": 1.0 if env_args["difficulty"] == "easy" else 0.0}

    out = tmp_path / "run"
    rules = curriculum(data, patience=1, max_back_offs=2)
    train(config(out, **rules, steps=14), make_evaluate=make, progress=False)
    assert logged(out, "stage") == [0, 1, 0, 1, 0, 1, 1]


def test_a_curriculum_resumes_in_its_stage_to_the_bit(data: dict[str, str], tmp_path: Path) -> None:
    rules = curriculum(data, max_steps=4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config(whole, **rules), make_evaluate=scripted([0.1] * 9), progress=False)

    def dies(env: str, env_args: dict[str, Any]) -> Any:
        def evaluate(policy: Any, step: int) -> dict[str, float]:
            if step == 8:
                raise KeyboardInterrupt
            return {"success": 0.1 if env_args["difficulty"] == "easy" else 0.5}

        return evaluate

    with pytest.raises(KeyboardInterrupt):
        train(config(broken, **rules), make_evaluate=dies, progress=False)
    train(config(broken, **rules, resume=True), make_evaluate=scripted([0.1] * 9), progress=False)
    assert logged(broken, "loss") == logged(whole, "loss")
    assert logged(broken, "stage") == logged(whole, "stage")
    assert same_weights(whole, broken)


def test_a_curriculum_without_stages_or_env_is_refused(data: dict[str, str], tmp_path: Path) -> None:
    make = scripted([])
    with pytest.raises(ConfigError, match="names the datasets"):
        train(config(tmp_path / "a", strategy="curriculum"), make_evaluate=make)
    with pytest.raises(ConfigError, match="names the datasets"):
        train(config(tmp_path / "b", **curriculum(data), dataset=(data["lift"],)), make_evaluate=make)
    with pytest.raises(ConfigError, match="no env"):
        train(config(tmp_path / "c", **curriculum(data) | {"env": ""}), make_evaluate=make, progress=False)
    with pytest.raises(ConfigError, match="no way to evaluate"):
        train(config(tmp_path / "d", **curriculum(data)), progress=False)
    with pytest.raises(ConfigError, match="no dataset"):
        CurriculumConfig(stages=(StageConfig("easy", ()),))
    with pytest.raises(ConfigError, match="same name"):
        CurriculumConfig(stages=(StageConfig("a", ("x",)), StageConfig("a", ("y",))))
    with pytest.raises(ConfigError, match="replay"):
        CurriculumConfig(replay=1.0)
