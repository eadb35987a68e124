"""What the configurations of all policies have in common: the VLM and how it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_agents.errors import ConfigError


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

    def __post_init__(self) -> None:
        if "{instruction}" not in self.prompt:
            raise ConfigError(f"prompt {self.prompt!r} lacks {{instruction}}")

    def told(self, instruction: str) -> str:
        """The user text for an instruction."""
        return self.prompt.replace("{horizon}", str(self.horizon)).replace("{instruction}", instruction)
