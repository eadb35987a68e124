"""What of a policy learns, and how: freezing, adapters, checkpointing, attention kernels."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import ArrayWindows, random_batch
from tiny_backbones import EVERY_FAMILY, backbone, make
from torch import Tensor, nn
from torch.nn import functional as F

from vla_agents.errors import CheckpointError, ConfigError, MissingDependencyError
from vla_agents.policies.attention import choose_attention
from vla_agents.policies.checkpoint import load_policy, save_policy
from vla_agents.policies.learning import freeze, learning_table
from vla_agents.policies.lora import merge_lora
from vla_agents.policies.policy import Policy
from vla_agents.policies.policy_config import LoRAConfig
from vla_agents.train.config import RunConfig
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.trainer import Trainer

LORA = LoRAConfig(rank=4, alpha=8)
every_family = pytest.mark.parametrize("family", EVERY_FAMILY)


def learning(policy: nn.Module) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def train(policy: Policy, steps: int = 3) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 3e-3)
    policy.train()
    for _ in range(steps):
        loss: Any = sum(policy(random_batch(3)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()


# ---- freezing -----------------------------------------------------------------------------------------------------
def test_frozen_by_pattern_and_told_in_a_table() -> None:
    policy = make("qwen_oft", "qwen3_vl")
    table = freeze(policy, ["visual", r"layers\.0\."])
    frozen = {n for n, p in policy.named_parameters() if "visual" in n or "layers.0." in n}
    assert frozen and learning(policy) == {n for n, _ in policy.named_parameters()} - frozen
    rows = {row.module: row for row in table.rows}
    assert rows["backbone.vlm.model.visual"].learning == 0 < rows["backbone.vlm.model.visual"].total
    assert table.total == sum(p.numel() for p in policy.parameters())
    assert table.learning == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert f"{table.learning:,}" in str(table).splitlines()[-1]
    before = {name: p.clone() for name, p in policy.named_parameters()}
    train(policy)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not moved & frozen


def test_a_tied_parameter_is_frozen_by_either_name() -> None:
    policy = make("qwen_oft", "qwen3_vl")
    freeze(policy, ["lm_head"])
    assert not policy.backbone.vlm.get_input_embeddings().weight.requires_grad


def test_patterns_that_match_nothing() -> None:
    policy = make("qwen_oft", "qwen3_vl")
    with pytest.raises(ConfigError, match=r"freeze: no name has a match of 'visuel'\n.*did you mean visual"):
        freeze(policy, ["visuel"])
    with pytest.raises(ConfigError, match=r"did you mean visual\?"):
        freeze(policy, ["backbone.vison.*"])
    with pytest.raises(ConfigError, match="no regular expression"):
        freeze(policy, ["("])
    with pytest.raises(ConfigError, match="did you mean mlp"):
        make("qwen_oft", "qwen3_vl", lora=replace(LORA, targets=("mlpp",)))
    with pytest.raises(ConfigError, match=r"lora\.learn"):
        make("qwen_oft", "qwen3_vl", lora=replace(LORA, learn=("nothing_like_it",)))


def test_freezing_is_part_of_the_configuration_and_logged(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        policy = make("qwen_gr00t", "clip", freeze=("vision_model", "text_model"))
    assert "backbone.vlm.vision_model.encoder" in caplog.text
    assert not any("vision_model" in name or "text_model" in name for name in learning(policy))
    loaded = load_policy(save_policy(policy, tmp_path / "policy"), device="cpu")
    assert loaded.config.freeze == ("vision_model", "text_model") and learning(loaded) == learning(policy)


# ---- gradient checkpointing ---------------------------------------------------------------------------------------
@every_family
def test_gradient_checkpointing_computes_twice_and_the_same(family: str) -> None:
    kind = "qwen_pi" if family == "qwen3_vl" else "qwen_oft"
    plain, again = make(kind, family), make(kind, family, gradient_checkpointing=True)
    runs: dict[str, int] = {"plain": 0, "again": 0}
    for name, policy in (("plain", plain), ("again", again)):
        policy.load_state_dict(plain.state_dict())

        def count(*_: Any, name: str = name) -> None:
            runs[name] += 1

        for layer in policy.backbone.modules():
            if type(layer).__name__.endswith(("MLP", "VisionAttention", "BartAttention", "ChannelAttention")):
                layer.register_forward_pre_hook(count)
        torch.manual_seed(1)
        policy.train()
        sum(policy(random_batch(2)).values()).backward()  # type: ignore[union-attr]
    assert runs["again"] == 2 * runs["plain"] > 0
    for (name, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5, msg=name)


# ---- LoRA ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] * (f in ("qwen2_5_vl", "qwen3_5"))) for f in EVERY_FAMILY],
)
def test_adapters_learn_come_back_and_merge(family: str, tmp_path: Path, monkeypatch: Any) -> None:
    plain, policy, batch = make("qwen_oft", family), make("qwen_oft", family, lora=LORA), random_batch(2)
    torch.testing.assert_close(policy.predict_action(batch), plain.predict_action(batch))  # B is zero
    assert {n for n in learning(policy) if "backbone.vlm" in n} == {
        n for n in learning(policy) if "lora_" in n
    }
    assert any(name.startswith("head.") for name in learning(policy))
    base = {name: p.clone() for name, p in policy.named_parameters() if not p.requires_grad}
    train(policy)
    now = dict(policy.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in base.items())
    assert all(now[name].any() for name in learning(policy) if "lora_B" in name)
    trained = policy.predict_action(batch).detach()
    assert not torch.allclose(trained, plain.predict_action(batch), atol=1e-3)

    folder = save_policy(policy, tmp_path / "policy")
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".yaml", ".json", ".jinja"}
    loaded = load_policy(folder, device="cpu")
    assert torch.equal(loaded.predict_action(batch), trained) and learning(loaded) == learning(policy)

    monkeypatch.setitem(sys.modules, "peft", None)  # acting needs none of it
    with pytest.raises(MissingDependencyError, match="merge_lora=True"):
        load_policy(folder, device="cpu")
    merged = load_policy(folder, device="cpu", merge_lora=True)
    torch.testing.assert_close(merged.predict_action(batch), trained, atol=1e-5, rtol=1e-4)
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in plain.named_parameters()}
    in_place = merge_lora(policy)
    for name, value in merged.state_dict().items():
        assert torch.equal(in_place.state_dict()[name], value), name
    again = load_policy(save_policy(in_place, tmp_path / "merged"), device="cpu")
    assert again.config.lora == LoRAConfig() and again.config == merged.config
    assert torch.equal(again.predict_action(batch), merged.predict_action(batch))


def test_targets_and_what_learns_beside_them() -> None:
    lora = replace(LORA, targets=(r"q_proj$", r"v_proj$"), learn=("visual.merger",))
    policy = make("qwen_pi", "qwen3_vl", semantics="interleaved", lora=lora, freeze=("visual.blocks",))
    names = {name for name in learning(policy) if name.startswith("backbone")}
    adapters = {name for name in names if "lora_" in name}
    # The tiny VLM has two layers, and this policy reads the first: adapters in the second would never get a gradient.
    assert adapters == {
        f"backbone.vlm.model.language_model.layers.0.self_attn.{part}.lora_{side}.default.weight"
        for part in ("q_proj", "v_proj")
        for side in "AB"
    }
    assert names - adapters and all("visual.merger" in name for name in names - adapters)
    train(policy)
    with pytest.raises(ConfigError, match="none of its target layers learns"):
        make("qwen_oft", "qwen3_vl", lora=replace(LORA, targets=("visual",)), freeze=("visual",))
    with pytest.raises(ConfigError, match="rank"):
        LoRAConfig(rank=-1)


def test_a_run_with_adapters_resumes_to_the_bit(tmp_path: Path) -> None:
    settings = {"steps": 2, "validate_every": 1, "save_every": 0, "device": "cpu", "tensorboard": False}

    def run(name: str, stop: int, seed: int = 0, **more: Any) -> Policy:
        torch.manual_seed(seed)
        data, held_out = ArrayWindows(random_batch(40)), ArrayWindows(random_batch(9, seed=5))
        policy = make("qwen_oft", "qwen3_vl", lora=replace(LORA, dropout=0.1), freeze=("visual",))
        config = RunConfig(out=str(tmp_path / name), **settings, **more)
        trainer = Trainer(policy, BehaviourCloning(data, held_out, 4, 0), config)
        trainer.strategy.observe = lambda step, _: setattr(trainer, "stopping", step == stop)  # type: ignore[method-assign]
        trainer.fit()
        return policy

    whole = run("whole", 2)
    run("broken", 1)
    torch.rand(3)  # another process would have another random state
    resumed = run("broken", 2, seed=7, resume=True)
    for (name, ours), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_checkpoint_learns_on_with_other_settings(tmp_path: Path) -> None:
    """Full training first, then adapters; then others, the first ones added to the weights."""
    batch = random_batch(2)
    first = make("qwen_oft", "qwen3_vl")
    folder = save_policy(first, tmp_path / "first")
    changes = {"lora": {"rank": 4, "alpha": 8}, "freeze": ["visual"], "gradient_checkpointing": True}
    second = load_policy(folder, device="cpu", changes=changes)
    assert all("lora_" in name or name.startswith("head.") for name in learning(second))
    torch.testing.assert_close(second.predict_action(batch), first.predict_action(batch))
    train(second)
    folder = save_policy(second, tmp_path / "second")
    third = load_policy(folder, device="cpu", changes={"lora": replace(LORA, rank=2)})
    torch.testing.assert_close(
        third.predict_action(batch), second.predict_action(batch), atol=1e-5, rtol=1e-4
    )
    assert third.config == replace(second.config, lora=replace(LORA, rank=2))
    fourth = load_policy(folder, device="cpu", changes={"freeze": ()})
    assert any("visual" in name and "lora_" in name for name in learning(fourth))
    with pytest.raises(ConfigError, match="horizon cannot be changed"):
        load_policy(folder, changes={"horizon": 3})


def test_words_for_actions_must_be_able_to_learn() -> None:
    for family in ("qwen3_vl", "florence2"):
        with pytest.raises(ConfigError, match=r"could not learn\n.*lora\.learn"):
            make("qwen_fast", family, lora=LORA)
        policy = make("qwen_fast", family, lora=replace(LORA, learn=("embed_tokens|shared|lm_head",)))
        assert policy.backbone.vlm.get_output_embeddings().weight.requires_grad
    with pytest.raises(ConfigError, match="could not learn"):
        make("qwen_fast", "qwen3_vl", freeze=("^backbone",))


# ---- attention kernels --------------------------------------------------------------------------------------------
def test_kernels_are_chosen_where_the_weights_are(monkeypatch: Any) -> None:
    from vla_agents.policies import attention

    model, cpu, gpu = backbone("qwen3_vl").vlm, torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(attention, "flash_is_installed", lambda: True)
    assert choose_attention("auto", model, gpu, torch.bfloat16) == "flash_attention_2"
    for place in ((cpu, torch.bfloat16), (gpu, torch.float32)):
        assert choose_attention("auto", model, *place) == "sdpa"
    assert choose_attention("eager", model, gpu, torch.bfloat16) == "eager"
    monkeypatch.setattr(attention, "flash_is_installed", lambda: False)
    assert choose_attention("auto", model, gpu, torch.bfloat16) == "sdpa"
    with pytest.raises(MissingDependencyError, match="flash-attn"):
        choose_attention("flash_attention_2", model, gpu, torch.bfloat16)

    class Plain(nn.Module):
        _supports_sdpa = False

    assert choose_attention("auto", Plain(), gpu, torch.bfloat16) == "eager"
    with pytest.raises(ConfigError, match="not for Plain"):
        choose_attention("sdpa", Plain(), cpu, torch.float32)


def test_auto_follows_the_weights(monkeypatch: Any) -> None:
    from vla_agents.policies import backbone as module

    ours = backbone("clip")
    asked: list[torch.dtype] = []

    def choose(name: str, model: Any, device: torch.device, dtype: torch.dtype) -> str:
        asked.append(dtype)
        return "eager" if dtype == torch.bfloat16 else "sdpa"

    monkeypatch.setattr(module, "choose_attention", choose)
    ours.to(torch.bfloat16)
    assert asked[-1] == torch.bfloat16 and ours.attention == "eager"
    assert ours.fusion.config._attn_implementation == "eager"
    ours.float()
    assert ours.attention == ours.fusion.config._attn_implementation == "sdpa"


@torch.no_grad()
@every_family
def test_kernels_by_name_are_used_and_agree(family: str, monkeypatch: Any) -> None:
    """Every attention of the model runs on the kernels that were asked for; the actions are the same."""
    batch, calls = random_batch(3), {"sdpa": 0}
    plain, fused = (make("qwen_oft", family, attention=name) for name in ("eager", "sdpa"))
    assert (plain.backbone.attention, fused.backbone.attention) == ("eager", "sdpa")
    original = F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls["sdpa"] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    ours = plain.predict_action(batch)
    assert calls["sdpa"] == 0
    torch.testing.assert_close(fused.predict_action(batch), ours, atol=2e-5, rtol=1e-4)
    assert calls["sdpa"] > 0


@torch.no_grad()
@every_family
def test_kernels_of_the_flash_kind_get_the_padding_as_it_is(family: str) -> None:
    """Such kernels want (B, L) or nothing instead of a matrix; a stand-in that checks that gives the same states."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    seen: set[int] = set()

    def stand_in(
        layer: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        mask = attention_mask
        seen.add(0 if mask is None else mask.ndim)
        assert mask is None or mask.shape == (k.shape[0], k.shape[2])
        causal = options.get("is_causal")
        causal = getattr(layer, "is_causal", True) if causal is None else causal
        if "cu_seq_lens_q" in options:  # Qwen's eyes: all pictures in one row, cut at these places
            ends = options["cu_seq_lens_q"].tolist()
            pieces = [slice(a, b) for a, b in pairwise(ends)]
            out = [F.scaled_dot_product_attention(q[:, :, p], k[:, :, p], v[:, :, p]) for p in pieces]
            return torch.cat(out, 2).transpose(1, 2), None
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        allowed = (allowed.tril() if causal else allowed).expand(len(q), 1, -1, -1)
        if mask is not None:
            allowed = allowed & mask[:, None, None].bool() | torch.eye(q.shape[2], dtype=torch.bool)
        repeats = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, allowed, scale=options.get("scaling"))
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("test_flash", stand_in)
    AttentionMaskInterface.register("test_flash", flash_attention_mask)
    policy, batch = make("qwen_oft", family), random_batch(3)
    wanted = policy.predict_action(batch)
    for part in policy.backbone.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation_internal = "test_flash"
    torch.testing.assert_close(policy.predict_action(batch), wanted, atol=2e-5, rtol=1e-4)
    assert 2 in seen


