"""Starting from parts of a checkpoint; learning rates per module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import BASE
from tiny import tiny_policy
from tiny_all import framework

from vla_agents.errors import CheckpointError, ConfigError
from vla_agents.policies.checkpoint import save_policy
from vla_agents.train.config import OptimizerConfig
from vla_agents.train.optimizers import make_optimizers
from vla_agents.train.transfer import load_modules


def changed(policy: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    return policy


def test_the_backbone_of_another_policy(tmp_path: Path) -> None:
    """From a GR00T into an OFT: the backbone is taken, the head stays new."""
    source = changed(framework("qwen_gr00t"))
    save_policy(source, tmp_path / "gr00t")  # type: ignore[arg-type]
    policy, fresh = tiny_policy(), tiny_policy()
    told = load_modules(policy, tmp_path / "gr00t", ["backbone"])
    assert "backbone.vlm.model.visual" in told
    theirs, before = dict(source.named_parameters()), dict(fresh.named_parameters())
    for name, parameter in policy.named_parameters():
        expected = theirs[name] if name.startswith("backbone.") else before[name]
        assert torch.equal(parameter, expected), name
    narrow = tiny_policy()
    load_modules(narrow, tmp_path / "gr00t", [r"backbone.vlm.model.visual.blocks.\d+"])
    moved = {name for name, p in narrow.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".visual.blocks." in name for name in moved)


def test_what_does_not_fit_is_refused_and_nothing_is_taken(tmp_path: Path) -> None:
    save_policy(changed(framework("qwen_gr00t")), tmp_path / "gr00t")  # type: ignore[arg-type]
    policy, before = tiny_policy(), dict(tiny_policy().named_parameters())
    with pytest.raises(ConfigError, match=r"modules of the new policy(.|\n)*did you mean backbone"):
        load_modules(policy, tmp_path / "gr00t", ["backbnoe"])
    with pytest.raises(ConfigError, match=r"'head' of .* does not fit this policy(.|\n)*only there"):
        load_modules(policy, tmp_path / "gr00t", ["backbone", "head"])
    save_policy(tiny_policy(head="mlp", head_width=16), tmp_path / "narrow")
    with pytest.raises(ConfigError, match=r"other shape  head"):
        load_modules(tiny_policy(head="mlp", head_width=32), tmp_path / "narrow", ["head"])
    with pytest.raises(CheckpointError, match="no such folder"):
        load_modules(policy, tmp_path / "nothing", ["backbone"])
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_learning_rates_per_module() -> None:
    policy = tiny_policy()
    config = replace(BASE.optimizer, kind="adamw", lr=1e-4, lr_of={"visual": 1e-5, r"^head\.": 1e-3})
    groups = make_optimizers(policy, config)[0].param_groups
    names = {id(p): name for name, p in policy.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(p.requires_grad for p in policy.parameters())
    for name, rate in rates.items():
        assert rate == (1e-5 if "visual" in name else 1e-3 if name.startswith("head.") else 1e-4), name
    muon = make_optimizers(policy, OptimizerConfig(kind="muon", muon_lr=0.02, lr_of={"visual": 0.005}))[0]
    assert {group["lr"] for group in muon.param_groups} == {0.02, 0.005}
    with pytest.raises(ConfigError, match=r"optimizer.lr_of: no name has a match of 'visaul'"):
        make_optimizers(policy, replace(config, lr_of={"visaul": 1e-3}))
    with pytest.raises(ConfigError, match="has a match of 'visual'"):
        make_optimizers(policy, replace(config, lr_of={"visual": 1e-3, "blocks": 1e-4}))
