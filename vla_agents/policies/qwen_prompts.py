"""Prompts of a Qwen-VL as tensors: token ids, where the pictures stand, M-RoPE positions; made once and kept.

They depend on the texts and the picture grids only. Rows of one batch are padded on the left to the same length; with
`multiple`, to a multiple of it, so that few different lengths occur and a compiled model meets the same shapes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vla_agents.errors import ConfigError
from vla_agents.policies.qwen_vision import Grid

_MOST = 4096  # prompts that are kept: free-form instructions must not fill the memory
_MOST_BATCHES = 256


class Tokens(NamedTuple):
    """B prompts.

    Args:
        ids: int64 (B, L).
        mask: bool (B, L), False on padding.
        types: int32 (B, L), 1 on picture tokens.
        positions: int64 (3, B, L) of the M-RoPE.
        places: int64 (B, T): where the T picture tokens stand.
        padded: Whether anything is padded.
    """

    ids: Tensor
    mask: Tensor
    types: Tensor
    positions: Tensor
    places: Tensor
    padded: bool

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
        ids, mask, types, positions, places = (tensor.to(device) for tensor in self[:5])
        return Tokens(ids, mask, types, positions, places, self.padded)


class Prompts:
    """Makes and keeps them.

    Args:
        tokenizer: With chat template.
        vlm: The model, for its M-RoPE rule.
        merge: Patches that become a token, along each side.

    Attributes:
        multiple: Lengths are rounded up to a multiple of this.
    """

    def __init__(self, tokenizer: Any, vlm: Any, merge: int) -> None:
        self._tokenizer, self._vlm, self._merge = tokenizer, vlm, merge
        self.multiple = 1
        self._kept: dict[Any, Any] = {}
        self._batches: dict[Any, Tokens] = {}

    def clear(self) -> None:
        """Forget what was kept: the tokenizer has changed."""
        self._kept.clear()
        self._batches.clear()

    def tokens(
        self,
        texts: Sequence[str],
        ends: Sequence[str],
        grids: tuple[Grid, ...],
        device: torch.device,
        cut_after: int | None = None,
    ) -> Tokens:
        """B prompts.

        Args:
            texts: B user texts.
            ends: B texts that follow the generation prompt.
            grids: Of each view.
            device: Where the tensors are wanted.
            cut_after: What follows the last of these tokens is left out.
        """
        key = (tuple(texts), tuple(ends), grids, device, cut_after, self.multiple)
        if key in self._batches:
            return self._batches[key]
        prompts = [self.ids(text, end, grids) for text, end in zip(texts, ends, strict=True)]
        if cut_after is not None:
            prompts = [_cut(ids, cut_after) for ids in prompts]
        length = -(-max(len(ids) for ids in prompts) // self.multiple) * self.multiple
        rows = [self._row(ids, length, grids) for ids in prompts]
        ids, mask, types, positions = (torch.stack(column) for column in zip(*rows, strict=True))
        places = types.nonzero()[:, 1].view(len(texts), -1)
        padded = self.multiple > 1 or not bool(mask.all())
        tokens = Tokens(ids, mask, types, positions.transpose(0, 1).contiguous(), places, padded).to(device)
        if (
            not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        ):  # acting: the same ones come again
            if len(self._batches) >= _MOST_BATCHES:
                self._batches.clear()
            self._batches[key] = tokens
        return tokens

    def ids(self, text: str, end: str, grids: tuple[Grid, ...]) -> tuple[int, ...]:
        """Token ids of one prompt, every picture's place filled with as many tokens as its grid has."""
        key = ("prompt", text, end, grids)
        if key not in self._kept:
            content = [{"type": "image"} for _ in grids] + [{"type": "text", "text": text}]
            chat = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            pad = "<|image_pad|>"
            pieces = (chat + end).split(pad)
            if len(pieces) != len(grids) + 1:
                raise ConfigError(
                    f"the chat template makes {len(pieces) - 1} image places for {len(grids)} images: {chat!r}",
                    "an instruction must not contain <|image_pad|>",
                )
            counts = [rows * columns // self._merge**2 for _, rows, columns in grids]
            full = pieces[0] + "".join(pad * n + piece for n, piece in zip(counts, pieces[1:], strict=True))
            self._remember(key, tuple(self._tokenizer(full, add_special_tokens=False)["input_ids"]))
        found: tuple[int, ...] = self._kept[key]
        return found

    def _row(
        self, ids: tuple[int, ...], length: int, grids: tuple[Grid, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row of ids (L,), mask (L,), token types (L,) and positions (3, L), padded on the left."""
        key = ("row", ids, length, grids)
        if key not in self._kept:
            pad = length - len(ids)
            row = torch.tensor([self._tokenizer.pad_token_id] * pad + list(ids))
            mask = torch.tensor([False] * pad + [True] * len(ids))
            types = (row == self._vlm.config.image_token_id).int()
            positions, _ = self._vlm.model.get_rope_index(
                row[None],
                mm_token_type_ids=types[None],
                image_grid_thw=torch.tensor(grids),
                attention_mask=mask[None].int(),
            )
            self._remember(key, (row, mask, types, positions[:, 0]))
        found: tuple[Tensor, Tensor, Tensor, Tensor] = self._kept[key]
        return found

    def _remember(self, key: Any, value: Any) -> None:
        if len(self._kept) > _MOST:
            self._kept.clear()
        self._kept[key] = value


def _cut(ids: tuple[int, ...], token: int) -> tuple[int, ...]:
    """Up to and with the last `token`; all where there is none."""
    return ids[: len(ids) - ids[::-1].index(token)] if token in ids else ids
