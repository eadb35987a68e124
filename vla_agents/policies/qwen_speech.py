"""A Qwen-VL in the act of answering: one forward pass over the prompt, then one token at a time over the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vla_agents.errors import ConfigError


class QwenSpeech:
    """B answers in the making; see `vla_agents.policies.backbone.Speech`.

    Args:
        vlm: The `...ForConditionalGeneration` model.
        inputs: Its inputs for B prompts, padded on the left.
    """

    def __init__(self, vlm: Any, inputs: Mapping[str, Any]) -> None:
        from transformers import DynamicCache

        self._model = vlm.model
        self._cache = DynamicCache(config=vlm.config.get_text_config())
        self._seen = inputs["attention_mask"]  # None: nothing is padded
        self._place = inputs["position_ids"][
            ..., -1:
        ]  # (3, B, 1); after the pictures all three axes advance alike
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
