"""Qwen-FAST: StarVLA's numbers, constrained answers, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
import yaml
from tiny import BODY, random_batch, rows, vlm_folder

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ActionError, ConfigError, TokenDecodeError
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.checkpoint import load_policy, make_policy, save_policy
from vla_agents.policies.fast_tokenizer import FastTokenizer
from vla_agents.policies.qwen_fast import ACTION_WORD, QwenFAST, QwenFASTConfig
from vla_agents.policies.qwen_vl import QwenVLBackbone
from vla_agents.policies.tiny import FAMILIES

HORIZON = 4


def _chunks() -> np.ndarray:
    return random_batch(300, seed=5).action.numpy()  # type: ignore[union-attr]


def _policy(family: str = "qwen3_vl", *, fitted: bool = True, **config: Any) -> QwenFAST:
    chosen = {"horizon": HORIZON, "execute": 2, "fast_vocab": 300} | config
    settings = QwenFASTConfig(vlm=str(vlm_folder(family)), **chosen)
    stats = {
        name: VectorStats(10, (0.1,) * n, (0.5,) * n, (-0.8,) * n, (0.9,) * n, (-0.7,) * n, (0.8,) * n)
        for name, n in (("state", BODY.state_dim), ("action", BODY.action_dim))
    }
    normalizers = {name: Normalizer(getattr(BODY, name), value) for name, value in stats.items()}
    policy = make_policy("qwen_fast", settings, BODY, normalizers)
    assert isinstance(policy, QwenFAST)
    if fitted:
        policy.prepare(_chunks())
    return policy.eval()


# ---- equal to StarVLA ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def starvla() -> QwenFAST:
    """The fixture's weights in a policy whose units are the normalised ones."""
    run = yaml.safe_load((golden.fixture("QwenFast") / "run" / "config.yaml").read_text())
    body = Embodiment(
        name="golden",
        action=(
            Part("position", 3, "delta_xyz", -1, 1, "m"),
            Part("rotation", 3, "axis_angle", -4, 4),
            Part("gripper", 1, "gripper_open_01", 0, 1),
        ),
        state=(),
        cameras=tuple(Camera(name, 224, 224) for name in golden.CAMERAS),
        control_hz=20,
    )
    backbone = QwenVLBackbone.from_config(golden.vlm())
    weights = golden.state_dict("QwenFast").items()
    backbone.vlm.load_state_dict({k.removeprefix("qwen_vl_interface.model."): v.float() for k, v in weights})
    config = QwenFASTConfig(horizon=8, execute=8, prompt=run["datasets"]["vla_data"]["CoT_prompt"])
    none = {"action": Normalizer(body.action, VectorStats.identity(7), {"*": "none"})}
    return QwenFAST(config, backbone, body, none, golden.golden("fast_tokenizer")).eval()


@pytest.mark.parametrize("decoding", ["valid", "free"])
@pytest.mark.parametrize(("name", "count"), [("single", 1), ("batch", 2)])
def test_predictions_are_starvlas(starvla: QwenFAST, name: str, count: int, decoding: str) -> None:
    batch, stored = golden.examples("QwenFast", count=count), golden.outputs("QwenFast")
    images = [batch.images[camera] for camera in golden.CAMERAS]
    inputs = starvla.backbone.inputs(images, starvla.prompts(batch))
    np.testing.assert_array_equal(inputs["input_ids"].numpy(), stored[f"{name}.input_ids"])
    np.testing.assert_array_equal(inputs.mask.numpy(), stored[f"{name}.attention_mask"])
    if name == "single":
        np.testing.assert_array_equal(inputs["pixel_values"].numpy(), stored["single.pixel_values"])
    before = starvla.config
    starvla.config = replace(before, decoding=decoding)
    try:
        assert starvla.generate(batch) == golden.meta("QwenFast")[f"{name}.fast_tokens"]
        chunks = starvla.normalized_actions(batch)
    finally:
        starvla.config = before
    np.testing.assert_allclose(chunks.numpy(), stored[f"{name}.normalized_actions"], atol=1e-4)
    ids = torch.tensor(stored[f"{name}.generated_ids"])  # the same, with prompt, end and padding
    for row, tokens in enumerate(starvla.generate(batch)):
        said = [starvla.action_ids[token] for token in tokens]
        length = inputs["input_ids"].shape[1]
        assert ids[row, length : length + len(said)].tolist() == said


def test_training_is_starvlas(starvla: QwenFAST) -> None:
    batch, stored = golden.examples("QwenFast", count=2), golden.outputs("QwenFast")
    meta = golden.meta("QwenFast")
    assert starvla.tokenize(batch) == meta["batch.gt_fast_tokens"]
    _, labels = starvla.answered(batch)
    np.testing.assert_array_equal(labels.numpy(), stored["train.labels"])
    starvla.zero_grad()
    loss = starvla(batch)["action_ce"]
    assert loss.item() == pytest.approx(float(stored["train.loss"]), rel=1e-4)
    loss.backward()
    norms = {
        f"qwen_vl_interface.model.{name}": float(parameter.grad.norm())
        for name, parameter in starvla.backbone.vlm.named_parameters()
        if parameter.grad is not None
    }
    assert norms == pytest.approx(meta["train.grad_norms"], rel=1e-3)


