"""The Qwen-VL backbone: images and a prompt in, hidden states out. The encoding of a prompt is written here, once.

Prompt = the model's own chat template over one user message (all images, then the text), the generation prompt, then a
suffix such as the action query tokens. Batches are padded on the left. Token ids and M-RoPE positions of a prompt are
computed once and kept: they depend on the text and the image grids only.

Pixels take one of two ways to the same numbers: pictures whose size is already a multiple of patch * merge are cut
into patches as tensors (equal to the Hugging Face processor to 1e-6), others are resized as that processor does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_agents.errors import CheckpointError, ConfigError

_FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class ImageSettings:
    """What `preprocessor_config.json` says about pixels."""

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_pixels: int
    max_pixels: int

    @classmethod
    def load(cls, source: str | Path) -> ImageSettings:
        """From a model folder or hub id."""
        from transformers.image_processing_utils import BaseImageProcessor

        data, _ = BaseImageProcessor.get_image_processor_dict(str(source))
        size = data.get("size") or {}
        return cls(
            patch=data["patch_size"],
            merge=data["merge_size"],
            temporal=data["temporal_patch_size"],
            mean=tuple(data.get("image_mean") or (0.48145466, 0.4578275, 0.40821073)),
            std=tuple(data.get("image_std") or (0.26862954, 0.26130258, 0.27577711)),
            min_pixels=data.get("min_pixels") or size.get("shortest_edge") or 56 * 56,
            max_pixels=data.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280,
        )

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a picture is seen: multiples of patch * merge within the pixel budget."""
        factor = self.patch * self.merge
        new_h, new_w = (max(factor, round(side / factor) * factor) for side in (height, width))
        if new_h * new_w > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            new_h, new_w = (
                max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
            )
        elif new_h * new_w < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            new_h, new_w = (math.ceil(side * grow / factor) * factor for side in (height, width))
        return new_h, new_w


@dataclass
class Encoding:
    """What the backbone gives back.

    Args:
        hidden: (B, L, hidden) last hidden states.
        mask: bool (B, L), False on padding (left).
        input_ids: int64 (B, L).
    """

    hidden: Tensor
    mask: Tensor
    input_ids: Tensor


