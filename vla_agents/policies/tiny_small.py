"""Tiny Florence-2 and CLIP, made on the spot: the true architectures of `transformers` with some 100,000 parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_agents.policies.pictures import PictureSettings

if TYPE_CHECKING:
    from vla_agents.policies.tiny import TinySize

_HALF = (0.5, 0.5, 0.5)


def make_tiny_florence2(folder: Path, size: TinySize, tokenizer: Any) -> Any:
    """Write tokenizer and pixel settings of a tiny Florence-2, and return the model, random.

    Args:
        folder: Where.
        size: `hidden`, `layers`, `heads`, `mlp` are the encoder's and the decoder's; a picture of `image_size` pixels
            becomes (image_size / 8)² + 1 tokens.
        tokenizer: A byte-level BPE of `tokenizers`, without special tokens.
    """
    from transformers import (
        BartConfig,
        Florence2Config,
        Florence2ForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    fast = _with_specials(tokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>"])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>",
        additional_special_tokens=["<image>"], model_max_length=1024, padding_side="right",
    )  # fmt: skip
    ids: dict[str, Any] = {name: wrapped.convert_tokens_to_ids(f"<{text}>") for name, text in
           (("bos_token_id", "s"), ("pad_token_id", "pad"), ("eos_token_id", "/s"))}  # fmt: skip
    text = BartConfig(
        vocab_size=len(wrapped), d_model=size.hidden, max_position_embeddings=1024,
        encoder_layers=size.layers, decoder_layers=size.layers,
        encoder_attention_heads=size.heads, decoder_attention_heads=size.heads,
        encoder_ffn_dim=size.mlp, decoder_ffn_dim=size.mlp,
        decoder_start_token_id=ids["eos_token_id"], forced_eos_token_id=None, **ids,
    )  # fmt: skip
    width, heads = size.vision_hidden, size.vision_heads
    vision = {
        "depths": [1, max(1, size.vision_layers - 1)],
        "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
        "embed_dim": [width // 2, width], "num_heads": [heads, heads], "num_groups": [heads, heads],
        "window_size": 4, "projection_dim": size.hidden,
    }  # fmt: skip
    config = Florence2Config(
        text_config=text.to_dict(),
        vision_config=vision,
        image_token_id=fast.token_to_id("<image>"),
        tie_word_embeddings=True,
    )
    wrapped.save_pretrained(folder)
    pictures = PictureSettings(size.image_size, crop=False, mean=_HALF, std=_HALF)
    pictures.save(folder, image_seq_length=(size.image_size // 8) ** 2 + 1)
    return Florence2ForConditionalGeneration._from_config(config, dtype=torch.float32)


def make_tiny_clip(folder: Path, size: TinySize, tokenizer: Any) -> Any:
    """Write tokenizer and pixel settings of a tiny CLIP, and return the model, random.

    Args:
        folder: Where.
        size: `hidden`, `layers`, `heads`, `mlp` are the text encoder's, and `hidden` the joint width; a picture of
            `image_size` pixels becomes (image_size / patch)² + 1 tokens.
        tokenizer: A byte-level BPE of `tokenizers`, without special tokens.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    begin, end = "<|startoftext|>", "<|endoftext|>"
    fast = _with_specials(tokenizer, [begin, end])
    fast.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(token, fast.token_to_id(token)) for token in (begin, end)],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token=begin, eos_token=end, pad_token=end, model_max_length=77
    )
    text = {
        "vocab_size": len(wrapped), "hidden_size": size.hidden, "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "max_position_embeddings": 77,
        "bos_token_id": wrapped.bos_token_id, "eos_token_id": wrapped.eos_token_id,
        "pad_token_id": wrapped.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": size.vision_hidden, "intermediate_size": 3 * size.vision_hidden,
        "num_hidden_layers": size.vision_layers, "num_attention_heads": size.vision_heads,
        "image_size": size.image_size, "patch_size": size.patch,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=size.hidden)
    wrapped.save_pretrained(folder)
    PictureSettings(size.image_size, crop=True, mean=_HALF, std=_HALF).save(folder)
    return CLIPModel._from_config(config, dtype=torch.float32)


def _with_specials(tokenizer: Any, specials: Sequence[str]) -> Any:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return tokenizer
