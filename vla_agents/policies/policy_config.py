"""What the configurations of all policies have in common: the VLM, how it computes, what of it learns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from vla_agents.errors import ConfigError

CHANGEABLE = ("execute", "dtype", "attention", "gradient_checkpointing", "freeze", "lora")
"""Fields that say how a policy learns and computes, not what it is: `load_policy(..., changes=...)` may change them."""


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters in the VLM (Hu et al. 2021, "LoRA"); needs the extra `lora` (peft)."""

    rank: int = 0
    """Rank of the adapters, e.g. 32; 0: none, the VLM's own weights learn."""
    alpha: float = 32.0
    """Their output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Of their input, while training."""
    targets: tuple[str, ...] = ()
    """Regular expressions; linear layers of the VLM with a match in their name get an adapter. Default: all of them."""
    learn: tuple[str, ...] = ()
    """Regular expressions; parameters of the VLM with a match in their name learn in full beside the adapters."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"lora: rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}",
                "rank must be 0 or more, alpha positive, dropout in [0, 1)",
            )


@dataclass(frozen=True)
class PolicyConfig:
    """What every policy over a VLM has besides embodiment and statistics."""

    vlm: str = "tiny"
    """VLM to start from: a folder, a hub id (Qwen/Qwen3-VL-4B-Instruct), or 'tiny' (the pretrained one we ship)."""
    horizon: int = 8
    """H: actions predicted per chunk."""
    execute: int = 4
    """Actions of a chunk that are carried out before the next one is planned (default; can be changed when acting)."""
    prompt: str = "{instruction}"
    """What the model is told; {instruction} is replaced, {horizon} too."""
    image_size: int = 0
    """Side in pixels at which Florence-2 and CLIP see pictures; 0: as their files say. Qwen-VL takes them as they come."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the VLM's weights; an OFT head stays in float32."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """The VLM's attention kernels; auto: flash-attention if installed, on a GPU and in half precision; else torch's own."""
    gradient_checkpointing: bool = False
    """Compute the VLM's activations twice instead of keeping them: less memory for about a third more time."""
    freeze: tuple[str, ...] = ()
    """Regular expressions; parameters of the policy with a match in their name do not learn (e.g. 'visual')."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Low-rank adapters in the VLM."""
    tasks: dict[str, str] = field(default_factory=dict)
    """Task -> regular expression of its instructions (the first match counts); the task is told to the model by a learnt
    token before the prompt, in training and when acting. None: there are no such tokens."""

    def __post_init__(self) -> None:
        if "{instruction}" not in self.prompt:
            raise ConfigError(f"prompt {self.prompt!r} lacks {{instruction}}")

    def told(self, instruction: str) -> str:
        """The user text for an instruction."""
        text = self.prompt.replace("{horizon}", str(self.horizon)).replace("{instruction}", instruction)
        return self._task_token(instruction) + text

    @property
    def task_tokens(self) -> list[str]:
        """One per task; their embeddings are the task embeddings."""
        return [f"<|task_{name}|>" for name in self.tasks]

    def _task_token(self, instruction: str) -> str:
        if not self.tasks:
            return ""
        for token, pattern in zip(self.task_tokens, self.tasks.values(), strict=True):
            if re.search(pattern, instruction):
                return token
        raise ConfigError(
            f"the instruction {instruction!r} belongs to none of the tasks the policy was made for",
            f"they are: {self.tasks}",
        )
