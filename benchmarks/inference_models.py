"""Random-weight models for benchmarks/inference.py: the true Qwen-VL architectures, in sizes that are told apart by name.

    cpu      Qwen3-VL with the proportions of the 4B model (query heads 1.5 to 1.6 times the width, feed-forward 3.8 times,
             four query heads to a key head, a vision tower 0.4 times as wide and 2/3 as deep), width and depth to choose
    3b, 4b   the sizes of Qwen2.5-VL-3B and Qwen3-VL-4B, for a GPU
    tiny     for trying the script

The vocabulary has the size of Qwen's, so that logits cost what they cost. The tokenizer is trained on the prompt, so a
prompt is about as long as with Qwen's own (a word is a token).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.pixels import ImageSettings
from vla_agents.policies.qwen_vl import QwenVLBackbone
from vla_agents.policies.tiny import make_tokenizer

VOCABULARY = 151936
PROMPT = (
    "Your task is {instruction}. To identify the key objects for your task. Locate their bounding boxes in "
    "[x1,y1,x2,y2] format."
)
INSTRUCTION = "put the black bowl on the plate next to the wooden drawer"
BODY = Embodiment(
    name="arm",
    action=(
        Part("delta_position", 3, "delta_xyz", -1, 1, "0.05 m"),
        Part("delta_rotation", 3, "delta_axis_angle", -1, 1, "0.5 rad"),
        Part("gripper", 1, "gripper_close_pm1", -1, 1),
    ),
    state=(Part("eef_position", 3, "xyz", -1, 1, "m"), Part("joints", 5, "joint_position", -3, 3, "rad")),
    cameras=(Camera("agentview", 224, 224), Camera("wrist", 224, 224)),
    control_hz=20.0,
)


@dataclass(frozen=True)
class Size:
    """Shape of a Qwen-VL."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    patch: int
    deepstack: tuple[int, ...] = ()
    full_attention: tuple[int, ...] = ()
    vocabulary: int = VOCABULARY
    extra: dict[str, Any] = field(default_factory=dict)


