"""The CLIP backbone (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

The smallest one: a ViT and a text encoder that know the same concepts but have never been in one room. Their tokens are
brought to the joint width by CLIP's own projections (trained for the pooled tokens, and applied to every one), and a small
transformer of ours lets them meet:

    pictures (B, H, W, 3) x V -> square -> ViT  -> norm -> visual_projection -> V * (1 + patches) tokens ─┐
    "pick up the red block" -> text encoder -> text_projection -> words ──────────────────────────────────┼─ fusion
    H queries (Qwen-OFT): one learned token with the sine code of h ──────────────────────────────────────┘
    fusion: F pre-norm layers, attention in both directions; layers 1 .. F are what heads read       (B, L, C)

Each token is told where it comes from by a learned vector (the text, view 1, view 2, ...). The fusion starts from random
weights and learns in full; it has 2 layers as wide as the joint space (512 in ViT-B: 6.3 M parameters), or what a
`fusion.json` beside the model says. CLIP predicts no words: no Qwen-FAST, no language training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vla_agents.errors import ConfigError
from vla_agents.policies.backbone import LAYERS, QUERIES, Backbone, Encoding, Queries
from vla_agents.policies.backbones import reading
from vla_agents.policies.pictures import PictureSettings

FUSION = "fusion.json"


@dataclass(frozen=True)
class FusionShape:
    """What `fusion.json` says: layers, attention heads (0: of 64 numbers each) and the largest number of views."""

    layers: int = 2
    heads: int = 0
    views: int = 8

    @classmethod
    def load(cls, source: str | Path) -> FusionShape:
        """From a model folder; the default shape where it says nothing."""
        file = Path(source) / FUSION
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else cls()


class Fusion(nn.Module):
    """The transformer in which pictures, words and queries meet.

    Args:
        width: C.
        shape: Its shape.
    """

    def __init__(self, width: int, shape: FusionShape) -> None:
        from transformers import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPEncoderLayer

        super().__init__()
        self.shape = shape
        self.config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=shape.heads or width // math.gcd(width, 64),
            num_hidden_layers=shape.layers,
            hidden_act="gelu",
        )
        self.config._attn_implementation = "sdpa"
        self.layers = nn.ModuleList([CLIPEncoderLayer(self.config) for _ in range(shape.layers)])
        self.norm = nn.LayerNorm(width)
        self.origin = nn.Embedding(1 + shape.views, width)  # the text, then the views
        self.query = nn.Parameter(torch.empty(width))
        for weight in (self.origin.weight, self.query):
            nn.init.normal_(weight, std=0.02)

    def queries(self, count: int) -> Tensor:
        """(H, C): the learned query with the sine code of its number."""
        half = len(self.query) // 2
        rate = torch.exp(torch.arange(half, device=self.query.device) * (-math.log(1e4) / max(1, half - 1)))
        angle = torch.arange(count, device=rate.device)[:, None] * rate
        code = torch.cat([angle.sin(), angle.cos()], 1)
        return self.query + nn.functional.pad(code, (0, len(self.query) - 2 * half)).to(self.query.dtype)

    def forward(self, x: Tensor, mask: Tensor, layers: Sequence[int], final_norm: bool) -> list[Tensor]:
        """Outputs (B, L, C) of chosen layers, 1 .. F; `mask` is bool (B, L)."""
        from transformers.masking_utils import create_bidirectional_mask

        bias = create_bidirectional_mask(self.config, x, attention_mask=mask.int())
        kept = []
        for number, layer in enumerate(list(self.layers)[: layers[-1]], start=1):
            x = layer(x, bias)
            if number == len(self.layers) and final_norm:
                x = self.norm(x)
            if number in layers:
                kept.append(x)
        return kept


class CLIPBackbone(Backbone):
    """CLIP's two encoders and the fusion.

    Args:
        model: `CLIPModel`.
        tokenizer: Its tokenizer.
        pictures: Its pixel settings.
        fusion: The transformer of ours.
        attention: `auto`, or the attention kernels by name.
    """

    abilities = frozenset({QUERIES, LAYERS})

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        pictures: PictureSettings,
        fusion: Fusion,
        attention: str = "auto",
    ) -> None:
        super().__init__(model, tokenizer, attention)
        self.pictures, self.fusion = pictures, fusion
        self.set_attention(self.attention)
        patch = self.vlm.config.vision_config.patch_size
        if pictures.size % patch:
            raise ConfigError(
                f"pictures of {pictures.size} pixels are not for this CLIP",
                f"image_size must be a multiple of {patch}",
            )
        lacking = [
            name for name in ("bos_token", "eos_token", "pad_token") if getattr(tokenizer, name) is None
        ]
        if lacking:
            raise ConfigError(f"the tokenizer lacks {', '.join(lacking)}", "take the files of the model")

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
        """See `Backbone.build`; the fusion is random either way."""
        from transformers import AutoConfig, AutoTokenizer, CLIPModel

        torch_dtype = getattr(torch, dtype)
        with reading(source):
            if weights:
                model = CLIPModel.from_pretrained(str(source), dtype=torch_dtype)
            else:
                model = CLIPModel._from_config(AutoConfig.from_pretrained(str(source)), dtype=torch_dtype)
            tokenizer = AutoTokenizer.from_pretrained(str(source))
            pictures = PictureSettings.load(source).sized(image_size)
            shape = FusionShape.load(source)
        fusion = Fusion(int(model.config.projection_dim or 0), shape).to(torch_dtype)
        return cls(model, tokenizer, pictures, fusion, attention)

    @property
    def hidden_size(self) -> int:
        """Width of the joint space."""
        return int(self.vlm.config.projection_dim)

    @property
    def num_layers(self) -> int:
        """Depth of the fusion."""
        return self.fusion.shape.layers

    def save_assets(self, folder: str | Path) -> None:
        """Config, tokenizer, pixel settings and the fusion's shape (no weights): what `from_config` reads."""
        self.vlm.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.pictures.save(folder)
        shape = json.dumps(asdict(self.fusion.shape)) + "\n"
        (Path(folder) / FUSION).write_text(shape, encoding="utf-8")

    def prepare_queries(self, queries: Queries) -> None:
        """They are the fusion's own; no token stands for them."""
        if queries.in_text:
            raise ConfigError("queries='prompt' is StarVLA's way with Qwen-VL", "set queries='suffix'")

    def freeze_unused(self, layers: Sequence[int], *, final_norm: bool = True, queries: bool = False) -> None:
        """CLIP's temperature, fusion layers beyond the last that is read, the query where there are none."""
        deepest = max(layers)
        self.vlm.logit_scale.requires_grad_(False)
        for layer in list(self.fusion.layers)[deepest:]:
            layer.requires_grad_(False)
        if deepest < self.num_layers or not final_norm:
            self.fusion.norm.requires_grad_(False)
        if not queries:
            self.fusion.query.requires_grad_(False)

    def set_attention(self, attention: str) -> None:
        """CLIP and the fusion."""
        super().set_attention(attention)
        if hasattr(self, "fusion"):  # not yet while the base class is being made
            self.fusion.config._attn_implementation = attention

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
        wanted = [self.num_layers] if layers is None else list(layers)
        if not wanted or wanted != sorted(set(wanted)) or not 1 <= wanted[0] <= wanted[-1] <= self.num_layers:
            raise ConfigError(f"layers {wanted} are not ascending numbers between 1 and {self.num_layers}")
        seen = self.look(images)
        words, said = self.read(texts)
        parts, count = [seen, words], 0
        if queries is not None:
            count = queries.count
            parts.append(self.fusion.queries(count).expand(len(texts), -1, -1))
        always = [torch.ones(part.shape[:2], dtype=torch.bool, device=said.device) for part in parts]
        mask = torch.cat([always[0], said, *always[2:]], 1)
        kept = self.fusion(torch.cat(parts, 1), mask, wanted, final_norm)
        at_queries = kept[-1][:, -count:] if count else None
        return Encoding(kept[-1], mask, None, () if layers is None else tuple(kept), at_queries)

    def look(self, images: Sequence[Tensor]) -> Tensor:
        """Tokens of all views, (B, V * (1 + patches), C)."""
        if len(images) > self.fusion.shape.views:
            raise ConfigError(
                f"{len(images)} views, and the fusion tells {self.fusion.shape.views} apart",
                f"raise `views` in {FUSION} beside the model",
            )
        model, pictures = self.vlm, self.pictures
        x = torch.stack([pictures.pixels(view).to(model.device, model.dtype) for view in images], 1)
        other_size = pictures.size != model.config.vision_config.image_size
        tokens = model.vision_model(x.flatten(0, 1), interpolate_pos_encoding=other_size).last_hidden_state
        tokens = model.visual_projection(model.vision_model.post_layernorm(tokens))
        tokens = tokens.view(len(images[0]), len(images), -1, tokens.shape[-1])  # (B, V, 1 + patches, C)
        origin = self.fusion.origin.weight[1 : len(images) + 1]
        return (tokens + origin[:, None]).flatten(1, 2)

    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of the texts (B, T, C) and their mask, bool (B, T)."""
        inputs = self.tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
        length, most = inputs["input_ids"].shape[1], self.vlm.config.text_config.max_position_embeddings
        if length > most:
            longest = max(texts, key=len)
            raise ConfigError(
                f"an instruction of {length} tokens, and CLIP reads {most}: {longest!r}",
                "say it shorter, or shorten `prompt`",
            )
        ids, mask = (inputs[name].to(self.vlm.device) for name in ("input_ids", "attention_mask"))
        words = self.vlm.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.vlm.text_projection(words) + self.fusion.origin.weight[0], mask.bool()
