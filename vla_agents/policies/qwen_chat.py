"""A Qwen-VL on conversations (`vla_agents.policies.chat`): the loss of its answers, and answers of its own.

Pictures differ in number and size from one conversation to the next, so this is the forward pass of `transformers`, not
that of `.qwen_decoder`, which wants a batch's pictures alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.policies.chat import Chat, ChatBatch, ChatEncoder


def chat_states(vlm: Any, batch: ChatBatch) -> Tensor:
    """Last hidden states (B, L, hidden); that at t predicts token t + 1.

    Args:
        vlm: The `...ForConditionalGeneration` model.
        batch: On its device.
    """
    states: Tensor = vlm.model(**_arguments(vlm, batch), use_cache=False).last_hidden_state
    if batch.pixels is None and torch.is_grad_enabled():
        # Processes that train together must all have a gradient for every weight that learns.
        unused = [p.sum() for p in vlm.model.visual.parameters() if p.requires_grad]
        states = states + 0 * torch.stack(unused).sum() if unused else states
    return states


def chat_loss(vlm: Any, batch: ChatBatch) -> Tensor:
    """Mean cross-entropy over the tokens to learn."""
    where = batch.labels[:, 1:]
    logits = vlm.lm_head(chat_states(vlm, batch)[:, :-1][where]).float()
    return nn.functional.cross_entropy(logits, batch.input_ids[:, 1:][where])


@torch.no_grad()
def chat_answers(
    vlm: Any, encoder: ChatEncoder, tokenizer: Any, chats: Sequence[Chat], max_tokens: int
) -> list[str]:
    """Greedy answers to the last question of each conversation; what is given as its answer is not looked at."""
    device = next(vlm.parameters()).device
    said = []
    for (
        chat
    ) in chats:  # one by one: prompts of other lengths and pictures would have to be padded on the left
        batch = encoder.prompt(chat).to(device)
        found = vlm.generate(
            **_arguments(vlm, batch),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        said.append(tokenizer.decode(found[0, batch.input_ids.shape[1] :], skip_special_tokens=True).strip())
    return said


def _arguments(vlm: Any, batch: ChatBatch) -> dict[str, Any]:
    types = (batch.input_ids == vlm.config.image_token_id).int()
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.mask.int(), "mm_token_type_ids": types}
    if batch.pixels is not None:
        arguments |= {"pixel_values": batch.pixels.to(vlm.dtype), "image_grid_thw": batch.grids}
    return arguments