def test_flash_on_the_wrong_weights_is_refused() -> None:
    policy = make("qwen_oft", "clip")
    policy.backbone.vlm.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"half precision on a GPU.*\n.*bfloat16"):
        policy.predict_action(random_batch(1))


# ---- checkpoints --------------------------------------------------------------------------------------------------
def test_checkpoints_from_before_these_settings_still_load(tmp_path: Path) -> None:
    policy, batch = make("qwen_oft", "qwen3_vl"), random_batch(2)
    folder = save_policy(policy, tmp_path / "policy")
    record = yaml.safe_load((folder / "policy.yaml").read_text())
    for name in ("attention", "image_size", "gradient_checkpointing", "freeze", "lora"):
        del record["config"][name]
    (folder / "policy.yaml").write_text(yaml.safe_dump(record))
    loaded = load_policy(folder, device="cpu")
    assert loaded.config == policy.config
    assert torch.equal(loaded.predict_action(batch), policy.predict_action(batch))


def test_weights_that_do_not_fit_are_listed_by_module(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_policy(make("qwen_gr00t", "qwen3_vl"), tmp_path / "policy")
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["head.future_tokens.weight"]
    weights["backbone.vlm.model.visual.extra"] = torch.zeros(1)
    weights["head.action_encoder.layer1.bias"] = torch.zeros(5)
    save_file(weights, file)
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder)
    said = str(caught.value)
    assert "do not fit a qwen_gr00t of this configuration; they look like qwen_gr00t" in said
    assert "missing     head.future_tokens (1): weight" in said
    assert "unexpected  backbone.vlm.model.visual (1): extra" in said
    assert "mis-shaped  head.action_encoder: layer1.bias is (5,), expected (24,)" in said
    other = save_policy(make("qwen_oft", "qwen3_vl"), tmp_path / "other")
    file.unlink()
    (other / "model.safetensors").rename(file)
    with pytest.raises(CheckpointError, match="look like qwen_oft"):
        load_policy(folder)


