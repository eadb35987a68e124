"""The tiny pretrained Qwen-VL that ships with the package, and names for VLM sources.

Its weights are remade by `vla-agents pretrain-tiny` (see `vla_agents.train.pretrain_tiny`).
"""

from __future__ import annotations

from pathlib import Path

from vla_agents.errors import CheckpointError

TINY = Path(__file__).parent / "tiny_vlm"


def resolve_vlm(source: str) -> str:
    """`"tiny"` -> the folder of the shipped model; anything else (folder, hub id) as it is."""
    if source != "tiny":
        return source
    if not (TINY / "model.safetensors").is_file():
        raise CheckpointError(
            TINY, "the tiny pretrained Qwen-VL is missing", "remake it with `vla-agents pretrain-tiny`"
        )
    return str(TINY)
