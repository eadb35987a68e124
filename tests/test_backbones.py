"""Every backbone against the plain `transformers` model, and the four policies over every backbone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import random_batch, rows, vlm_folder
from tiny_backbones import EVERY_FAMILY, PAIRS, QUICK, backbone, make
from torch import Tensor

from vla_agents.errors import CheckpointError, ConfigError, ObservationError
from vla_agents.policies.backbone import Queries
from vla_agents.policies.backbones import BACKBONES, load_backbone
from vla_agents.policies.checkpoint import load_policy, save_policy
from vla_agents.policies.conformance import check_policy
from vla_agents.policies.tiny import FAMILIES

TEXTS = ["lift it", "put the green block on the blue pad, please", "pick up the red block"]
every_pair = pytest.mark.parametrize(
    ("kind", "family"),
    [
        pytest.param(*pair, marks=[pytest.mark.long] * (pair not in QUICK), id="-".join(pair))
        for pair in PAIRS
    ],
)


def views(*sizes: tuple[int, int], count: int = 3) -> list[Tensor]:
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, 255, (count, *size, 3), dtype=np.uint8)) for size in sizes]


def pictures(images: list[Tensor], row: int) -> list[Image.Image]:
    return [Image.fromarray(view[row].numpy()) for view in images]


# ---- equal to the plain model -------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_qwen_states_of_padded_batches_equal_the_plain_model(family: str) -> None:
    """What each layer is given, positions left to the model, pictures of several attention windows (Qwen2.5: 64 pixels).

    (Qwen3's `output_hidden_states` lacks the deepstack features of the layer; the next layer's input has them.)
    """
    ours, images = backbone(family), views((32, 32), (96, 160))
    encoding = ours.encode(images, TEXTS, layers=range(1, ours.num_layers + 1))
    assert not encoding.mask.all()
    inputs = ours.inputs(images, TEXTS)
    mask = inputs.mask
    inputs.pop("position_ids")
    given: list[Tensor] = []
    for layer in ours.vlm.model.language_model.layers[1:]:
        layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    plain = ours.vlm.model(**inputs)
    for states, wanted in zip(encoding.layers, given, strict=False):
        torch.testing.assert_close(states[mask], wanted[mask], atol=1e-5, rtol=1e-5)
    assert len(given) == ours.num_layers - 1
    torch.testing.assert_close(encoding.hidden[mask], plain.last_hidden_state[mask], atol=1e-5, rtol=1e-5)
    raw = ours.encode(images, TEXTS, final_norm=False).hidden
    assert not torch.allclose(raw[mask], encoding.hidden[mask], atol=1e-2)
    torch.testing.assert_close(ours.vlm.model.language_model.norm(raw), encoding.hidden)


@torch.no_grad()
def test_florence_equals_the_plain_model() -> None:
    """Prompt, pixels and states: `Florence2Processor` and `Florence2ForConditionalGeneration` beside ours."""
    from transformers import CLIPImageProcessorPil
    from transformers.models.florence2.processing_florence2 import Florence2Processor

    ours, images = backbone("florence2"), views((50, 37))
    tokenizer = ours.tokenizer
    tokenizer.image_token, tokenizer.image_token_id = "<image>", ours.vlm.config.image_token_id
    stock = CLIPImageProcessorPil.from_pretrained(vlm_folder("florence2"))
    stock.image_seq_length = ours.picture_tokens
    processor = Florence2Processor(stock, tokenizer)
    inputs = processor(
        text=TEXTS, images=[pictures(images, row) for row in range(3)], padding=True, return_tensors="pt"
    )
    labels = torch.tensor([[5, 6, 7, tokenizer.eos_token_id]] * 3)
    start = torch.tensor([[ours.vlm.config.text_config.decoder_start_token_id, tokenizer.bos_token_id]] * 3)
    plain = ours.vlm.model(
        **inputs, decoder_input_ids=torch.cat([start, labels], 1), output_hidden_states=True
    )
    encoding = ours.encode(images, TEXTS, layers=[1, 2])
    assert torch.equal(encoding.input_ids, inputs["input_ids"])
    assert torch.equal(encoding.mask, inputs["attention_mask"].bool()) and not encoding.mask.all()
    torch.testing.assert_close(ours.pictures.pixels(images[0]), inputs["pixel_values"], atol=1e-5, rtol=0)
    for states, wanted in zip(encoding.layers, plain.encoder_hidden_states[1:], strict=True):
        torch.testing.assert_close(states[encoding.mask], wanted[encoding.mask], atol=1e-5, rtol=1e-5)
    answers = [tokenizer.decode(row) for row in labels]
    said = ours.answered(images, TEXTS, answers)
    assert torch.equal(said.input_ids[said.answers].view(3, -1), labels)
    torch.testing.assert_close(said.hidden, plain.last_hidden_state, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_florence_places_the_views_one_after_the_other() -> None:
    ours, images = backbone("florence2"), views((32, 32), (32, 32))
    together = ours.vlm.model.get_image_features(ours.pictures.pixels(torch.stack(images, 1).flatten(0, 1)))
    seen = together.pooler_output.view(3, -1, ours.hidden_size)
    ids, _ = ours._padded([ours._prompt(text, 2) for text in TEXTS])
    torch.testing.assert_close(ours._embedded(images, ids)[:, : seen.shape[1]], seen, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (50, 37), (20, 90)])
def test_clip_equals_the_plain_model(size: tuple[int, int]) -> None:
    """Pixels of `CLIPImageProcessor`; CLIP's own picture and text vectors are among our tokens."""
    from transformers import CLIPImageProcessorPil

    ours, images = backbone("clip"), views(size, size)
    stock = CLIPImageProcessorPil.from_pretrained(vlm_folder("clip"))
    pixels = stock(images=pictures(images, 0), return_tensors="pt")["pixel_values"]
    for view, wanted in zip(images, pixels, strict=True):
        torch.testing.assert_close(ours.pictures.pixels(view)[0], wanted, atol=1e-5, rtol=0)
    origin = ours.fusion.origin.weight
    tokens = ours.look(images)[0].view(2, -1, ours.hidden_size) - origin[1:3, None]
    features = ours.vlm.get_image_features(pixels).pooler_output
    torch.testing.assert_close(tokens[:, 0], features, atol=1e-5, rtol=1e-5)
    words, mask = ours.read(TEXTS)
    inputs = ours.tokenizer(TEXTS, padding=True, return_tensors="pt")
    last = mask.sum(1) - 1
    features = ours.vlm.get_text_features(**inputs).pooler_output
    torch.testing.assert_close(words[torch.arange(3), last] - origin[0], features, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_queries_see_pictures_and_words_and_differ(family: str) -> None:
    ours, images, queries = backbone(family), views((32, 32)), Queries(4)
    ours.prepare_queries(queries)
    states = ours.encode(images, TEXTS, queries=queries).queries
    assert states.shape == (3, 4, ours.hidden_size)
    assert not torch.allclose(states[0, 0], states[0, 1], atol=1e-3)
    other = ours.encode([images[0].flip(1)], TEXTS, queries=queries).queries
    assert not torch.allclose(states, other, atol=1e-5)
    other = ours.encode(images, [*TEXTS[1:], TEXTS[0]], queries=queries).queries
    assert not torch.allclose(states, other, atol=1e-5)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_layers_that_nobody_reads_are_not_run_and_their_numbers_checked(family: str) -> None:
    ours, images = backbone(family), views((32, 32))
    with torch.no_grad():
        both = ours.encode(images, TEXTS, layers=[1, 2])
        one = ours.encode(images, TEXTS, layers=[1])
    assert len(one.layers) == 1 and torch.equal(one.layers[0], both.layers[0])
    assert torch.equal(both.hidden, both.layers[1])
    for wrong in ([], [2, 1], [3]):
        with pytest.raises(ConfigError, match="ascending"):
            ours.encode(images, TEXTS, layers=wrong)


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in EVERY_FAMILY if family != "clip"])
def test_answers_are_the_greedy_continuation_word_by_word(family: str) -> None:
    """With a cache, in a batch; and without, one by one, over whole prompts."""
    ours, images = backbone(family), views((32, 32))
    ours.add_tokens([f"<w{number}>" for number in range(40)])
    answers = ours.answer(images, TEXTS, max_tokens=4)
    for row, text in enumerate(TEXTS):
        said: list[int] = []
        for _ in range(4):
            spoken = ours.answered(
                [view[row : row + 1] for view in images], [text], [ours.tokenizer.decode(said)]
            )
            said.append(int((spoken.hidden[0, -1] @ ours.word_rows().T).argmax()))
            if said[-1] == ours.tokenizer.eos_token_id:
                break
        assert answers[row] == ours.tokenizer.decode(said, skip_special_tokens=True)