# ---- the policy ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_model_makes_chunks_and_a_batch_is_its_samples(family: str) -> None:
    policy, batch = _policy(family), random_batch(3)
    chunks = policy.predict_action(batch)
    assert chunks.shape == (3, HORIZON, BODY.action_dim) and torch.isfinite(chunks).all()
    said = policy.generate(batch)
    assert all(policy.generate(rows(batch, [i])) == [said[i]] for i in range(3))
    singles = torch.cat([policy.predict_action(rows(batch, [i])) for i in range(3)])
    assert torch.equal(chunks, singles)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_nothing(family: str) -> None:
    """Greedy words one by one, each from a whole forward pass over the full vocabulary."""
    policy, batch = _policy(family, decoding="free"), rows(random_batch(3), [1, 2])
    said = policy.generate(batch)
    images = [batch.images[name] for name in BODY.camera_names]
    end = policy.backbone.tokenizer.eos_token_id
    allowed = torch.tensor([*policy.action_ids[: len(policy.fast)], end])
    for row, text in enumerate(batch.instructions):
        words: list[int] = []
        for _ in range(min(6, len(said[row]) + 1)):
            suffix = "".join(ACTION_WORD.format(word) for word in words)
            encoding = policy.backbone.encode([i[row : row + 1] for i in images], [text], suffix=suffix)
            best = int(policy.backbone.vlm.lm_head(encoding.hidden[0, -1])[allowed].argmax())
            if int(allowed[best]) == end:
                break
            words.append(best)
        assert said[row][: len(words)] == words


@torch.no_grad()
def test_free_answers_that_are_no_chunk_are_an_error_and_never_zeros() -> None:
    policy, batch = _policy(decoding="free"), random_batch(3)
    backbone = policy.backbone
    states = backbone.speak([batch.images[name] for name in BODY.camera_names], policy.prompts(batch)).hidden
    rows = backbone.word_rows()
    rows[backbone.tokenizer.eos_token_id] = states.mean(0)  # the end comes first
    rows[policy.action_ids] *= 1e-3
    assert policy.generate(batch) == [[], [], []]
    with pytest.raises(TokenDecodeError, match="token sequences are no chunk"):
        policy.predict_action(batch)


