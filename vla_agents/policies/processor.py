"""Qwen-VL processors without torchvision.

The processors of `transformers` insist on a video processor, which needs torchvision, which has no CPU build for every
torch. Where torchvision is missing, `load_processor` builds the same processor for pictures and text alone, and makes
`AutoProcessor` do so too. Where it is there, the stock classes are used.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any


def load_processor(source: str | Path) -> Any:
    """A model's processor (chat template, pictures, tokenizer), with or without torchvision.

    Args:
        source: Model folder or hub id.
    """
    from transformers import AutoProcessor

    enable_auto_processor()
    return AutoProcessor.from_pretrained(str(source))


@cache
def enable_auto_processor() -> bool:
    """Teach `AutoProcessor` to do without torchvision; returns whether that was needed. Safe to call again."""
    if importlib.util.find_spec("torchvision") is not None:
        return False
    from transformers import (
        AutoProcessor,
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen3_5Config,
        Qwen3VLConfig,
        Qwen3VLProcessor,
    )

    for config, processor in (
        (Qwen2_5_VLConfig, Qwen2_5_VLProcessor),
        (Qwen3VLConfig, Qwen3VLProcessor),
        (Qwen3_5Config, Qwen3VLProcessor),  # which is Qwen3.5's too
    ):
        AutoProcessor.register(config, _pictures_only(processor), exist_ok=True)
    return True


def _pictures_only(base: Any) -> type:
    """A Qwen-VL processor class whose constructor asks for no video processor."""
    from transformers.processing_utils import ProcessorMixin

    class PicturesOnly(base):  # type: ignore[misc]
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any
        ):
            for kind in ("image", "video", "vision_start", "vision_end"):
                token = f"<|{kind}_pad|>" if kind in ("image", "video") else f"<|{kind}|>"
                setattr(self, f"{kind}_token", token)
                setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    PicturesOnly.__name__ = PicturesOnly.__qualname__ = base.__name__
    return PicturesOnly
