"""Tiny VLMs, made on the spot: the true architectures of `transformers` with about a million parameters.

The result is an ordinary model folder that `AutoModelForImageTextToText`, `AutoTokenizer` and `load_processor` read
offline, so the same code path takes `Qwen/Qwen3-VL-4B-Instruct` by name. The weights are random until
`vla-agents pretrain-tiny`. Qwen-VL is here, Florence-2 and CLIP are in `vla_agents.policies.tiny_small`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.policies.processor import enable_auto_processor

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "qwen3_5")
SMALL_FAMILIES = ("florence2", "clip")
ACTION_TOKEN = "🔍"

_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

# ChatML with image and video placeholders: what Qwen-VL processors expect, without tools and system prompt.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

# How Qwen splits text before merging: contractions, words, single digits, punctuation, white space.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class TinySize:
    """Shape of a tiny VLM.

    `hidden`, `layers`, `heads`, `mlp` describe the language model, `vision_*` the vision tower; an image of
    `image_size` pixels becomes (image_size / patch / merge)² tokens.
    """

    hidden: int = 96
    layers: int = 3
    heads: int = 3
    mlp: int = 256
    vision_hidden: int = 96
    vision_layers: int = 3
    vision_heads: int = 3
    patch: int = 8
    merge: int = 2
    image_size: int = 64
    vocabulary: int = 512


def train_bpe(corpus: Iterable[str], vocabulary: int = 512) -> Any:
    """A byte-level BPE of `tokenizers` that splits text as Qwen does; any text encodes, byte by byte at worst.

    Args:
        corpus: Sentences to learn merges from.
        vocabulary: Its size.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def make_tokenizer(corpus: Iterable[str], vocabulary: int = 512) -> Any:
    """A byte-level BPE tokenizer in Qwen's manner: its splitting rule, special tokens and chat template.

    Args:
        corpus: Sentences to learn merges from; any other text still encodes, byte by byte.
        vocabulary: Size without the special tokens.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_bpe(corpus, vocabulary)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    tokenizer.add_tokens([AddedToken(ACTION_TOKEN, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL[1:]),
        model_max_length=4096,
        padding_side="left",
        chat_template=_CHAT_TEMPLATE,
    )


def make_tiny_vlm(
    folder: str | Path,
    *,
    family: str = "qwen3_vl",
    size: TinySize | None = None,
    corpus: Iterable[str] = (),
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    seed: int = 0,
) -> Path:
    """Write a randomly initialised tiny VLM with tokenizer and image processor to a folder.

    Args:
        folder: Where to write; made if missing.
        family: One of `FAMILIES` or `SMALL_FAMILIES`.
        size: Its shape.
        corpus: Sentences the tokenizer learns from.
        pixel_mean: Mean of the pixels the model will see, per channel in [0, 1] (Qwen-VL).
        pixel_std: Their spread. With the data's own values a model this small learns to see at all.
        seed: Of the weights; the global generator is left alone.

    Returns:
        The folder.
    """
    if family not in FAMILIES + SMALL_FAMILIES:
        raise UnknownNameError("VLM family", family, FAMILIES + SMALL_FAMILIES)
    from transformers import AutoModelForImageTextToText

    enable_auto_processor()  # so that AutoProcessor reads the folder, in this process, without torchvision too
    size = size or TinySize()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = corpus or ["pick up the red block"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family in SMALL_FAMILIES:
            from vla_agents.policies.tiny_small import make_tiny_clip, make_tiny_florence2

            make = {"florence2": make_tiny_florence2, "clip": make_tiny_clip}[family]
            make(folder, size, train_bpe(corpus, size.vocabulary)).save_pretrained(folder)
            return folder
        tokenizer = make_tokenizer(corpus, size.vocabulary)
        config = _config(family, size, tokenizer)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        _spread_position_embeddings(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _image_processor(size, pixel_mean, pixel_std).save_pretrained(folder)
    return folder


def _spread_position_embeddings(model: nn.Module) -> None:
    """Learned vision positions at std 0.5 instead of 0.02: what lets so small a model learn where things are."""
    position = getattr(model.model.visual, "pos_embed", None)  # type: ignore[union-attr]
    if position is not None:
        nn.init.normal_(position.weight, std=0.5)


def _image_processor(size: TinySize, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    import transformers

    kind = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
    return kind(
        patch_size=size.patch,
        merge_size=size.merge,
        temporal_patch_size=2,
        image_mean=list(mean),
        image_std=list(std),
        size={"shortest_edge": (size.patch * size.merge) ** 2, "longest_edge": 512 * 512},
    )


def _config(family: str, size: TinySize, tokenizer: Any) -> Any:
    head = size.hidden // size.heads
    if size.hidden % size.heads or head % 2:
        raise ConfigError(f"hidden {size.hidden} must be an even multiple of heads {size.heads}")
    token = tokenizer.convert_tokens_to_ids
    special = {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": _rope(head),
    }
    vision: dict[str, Any] = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 3 * size.vision_hidden,
        "num_heads": size.vision_heads,
        "patch_size": size.patch,
        "spatial_merge_size": size.merge,
        "out_hidden_size": size.hidden,
        "temporal_patch_size": 2,
    }
    kind = {"qwen3_vl": _qwen3_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_5": _qwen3_5}[family]
    return kind(size, tokenizer, text, vision)(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **special
    )


def _rope(rotated: int) -> dict[str, Any]:
    """Rotary positions of `rotated` numbers a head: temporal, height and width share half of them."""
    half = rotated // 2
    quarter = half // 4
    rest = (half - quarter) // 2
    sections = [quarter, rest, half - quarter - rest]
    return {"rope_type": "default", "rope_theta": 5e5, "mrope_section": sections}


# Each fills in what its family has of its own, and returns the configuration's class.
def _qwen3_vl(size: TinySize, tokenizer: Any, text: dict[str, Any], vision: dict[str, Any]) -> type:
    from transformers import Qwen3VLConfig

    text |= {"head_dim": size.hidden // size.heads}
    text["rope_parameters"] |= {"mrope_interleaved": True}
    vision |= {
        "num_position_embeddings": _positions(size),
        "deepstack_visual_indexes": [0, 1][: size.vision_layers - 1],
    }
    return Qwen3VLConfig


def _qwen3_5(size: TinySize, tokenizer: Any, text: dict[str, Any], vision: dict[str, Any]) -> type:
    from transformers import Qwen3_5Config

    head = size.hidden // size.heads
    text |= {"head_dim": head, "tie_word_embeddings": True}
    text |= {f"linear_{what}_head_dim": head for what in ("key", "value")}
    text |= {f"linear_num_{what}_heads": size.heads for what in ("key", "value")}
    text["layer_types"] = [("linear_attention", "full_attention")[n % 2] for n in range(size.layers)]
    text["rope_parameters"] = _rope(head // 2) | {"mrope_interleaved": True, "partial_rotary_factor": 0.5}
    vision |= {"num_position_embeddings": _positions(size)}
    return Qwen3_5Config


def _qwen2_5_vl(size: TinySize, tokenizer: Any, text: dict[str, Any], vision: dict[str, Any]) -> type:
    from transformers import Qwen2_5_VLConfig

    text |= {"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    window = size.patch * size.merge * 4
    vision |= {"window_size": window, "fullatt_block_indexes": [size.vision_layers - 1]}
    return Qwen2_5_VLConfig


def _positions(size: TinySize) -> int:
    return max(16, math.ceil(size.image_size / size.patch)) ** 2
