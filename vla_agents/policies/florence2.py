"""The Florence-2 backbone.

Xiao et al. 2023, "Florence-2: Advancing a Unified Representation for a Variety of Vision Tasks".

0.23 or 0.77 billion parameters: a DaViT looks, a BART encoder reads pictures and text together, a BART decoder answers.

    pictures (B, H, W, 3) x V -> square -> DaViT -> V * ((size / 32)² + 1) tokens ─┐
    "<s>pick up the red block</s>" ────────────────────────────────────────────────┼─ encoder, layers 1 .. N -> (B, L, C)
    H query tokens (Qwen-OFT) ─────────────────────────────────────────────────────┘
    answers: decoder over the encoder's last states -> next token

Heads read the **encoder**: it attends in both directions, so every state, those at the queries too, has seen all pictures
and all of the text; the decoder would add one token at a time. X-VLA, FLOWER and StarVLA's Florence-2 read it likewise and
drop the decoder. Here it stays for Qwen-FAST and for language training; where neither is at work, it does not learn.

The encoder ends each layer with its norm (post-norm), so there is no final norm to leave out. Batches are padded on the
right. Two views of 768 pixels are 1154 tokens, more than the base model has positions for; `image_size=224` makes 50 tokens
of a view. Pixels: `vla_agents.policies.pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla_agents.errors import CheckpointError, ConfigError
from vla_agents.policies.backbone import LAYERS, QUERIES, WORDS, Backbone, Encoding, Queries
from vla_agents.policies.backbones import reading
from vla_agents.policies.pictures import PictureSettings


class Florence2Backbone(Backbone):
    """A Florence-2 with its tokenizer and pixel settings.

    Args:
        model: `Florence2ForConditionalGeneration`.
        tokenizer: Its tokenizer.
        pictures: Its pixel settings.
        attention: `auto`, or the attention kernels by name.
    """

    abilities = frozenset({QUERIES, LAYERS, WORDS})

    def __init__(
        self, model: nn.Module, tokenizer: Any, pictures: PictureSettings, attention: str = "auto"
    ) -> None:
        super().__init__(model, tokenizer, attention)
        self.pictures = pictures
        self._recompute = False
        vision, image = self.vlm.config.vision_config, tokenizer.get_vocab().get("<image>")
        self._stride = prod(vision.patch_stride)
        if image != self.vlm.config.image_token_id:
            raise ConfigError(
                f"<image> is {image} for the tokenizer, {self.vlm.config.image_token_id} for the model",
                "take the tokenizer files that came with the model",
            )
        lacking = [
            name for name in ("bos_token", "eos_token", "pad_token") if getattr(tokenizer, name) is None
        ]
        if lacking:
            raise ConfigError(f"the tokenizer lacks {', '.join(lacking)}", "take the files of the model")
        if pictures.size % self._stride or pictures.size > self._stride * vision.max_position_embeddings:
            raise ConfigError(
                f"pictures of {pictures.size} pixels are not for this Florence-2",
                f"image_size must be a multiple of {self._stride}, "
                f"{self._stride * vision.max_position_embeddings} at most",
            )

    @classmethod
    def build(
        cls,
        source: str | Path,
        *,
        weights: bool,
        dtype: str = "float32",
        attention: str = "auto",
        image_size: int = 0,
    ) -> Self:
        """See `Backbone.build`."""
        from transformers import AutoConfig, AutoTokenizer, Florence2ForConditionalGeneration

        torch_dtype = getattr(torch, dtype)
        with reading(source):
            config = AutoConfig.from_pretrained(str(source))
            if getattr(config, "auto_map", None):
                raise CheckpointError(
                    source,
                    "files for code that comes with the model, which is never run here",
                    "take the converted ones, e.g. florence-community/Florence-2-base",
                )
            if weights:
                model = Florence2ForConditionalGeneration.from_pretrained(str(source), dtype=torch_dtype)
            else:
                model = Florence2ForConditionalGeneration._from_config(config, dtype=torch_dtype)
                model.tie_weights()  # see `uninitialized`
            tokenizer = AutoTokenizer.from_pretrained(str(source))
            pictures = PictureSettings.load(source).sized(image_size)
        return cls(model, tokenizer, pictures, attention)

    @property
    def hidden_size(self) -> int:
        """Width of encoder and decoder."""
        return int(self.vlm.config.text_config.d_model)

    @property
    def num_layers(self) -> int:
        """Depth of the encoder."""
        return int(self.vlm.config.text_config.encoder_layers)

    @property
    def picture_tokens(self) -> int:
        """Tokens of one view: a grid, and its mean before it."""
        return (self.pictures.size // self._stride) ** 2 + 1

    def save_assets(self, folder: str | Path) -> None:
        """Config, tokenizer and pixel settings (no weights): what `from_config` reads."""
        self.vlm.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.pictures.save(folder, image_seq_length=self.picture_tokens)

    def freeze_unused(self, layers: Sequence[int], *, final_norm: bool = True, queries: bool = False) -> None:
        """The decoder, a language head of its own, and encoder layers beyond the last that is read."""
        encoder, model = self.vlm.model.language_model.encoder, self.vlm.model
        read = [
            model.vision_tower,
            model.multi_modal_projector,
            encoder.embed_tokens,
            encoder.embed_positions,
        ]
        read += [encoder.layernorm_embedding, *encoder.layers[: max(layers)]]
        used = {id(parameter) for part in read for parameter in part.parameters()}
        for parameter in self.vlm.parameters():
            if id(parameter) not in used:
                parameter.requires_grad_(False)

    # ---- encoding -----------------------------------------------------------------------------------------
    def encode(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        *,
        queries: Queries | None = None,
        layers: Sequence[int] | None = None,
        final_norm: bool = True,
    ) -> Encoding:
        """See `Backbone.encode`."""
        self.check_attention()
        if not final_norm:
            raise ConfigError("final_norm=False is not for Florence-2: its encoder has no final norm")
        if queries is not None and queries.in_text:
            raise ConfigError("queries='prompt' is StarVLA's way with Qwen-VL", "set queries='suffix'")
        ends = [self.token_id(queries.token)] * queries.count if queries is not None else []
        ids, mask = self._padded([self._prompt(text, len(images)) + ends for text in texts])
        wanted = [self.num_layers] if layers is None else list(layers)
        if not wanted or wanted != sorted(set(wanted)) or not 1 <= wanted[0] <= wanted[-1] <= self.num_layers:
            raise ConfigError(f"layers {wanted} are not ascending numbers between 1 and {self.num_layers}")
        kept = self._run_encoder(self._embedded(images, ids), mask, wanted)
        encoding = Encoding(kept[-1], mask, ids, () if layers is None else tuple(kept))
        if queries is not None:
            places = mask.sum(1, keepdim=True) + torch.arange(-queries.count, 0, device=mask.device)  # (B, H)
            encoding.queries = kept[-1].take_along_dim(places[..., None], 1)
        return encoding

    def _prompt(self, text: str, views: int) -> list[int]:
        """Token ids of one prompt, every picture's places filled."""
        image = self.vlm.config.image_token_id
        framed = f"{self.tokenizer.bos_token}{text}{self.tokenizer.eos_token}"
        said = self.tokenizer(framed, add_special_tokens=False)["input_ids"]
        if image in said:
            raise ConfigError(f"the prompt {text!r} holds <image>, which stands for the pictures")
        return [image] * (self.picture_tokens * views) + said

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """ids (B, L) and mask, bool (B, L), padded on the right."""
        length, most = max(len(row) for row in rows), self.vlm.config.text_config.max_position_embeddings
        if length > most:
            raise ConfigError(
                f"a sequence of {length} tokens, and this Florence-2 has positions for {most}; "
                f"a picture of {self.pictures.size} pixels takes {self.picture_tokens}",
                "set a smaller image_size (e.g. 224), use fewer cameras or shorter instructions",
            )
        device, pad = self.vlm.device, self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return ids, torch.arange(length, device=device) < lengths[:, None]

    def _embedded(self, images: Sequence[Tensor], ids: Tensor) -> Tensor:
        """Words and pictures in their places, (B, L, C)."""
        model = self.vlm.model
        device, dtype = self.vlm.device, self.vlm.dtype
        x = torch.stack([self.pictures.pixels(view).to(device, dtype) for view in images], 1).flatten(0, 1)
        for shrink, block in zip(model.vision_tower.convs, model.vision_tower.blocks, strict=True):
            x = shrink(x)
            for layer in block:
                again = self._recompute and self.training
                x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        seen = model.multi_modal_projector(x)  # (B * V, tokens, C)
        words = model.get_input_embeddings()(ids)
        places = (ids == self.vlm.config.image_token_id).unsqueeze(-1).expand_as(words)
        return words.masked_scatter(places, seen.to(words.dtype))

    def _run_encoder(self, x: Tensor, mask: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of chosen layers, one (B, L, C) each."""
        from transformers.masking_utils import create_bidirectional_mask

        encoder = self.vlm.model.language_model.encoder
        x = encoder.layernorm_embedding(x + encoder.embed_positions(x[:, :, -1]))
        x = nn.functional.dropout(x, encoder.dropout, self.training)
        bias = create_bidirectional_mask(encoder.config, x, attention_mask=mask.int())
        kept = []
        for number, layer in enumerate(encoder.layers[: layers[-1]], start=1):
            x = layer(x, bias)
            x = x[0] if isinstance(x, tuple) else x
            if number in layers:
                kept.append(x)
        return kept

    def set_gradient_checkpointing(self, on: bool = True) -> None:
        """See `Backbone`; the DaViT's blocks are ours to wrap."""
        super().set_gradient_checkpointing(on)
        self._recompute = on

    # ---- words --------------------------------------------------------------------------------------------
    def answered(
        self, images: Sequence[Tensor], texts: Sequence[str], answers: Sequence[str], begin: str = ""
    ) -> Encoding:
        """See `Backbone.answered`; states and tokens are the decoder's: start, `<s>`, answer."""
        read = self.encode(images, texts)
        start = self._start(begin)
        said = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        ids, mask = self._padded([start + row for row in said])
        hidden = self._decoder(
            input_ids=ids,
            attention_mask=mask.int(),
            encoder_hidden_states=read.hidden,
            encoder_attention_mask=read.mask.int(),
            use_cache=False,
        ).last_hidden_state
        spoken = mask & (torch.arange(ids.shape[1], device=ids.device) >= len(start))
        return Encoding(hidden, mask, ids, answers=spoken)

    def speak(self, images: Sequence[Tensor], texts: Sequence[str], begin: str = "") -> FlorenceSpeech:
        """See `Backbone.speak`."""
        return FlorenceSpeech(self._decoder, self.encode(images, texts), self._start(begin))

    def _start(self, begin: str) -> list[int]:
        """What an answer begins with before its own tokens."""
        given = self.tokenizer(begin, add_special_tokens=False)["input_ids"] if begin else []
        return [self.vlm.config.text_config.decoder_start_token_id, self.tokenizer.bos_token_id, *given]

    @property
    def _decoder(self) -> Any:
        return self.vlm.model.language_model.decoder


class FlorenceSpeech:
    """B answers in the making; see `vla_agents.policies.backbone.Speech`."""

    def __init__(self, decoder: Any, read: Encoding, start: Sequence[int]) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self._decoder, self._read = decoder, read
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.hidden = self._run(torch.tensor([start] * len(read.hidden), device=read.hidden.device))

    def say(self, ids: Tensor) -> None:
        """Go on with these tokens, int64 (B,)."""
        self.hidden = self._run(ids[:, None])

    def _run(self, ids: Tensor) -> Tensor:
        out = self._decoder(
            input_ids=ids,
            encoder_hidden_states=self._read.hidden,
            encoder_attention_mask=self._read.mask.int(),
            past_key_values=self._cache,
            use_cache=True,
        )
        last: Tensor = out.last_hidden_state[:, -1]
        return last
