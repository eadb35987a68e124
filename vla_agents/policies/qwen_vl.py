"""The Qwen-VL backbone: images and a prompt in, hidden states out. The encoding of a prompt is written here, once.

Prompt = the model's own chat template over one user message (all images, then the text), the generation prompt, then a
suffix such as the action query tokens. Batches are padded on the left. Token ids and M-RoPE positions of a prompt are
computed once and kept: they depend on the text and the image grids only.

Pixels: `vla_agents.policies.pixels`; the decoder's layers: `vla_agents.policies.qwen_decoder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.errors import CheckpointError, ConfigError
from vla_agents.policies.pixels import ImageSettings
from vla_agents.policies.qwen_decoder import run_decoder

__all__ = ["Encoding", "ImageSettings", "QwenVLBackbone"]

_FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@dataclass
class Encoding:
    """What the backbone gives back.

    Args:
        hidden: (B, L, hidden) last hidden states.
        mask: bool (B, L), False on padding (left).
        input_ids: int64 (B, L).
        layers: The raw outputs (B, L, hidden) of the decoder layers that were asked for.
    """

    hidden: Tensor
    mask: Tensor
    input_ids: Tensor
    layers: tuple[Tensor, ...] = ()


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

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Make texts single tokens, those that are not yet; the embeddings grow by random rows where needed.

        Returns:
            Their ids.
        """
        vocabulary = self.tokenizer.get_vocab()
        missing = [token for token in tokens if token not in vocabulary]
        if missing:
            from transformers import AddedToken

            self.tokenizer.add_tokens([AddedToken(token, normalized=False) for token in missing])
            if len(self.tokenizer) > self.vlm.get_input_embeddings().num_embeddings:
                self.vlm.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            self._prompts.clear()
        return [int(number) for number in self.tokenizer.convert_tokens_to_ids(list(tokens))]

    def save_assets(self, folder: str | Path) -> None:
        """Config, tokenizer and pixel settings (no weights): what `from_config` reads."""
        folder = Path(folder)
        self.vlm.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.vlm.generation_config is not None:
            self.vlm.generation_config.save_pretrained(folder)
        self.image_settings.save(folder)

    # ---- encoding -----------------------------------------------------------------------------------------
    def encode(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        suffix: str = "",
        answers: Sequence[str] = (),
        *,
        final_norm: bool = True,
        layers: Sequence[int] | None = None,
        cut_after: str = "",
    ) -> Encoding:
        """Hidden states of B prompts.

        Args:
            images: One uint8 (B, H, W, 3) tensor per view (sizes may differ between views).
            texts: B user texts.
            suffix: Appended after the generation prompt (the same for all), e.g. action query tokens.
            answers: B answers appended after the generation prompt instead, for language training.
            final_norm: Whether the last decoder layer's output goes through the final RMSNorm.
            layers: Ascending numbers of the decoder layers whose outputs are wanted, 1 .. `num_layers`; layers beyond the
                last of them are not run. By default the last one.
            cut_after: What follows the last occurrence of this token is not run: nothing before it sees it.
        """
        inputs, mask = self.inputs(images, texts, suffix, answers, cut_after=cut_after)
        wanted = [self.num_layers] if layers is None else list(layers)
        outputs = run_decoder(self.vlm.model, inputs, mask, wanted, final_norm=final_norm)
        kept = () if layers is None else tuple(outputs)
        return Encoding(outputs[-1], mask, inputs["input_ids"], kept)

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
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        suffix: str = "",
        answers: Sequence[str] = (),
        *,
        cut_after: str = "",
    ) -> tuple[dict[str, Any], Tensor]:
        """The keyword arguments of the model's forward pass for B prompts, and the padding mask, bool (B, L)."""
        device = next(self.parameters()).device
        pixels, grids = zip(*(self.patches(view) for view in images), strict=True)
        ends = [suffix + answer for answer in answers] if answers else [suffix] * len(texts)
        prompts = [self._prompt(text, end, grids) for text, end in zip(texts, ends, strict=True)]
        if cut_after:
            prompts = [_cut(ids, self.token_id(cut_after)) for ids in prompts]
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
        return self.image_settings.patches(view)

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


def _cut(ids: tuple[int, ...], token: int) -> tuple[int, ...]:
    """Up to and with the last `token`; all where there is none."""
    return ids[: len(ids) - ids[::-1].index(token)] if token in ids else ids


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
