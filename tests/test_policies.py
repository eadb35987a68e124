"""Qwen-VL backbone, Qwen-OFT and checkpoints, against `transformers` itself where it gives the answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import BODY, random_batch, rows, tiny_policy, vlm_folder
from transformers import AutoModelForImageTextToText, AutoTokenizer

import vla_agents
from vla_agents.agent import PolicyAgent
from vla_agents.embodiment import Part
from vla_agents.errors import (
    ActionError,
    CheckpointError,
    ConfigError,
    EmbodimentMismatchError,
    ObservationError,
    VlaAgentsError,
)
from vla_agents.policies.checkpoint import load_policy, save_policy
from vla_agents.policies.qwen_vl import QwenVLBackbone
from vla_agents.policies.tiny import ACTION_TOKEN, FAMILIES


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> QwenVLBackbone:
    return QwenVLBackbone.from_pretrained(vlm_folder(request.param)).eval()


def test_the_folder_is_an_ordinary_model(backbone: QwenVLBackbone) -> None:
    folder = vlm_folder(backbone.vlm.config.model_type)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model) is type(backbone.vlm)
    assert len(tokenizer(ACTION_TOKEN * 2)["input_ids"]) == 2
    text = "Grüße, 世界! pick up the red block"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (50, 37), (20, 90), (9, 9)])
def test_pixels_equal_the_hugging_face_processor(backbone: QwenVLBackbone, size: tuple[int, int]) -> None:
    from transformers import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(vlm_folder(backbone.vlm.config.model_type))
    view = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, *size, 3), dtype=np.uint8))
    expected = processor(images=[Image.fromarray(frame.numpy()) for frame in view], return_tensors="pt")
    patches, grid = backbone.patches(view)
    assert expected["image_grid_thw"].tolist() == [list(grid)] * 3
    torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-5, rtol=0)


def test_encoding_equals_the_plain_model(backbone: QwenVLBackbone) -> None:
    """Token ids written out by hand, positions left to the model: the same hidden states."""
    batch = random_batch(1)
    views = list(batch.images.values())
    ours = backbone.encode(views, ["pick up the red block"], suffix=ACTION_TOKEN * 4)
    pads = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"  # 32 px / 8 / 2 = 2 x 2 tokens a view
    text = f"<|im_start|>user\n{pads * 2}pick up the red block<|im_end|>\n<|im_start|>assistant\n{ACTION_TOKEN * 4}"
    ids = torch.tensor([backbone.tokenizer(text)["input_ids"]])
    assert ours.input_ids.tolist() == ids.tolist()
    patches, grids = zip(*(backbone.patches(view) for view in views), strict=True)
    expected = backbone.vlm.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == backbone.vlm.config.image_token_id).int(),
        pixel_values=torch.cat(patches),
        image_grid_thw=torch.tensor(grids),
    ).last_hidden_state
    torch.testing.assert_close(ours.hidden, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_samples(family: str) -> None:
    """Instructions of different lengths are padded on the left; that must not show."""
    policy = tiny_policy(family)
    batch = random_batch(5)
    together = policy.predict_action(batch)
    assert together.shape == (5, 4, 4)
    for i in range(5):
        torch.testing.assert_close(
            policy.predict_action(rows(batch, [i]))[0], together[i], atol=2e-5, rtol=1e-4
        )


def test_loss_ignores_what_lies_past_the_end() -> None:
    policy = tiny_policy()
    batch = random_batch(4)
    assert batch.mask is not None and batch.action is not None and not batch.mask.all()
    before = policy(batch)["action_l1"]
    spoiled = batch.action.clone()
    spoiled[~batch.mask] = 77.0
    torch.testing.assert_close(policy(replace(batch, action=spoiled))["action_l1"], before)
    changed = batch.action.clone()
    changed[batch.mask] += 0.5
    assert policy(replace(batch, action=changed))["action_l1"] != before


def test_gradients_reach_eyes_words_and_head() -> None:
    policy = tiny_policy()
    policy(random_batch(4))["action_l1"].backward()
    without = [
        n for n, p in policy.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # A block's key bias cannot matter: softmax does not see it.
    assert [name for name in without if "bias" not in name] == []


def test_prompt_and_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="lacks"):
        tiny_policy(prompt="do it")
    with pytest.raises(ConfigError, match="must be one"):
        tiny_policy(action_token="two tokens")
    with pytest.raises(ConfigError, match="horizon"):
        tiny_policy(horizon=2, execute=3)
    with pytest.raises(ConfigError, match="flow policy"):
        tiny_policy().predict_action(random_batch(1), prefix=torch.zeros(1, 1, 4))
    with pytest.raises(ConfigError, match="image_pad"):
        tiny_policy().predict_action(replace(random_batch(1), instructions=["<|image_pad|>"]))


@torch.no_grad()
def test_language_loss_is_that_of_the_model_on_the_answer_alone(backbone: QwenVLBackbone) -> None:
    images = [random_batch(2).images["front"]]
    loss, _ = backbone.language_loss(images, ["where is it?", "how many?"], ["1 2", "three"])
    total, count = 0.0, 0
    for row, (question, answer) in enumerate((("where is it?", "1 2"), ("how many?", "three"))):
        encoding = backbone.encode([images[0][row : row + 1]], [question], answers=[answer + "<|im_end|>"])
        answer_ids = backbone.tokenizer(answer + "<|im_end|>")["input_ids"]
        assert encoding.input_ids[0, -len(answer_ids) :].tolist() == answer_ids
        logits = backbone.vlm.lm_head(encoding.hidden[0, -len(answer_ids) - 1 : -1])
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer_ids), reduction="sum"))
        count += len(answer_ids)
    assert float(loss) == pytest.approx(total / count, rel=1e-4)


def test_answers_are_the_greedy_continuation(backbone: QwenVLBackbone) -> None:
    images, questions = [random_batch(2).images["front"]], ["where is it?", "how many blocks are there?"]
    answers = backbone.answer(images, questions, max_tokens=3)
    for row, question in enumerate(questions):
        ids: list[int] = []
        for _ in range(3):  # without a cache, token by token
            said = backbone.tokenizer.decode(ids)
            hidden = backbone.encode([images[0][row : row + 1]], [question], suffix=said).hidden
            ids.append(int(backbone.vlm.lm_head(hidden[0, -1]).argmax()))
            if ids[-1] == backbone.tokenizer.eos_token_id:
                break
        assert answers[row] == backbone.tokenizer.decode(ids, skip_special_tokens=True)


# ---- checkpoints ----------------------------------------------------------------------------------------------
@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_policy(tiny_policy(), tmp_path / "run" / "best", extra={"step": 3})


def test_saved_and_loaded_is_the_same_to_the_bit(checkpoint: Path) -> None:
    batch = random_batch(3)
    loaded = load_policy(checkpoint, device="cpu")
    assert torch.equal(loaded.predict_action(batch), tiny_policy().predict_action(batch))
    assert loaded.embodiment == BODY
    assert {path.suffix for path in checkpoint.rglob("*") if path.is_file()} <= {
        ".safetensors",
        ".yaml",
        ".json",
        ".jinja",
    }
    assert torch.equal(
        load_policy(checkpoint.parent, device="cpu").predict_action(batch), loaded.predict_action(batch)
    )


def test_it_loads_after_being_moved_and_without_the_vlm_it_came_from(
    checkpoint: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(checkpoint, moved)
    record = (moved / "policy.yaml").read_text()
    (moved / "policy.yaml").write_text(record.replace(str(vlm_folder()), "/nowhere/at/all"))
    assert load_policy(moved, device="cpu").horizon == 4


def test_damage_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_policy(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no policy\.yaml"):
        load_policy(tmp_path / "empty")
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_policy(checkpoint)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load_policy(checkpoint)
    weights.write_bytes(whole)
    policy = (checkpoint / "policy.yaml").read_text()
    (checkpoint / "policy.yaml").write_text(policy.replace("horizon:", "horizn:"))
    with pytest.raises(ConfigError, match=r"horizn.*Did you mean 'horizon'"):
        load_policy(checkpoint)
    (checkpoint / "policy.yaml").write_text(policy.replace("qwen_oft", "qwen_off"))
    with pytest.raises(VlaAgentsError, match=r"Did you mean 'qwen_oft'"):
        load_policy(checkpoint)
    (checkpoint / "policy.yaml").write_text(policy.replace("head_width: 0", "head_width: 16"))
    with pytest.raises(
        CheckpointError,
        match=r"do not fit a qwen_oft.*look like qwen_oft\n.*mis-shaped  head\.fc1: weight is",
    ):
        load_policy(checkpoint)
    (checkpoint / "policy.yaml").write_text(policy)
    stats = json.loads((checkpoint / "stats.json").read_text())
    stats["action"]["stats"]["mean"] = [0.0]
    (checkpoint / "stats.json").write_text(json.dumps(stats))
    with pytest.raises(ConfigError, match="values"):
        load_policy(checkpoint)


def test_a_missing_vlm_says_what_to_give() -> None:
    with pytest.raises(CheckpointError, match="pretrain-tiny"):
        QwenVLBackbone.from_pretrained("/nowhere/at/all")


# ---- in the loop ----------------------------------------------------------------------------------------------
def _observation(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "images": {
            c.name: rng.integers(0, 255, (c.height, c.width, 3), dtype=np.uint8) for c in BODY.cameras
        },
        "state": rng.uniform(-1, 1, 3).astype(np.float32),
        "instruction": "pick up the red block",
    }


def test_load_agent_acts_in_its_units(checkpoint: Path) -> None:
    with vla_agents.load_agent(checkpoint, device="cpu", execute=1) as agent:
        action = agent.act(_observation())
        chunk = tiny_policy().plan([_observation()])
    assert action.shape == (4,) and action.dtype == np.float32
    np.testing.assert_array_equal(action, chunk[0, 0])
    with pytest.raises(ConfigError, match=r"Did you mean 'execute'"):
        vla_agents.load_agent(checkpoint, exeute=1)
    with pytest.raises(ConfigError, match="horizon 4"):
        vla_agents.load_agent(checkpoint, execute=9)


def test_bad_observations_are_refused_by_name() -> None:
    agent = PolicyAgent(tiny_policy())
    obs = _observation()
    swapped = obs | {"images": {"left": obs["images"]["front"], "wrist": obs["images"]["wrist"]}}
    with pytest.raises(ObservationError, match="'front' is missing"):
        agent.act(swapped)
    with pytest.raises(ObservationError, match=r"ResizeImages\(32, 32\)"):
        agent.act(obs | {"images": {n: i[:16] for n, i in obs["images"].items()}})
    with pytest.raises(ObservationError, match="eef_position"):
        agent.act(obs | {"state": np.array([0, np.nan, 0], np.float32)})
    with pytest.raises(ObservationError, match="shape"):
        agent.act(obs | {"state": np.zeros(4, np.float32)})
    with pytest.raises(ObservationError, match="instruction"):
        agent.act(obs | {"instruction": None})
    with pytest.raises(ObservationError, match="no observation to plan for"):
        agent.policy.plan([])


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 4, 9), r"\(2, H, 4\)"), ((2, 6, 4), "6 actions, .* horizon is 4")]
)
def test_chunks_that_are_not_the_policys_are_not_learnt(shape: tuple[int, ...], message: str) -> None:
    batch = replace(random_batch(2), action=torch.zeros(shape), mask=None)
    with pytest.raises(ActionError, match=message):
        tiny_policy()(batch)


def test_nan_weights_never_reach_the_motors() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.head.fc2.bias[1] = float("nan")
    with pytest.raises(ActionError, match="non-finite"):
        PolicyAgent(policy).act(_observation())


def test_another_body_is_refused() -> None:
    other = replace(BODY, action=(BODY.action[0], Part("gripper", 1, "gripper_open_01", 0, 1)))
    with pytest.raises(EmbodimentMismatchError, match="GripperConvention"):
        PolicyAgent(tiny_policy(), embodiment=other)


def test_auto_processor_reads_the_folder_and_agrees(backbone: QwenVLBackbone) -> None:
    """Offline and without torchvision: the stock way to a prompt gives our token ids and pixels."""
    from transformers import AutoProcessor

    from vla_agents.policies.processor import enable_auto_processor

    enable_auto_processor()
    processor = AutoProcessor.from_pretrained(vlm_folder(backbone.vlm.config.model_type))
    view = random_batch(1).images["front"]
    picture = {"type": "image", "image": Image.fromarray(view[0].numpy())}
    message = {"role": "user", "content": [picture, {"type": "text", "text": "pick up the red block"}]}
    stock = processor.apply_chat_template(
        [[message]], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ours = backbone.inputs([view], ["pick up the red block"])
    assert stock["input_ids"].tolist() == ours["input_ids"].tolist()
    torch.testing.assert_close(stock["pixel_values"], ours["pixel_values"], atol=1e-5, rtol=0)
    assert stock["image_grid_thw"].tolist() == ours["image_grid_thw"].tolist()
    with torch.no_grad():
        hidden = backbone.vlm.model(**stock).last_hidden_state
    torch.testing.assert_close(
        hidden, backbone.encode([view], ["pick up the red block"]).hidden, atol=1e-5, rtol=1e-4
    )