def test_weights_that_differ_where_the_model_has_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_policy(make("qwen_oft", "qwen3_vl"), tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    (name,) = [n for n in weights if "embed_tokens" in n or "lm_head" in n]
    twin = "backbone.vlm.lm_head.weight"
    twin = "backbone.vlm.model.language_model.embed_tokens.weight" if name == twin else twin
    save_file(weights | {twin: weights[name] + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"differ      .*lm_head.*which this model ties"):
        load_policy(folder)
    save_file(weights | {twin: weights[name].clone()}, folder / "model.safetensors")
    load_policy(folder)


def test_the_table_counts_tied_parameters_once() -> None:
    policy = make("qwen_oft", "qwen3_vl")
    assert learning_table(policy).total == sum(p.numel() for p in policy.parameters())


def test_loading_draws_no_weights(tmp_path: Path, monkeypatch: Any) -> None:
    """They would be overwritten, and drawing billions of numbers takes minutes."""
    from transformers import PreTrainedModel

    folder = save_policy(make("qwen_gr00t", "florence2"), tmp_path / "policy")

    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were drawn")

    for name in ("kaiming_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, drawn)
    monkeypatch.setattr(PreTrainedModel, "initialize_weights", drawn)
    with pytest.raises(AssertionError):
        nn.Linear(2, 2)
    load_policy(folder, device="cpu")
