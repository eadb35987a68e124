"""The Qwen-VL backbone: images and a prompt in, hidden states out. The encoding of a prompt is written here, once.

Prompt = the model's own chat template over one user message (all images, then the text), the generation prompt, then a
suffix such as the action query tokens. Batches are padded on the left. Token ids and M-RoPE positions of a prompt are
computed once and kept: they depend on the text and the image grids only.

Pixels: `vla_agents.policies.pixels`; the decoder's layers: `.qwen_decoder`; answers: `.qwen_speech`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vla_agents.errors import ConfigError
from vla_agents.policies.backbone import LAYERS, QUERIES, WORDS, Backbone, Encoding, Queries, Speech
from vla_agents.policies.backbones import reading
from vla_agents.policies.chat import Chat, ChatBatch, ChatEncoder
from vla_agents.policies.compiling import LENGTHS, compiled
from vla_agents.policies.pixels import ImageSettings
from vla_agents.policies.qwen_chat import chat_answers, chat_loss
from vla_agents.policies.qwen_decoder import PromptInputs, decode, run_decoder
from vla_agents.policies.qwen_prompts import Prompts
from vla_agents.policies.qwen_speech import (
    KeyValues,
    MixedSpeech,
    QwenSpeech,
    next_state,
    text_after_answer,
)

__all__ = ["Encoding", "ImageSettings", "QwenVLBackbone"]

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
_PICTURE = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")


class QwenVLBackbone(Backbone):
    """A Qwen-VL with its tokenizer and image settings.

    Args:
        model: The `...ForConditionalGeneration` model.
        tokenizer: Its tokenizer, with chat template.
        images: Its pixel settings.
        attention: `auto`, or the attention kernels by name.
    """

    abilities = frozenset({QUERIES, LAYERS, WORDS})

    def __init__(
        self, model: nn.Module, tokenizer: Any, images: ImageSettings, attention: str = "auto"
    ) -> None:
        kind = model.config.model_type  # type: ignore[union-attr]
        if kind not in FAMILIES:
            raise ConfigError(
                f"{kind!r} is not a Qwen-VL this backbone knows", f"known: {', '.join(FAMILIES)}"
            )
        _check_tokenizer(tokenizer, model.config)
        super().__init__(model, tokenizer, attention)
        self.image_settings = images
        self.prompts = Prompts(tokenizer, model, images.merge)
        self._graphs: dict[str, Callable[..., Any]] = {}
        self._caches: dict[tuple[int, int], KeyValues] = {}

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
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

        if image_size:
            raise ConfigError(
                f"image_size={image_size} is not for Qwen-VL, which takes pictures as they come",
                "resize in the env or by ResizeImages, or edit `size` of its preprocessor_config.json",
            )
        torch_dtype = getattr(torch, dtype)
        with reading(source):
            if weights:
                model = AutoModelForImageTextToText.from_pretrained(str(source), dtype=torch_dtype)
            else:
                config = AutoConfig.from_pretrained(str(source))
                model = AutoModelForImageTextToText.from_config(config, dtype=torch_dtype)
                model.tie_weights()  # see `uninitialized`
            tokenizer = AutoTokenizer.from_pretrained(str(source), padding_side="left")
            images = ImageSettings.load(source)
        return cls(model, tokenizer, images, attention)

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.vlm.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        """Depth of the language model."""
        return int(self.vlm.config.get_text_config().num_hidden_layers)

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """See `Backbone.add_tokens`."""
        self.prompts.clear()  # their texts may be other tokens now
        return super().add_tokens(tokens)

    def freeze_unused(self, layers: Sequence[int], *, final_norm: bool = True, queries: bool = False) -> None:
        """A language head of its own, layers beyond the last that is read, a final norm that is left out."""
        vlm, deepest = self.vlm, max(layers)
        if vlm.lm_head.weight is not vlm.get_input_embeddings().weight:
            vlm.lm_head.requires_grad_(False)
        decoder = vlm.model.language_model
        for layer in decoder.layers[deepest:]:
            layer.requires_grad_(False)
        for merger in list(getattr(vlm.model.visual, "deepstack_merger_list", ()))[deepest:]:
            merger.requires_grad_(False)
        if deepest < len(decoder.layers) or not final_norm:
            decoder.norm.requires_grad_(False)

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
        queries: Queries | None = None,
        layers: Sequence[int] | None = None,
        final_norm: bool = True,
        inputs: PromptInputs | None = None,
    ) -> Encoding:
        """See `Backbone.encode`; further:

        Args:
            suffix: Appended after the generation prompt (the same for all).
            answers: B answers appended after the generation prompt instead, for language training.
        """
        self.check_attention()
        if inputs is None:
            inputs = self.prepare_inputs(images, texts, suffix, answers, queries=queries)
        inputs = inputs.read_by(self.image_settings.normalized, self.vlm.dtype)
        wanted = [self.num_layers] if layers is None else list(layers)
        decoder = None if torch.is_grad_enabled() else self._graphs.get("decode")
        outputs = run_decoder(self.vlm.model, inputs, wanted, final_norm=final_norm, decoder=decoder)
        kept = () if layers is None else tuple(outputs)
        padded = inputs["attention_mask"] is not None
        encoding = Encoding(outputs[-1], inputs.mask, inputs["input_ids"], kept, padded=padded)
        if queries is not None:
            encoding.queries = self._at_queries(encoding, queries)
        return encoding

    def prepare_inputs(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        suffix: str = "",
        answers: Sequence[str] = (),
        *,
        queries: Queries | None = None,
        device: torch.device | None = None,
    ) -> PromptInputs:
        """See `Backbone.prepare_inputs`; pixels stay uint8, an eighth of the bytes on their way to where they are read."""
        cut = ""
        if queries is not None and not queries.in_text:
            suffix += queries.token * queries.count
        elif queries is not None and queries.cut:
            cut = queries.token
        return self.inputs(images, texts, suffix, answers, cut_after=cut, device=device, cut_only=True)

    def _at_queries(self, encoding: Encoding, queries: Queries) -> Tensor:
        """(B, H, hidden); a text may hold the token too, so the last ones count."""
        hidden, ids = encoding.hidden, encoding.input_ids
        if queries.cut or not queries.in_text:
            return hidden[:, -queries.count :]
        assert ids is not None
        found = ids == self.token_id(queries.token)
        places = found.long().cumsum(1).sub(found.sum(1, keepdim=True) - queries.count)
        return hidden[found & (places > 0)].view(len(hidden), queries.count, -1)

    # ---- words --------------------------------------------------------------------------------------------
    @property
    def after_answer(self) -> str:
        """What the chat template puts after an answer, the next generation prompt included (as StarVLA trains it)."""
        return text_after_answer(self.tokenizer)

    def answered(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        answers: Sequence[str],
        begin: str = "",
        inputs: PromptInputs | None = None,
    ) -> Encoding:
        """See `Backbone.answered`."""
        if inputs is None:
            inputs = self.prepare_inputs(images, texts, begin, answers)
        encoding = self.encode(images, texts, inputs=inputs)
        ids = encoding.input_ids
        assert ids is not None
        counts = torch.tensor(inputs.answers, device=ids.device)[:, None]
        encoding.answers = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - counts
        return encoding

    def speak(self, images: Sequence[Tensor], texts: Sequence[str], begin: str = "") -> Speech:
        """See `Backbone.speak`."""
        self.check_attention()
        inputs = self.inputs(images, texts, begin)
        if self._mixed:
            return MixedSpeech(self.vlm, inputs)
        if torch.is_grad_enabled() or not self._graphs:
            return QwenSpeech(self.vlm, inputs)
        return QwenSpeech(self.vlm, inputs, self._graphs, self._caches)

    def chat_encoder(self, max_tokens: int = 4096) -> ChatEncoder:
        """See `Backbone.chat_encoder`."""
        return ChatEncoder(self.tokenizer, self.image_settings, _PICTURE[1], max_tokens)

    def chat_loss(self, batch: ChatBatch) -> Tensor:
        """See `Backbone.chat_loss`."""
        self.check_attention()
        return chat_loss(self.vlm, batch)

    def chat_answers(self, chats: Sequence[Chat], max_tokens: int = 32) -> list[str]:
        """See `Backbone.chat_answers`."""
        return chat_answers(self.vlm, self.chat_encoder(), self.tokenizer, chats, max_tokens)

    def inputs(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        suffix: str = "",
        answers: Sequence[str] = (),
        *,
        cut_after: str = "",
        device: torch.device | None = None,
        cut_only: bool = False,
    ) -> PromptInputs:
        """The keyword arguments of the model's forward pass for B prompts; on the model's device by default.

        With `cut_only`, pixels are left uint8 (see `PromptInputs.read_by`).
        """
        device = device or next(self.parameters()).device
        patches = self.image_settings.cut if cut_only else self.patches
        pixels, grids = zip(*(patches(view) for view in images), strict=True)
        ends = [suffix + answer for answer in answers] if answers else [suffix] * len(texts)
        cut = self.token_id(cut_after) if cut_after else None
        tokens = self.prompts.tokens(texts, ends, grids, device, cut)
        # The model wants patches sample by sample (all views of one, then of the next).
        per_view = [p.view(len(texts), -1, *p.shape[1:]) for p in pixels]
        dtype = torch.uint8 if cut_only else self.vlm.dtype
        said = self.tokenizer(list(answers), add_special_tokens=False)["input_ids"] if answers else []
        arguments = {
            "input_ids": tokens.ids,
            "attention_mask": tokens.mask.int() if tokens.padded else None,
            "mm_token_type_ids": tokens.types,
            "position_ids": tokens.positions,
            "pixel_values": torch.cat(per_view, 1).flatten(0, 1).to(device, dtype),
            "image_grid_thw": torch.tensor(grids).repeat(len(texts), 1).to(device),
        }
        return PromptInputs(arguments, grids, tokens.places, tokens.mask, [*map(len, said)])

    def patches(self, view: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """uint8 (B, H, W, 3) -> float32 (B * patches, 3 * temporal * patch²) and the grid (1, rows, columns)."""
        return self.image_settings.patches(view)

    # ---- acting -------------------------------------------------------------------------------------------
    @property
    def _mixed(self) -> bool:
        """Whether some layers are no attention layers (Qwen3.5)."""
        return "linear_attention" in (getattr(self.vlm.config.get_text_config(), "layer_types", None) or ())

    def compile_acting(self, *, graphs: bool = True) -> None:
        """See `Backbone.compile_acting`; compiled, attention runs on torch's own kernels."""
        if self._mixed or self.attention_asked not in ("auto", "sdpa"):
            what = "a VLM with linear layers" if self._mixed else f"attention={self.attention_asked!r}"
            raise ConfigError(f"compile=True is not for {what}", "leave it out")
        self.set_attention("sdpa")
        device = next(self.parameters()).device
        self._graphs = {
            function.__name__: compiled(function, device, graphs=graphs) for function in (decode, next_state)
        }
        self.prompts.multiple = LENGTHS

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; forgets what was compiled when training begins."""
        if mode:
            self._graphs, self._caches, self.prompts.multiple = {}, {}, 1
        return super().train(mode)


def _check_tokenizer(tokenizer: Any, config: Any) -> None:
    """`ConfigError` naming what a tokenizer lacks to prompt a Qwen-VL."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of the {config.model_type} model has no chat template", "use an Instruct model"
        )
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in _PICTURE if token not in vocabulary]
    lacking += [name for name in ("pad_token", "eos_token") if getattr(tokenizer, name) is None]
    if lacking:
        raise ConfigError(
            f"the tokenizer lacks {', '.join(lacking)}, which every Qwen-VL prompt needs",
            "take the tokenizer files that came with the model",
        )
    if vocabulary["<|image_pad|>"] != config.image_token_id:
        raise ConfigError(
            f"<|image_pad|> is {vocabulary['<|image_pad|>']} for the tokenizer, "
            f"{config.image_token_id} for the model",
            "take the tokenizer files that came with the model",
        )
