"""A Qwen-VL in the act of answering: one forward pass over the prompt, then one token at a time over the KV cache.

Keys and values lie in tensors with room for tokens to come (doubled where it is used up), which nothing moves. As written,
a token looks at the filled part; compiled, at all of it with what is empty masked, so that every token is the same graph.

Qwen3.5's linear layers keep another kind of state: there the cache and the forward pass of `transformers` are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_agents.errors import ConfigError
from vla_agents.policies.qwen_decoder import PromptInputs, run_decoder

ROOM = 64
"""Tokens that an answer may have before the cache grows."""


class KeyValues:
    """Keys and values of all layers, (B, heads, M, d) each: what the layers of `transformers` call a cache.

    Args:
        config: Of the language model.
        like: (B, ...) of the type and on the device wanted.
        room: M.

    Attributes:
        places: int64 (n,): where the next n tokens go.
        filled: How much of M a token looks at; None: all.
    """

    def __init__(self, config: Any, like: Tensor, room: int) -> None:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape, layers = (len(like), config.num_key_value_heads, room, size), config.num_hidden_layers
        self.keys = [like.new_zeros(shape) for _ in range(layers)]
        self.values = [like.new_zeros(shape) for _ in range(layers)]
        self.places = torch.zeros(0, dtype=torch.int64, device=like.device)
        self.filled: int | None = None

    @property
    def room(self) -> int:
        """M."""
        return int(self.keys[0].shape[2])

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep (B, heads, n, d) of a layer; returns what these tokens look at."""
        self.keys[layer].index_copy_(2, self.places, key)
        self.values[layer].index_copy_(2, self.places, value)
        if key.shape[2] > 1:  # the prompt, which looks at itself
            return key, value
        return self.keys[layer][:, :, : self.filled], self.values[layer][:, :, : self.filled]

    def grow(self) -> None:
        """Double the room."""
        for tensors in (self.keys, self.values):
            tensors[:] = [F.pad(tensor, (0, 0, 0, tensor.shape[2])) for tensor in tensors]


class QwenSpeech:
    """B answers in the making; see `vla_agents.policies.encoding.Speech`.

    Args:
        vlm: The `...ForConditionalGeneration` model.
        inputs: Its inputs for B prompts, padded on the left.
        graphs: Compiled `decode` and `next_state` by name; as written where there are none.
        caches: With graphs: caches of earlier answers by (B, M), used again so that graphs find them where they were.
    """

    def __init__(
        self,
        vlm: Any,
        inputs: PromptInputs,
        graphs: Mapping[str, Callable[..., Any]] | None = None,
        caches: dict[tuple[int, int], KeyValues] | None = None,
    ) -> None:
        self._model, self._graphs = vlm.model, graphs or {}
        ids, text = inputs["input_ids"], self._model.language_model
        self._length = ids.shape[1]
        self._cache = self._a_cache(text, len(ids), self._length + ROOM, caches)
        self._cache.places = torch.arange(self._length, device=ids.device)
        self._place = inputs["position_ids"][..., -1:]  # (3, B, 1); after the pictures all axes advance alike
        padded = inputs["attention_mask"] is not None
        self._seen = F.pad(inputs.mask, (0, ROOM)) if padded or self._graphs else None  # bool (B, M)
        decoder = self._graphs.get("decode")
        states = run_decoder(
            self._model, inputs, [len(text.layers)], final_norm=True, decoder=decoder, cache=self._cache
        )
        self.hidden = states[0][:, -1]

    def _a_cache(
        self, text: Any, count: int, room: int, caches: dict[tuple[int, int], KeyValues] | None
    ) -> KeyValues:
        like = text.embed_tokens.weight.new_zeros(count)
        if caches is None:
            return KeyValues(text.config, like, room)
        if (count, room) not in caches:
            caches[count, room] = KeyValues(text.config, like, room)
            for tensor in (*caches[count, room].keys, *caches[count, room].values):
                torch._dynamo.mark_static_address(tensor)
        return caches[count, room]

    def say(self, ids: Tensor) -> None:
        """Go on with these tokens, int64 (B,)."""
        if self._length == self._cache.room:
            self._cache.grow()
            self._seen = None if self._seen is None else F.pad(self._seen, (0, self._length))
        self._cache.places = torch.full((1,), self._length, device=ids.device)
        self._place, self._length = self._place + 1, self._length + 1
        seen = self._seen
        if seen is not None:
            seen[:, self._length - 1] = True
        if not self._graphs:
            self._cache.filled = self._length
            seen = None if seen is None else seen[:, : self._length]
        step = self._graphs.get("next_state", next_state)
        self.hidden = step(self._model, ids[:, None], self._place, seen, self._cache)


def next_state(model: Any, ids: Tensor, positions: Tensor, seen: Tensor | None, cache: KeyValues) -> Tensor:
    """The state (B, hidden) of one more token: ids (B, 1), positions (3, B, 1), what it may look at (B, M)."""
    text = model.language_model
    x = text.embed_tokens(ids)
    rotary = text.rotary_emb(x, positions)
    attention = seen
    if seen is not None and "flash" not in text.config._attn_implementation:
        attention = x.new_zeros(len(x), 1, 1, seen.shape[1])
        attention = attention.masked_fill(~seen[:, None, None], torch.finfo(x.dtype).min)
    for layer in text.layers:
        x = layer(
            x, attention_mask=attention, position_ids=None, past_key_values=cache, position_embeddings=rotary
        )
    return text.norm(x)[:, 0]


class MixedSpeech:
    """The same for a model with linear layers, by the forward pass of `transformers`.

    Args:
        vlm: The `...ForConditionalGeneration` model.
        inputs: Its inputs for B prompts, padded on the left.
    """

    def __init__(self, vlm: Any, inputs: PromptInputs) -> None:
        from transformers import DynamicCache

        self._model = vlm.model
        self._cache = DynamicCache(config=vlm.config.get_text_config())
        self._seen = inputs["attention_mask"]  # None: nothing is padded
        self._place = inputs["position_ids"][..., -1:]
        self.hidden = self._run(inputs)

    def say(self, ids: Tensor) -> None:
        """Go on with these tokens, int64 (B,)."""
        self._place = self._place + 1
        if self._seen is not None:
            self._seen = torch.cat([self._seen, self._seen.new_ones(len(self._seen), 1)], 1)
        self.hidden = self._run(
            {"input_ids": ids[:, None], "attention_mask": self._seen, "position_ids": self._place}
        )

    def _run(self, inputs: Mapping[str, Any]) -> Tensor:
        out = self._model(**inputs, past_key_values=self._cache, use_cache=True)
        last: Tensor = out.last_hidden_state[:, -1]
        return last


def text_after_answer(tokenizer: Any) -> str:
    """What the chat template puts after an answer, the next generation prompt included."""
    mark = "<an answer>"
    turns = [{"role": role, "content": [{"type": "text", "text": mark}]} for role in ("user", "assistant")]
    chat: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    before, found, after = chat.rpartition(mark)
    if not found or mark not in before:
        raise ConfigError(f"the chat template does not give an answer as it is: {chat!r}")
    return after
