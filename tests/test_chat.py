"""Conversations: what of a rendered chat is learnt, for templates of several makers; files that are checked when opened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_policy
from tiny_backbones import make

from vla_agents.data.conversations import (
    Conversation,
    ConversationSet,
    load_conversations,
    save_conversations,
)
from vla_agents.errors import ConfigError, DatasetError, DatasetNotFoundError
from vla_agents.policies.chat import Chat, ChatEncoder, render
from vla_agents.policies.tiny import make_tokenizer

CORPUS = ["what is this? a red block", "and this? the blue pad, please"] * 5
# In the manner of their makers: ChatML, Llama 2 (spaces around, </s>), Llama 3, Gemma (no system, "model"), none that ends.
TEMPLATES = {
    "chatml": (None, "<|im_end|>"),
    "llama2": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}",
        " </s>",
    ),
    "llama3": (
        "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
        "{% endfor %}",
        "<|eot_id|>",
    ),
    "gemma": (
        "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}",
        "<end_of_turn>",
    ),
    "plain": ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", ""),
}
SPECIAL = [
    "<s>",
    "</s>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
]
TURNS = [("what is this?", "A red block, é!"), ("and this?", "the user: blue pad")]


def tokenizer(name: str) -> Any:
    made = make_tokenizer(CORPUS)
    template, _ = TEMPLATES[name]
    if template is not None:
        made.add_special_tokens({"additional_special_tokens": SPECIAL})
        made.chat_template = template
    return made


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answers_and_their_end_are_learnt_whatever_the_template(name: str) -> None:
    words, end = tokenizer(name), TEMPLATES[name][1]
    chat = Chat([], TURNS)
    ids, learnt = ChatEncoder(words, None).tokens(chat, [])
    spoken = [i for i, take in zip(ids, learnt, strict=True) if take]
    # A space before an answer may be part of its first token.
    said = words.decode(spoken).replace(" ", "")
    assert said == "".join(answer + end for _, answer in TURNS).replace(" ", "")
    messages = [
        {"role": role, "content": text}
        for turn in TURNS
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    assert words.decode(ids) == words.apply_chat_template(messages, tokenize=False)
    assert "".join(piece for piece, _ in render(words, chat)) == words.decode(ids)


def test_pictures_stand_where_they_are_named_and_are_as_long_as_they_are_large() -> None:
    encoder = tiny_policy().backbone.chat_encoder()
    small, large = np.zeros((32, 32, 3), np.uint8), np.zeros((64, 32, 3), np.uint8)
    chat = Chat([small, large], [("first <image> then <image>?", "yes"), ("sure?", "yes")])
    batch = encoder.batch([chat, Chat([], TURNS), Chat([small], [("what is this?", "a red block")])])
    text = tiny_policy().backbone.tokenizer.decode(batch.input_ids[0])
    pictures = [part.count("<|image_pad|>") for part in text.split("<|vision_start|>")]
    assert pictures[1] * 2 == pictures[2] > 0 and text.index("first") < text.index("<|vision_start|>")
    assert batch.grids is not None and len(batch.grids) == 3
    assert not batch.labels[~batch.mask].any()
    with pytest.raises(ConfigError, match="2 pictures and 1"):
        encoder.batch([Chat([small, large], [("<image>?", "yes")])])
    with pytest.raises(ConfigError, match="image_pad"):
        encoder.batch([Chat([small], [("<|image_pad|>", "yes")])])
    with pytest.raises(ConfigError, match="image_pad"):
        encoder.batch([Chat([], [("what?", "<|image_pad|>")])])


def test_what_is_too_long_is_cut_or_refused() -> None:
    words = tokenizer("chatml")
    ids, learnt = ChatEncoder(words, None, max_tokens=40).tokens(Chat([], [("hi", "a red block " * 30)]), [])
    assert len(ids) == 40 and learnt[-1]
    with pytest.raises(ConfigError, match=r"entry 7 of x\.json"):
        ChatEncoder(words, None, max_tokens=20).tokens(
            Chat([], [("hi " * 30, "yes")], name="entry 7 of x.json"), []
        )


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_one_question_about_one_picture_is_the_loss_it_always_was(family: str) -> None:
    """Against `language_loss`, which has a forward pass of its own; padding and company change nothing."""
    backbone = tiny_policy(family).backbone
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    asked, said = "what is this?", "a red block"
    expected, _ = backbone.language_loss([torch.from_numpy(picture)[None]], [asked], [said])
    encoder = backbone.chat_encoder()
    alone = encoder.batch([Chat([picture], [(asked, said)])])
    assert float(backbone.chat_loss(alone)) == pytest.approx(float(expected), rel=1e-5)
    other = Chat([], [("and this?", "the blue pad, please"), ("sure?", "yes")])
    both, text = encoder.batch([Chat([picture], [(asked, said)]), other]), encoder.batch([other])
    parts = [float(backbone.chat_loss(b)) * b.weight for b in (alone, text)]
    assert float(backbone.chat_loss(both)) * both.weight == pytest.approx(sum(parts), rel=1e-5)


def test_a_batch_of_text_alone_gives_every_weight_a_gradient() -> None:
    backbone = tiny_policy().backbone
    backbone.chat_loss(backbone.chat_encoder().batch([Chat([], TURNS)])).backward()
    assert all(p.grad is not None for p in backbone.vlm.parameters() if p.requires_grad)


def test_answers_are_those_of_the_one_question_path() -> None:
    backbone = tiny_policy().backbone
    picture = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    one = backbone.answer([torch.from_numpy(picture)[None]], ["what is this?"], max_tokens=6)
    many = backbone.chat_answers([Chat([picture], [("what is this?", "")])], max_tokens=6)
    assert many == [one[0].strip()]


# ---- files ----------------------------------------------------------------------------------------------------
def test_conversations_come_back_as_they_were_written(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    several = [
        Conversation((picture,), (("what?", "a block"), ("sure?", "yes"))),
        Conversation((picture, picture), (("first <image> and <image>?", "no"),), "be brief"),
        Conversation((), (("hello", "hi"),)),
    ]
    back = load_conversations(save_conversations(tmp_path / "a", several))
    assert [(c.turns, c.system, len(c.images)) for c in back] == [
        (c.turns, c.system, len(c.images)) for c in several
    ]
    assert np.array_equal(back[1].images[1], picture)
    entries = json.loads((tmp_path / "a" / "conversations.json").read_text())
    lines = tmp_path / "a" / "lines.jsonl"
    lines.write_text("\n".join(json.dumps(entry) for entry in entries))
    assert len(ConversationSet(lines)) == 3


GOOD = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"conversations": GOOD["conversations"][:1]}, "without an answer"),
        ({"conversations": [*GOOD["conversations"], {"from": "human", "value": "?"}]}, "without an answer"),
        ({"conversations": [GOOD["conversations"][0], {"from": "gpt", "value": " "}]}, "without an answer"),
        ({"conversations": GOOD["conversations"][::-1]}, "must go human, gpt"),
        ({"conversations": []}, "must go human, gpt"),
        (GOOD | {"image": "nowhere.png"}, "'nowhere.png' is missing"),
        (GOOD | {"image": "../secret.png"}, "outside"),
        ({"image": ["here.png"], "conversations": [{"from": "human", "value": "<image><image>"}, GOOD["conversations"][1]]},
         "1 pictures, and 2 times"),
        (GOOD | {"video": "x.mp4"}, "video"),
        ({"turns": []}, "malformed"),
        ("text", "malformed"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_entry_is_said_when_the_file_is_opened(
    tmp_path: Path, entry: Any, says: str
) -> None:
    save_conversations(tmp_path, [Conversation((np.zeros((8, 8, 3), np.uint8),), (("?", "!"),))])
    (tmp_path / "images" / "000000.png").rename(tmp_path / "here.png")
    file = tmp_path / "bad.json"
    file.write_text(json.dumps([GOOD, entry]))
    with pytest.raises(DatasetError, match="entry 1: .*" + says):
        ConversationSet(file)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError):
        ConversationSet(tmp_path / "nothing.json")
    file = tmp_path / "x.json"
    (tmp_path / "lines.jsonl").write_text("\n{}\n{bad\n")
    with pytest.raises(DatasetError, match=r"lines.jsonl: line 3: not JSON"):
        ConversationSet(tmp_path / "lines.jsonl")
    for text, says in (("{", "not JSON"), ('{"a": 1}', "expected a list")):
        file.write_text(text)
        with pytest.raises(DatasetError, match=says):
            ConversationSet(file)
    file.write_text(json.dumps([GOOD]))
    with pytest.raises(DatasetNotFoundError, match="pictures"):
        ConversationSet(file, tmp_path / "nowhere")
    (tmp_path / "p.png").write_bytes(b"no picture")
    file.write_text(json.dumps([GOOD | {"image": "p.png"}]))
    with pytest.raises(DatasetError, match="readable picture"):
        ConversationSet(file)[0]


def test_a_backbone_without_conversations_says_so() -> None:
    with pytest.raises(ConfigError, match="use a Qwen-VL"):
        make("qwen_oft", "clip").backbone.chat_encoder()


def test_a_model_without_pictures_refuses_them() -> None:
    encoder = ChatEncoder(tokenizer("chatml"), None)
    with pytest.raises(ConfigError, match="takes no pictures"):
        encoder.batch([replace(Chat([], TURNS), images=[np.zeros((8, 8, 3), np.uint8)])])
