"""A backbone of your own, in one file: pictures cut into patches, text as bytes, a transformer over both.

    python examples/my_backbone.py

It serves Qwen-OFT, Qwen-GR00T and Qwen-PI, trains, and comes back from a checkpoint. It is far too small to be good at
anything; put a real model into `self.vlm` and its tokens into `encode`, and the rest stays as it is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.policies.backbone import LAYERS, QUERIES, Backbone, Encoding, Queries
from vla_agents.policies.backbones import BACKBONES

KIND = "bytes_and_patches"  # the `model_type` in config.json


class BytesAndPatches(Backbone):
    """Pictures of any size whose sides are multiples of `patch`; texts of any length."""

    abilities = frozenset({QUERIES, LAYERS})  # no words: it cannot serve Qwen-FAST
    kind = KIND

    def __init__(self, width: int = 64, layers: int = 2, patch: int = 8) -> None:
        self.shape = {"width": width, "layers": layers, "patch": patch}
        vlm = nn.ModuleDict(
            {
                "patches": nn.Linear(3 * patch**2 + 2, width),  # pixels and where they are
                "bytes": nn.Embedding(256, width),
                "places": nn.Embedding(512, width),  # of bytes and of queries
                "query": nn.Embedding(1, width),
                "layers": nn.ModuleList(
                    [
                        nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
                        for _ in range(layers)
                    ]
                ),
                "norm": nn.LayerNorm(width),
            }
        )
        super().__init__(vlm, tokenizer=None)

    @classmethod
    def build(cls, source: str | Path, *, weights: bool, dtype: str = "float32", **_: Any) -> BytesAndPatches:
        config = json.loads((Path(source) / "config.json").read_text())
        made = cls(**{name: config[name] for name in ("width", "layers", "patch")})
        return made.to(
            getattr(torch, dtype)
        )  # a pretrained one would read its weights here where `weights` is true

    def save_assets(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": KIND} | self.shape))

    @property
    def hidden_size(self) -> int:
        return self.shape["width"]

    @property
    def num_layers(self) -> int:
        return self.shape["layers"]

    def prepare_queries(self, queries: Queries) -> None:
        """Nothing: the query is a parameter, not a token."""

    def freeze_unused(self, layers: Sequence[int], *, final_norm: bool = True, queries: bool = False) -> None:
        for layer in self.vlm["layers"][max(layers) :]:
            layer.requires_grad_(False)
        self.vlm["norm"].requires_grad_(final_norm and max(layers) == self.num_layers)
        self.vlm["query"].requires_grad_(queries)

    def encode(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        *,
        queries: Queries | None = None,
        layers: Sequence[int] | None = None,
        final_norm: bool = True,
    ) -> Encoding:
        words, said = self.words(texts)
        seen = torch.cat([self.patches(view) for view in images], 1)
        count = queries.count if queries else 0
        asked = self.vlm["query"].weight + self.vlm["places"].weight[:count]
        x = torch.cat([seen, words, asked.expand(len(texts), -1, -1)], 1)  # (B, L, C)
        mask = nn.functional.pad(said, (seen.shape[1], count), value=True)
        wanted, kept = layers or [self.num_layers], []
        for number, layer in enumerate(self.vlm["layers"][: wanted[-1]], start=1):
            x = layer(x, src_key_padding_mask=~mask)
            if number == self.num_layers and final_norm:
                x = self.vlm["norm"](x)
            if number in wanted:
                kept.append(x)
        return Encoding(x, mask, layers=tuple(kept), queries=x[:, -count:] if count else None)

    def patches(self, view: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> (B, patches, C)."""
        side = self.shape["patch"]
        pixels = view.permute(0, 3, 1, 2).float() / 127.5 - 1
        cut = nn.functional.unfold(pixels, side, stride=side).transpose(1, 2)
        rows, columns = view.shape[1] // side, view.shape[2] // side
        places = torch.cartesian_prod(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns)).to(cut)
        x = torch.cat([cut, places.expand(len(view), -1, -1)], 2)
        return self.vlm["patches"](x.to(self.vlm["patches"].weight.dtype))

    def words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, T, C) and bool (B, T): the texts' first 512 bytes, padded on the right."""
        coded = [list(text.encode())[:512] for text in texts]
        length = max(map(len, coded))
        device = self.vlm["bytes"].weight.device
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in coded], device=device)
        mask = torch.arange(length, device=device) < torch.tensor(
            [[len(row)] for row in coded], device=device
        )
        return self.vlm["bytes"](ids) + self.vlm["places"].weight[:length], mask


BACKBONES.register(KIND, BytesAndPatches)


def main() -> None:
    from vla_agents.embodiment import Camera, Embodiment, Part
    from vla_agents.normalize import Normalizer, VectorStats
    from vla_agents.policies.checkpoint import load_policy, make_policy, save_policy
    from vla_agents.policies.policy import Batch
    from vla_agents.policies.qwen_oft import QwenOFTConfig

    body = Embodiment(
        name="example", action=(Part("move", 3, "delta_xyz", -1, 1, "m"),), state=(),
        cameras=(Camera("front", 32, 32),), control_hz=10,
    )  # fmt: skip
    normalizers = {"action": Normalizer(body.action, VectorStats.identity(3))}
    folder = Path(tempfile.mkdtemp())
    BytesAndPatches().save_assets(folder / "my_vlm")
    settings = QwenOFTConfig(vlm=str(folder / "my_vlm"), horizon=4, execute=2, head="mlp")
    policy = make_policy("qwen_oft", settings, body, normalizers)

    images = torch.randint(0, 255, (8, 32, 32, 3), dtype=torch.uint8)
    batch = Batch({"front": images}, ["left", "right"] * 4, action=torch.rand(8, 4, 3) * 2 - 1)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 1e-3)
    for step in range(101):
        loss = policy(batch)["action_l1"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: {float(loss.detach()):.3f}")
    save_policy(policy.eval(), folder / "checkpoint")
    loaded = load_policy(folder / "checkpoint", device="cpu")
    same = torch.equal(loaded.predict_action(batch), policy.predict_action(batch))
    print(f"loaded from {folder / 'checkpoint'}: the same actions: {same}")


if __name__ == "__main__":
    main()