def test_it_learns_to_say_its_actions() -> None:
    policy, batch = _policy().train(), random_batch(2)
    batch.mask[:] = True  # type: ignore[index]
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    first = float(policy(batch)["action_ce"].detach())
    for _ in range(150):
        loss = policy(batch)["action_ce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 4 and float(loss.detach()) < 0.1
    assert policy.eval().generate(batch) == policy.tokenize(batch)
    error = (policy.predict_action(batch) - batch.action).abs()  # type: ignore[operator]
    assert float(error.mean()) < 0.04  # rounding: half a unit of a coefficient at most


def test_answers_are_action_words_and_what_the_template_puts_after_them() -> None:
    policy, batch = _policy(), random_batch(2)
    _, labels = policy.answered(batch)
    after = policy.backbone.tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    for row, tokens in zip(labels, policy.tokenize(batch), strict=True):
        assert row[row >= 0].tolist() == [policy.action_ids[token] for token in tokens] + after


def test_actions_past_the_end_of_an_episode_do_not_count() -> None:
    policy, batch = _policy(), random_batch(3)
    other = replace(batch, action=torch.where(batch.mask[..., None], batch.action, 99.0))  # type: ignore[index]
    assert float(policy(batch)["action_ce"].detach()) == float(policy(other)["action_ce"].detach())
    assert policy.tokenize(batch) == policy.tokenize(other)


def test_state_as_text_is_told() -> None:
    policy, batch = _policy(state="text"), random_batch(2)
    batch.state[0] = torch.tensor([-9.0, 0.05, 9.0])  # type: ignore[index]
    assert policy.prompts(batch)[0] == "pick up the red block [STATE] -1 128 255"
    with pytest.raises(ConfigError, match="no state"):
        policy.prompts(replace(batch, state=None))


def test_state_in_words_of_its_own_whose_embeddings_follow_the_numbers() -> None:
    policy, batch = _policy(state="words"), random_batch(2)
    batch.state[0] = torch.tensor([-9.0, 0.05, 9.0])  # type: ignore[index]
    text = "<robot_state_0><robot_state_128><robot_state_255>"
    assert policy.prompts(batch)[0] == f"pick up the red block [STATE] {text}"
    tokenizer, rows = policy.backbone.tokenizer, policy.backbone.vlm.get_input_embeddings().weight
    ids = [tokenizer(f"<robot_state_{number}>")["input_ids"] for number in (100, 101, 130, 250)]
    assert all(len(found) == 1 for found in ids)
    near = torch.nn.functional.normalize(rows[torch.tensor(ids)[:, 0]].detach(), dim=1)
    assert near[0] @ near[1] > 0.9 > near[0] @ near[2] > near[0] @ near[3]


def test_new_words_begin_as_numbers_and_known_ones_are_left_alone() -> None:
    policy = _policy()
    weight = policy.backbone.vlm.get_input_embeddings().weight
    rows = torch.nn.functional.normalize(weight[policy.action_ids].detach(), dim=1)
    single = {
        numbers[0]: token for token, numbers in enumerate(policy.fast.token_numbers()) if len(numbers) == 1
    }
    tokens = [single[number] for number in sorted(single)]
    assert len(tokens) > 20
    steps = (rows[tokens[1:]] * rows[tokens[:-1]]).sum(1)  # between neighbouring coefficients
    assert steps.mean() > 0.7 and steps.mean() > 0.4 + rows[tokens].mean(0).norm() ** 2
    old = weight[: policy.action_ids[0]].detach().clone()
    trained = weight.detach().clone()
    policy.prepare(_chunks()[:200], again=True)
    assert torch.equal(weight[: policy.action_ids[0]], old)
    given = QwenFAST(
        policy.config, policy.backbone, BODY, policy.normalizers, policy.fast
    )  # words are there already
    given.prepare(_chunks(), again=True)
    assert torch.equal(policy.backbone.vlm.get_input_embeddings().weight, weight)
    assert trained.shape == weight.shape


def test_an_answer_may_begin_with_given_words_and_have_no_end(tmp_path: Path) -> None:
    plain, policy, batch = _policy(), _policy(begin="block", end=False), random_batch(2)
    _, labels = policy.answered(batch)
    for row, tokens in zip(labels, policy.tokenize(batch), strict=True):
        assert row[row >= 0].tolist() == [policy.action_ids[token] for token in tokens]
    assert policy.loss_weight(batch) == sum(map(len, policy.tokenize(batch)))
    assert not torch.equal(policy.predict_action(batch), plain.predict_action(batch))
    singles = torch.cat([policy.predict_action(rows(batch, [i])) for i in range(2)])
    assert torch.equal(policy.predict_action(batch), singles)
    images = [batch.images[name] for name in BODY.camera_names]
    texts = policy.prompts(batch)
    first = policy.backbone.encode(images, texts, suffix="block").hidden[:, -1]
    torch.testing.assert_close(policy.backbone.speak(images, texts, begin="block").hidden, first)
    loaded = load_policy(save_policy(policy, tmp_path / "policy"), device="cpu")
    assert torch.equal(loaded.predict_action(batch), policy.predict_action(batch))


def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path: Path) -> None:
    policy, batch = _policy(), random_batch(2)
    folder = save_policy(policy, tmp_path / "policy")
    assert (folder / "fast" / "processor_config.json").is_file()
    loaded = load_policy(folder, device="cpu")
    assert isinstance(loaded, QwenFAST) and loaded.action_ids == policy.action_ids
    assert torch.equal(loaded.predict_action(batch), policy.predict_action(batch))
    assert torch.equal(loaded(batch)["action_ce"], policy(batch)["action_ce"])


def test_words_are_added_once_and_reproducibly() -> None:
    first, second = _policy(fitted=False), _policy(fitted=False)
    vlm = first.backbone.vlm
    assert vlm.get_input_embeddings().num_embeddings == len(first.backbone.tokenizer)
    assert vlm.lm_head.weight is vlm.get_input_embeddings().weight  # still tied
    assert torch.equal(vlm.lm_head.weight, second.backbone.vlm.lm_head.weight)
    size = vlm.get_input_embeddings().num_embeddings
    assert first.backbone.add_tokens([ACTION_WORD.format(i) for i in range(300)]) == first.action_ids
    assert vlm.get_input_embeddings().num_embeddings == size
    assert first.backbone.token_id("<robot_action_7>") == first.action_ids[7]


def test_refusals(tmp_path: Path) -> None:
    policy, batch = _policy(fitted=False), random_batch(1)
    with pytest.raises(ConfigError, match="no action tokenizer yet"):
        policy.predict_action(batch)
    with pytest.raises(ConfigError, match="no action tokenizer yet"):
        policy(batch)
    with pytest.raises(ConfigError, match="words for 300"):
        policy.fast = FastTokenizer.fit(_chunks(), vocab_size=600)
    policy.prepare(_chunks())
    kept = policy.fast
    policy.prepare(_chunks()[:50])
    assert policy.fast is kept  # one that is there is not replaced
    with pytest.raises(ActionError, match="needs actions"):
        policy(replace(batch, action=None))
    with pytest.raises(ConfigError, match="flow policy"):
        policy.predict_action(batch, prefix=torch.zeros(1, 1, 4))
    with pytest.raises(ConfigError, match="lacks"):
        _policy(prompt="do something")
    with pytest.raises(ConfigError, match="end"):
        _policy(decoding="free", end=False)
    given = _policy(fitted=False, fast=str(kept.save(tmp_path / "fast")))
    assert given.fast.encode(_chunks()[:5]) == kept.encode(_chunks()[:5])
