"""Packed linear layers: the same numbers, the same parameters, and never a stale copy."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vla_agents.policies.packed import MOST_ROWS, PackedLinear


@pytest.fixture
def layers() -> tuple[PackedLinear, nn.Linear]:
    torch.manual_seed(0)
    packed, plain = PackedLinear(96, 130).eval(), nn.Linear(96, 130)
    plain.load_state_dict(packed.state_dict())
    return packed, plain


@torch.no_grad()
def test_equal_to_a_plain_layer(layers: tuple[PackedLinear, nn.Linear]) -> None:
    packed, plain = layers
    for shape in (
        (1, 96),
        (41, 96),
        (2, 41, 96),
        (MOST_ROWS, 96),
        (MOST_ROWS + 1, 96),
        (3, 2, 5, 96),
        (0, 96),
    ):
        x = torch.randn(shape)
        torch.testing.assert_close(packed(x), plain(x), atol=1e-6, rtol=1e-6)
        assert packed(x).shape == plain(x).shape
    assert packed._packed is not None
    strided = torch.randn(96, 41).T
    torch.testing.assert_close(packed(strided), plain(strided), atol=1e-6, rtol=1e-6)


def test_a_changed_weight_is_seen(layers: tuple[PackedLinear, nn.Linear]) -> None:
    packed, _ = layers
    x = torch.randn(4, 96)
    with torch.no_grad():
        before = packed(x)
        packed.weight.mul_(2)
        after = packed(x)
    torch.testing.assert_close(after - packed.bias, 2 * (before - packed.bias), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        packed.load_state_dict(PackedLinear(96, 130).state_dict())
        torch.testing.assert_close(packed(x), torch.nn.functional.linear(x, packed.weight, packed.bias))


def test_gradients_halves_and_training_take_the_plain_way(layers: tuple[PackedLinear, nn.Linear]) -> None:
    packed, _ = layers
    x = torch.randn(4, 96, requires_grad=True)
    packed(x).sum().backward()
    assert x.grad is not None and packed.weight.grad is not None and packed._packed is None
    with torch.no_grad():
        packed(x)
        assert packed._packed is not None
        assert packed.train()._packed is None
        packed(x)
        assert packed._packed is None
        half = packed.eval().to(torch.bfloat16)
        assert half(x.to(torch.bfloat16)).dtype == torch.bfloat16 and half._packed is None


@torch.no_grad()
def test_copies_do_not_share_what_was_packed(layers: tuple[PackedLinear, nn.Linear]) -> None:
    packed, plain = layers
    x = torch.randn(4, 96)
    packed(x)
    other = copy.deepcopy(packed)
    assert other._packed is None and packed._packed is not None
    torch.testing.assert_close(other(x), plain(x), atol=1e-6, rtol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(packed)(x), plain(x), atol=1e-6, rtol=1e-6)
