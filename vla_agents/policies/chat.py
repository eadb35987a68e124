"""Conversations as tensors: token ids, which of them are answers to learn, patches of pictures. For any chat template.

Where the answers stand in the rendered conversation is found out, not known: each is rendered as a mark first, and takes
the place of its mark afterwards. So no token id is written down here, and a template may put what it likes around them.
What is learnt is the answer and the special token that ends it, where the template has one; nothing the human or the
system says, and no generation prompt.

    <|im_start|>user\\n<picture>what is this?<|im_end|>\\n<|im_start|>assistant\\nA red block<|im_end|>\\n
                                                                            ^^^^^^^^^^^^^^^^^^^^^^^
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_agents.errors import ConfigError
from vla_agents.policies.pixels import ImageSettings

IMAGE = "<image>"
_MARK = "zqanswer{}qz"  # in no template, and one that none transforms


@dataclass(frozen=True)
class Chat:
    """A conversation to learn from.

    Args:
        images: uint8 (H, W, 3) each, of any size.
        turns: (question, answer) pairs; `<image>` in a question is where a picture stands, in order. Where there is none,
            the pictures come before the first question.
        system: What the system says first; empty: nothing.
        name: For errors.
    """

    images: Sequence[np.ndarray]
    turns: Sequence[tuple[str, str]]
    system: str = ""
    name: str = "a conversation"


@dataclass
class ChatBatch:
    """B conversations.

    Args:
        input_ids: int64 (B, L).
        mask: bool (B, L), False on padding.
        labels: bool (B, L): the tokens to learn.
        pixels: float32 (P, values of a patch): all pictures of the first conversation, then of the next; None: no picture.
        grids: int64 (pictures, 3).
    """

    input_ids: Tensor
    mask: Tensor
    labels: Tensor
    pixels: Tensor | None = None
    grids: Tensor | None = None

    @property
    def weight(self) -> int:
        """Tokens to learn."""
        return int(self.labels[:, 1:].sum())

    def to(self, device: Any) -> ChatBatch:
        """The same on another device."""
        names = ("input_ids", "mask", "labels", "pixels", "grids")
        return replace(self, **{n: v.to(device) for n in names if (v := getattr(self, n)) is not None})

    def find_nonfinite(self) -> str:
        """Pixels and texts are always finite."""
        return ""


def render(tokenizer: Any, chat: Chat) -> list[tuple[str, bool]]:
    """A conversation as the template has it: pieces of text, and whether they are to be learnt."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": chat.system}] if chat.system else []
    for number, question in enumerate(_questions(chat)):
        content: Any = _parts(question) if chat.images else question
        messages.append({"role": "user", "content": content})
        answer: Any = _MARK.format(number)
        messages.append({"role": "assistant", "content": _parts(answer) if chat.images else answer})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    pieces: list[tuple[str, bool]] = []
    for number, (_, answer) in enumerate(chat.turns):
        before, found, text = text.partition(_MARK.format(number))
        if not found:
            raise ConfigError(
                f"the chat template does not show answer {number + 1} of {chat.name}",
                "use an Instruct model whose template takes several turns",
            )
        end = _end(text, tokenizer)
        pieces += [(before, False), (answer + end, True)]
        text = text[len(end) :]
    return [*pieces, (text, False)]


def _questions(chat: Chat) -> list[str]:
    """With as many `<image>` as there are pictures."""
    questions = [question for question, _ in chat.turns]
    places = sum(question.count(IMAGE) for question in questions)
    if not places and chat.images:
        return [IMAGE * len(chat.images) + questions[0], *questions[1:]]
    if places != len(chat.images):
        raise ConfigError(
            f"{chat.name} has {len(chat.images)} pictures and {places} times {IMAGE}", "one for each picture"
        )
    return questions


def _parts(text: str) -> list[dict[str, str]]:
    first, *rest = text.split(IMAGE)
    parts = [{"type": "text", "text": first}] if first else []
    for piece in rest:
        piece = piece.removeprefix("\n")
        parts += [{"type": "image"}, *([{"type": "text", "text": piece}] if piece else [])]
    return parts


def _end(text: str, tokenizer: Any) -> str:
    """The special token that follows an answer, with white space before it; empty where there is none."""
    space = len(text) - len(text.lstrip())
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        if text.startswith(token, space):
            return text[: space + len(token)]
    return ""