# ---- the four policies --------------------------------------------------------------------------------------------
@every_pair
def test_a_policy_learns_and_comes_back_to_the_bit(kind: str, family: str, tmp_path: Path) -> None:
    """A few steps lower the loss on what they saw; all that should learn does; a checkpoint is the policy."""
    policy, batch = make(kind, family).train(), random_batch(3)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 2e-3)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    policy.eval()
    first = float(sum(policy(batch).values()).detach())
    policy.train()
    for _ in range(8):
        loss = sum(policy(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    assert float(sum(policy(batch).values()).detach()) < first
    # A block's key bias cannot matter: softmax does not see it.
    still = [
        name
        for name, p in policy.named_parameters()
        if p.requires_grad and "bias" not in name and torch.equal(p, before[name])
    ]
    assert still == []
    frozen = [name for name, p in policy.named_parameters() if not p.requires_grad]
    assert all(torch.equal(dict(policy.named_parameters())[name], before[name]) for name in frozen)
    loaded = load_policy(save_policy(policy, tmp_path / "policy"), device="cpu")
    for each in (policy, loaded):
        each.seed(1)
    assert loaded.config == policy.config
    assert torch.equal(loaded(batch)[next(iter(loaded(batch)))], policy(batch)[next(iter(policy(batch)))])
    if kind != "qwen_fast":  # which may say nothing sensible yet; tested in test_fast_policy
        assert torch.equal(loaded.predict_action(batch), policy.predict_action(batch))


@every_pair
def test_it_holds_what_every_policy_must(kind: str, family: str) -> None:
    check_policy(make(kind, family), samples=3)


@every_pair
def test_half_precision(kind: str, family: str) -> None:
    policy, batch = make(kind, family, dtype="bfloat16").train(), random_batch(2)
    assert {p.dtype for p in policy.backbone.parameters()} == {torch.bfloat16}
    (loss,) = policy(batch).values()
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    with torch.no_grad():
        chunk = policy.eval().predict_action(batch)
    assert chunk.dtype == torch.float32 and chunk.isfinite().all()


# ---- what does not fit --------------------------------------------------------------------------------------------
def test_a_policy_a_backbone_cannot_serve_is_refused_with_what_it_can() -> None:
    with pytest.raises(ConfigError) as caught:
        make("qwen_fast", "clip")
    said = str(caught.value)
    assert "'clip' serves qwen_gr00t, qwen_oft, qwen_pi" in said
    assert "florence2, qwen2_5_vl, qwen3_5, qwen3_vl" in said
    for call in ("answered", "speak"):
        with pytest.raises(ConfigError, match="next word"):
            getattr(backbone("clip"), call)([], [], *[[]] * (call == "answered"))


def test_a_model_that_no_backbone_reads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(CheckpointError, match=r"type 'llava'.*\n.*florence2.*docs/backbones\.md"):
        load_backbone(tmp_path, weights=True)
    with pytest.raises(CheckpointError, match="no model could be read"):
        load_backbone(tmp_path / "nothing", weights=True)
    assert set(EVERY_FAMILY) <= set(BACKBONES)


def _changed(family: str, tmp_path: Path, file: str, old: str, new: str, count: int = -1) -> Path:
    folder = Path(shutil.copytree(vlm_folder(family), tmp_path / family))
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, count))
    return folder