def scaled(hidden: int, layers: int, vocabulary: int = VOCABULARY) -> Size:
    """Qwen3-VL-4B (2560 x 36) made narrower and shallower."""
    heads = max(4, round(1.6 * hidden / 128 / 4) * 4)
    vision = max(64, round(0.4 * hidden / 64) * 64)
    depth = max(3, round(layers * 2 / 3))
    return Size(
        "qwen3_vl", hidden, layers, heads, heads // 4, 128, round(3.8 * hidden / 64) * 64, vision, depth, vision // 64,
        4 * vision, 16, deepstack=(depth // 5, depth // 5 + depth // 4, depth // 5 + 2 * (depth // 4)),
        vocabulary=vocabulary,
    )  # fmt: skip


SIZES = {
    "4b": Size(
        "qwen3_vl", 2560, 36, 32, 8, 128, 9728, 1024, 24, 16, 4096, 16, deepstack=(5, 11, 17)
    ),
    "3b": Size(
        "qwen2_5_vl", 2048, 36, 16, 2, 128, 11008, 1280, 32, 16, 3420, 14, full_attention=(7, 15, 23, 31)
    ),
    "tiny": scaled(64, 3, vocabulary=4096),
    "tiny2.5": Size("qwen2_5_vl", 64, 3, 2, 1, 32, 128, 64, 3, 1, 128, 14, full_attention=(2,), vocabulary=4096),
}  # fmt: skip


def make_backbone(
    size: Size, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> QwenVLBackbone:
    """A backbone with random weights, made on the device."""
    from transformers import AutoModelForImageTextToText

    corpus = [PROMPT.replace("{instruction}", INSTRUCTION)] * 50 + [
        "system You are a helpful assistant user"
    ] * 50
    tokenizer = make_tokenizer(corpus, 2048)
    config = _config(size, tokenizer)
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    if size.family == "qwen3_vl":
        images = ImageSettings(size.patch, 2, 2, (0.5,) * 3, (0.5,) * 3, 65536, 16777216)
    else:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        images = ImageSettings(size.patch, 2, 2, mean, std, 3136, 12845056)
    return QwenVLBackbone(model, tokenizer, images)


def _config(size: Size, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    token = tokenizer.convert_tokens_to_ids
    special = {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }
    half = size.head_dim // 2
    quarter = half * 3 // 8 if size.family == "qwen2_5_vl" else half * 5 // 16
    text: dict[str, Any] = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 128000,
        "pad_token_id": tokenizer.pad_token_id,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6 if size.family == "qwen3_vl" else 1e6,
            "mrope_section": [half - 2 * quarter, quarter, quarter],
        },
    }
    vision: dict[str, Any] = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "patch_size": size.patch,
        "spatial_merge_size": 2,
        "out_hidden_size": size.hidden,
        "temporal_patch_size": 2,
    }
    if size.family == "qwen3_vl":
        text |= {"head_dim": size.head_dim}
        text["rope_parameters"] |= {"mrope_interleaved": True}
        vision |= {"num_position_embeddings": 48**2, "deepstack_visual_indexes": list(size.deepstack)}
        return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special)
    text |= {"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    vision |= {"window_size": 112, "fullatt_block_indexes": list(size.full_attention)}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special)


def make_normalizers(body: Embodiment = BODY) -> dict[str, Normalizer]:
    """Maps that are not the identity."""
    found = {}
    for name in ("state", "action"):
        n = sum(part.size for part in getattr(body, name))
        stats = VectorStats(10, (0.1,) * n, (0.5,) * n, (-0.8,) * n, (0.9,) * n, (-0.7,) * n, (0.8,) * n)
        found[name] = Normalizer(getattr(body, name), stats)
    return found


FRAMEWORKS = ("oft", "pi", "pi-cross", "gr00t", "fast")
"""pi: blocks attend to the VLM and to the tokens in turn; pi-cross: all to the VLM (StarVLA's checkpoints of 2025)."""


def make_policy(
    framework: str, backbone: QwenVLBackbone, *, head_dtype: str = "float32", seed: int = 0
) -> Any:
    """One of `FRAMEWORKS` over a backbone, its head with random weights on the backbone's device.

    Qwen-OFT has its queries inside the prompt, as StarVLA's has; the flow heads take the state.
    """
    from vla_agents.policies.qwen_fast import QwenFAST, QwenFASTConfig
    from vla_agents.policies.qwen_gr00t import QwenGR00T, QwenGR00TConfig
    from vla_agents.policies.qwen_oft import QwenOFT, QwenOFTConfig
    from vla_agents.policies.qwen_pi import QwenPI, QwenPIConfig

    normalizers, weight = make_normalizers(), next(backbone.parameters())
    torch.manual_seed(seed)
    policy: Any
    with torch.device(weight.device):
        if framework == "oft":
            config = QwenOFTConfig(prompt=PROMPT, queries="prompt", state="none")
            policy = QwenOFT(config, backbone, BODY, normalizers)
        elif framework == "fast":
            from fast_tokenizer import smooth_chunks

            policy = QwenFAST(QwenFASTConfig(prompt=PROMPT), backbone, BODY, normalizers)
            policy.prepare(normalizers["action"].unnormalize(smooth_chunks(2000, 8, 7, 0)))
        elif framework == "gr00t":
            small = {"width": 64, "heads": 4, "depth": 4} if backbone.hidden_size < 128 else {}
            gr00t = QwenGR00TConfig(prompt=PROMPT, head_dtype=head_dtype, **small)  # type: ignore[arg-type]
            policy = QwenGR00T(gr00t, backbone, BODY, normalizers)
        else:
            semantics = "cross_only" if framework == "pi-cross" else "interleaved"
            pi = QwenPIConfig(prompt=PROMPT, head_dtype=head_dtype, semantics=semantics)  # type: ignore[arg-type]
            policy = QwenPI(pi, backbone, BODY, normalizers)
    return policy.to(weight.device).eval()


def twin(policy: Any) -> Any:
    """Another policy with the same weights, to be compiled."""
    import copy

    from vla_agents.policies.qwen_prompts import Prompts

    def shallow(module: Any) -> Any:
        other = copy.copy(module)
        other._modules = dict(module._modules)
        return other

    other, backbone = shallow(policy), shallow(policy.backbone)
    backbone._graphs, backbone._caches = {}, {}
    backbone.prompts = Prompts(backbone.tokenizer, backbone.vlm, backbone.image_settings.merge)
    other.backbone = backbone
    if hasattr(getattr(policy, "head", None), "_graphs"):
        other.head = shallow(policy.head)
        other.head._graphs = {}
    return other