class QwenVLBackbone(nn.Module):
    """A Qwen2.5-VL or Qwen3-VL with its tokenizer and image settings.

    Args:
        model: The `...ForConditionalGeneration` model.
        tokenizer: Its tokenizer, with chat template.
        images: Its pixel settings.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, images: ImageSettings) -> None:
        super().__init__()
        kind = model.config.model_type  # type: ignore[union-attr]
        if kind not in _FAMILIES:
            raise ConfigError(
                f"{kind!r} is not a Qwen-VL this backbone knows", f"known: {', '.join(_FAMILIES)}"
            )
        if not tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer of the {kind} model has no chat template", "use an Instruct model"
            )
        self.vlm: Any = model
        self.tokenizer = tokenizer
        self.image_settings = images
        self._prompts: dict[Any, Any] = {}

    @classmethod
    def from_pretrained(cls, source: str | Path, *, dtype: str = "float32") -> QwenVLBackbone:
        """From a model folder or a hub id such as `"Qwen/Qwen3-VL-4B-Instruct"`, with weights."""
        return cls._build(source, dtype, weights=True)

    @classmethod
    def from_config(cls, source: str | Path, *, dtype: str = "float32") -> QwenVLBackbone:
        """The same architecture with random weights (for a checkpoint that brings its own)."""
        return cls._build(source, dtype, weights=False)

    @classmethod
    def _build(cls, source: str | Path, dtype: str, *, weights: bool) -> QwenVLBackbone:
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

        torch_dtype = getattr(torch, dtype)
        try:
            with _quiet_transformers():
                if weights:
                    model = AutoModelForImageTextToText.from_pretrained(str(source), dtype=torch_dtype)
                else:
                    config = AutoConfig.from_pretrained(str(source))
                    model = AutoModelForImageTextToText.from_config(config, dtype=torch_dtype)
                tokenizer = AutoTokenizer.from_pretrained(str(source), padding_side="left")
                images = ImageSettings.load(source)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                source,
                f"no Qwen-VL model could be read here ({error})",
                "give a folder with config.json, tokenizer.json, preprocessor_config.json and weights, "
                "or a hub id that this machine can reach; `vla-agents pretrain-tiny` makes a tiny one",
            ) from error
        return cls(model, tokenizer, images)

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.vlm.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        """Depth of the language model."""
        return int(self.vlm.config.get_text_config().num_hidden_layers)

    def token_id(self, token: str) -> int:
        """The id of a text that must be a single token."""
        ids = self.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ConfigError(
                f"{token!r} is {len(ids)} tokens for this tokenizer, it must be one",
                "choose another action_token, or add it to the tokenizer and resize the embeddings",
            )
        return int(ids[0])

    def save_assets(self, folder: str | Path) -> None:
        """Config, tokenizer and pixel settings (no weights): what `from_config` reads."""
        folder = Path(folder)
        self.vlm.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.vlm.generation_config is not None:
            self.vlm.generation_config.save_pretrained(folder)
        _write_preprocessor(folder, self.image_settings, self.vlm.config.model_type)

    # ---- encoding -----------------------------------------------------------------------------------------
    def encode(
        self, images: Sequence[Tensor], texts: Sequence[str], suffix: str = "", answers: Sequence[str] = ()
    ) -> Encoding:
        """Hidden states of B prompts.

        Args:
            images: One uint8 (B, H, W, 3) tensor per view (sizes may differ between views).
            texts: B user texts.
            suffix: Appended after the generation prompt (the same for all), e.g. action query tokens.
            answers: B answers appended after the generation prompt instead, for language training.
        """
        inputs, mask = self.inputs(images, texts, suffix, answers)
        hidden = self.vlm.model(**inputs, use_cache=False).last_hidden_state
        return Encoding(hidden, mask, inputs["input_ids"])

    def language_loss(
        self, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Next-token cross-entropy on the answers (and the end-of-turn token), nothing else.

        Args:
            images: One uint8 (B, H, W, 3) tensor per view.
            questions: B user texts.
            answers: B answers.

        Returns:
            The mean loss per answer token, and the number of answer tokens that were predicted right.
        """
        encoding, labels = self._answered(images, questions, answers)
        where = labels[:, 1:] >= 0  # the state at t predicts token t + 1
        logits = self.vlm.lm_head(encoding.hidden[:, :-1][where]).float()
        targets = labels[:, 1:][where]
        return nn.functional.cross_entropy(logits, targets), (logits.argmax(-1) == targets).sum()

    def _answered(
        self, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[Encoding, Tensor]:
        """Hidden states of prompts with answers, and labels (B, L): the token id on answers, -100 elsewhere."""
        end = self.tokenizer.eos_token
        encoding = self.encode(images, questions, answers=[answer + end for answer in answers])
        labels = torch.full_like(encoding.input_ids, -100)
        for row, answer in enumerate(answers):
            count = len(self.tokenizer(answer + end, add_special_tokens=False)["input_ids"])
            labels[row, -count:] = encoding.input_ids[row, -count:]
        return encoding, labels

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], questions: Sequence[str], max_tokens: int = 16) -> list[str]:
        """Greedy answers to B questions."""
        inputs, _ = self.inputs(images, questions)
        if inputs["attention_mask"] is None:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs.pop("position_ids")  # generate() continues its own
        out = self.vlm.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )  # fmt: skip
        return self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def inputs(
        self, images: Sequence[Tensor], texts: Sequence[str], suffix: str = "", answers: Sequence[str] = ()
    ) -> tuple[dict[str, Any], Tensor]:
        """The keyword arguments of the model's forward pass for B prompts, and the padding mask, bool (B, L)."""
        device = next(self.parameters()).device
        pixels, grids = zip(*(self.patches(view) for view in images), strict=True)
        ends = [suffix + answer for answer in answers] if answers else [suffix] * len(texts)
        prompts = [self._prompt(text, end, grids) for text, end in zip(texts, ends, strict=True)]
        length = max(len(ids) for ids in prompts)
        rows = [self._padded(ids, length, grids) for ids in prompts]
        ids, mask, types, positions = (torch.stack(column) for column in zip(*rows, strict=True))
        padded, mask = not bool(mask.all()), mask.to(device)
        grid = torch.tensor(grids).repeat(len(texts), 1)
        # The model wants patches sample by sample (all views of one, then of the next).
        per_view = [p.view(len(texts), -1, p.shape[-1]) for p in pixels]
        inputs = {
            "input_ids": ids.to(device),
            "attention_mask": mask.int() if padded else None,
            "mm_token_type_ids": types.to(device),
            "position_ids": positions.transpose(0, 1).to(device),
            "pixel_values": torch.cat(per_view, 1).flatten(0, 1).to(device, self.vlm.dtype),
            "image_grid_thw": grid.to(device),
        }
        return inputs, mask

    def patches(self, view: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """uint8 (B, H, W, 3) -> float32 (B * patches, 3 * temporal * patch²) and the grid (1, rows, columns)."""
        s = self.image_settings
        size = s.target_size(view.shape[1], view.shape[2])
        if size != tuple(view.shape[1:3]):
            view = _resize(view, size)
        rows, columns = size[0] // s.patch, size[1] // s.patch
        mean = view.new_tensor(s.mean, dtype=torch.float32).view(1, 3, 1, 1) * 255
        std = view.new_tensor(s.std, dtype=torch.float32).view(1, 3, 1, 1) * 255
        x = (view.permute(0, 3, 1, 2).float() - mean) / std
        x = x.reshape(len(view), 3, rows // s.merge, s.merge, s.patch, columns // s.merge, s.merge, s.patch)
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # B, rows/m, cols/m, m, m, 3, 1, patch, patch
        x = x.expand(*x.shape[:6], s.temporal, *x.shape[7:])  # a still picture is repeated in time
        return x.reshape(len(view) * rows * columns, -1), (1, rows, columns)

    # ---- prompts ------------------------------------------------------------------------------------------
    def _prompt(self, text: str, end: str, grids: tuple[tuple[int, int, int], ...]) -> tuple[int, ...]:
        """Token ids of one prompt, every image place filled with as many tokens as the grid has."""
        key = ("prompt", text, end, grids)
        if key not in self._prompts:
            content = [{"type": "image"} for _ in grids] + [{"type": "text", "text": text}]
            chat = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            pad = "<|image_pad|>"
            pieces = (chat + end).split(pad)
            if len(pieces) != len(grids) + 1:
                raise ConfigError(
                    f"the chat template makes {len(pieces) - 1} image places for {len(grids)} images: {chat!r}",
                    "an instruction must not contain <|image_pad|>",
                )
            counts = [rows * columns // self.image_settings.merge**2 for _, rows, columns in grids]
            full = pieces[0] + "".join(pad * n + piece for n, piece in zip(counts, pieces[1:], strict=True))
            ids = tuple(self.tokenizer(full, add_special_tokens=False)["input_ids"])
            self._remember(key, ids)
        return self._prompts[key]

    def _padded(
        self, ids: tuple[int, ...], length: int, grids: tuple[tuple[int, int, int], ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row of ids (L,), mask (L,), token types (L,) and positions (3, L), padded on the left."""
        key = ("row", ids, length, grids)
        if key not in self._prompts:
            pad = length - len(ids)
            row = torch.tensor([self.tokenizer.pad_token_id] * pad + list(ids))
            mask = torch.tensor([False] * pad + [True] * len(ids))
            types = (row == self.vlm.config.image_token_id).int()
            positions, _ = self.vlm.model.get_rope_index(
                row[None],
                mm_token_type_ids=types[None],
                image_grid_thw=torch.tensor(grids),
                attention_mask=mask[None].int(),
            )
            self._remember(key, (row, mask, types, positions[:, 0]))
        return self._prompts[key]

    def _remember(self, key: Any, value: Any) -> None:
        if len(self._prompts) > 4096:  # free-form instructions must not fill the memory
            self._prompts.clear()
        self._prompts[key] = value


def _resize(view: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bicubic, as the Hugging Face processor does it."""
    from PIL import Image

    width_first = (size[1], size[0])
    frames = [
        np.asarray(Image.fromarray(frame).resize(width_first, Image.Resampling.BICUBIC))
        for frame in view.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(frames)).to(view.device)


def _write_preprocessor(folder: Path, images: ImageSettings, family: str) -> None:
    import json

    data = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": images.patch,
        "merge_size": images.merge,
        "temporal_patch_size": images.temporal,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
        "size": {"shortest_edge": images.min_pixels, "longest_edge": images.max_pixels},
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No weight-loading progress bars on the terminal."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