@pytest.mark.parametrize(
    ("family", "old", "message"),
    [("qwen3_vl", "<|image_pad|>", "lacks <|image_pad|>"), ("florence2", "<image>", "<image> is None")],
)
def test_a_tokenizer_without_the_special_tokens(family: str, old: str, message: str, tmp_path: Path) -> None:
    folder = _changed(family, tmp_path, "tokenizer.json", old, "<other>")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace(old, "<other>"))
    with pytest.raises(ConfigError) as caught:
        load_backbone(folder, weights=False)
    assert message in str(caught.value)


def test_a_florence_for_remote_code(tmp_path: Path) -> None:
    folder = _changed(
        "florence2", tmp_path, "config.json", "{", '{"auto_map": {"AutoConfig": "their.Code"},', 1
    )
    with pytest.raises(CheckpointError, match=r"never run here\n.*florence-community"):
        load_backbone(folder, weights=True)


def test_settings_that_a_backbone_has_no_use_for() -> None:
    for kind, family, config, message in (
        ("qwen_oft", "qwen3_vl", {"image_size": 64}, "as they come"),
        ("qwen_oft", "florence2", {"image_size": 30}, "multiple of 8"),
        ("qwen_oft", "clip", {"image_size": 30}, "multiple of 8"),
        ("qwen_oft", "clip", {"queries": "prompt"}, "suffix"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(kind, family, **config)
    batch = random_batch(1)
    for family, config in (
        ("florence2", {"queries": "prompt", "action_token": "a"}),
        ("florence2", {"final_norm": False}),
    ):
        with pytest.raises(ConfigError, match=r"suffix|no final norm"):
            make("qwen_oft", family, **config).predict_action(batch)


@torch.no_grad()
def test_pictures_of_another_size() -> None:
    batch = random_batch(2)
    for family in ("florence2", "clip"):
        policy: Any = make("qwen_oft", family, image_size=16)
        assert policy.backbone.pictures.size == 16
        assert policy.predict_action(batch).isfinite().all()


def test_prompts_too_long_for_the_positions() -> None:
    long = replace(random_batch(1), instructions=["pick up the red block and " * 300])
    for family, message in (("florence2", "positions for 1024"), ("clip", "CLIP reads 77")):
        with pytest.raises(ConfigError, match=message):
            make("qwen_oft", family).predict_action(long)
    with pytest.raises(ConfigError, match="stands for the pictures"):
        make("qwen_oft", "florence2").predict_action(replace(random_batch(1), instructions=["an <image>"]))
    with pytest.raises(ConfigError, match="9 views"):
        backbone("clip").encode(views(*[(32, 32)] * 9), TEXTS)


def test_batches_that_are_not_what_the_policy_was_made_for() -> None:
    policy, batch = make("qwen_gr00t", "clip"), random_batch(2)
    assert batch.state is not None
    for wrong, message in (
        (replace(batch, images={"front": batch.images["front"]}), "camera 'wrist' is missing"),
        (replace(batch, images={n: i[:, :16] for n, i in batch.images.items()}), r"ResizeImages\(32, 32\)"),
        (replace(batch, images={n: i.float() for n, i in batch.images.items()}), "uint8"),
        (replace(batch, state=batch.state[:, :2]), r"shape \(2, 2\), expected \(2, 3\)"),
    ):
        with pytest.raises(ObservationError, match=message):
            policy.predict_action(wrong)


# ---- one of your own ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def example() -> Any:
    import importlib.util

    file = Path(__file__).parent.parent / "examples" / "my_backbone.py"
    spec = importlib.util.spec_from_file_location("my_backbone", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_as_the_documentation_says(example: Any, capsys: Any) -> None:
    example.main()
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split(": ")[1]) for line in lines if line.startswith("step")]
    assert losses[-1] < 0.8 * losses[0] and lines[-1].endswith("the same actions: True")


@pytest.mark.parametrize("kind", ["qwen_oft", "qwen_gr00t", "qwen_pi"])
def test_the_example_serves_the_policies_it_says(kind: str, example: Any, tmp_path: Path) -> None:
    example.BytesAndPatches(width=32).save_assets(tmp_path / "vlm")
    policy, batch = make(kind, str(tmp_path / "vlm"), gradient_checkpointing=True), random_batch(3)
    policy.train()
    sum(policy(batch).values()).backward()  # type: ignore[union-attr]
    without = [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    with torch.no_grad():
        policy.eval().seed(0)
        together = policy.predict_action(batch)
        policy.seed(0)
        for row in range(3):
            torch.testing.assert_close(
                policy.predict_action(rows(batch, [row]))[0], together[row], atol=2e-5, rtol=1e-4
            )
    loaded = load_policy(save_policy(policy, tmp_path / "policy"), device="cpu")
    loaded.seed(0)
    with torch.no_grad():
        assert torch.equal(loaded.predict_action(batch), together)
    with pytest.raises(ConfigError, match="'bytes_and_patches' serves qwen_gr00t, qwen_oft, qwen_pi"):
        make("qwen_fast", str(tmp_path / "vlm"))
