"""`vla-agents train` for every framework, by config only: its options, its run.yaml, going on from a checkpoint."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import SIZE, vlm_folder
from tiny_all import CONFIGS, FRAMEWORKS, framework_config

from vla_agents import cli
from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.config import load_config
from vla_agents.data import WindowDataset, open_dataset
from vla_agents.errors import ConfigError, TrainingError, UnknownNameError
from vla_agents.policies.checkpoint import POLICIES, load_policy
from vla_agents.policies.qwen_fast import QwenFAST
from vla_agents.train.config import TrainConfig
from vla_agents.train.run import action_chunks, train

every_framework = pytest.mark.parametrize("kind", FRAMEWORKS)
ENV = {"task": "lift", "image_size": SIZE.image_size, "cameras": ("front",)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "lift"
    collect(CollectConfig(out=folder, episodes=8, env_args=ENV, durable=False), progress=False)
    return folder


def run_config(kind: str, dataset: Path, out: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        dataset=(str(dataset),),
        policy=kind,
        model=framework_config(kind),
        out=str(out),
        steps=2,
        batch_size=4,
        validation_share=0.2,
        save_every=0,
        device="cpu",
        tensorboard=False,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def weights(run: Path) -> np.ndarray:
    return np.fromfile(run / "last" / "model.safetensors", np.uint8)


@every_framework
def test_options_are_those_of_the_policy(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["train", "--policy", kind, "--help"])
    assert done.value.code == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in (field.name for field in fields(CONFIGS[kind][0])):
        assert f"--model.{name.replace('_', '-')}" in told, name
    assert all(name in told for name in POLICIES)
    assert ("--model.decoding" in told) == (kind == "qwen_fast")
    parsed = cli.parse(TrainConfig, [f"--policy={kind}", "--model.horizon", "6"], "train")
    assert type(parsed) is TrainConfig and type(parsed.model) is CONFIGS[kind][0]
    assert (parsed.policy, parsed.model.horizon) == (kind, 6)


@every_framework
def test_a_run_from_the_command_line_and_again_from_its_record(
    kind: str, dataset: Path, tmp_path: Path
) -> None:
    options = framework_config(kind)
    words = [f"--model.{k.replace('_', '-')}={v}" for k, v in CONFIGS[kind][1].items()]
    words += ["--model.horizon=4", "--model.execute=2", f"--model.vlm={options.vlm}"]
    common = ["--dataset", str(dataset), "--steps", "2", "--batch-size", "4", "--validation-share", "0.2"]
    common += ["--device", "cpu", "--no-tensorboard", "--save-every", "0"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.main(["train", "--policy", kind, "--out", str(first), *common, *words]) == 0
    assert load_config(TrainConfig, first / "run.yaml") == run_config(kind, dataset, first)
    assert cli.main(["train", "--config", str(first / "run.yaml"), "--out", str(second)]) == 0
    np.testing.assert_array_equal(weights(first), weights(second))
    policy = load_policy(second, device="cpu")
    assert type(policy) is POLICIES.get(kind) and policy.config == options


def test_what_does_not_fit_together_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--policy", "qwen_gr0t"]) == 1
    told = capsys.readouterr().err
    assert "Did you mean 'qwen_gr00t'" in told and "known: qwen_fast, qwen_gr00t" in told
    file = tmp_path / "recipe.yaml"

    def refused(content: object, match: str, *words: str) -> None:
        file.write_text(yaml.safe_dump(content))
        with pytest.raises((ConfigError, UnknownNameError), match=match):
            cli.parse(TrainConfig, ["--config", str(file), *words], "train")

    refused({"policy": "qwen_pi", "model": {"widht": 64}}, "widht.*Did you mean 'width'")
    refused({"policy": "qwen_oft", "model": {"width": 64}}, "unknown key 'width'")
    refused({"policy": "nonsense"}, "unknown policy 'nonsense'")
    refused({"policy": ["qwen_pi"]}, "expected a name")
    refused({"polciy": "qwen_pi"}, "Did you mean 'policy'")
    refused({"policy": "qwen_pi", "model": {}}, "asks for another policy", "--policy", "qwen_oft")
    refused([1], "expected a mapping")
    file.write_text(yaml.safe_dump({"steps": 7}))
    parsed = cli.parse(TrainConfig, ["--config", str(file), "--policy", "qwen_pi"], "train")
    assert (parsed.policy, parsed.steps, type(parsed.model).__name__) == ("qwen_pi", 7, "QwenPIConfig")
    file.write_text(yaml.safe_dump({"policy": "qwen_pi", "model": {"width": 64}}))
    parsed = cli.parse(TrainConfig, ["--config", str(file), "--model.width", "32"], "train")
    assert parsed.model.width == 32
    with pytest.raises(ConfigError, match="takes a QwenOFTConfig"):
        TrainConfig(model=framework_config("qwen_pi"))
    assert TrainConfig(policy="qwen_fast").model == CONFIGS["qwen_fast"][0]()


# ---- what is not learnt by gradients -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fast_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fast") / "run"
    train(run_config("qwen_fast", dataset, out), progress=False)
    return out


def tokens(run: Path) -> str:
    return (run / "last" / "fast" / "tokenizer.json").read_text()


def test_the_action_tokenizer_is_fitted_on_the_training_episodes(dataset: Path, fast_run: Path) -> None:
    training, held_out = WindowDataset(open_dataset(dataset), 4).split(0.2, 0)
    policy = load_policy(fast_run, device="cpu")
    assert isinstance(policy, QwenFAST)
    chunks = action_chunks(training)
    assert chunks.shape == (len(training), 4, 7)
    policy.fast.clipped = 0
    policy.fast.encode(policy.normalizers["action"].normalize(chunks))
    assert policy.fast.clipped == 0  # no coefficient of the training episodes lies outside the range
    some = action_chunks(training, seed=1, most=5)
    np.testing.assert_array_equal(some, action_chunks(training, seed=1, most=5))
    assert len(some) == 5 and not np.array_equal(some, action_chunks(training, seed=2, most=5))
    assert len(held_out) > 0


def test_a_resumed_run_takes_the_stored_tokenizer(
    dataset: Path, fast_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tokens(fast_run)
    monkeypatch.setattr(QwenFAST, "prepare", lambda *_, **__: pytest.fail("a resumed run fitted again"))
    config = run_config("qwen_fast", dataset, fast_run, steps=3, resume=True)
    assert train(config, progress=False).step == 3
    assert tokens(fast_run) == before
    changed = replace(config, model=replace(config.model, fast_scale=20.0))
    with pytest.raises(ConfigError, match=r"fast_scale=20.0 \(there 10"):
        train(changed, progress=False)
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(replace(config, out=str(fast_run / "nowhere")), progress=False)


def test_from_a_checkpoint_its_tokenizer_and_options_are_kept_unless_asked(
    dataset: Path, fast_run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    collect(CollectConfig(out=other, episodes=8, seed=50, env_args=ENV, durable=False), progress=False)
    plain = TrainConfig(policy="qwen_fast").model
    given = {"init_from": str(fast_run), "model": plain, "steps": 1}
    train(run_config("qwen_fast", other, tmp_path / "kept", **given), progress=False)
    assert tokens(tmp_path / "kept") == tokens(fast_run)
    assert load_config(TrainConfig, tmp_path / "kept" / "run.yaml").model.fast_vocab == 300
    train(run_config("qwen_fast", other, tmp_path / "again", **given, refit=True), progress=False)
    assert tokens(tmp_path / "again") != tokens(fast_run)
    with pytest.raises(ConfigError, match="is a QwenFAST, the run asks for qwen_oft"):
        train(run_config("qwen_oft", other, tmp_path / "x", init_from=str(fast_run)), progress=False)
    changed = {**given, "model": replace(plain, freeze=("visual",), gradient_checkpointing=True)}
    train(run_config("qwen_fast", other, tmp_path / "changed", **changed), progress=False)
    assert load_policy(tmp_path / "changed").config.freeze == ("visual",)
    with pytest.raises(ConfigError, match="horizon=5"):
        asked = {**given, "model": replace(plain, horizon=5)}
        train(run_config("qwen_fast", other, tmp_path / "x", **asked), progress=False)


def test_the_vlm_folder_is_not_needed_to_resume(dataset: Path, tmp_path: Path) -> None:
    """A checkpoint brings its VLM along."""
    import shutil

    vlm = tmp_path / "vlm"
    shutil.copytree(vlm_folder(), vlm)
    config = run_config(
        "qwen_oft", dataset, tmp_path / "run", model=framework_config("qwen_oft", vlm=str(vlm))
    )
    train(config, progress=False)
    shutil.rmtree(vlm)
    assert train(replace(config, steps=3, resume=True), progress=False).step == 3