class ChatEncoder:
    """Makes `ChatBatch`es on the CPU, so that the processes of a loader can.

    Args:
        tokenizer: A fast one, with a chat template.
        images: Pixel settings; None: a model without pictures.
        picture: Text of the token that stands for a patch of pictures.
        max_tokens: Longer conversations are cut, which must leave pictures whole and something to learn.
    """

    def __init__(
        self,
        tokenizer: Any,
        images: ImageSettings | None,
        picture: str = "<|image_pad|>",
        max_tokens: int = 4096,
    ) -> None:
        if not tokenizer.chat_template or not tokenizer.is_fast:
            raise ConfigError(
                "the tokenizer has no chat template, or is not a fast one (tokenizer.json)",
                "use an Instruct model",
            )
        self._tokenizer, self._images, self._picture = tokenizer, images, picture
        self._most = max_tokens
        self._picture_id = tokenizer.convert_tokens_to_ids(picture)

    def batch(self, chats: Sequence[Chat]) -> ChatBatch:
        """Padded on the right."""
        rows, pixels, grids = [], [], []
        for chat in chats:
            patches = [self._patches(image) for image in chat.images]
            pixels += [patch for patch, _ in patches]
            grids += [grid for _, grid in patches]
            rows.append(self.tokens(chat, [grid for _, grid in patches]))
        length = max(len(ids) for ids, _ in rows)
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.full((len(rows), length), pad)
        mask, labels = torch.zeros((2, len(rows), length), dtype=torch.bool)
        for number, (tokens, learnt) in enumerate(rows):
            ids[number, : len(tokens)] = torch.tensor(tokens)
            mask[number, : len(tokens)] = True
            labels[number, : len(tokens)] = torch.tensor(learnt)
        return ChatBatch(
            ids, mask, labels, torch.cat(pixels) if pixels else None, torch.tensor(grids) if grids else None
        )

    def prompt(self, chat: Chat) -> ChatBatch:
        """One conversation up to where its last answer would begin; nothing in it is to be learnt."""
        patches = [self._patches(image) for image in chat.images]
        ids, _ = self._ids(chat, [grid for _, grid in patches], prompt=True)
        tokens = torch.tensor(ids)[None]
        seen = torch.ones_like(tokens, dtype=torch.bool)
        if not patches:
            return ChatBatch(tokens, seen, ~seen)
        grids = torch.tensor([grid for _, grid in patches])
        return ChatBatch(tokens, seen, ~seen, torch.cat([patch for patch, _ in patches]), grids)

    def _patches(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int, int]]:
        if self._images is None:
            raise ConfigError("this model takes no pictures", "use conversations of text alone")
        return self._images.patches(torch.from_numpy(np.array(image))[None])

    def tokens(self, chat: Chat, grids: Sequence[tuple[int, int, int]]) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, and which are to be learnt."""
        ids, learnt = self._ids(chat, grids)
        rest = ids[self._most :]
        if self._picture_id in rest or not any(learnt[1 : self._most]):
            raise ConfigError(
                f"{chat.name} has {len(ids)} tokens; the first {self._most} leave no answer to learn, or cut a picture",
                "raise max_tokens, use smaller pictures, or leave it out",
            )
        return ids[: self._most], learnt[: self._most]

    def _ids(
        self, chat: Chat, grids: Sequence[tuple[int, int, int]], *, prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        pieces, places = render(self._tokenizer, chat), iter(grids)
        text, spans = "", []
        for piece, learnt in pieces[:-2] if prompt else pieces:
            if learnt and self._picture in piece:
                raise ConfigError(f"an answer of {chat.name} contains {self._picture}", "leave it out")
            if learnt:
                spans.append((len(text), len(text) + len(piece)))
            text += piece if learnt else self._with_places(piece, places, chat)
        if next(places, None) is not None:
            raise ConfigError(
                f"the chat template leaves out pictures of {chat.name}", "use a model that sees"
            )
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts, ends = np.array(found["offset_mapping"]).reshape(-1, 2).T
        learns = np.zeros(len(starts), bool)
        for first, last in spans:
            learns |= (ends > first) & (ends <= last) & (ends > starts)
        return list(found["input_ids"]), learns.tolist()

    def _with_places(self, piece: str, grids: Any, chat: Chat) -> str:
        """Every picture's place filled with as many tokens as its grid has."""
        first, *rest = piece.split(self._picture)
        for after in rest:
            grid = next(grids, None)
            if grid is None or self._images is None:
                raise ConfigError(
                    f"{chat.name} has more places for pictures than pictures",
                    f"a text must not contain {self._picture}",
                )
            first += self._picture * (grid[1] * grid[2] // self._images.merge**2) + after
        return first
