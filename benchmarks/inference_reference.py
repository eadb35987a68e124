"""The plain way to act, with the weights of one of our policies: what StarVLA's `predict_action` does, step by step.

    pictures -> PIL, the Hugging Face processor (chat template, pixels, token ids)
    -> full forward pass of the VLM: logits of all positions, all hidden states, KV cache
    -> the head as its modules are written: keys and values of the context at every denoising step, all tokens in all blocks
    -> un-normalised in numpy

FAST: `generate` over the whole vocabulary, the answer kept to the grammar by a logits processor, as ours is, so that both
say the same words.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vla_agents.policies.fast_grammar import ChunkState
from vla_agents.policies.flow_policy import FlowPolicy
from vla_agents.policies.heads.flow import FlowHead
from vla_agents.policies.heads.flow_blocks import sinusoid
from vla_agents.policies.policy import Batch
from vla_agents.policies.processor import load_processor


class Reference:
    """The plain way, stage by stage; `act` is all of them.

    Args:
        policy: One of ours, whose weights it uses.
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.vlm = policy.backbone.vlm
        with tempfile.TemporaryDirectory() as folder:
            policy.backbone.save_assets(folder)
            self.processor = load_processor(folder)

    def act(self, obs: dict[str, Any], noise: Tensor | None = None) -> np.ndarray:
        """(H, D) in the embodiment's units for one observation."""
        inputs = self.preprocess(obs)
        if not hasattr(self.policy, "head"):
            chunk = self.speak(inputs)
        elif isinstance(self.policy, FlowPolicy):
            assert noise is not None
            chunk = self.denoise(self.read(inputs), obs, noise)
        else:
            chunk = self.regress(inputs, self.read(inputs))
        return self.policy.normalizers["action"].unnormalize(chunk.float().cpu().numpy())[0]

    # ---- stages ---------------------------------------------------------------------------------------------
    def preprocess(self, obs: dict[str, Any]) -> dict[str, Tensor]:
        """Chat template, PIL pictures and tokenizer, by the processor."""
        pictures = [Image.fromarray(obs["images"][name]) for name in self.policy.embodiment.camera_names]
        batch = Batch.from_observations([obs], self.policy.embodiment)
        (text,) = self.policy.prompts(batch) if hasattr(self.policy, "prompts") else (self._prompt(obs),)
        content = [{"type": "image", "image": picture} for picture in pictures]
        message = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
        inputs = self.processor.apply_chat_template(
            [[message]],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        return dict(inputs.to(self.policy.device))

    def _prompt(self, obs: dict[str, Any]) -> str:
        return str(self.policy.config.told(obs["instruction"]))

    def see(self, inputs: dict[str, Tensor]) -> Any:
        """The vision tower alone."""
        return self.vlm.model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        )

    def read(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The forward pass as StarVLA calls it: embedding and all layers' outputs, after all logits were computed.

        The tuple of transformers 5 leaves out what deepstack adds to the first layers' outputs, that of 4.57, which StarVLA
        runs on, does not; so these are taken from what the following layer is given.
        """
        given: list[Tensor] = []
        layers = self.vlm.model.language_model.layers
        hooks = [layer.register_forward_pre_hook(lambda _, args: given.append(args[0])) for layer in layers]
        try:
            out = self.vlm(**inputs, output_attentions=False, output_hidden_states=True, return_dict=True)
        finally:
            for hook in hooks:
                hook.remove()
        return (*given, out.hidden_states[-1])

    def regress(self, inputs: dict[str, Tensor], hidden_states: tuple[Tensor, ...]) -> Tensor:
        """Qwen-OFT: the states at the query tokens, found in the prompt, through the head."""
        token = self.policy.backbone.token_id(self.policy.config.action_token)
        places = (
            (inputs["input_ids"] == token).float().topk(self.policy.horizon, dim=-1).indices.sort(-1).values
        )
        states = hidden_states[-1].gather(1, places[..., None].expand(-1, -1, hidden_states[-1].shape[-1]))
        return self.policy.head(states.float())

    def denoise(self, hidden_states: tuple[Tensor, ...], obs: dict[str, Any], noise: Tensor) -> Tensor:
        """Qwen-PI and Qwen-GR00T: the head at every step anew."""
        policy, head = self.policy, self.policy.head
        state = torch.as_tensor(obs["state"], dtype=torch.float32, device=noise.device)[None]
        state = policy.normalizers["state"].normalize(state)
        contexts = [
            hidden_states[number].to(head.action_encoder.layer1.weight.dtype) for number in policy.layers
        ]
        return plain_head(head, noise, state, contexts, policy.config.steps)

    def speak(self, inputs: dict[str, Tensor]) -> Tensor:
        """Qwen-FAST: `generate`, decoded by the tokenizer."""
        policy = self.policy
        grammar = GrammarProcessor(policy, inputs["input_ids"].shape[1])
        said = self.vlm.generate(
            **inputs, max_length=2048, do_sample=False, logits_processor=[grammar], eos_token_id=grammar.end,
            pad_token_id=policy.backbone.tokenizer.pad_token_id,
        )  # fmt: skip
        words = {number: index for index, number in enumerate(policy.action_ids)}
        tokens = [words[i] for i in said[0, inputs["input_ids"].shape[1] :].tolist() if i in words]
        return torch.from_numpy(policy.fast.decode([tokens], policy.horizon, policy.embodiment.action_dim))


class GrammarProcessor:
    """Leaves the words that can still make a chunk, and the end where it is complete (a `LogitsProcessor`)."""

    def __init__(self, policy: Any, prompt: int) -> None:
        self.end = policy.backbone.tokenizer.eos_token_id
        self._grammar, self._prompt = policy._grammar, prompt
        self._state = ChunkState(policy.horizon * policy.embodiment.action_dim)
        self._ids = torch.tensor(policy.action_ids)
        self._words = {number: index for index, number in enumerate(policy.action_ids)}

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (1, V) with -inf where a word may not follow the ids (1, L)."""
        if ids.shape[1] > self._prompt:
            self._state = self._grammar.advance(self._state, self._words[int(ids[0, -1])])
        may = self._ids[torch.from_numpy(self._grammar.allowed(self._state))]
        may = torch.tensor([self.end]) if self._state.complete else may
        masked = torch.full_like(scores, -torch.inf)
        masked[:, may] = scores[:, may]
        return masked


def plain_head(head: FlowHead, noise: Tensor, state: Tensor, contexts: list[Tensor], steps: int) -> Tensor:
    """Euler steps of a flow head, everything anew at every step, all tokens in all blocks."""
    x, count, horizon = noise, len(noise), noise.shape[1]
    dtype = head.action_encoder.layer1.weight.dtype
    for step in range(steps):
        bucket = torch.full((count,), int(step / steps * 1000), device=x.device)
        silu_time = F.silu(head.model.timestep_encoder(bucket))
        encoder = head.action_encoder
        code = sinusoid(bucket, encoder.width, cosine_first=False, last=False)[:, None].expand(
            -1, horizon, -1
        )
        joined = torch.cat([encoder.layer1(x.to(dtype)), code.to(dtype)], -1)
        hidden = encoder.layer3(F.silu(encoder.layer2(joined)))
        if head.position_embedding is not None:
            hidden = hidden + head.position_embedding.weight[:horizon]
        parts = [head.future_tokens.weight.expand(count, -1, -1), hidden]
        if head.state_encoder is not None:
            parts.insert(0, head.state_encoder(state.to(dtype))[:, None])
        tokens, given = torch.cat(parts, 1), iter(contexts)
        for block, cross in zip(head.model.transformer_blocks, head.crosses, strict=True):
            kv = block.attn1.project(next(given), None) if cross else None  # type: ignore[union-attr, operator]
            tokens = block(tokens, block.norm1.modulation(silu_time), kv)  # type: ignore[union-attr, operator]
        out = head.action_decoder(head.read_out(tokens, head.final_modulation(silu_time)))
        x = x + out[:, -horizon:].to(x.dtype) / steps
    return x
