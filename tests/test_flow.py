"""Flow heads on their own: times, caches, and chunks that go on from a prefix."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_flow import KINDS, flow_head
from torch import Tensor
from torch.nn import functional as F

from vla_agents.errors import ConfigError
from vla_agents.policies.heads.flow import FlowHead
from vla_agents.policies.heads.flow_blocks import sinusoid
from vla_agents.policies.heads.flow_schedule import FlowSchedule
from vla_agents.policies.heads.inpainting import guide_to, pad_prefix, prefix_weights

SCHEDULE = FlowSchedule()


def contexts_of(head: FlowHead, count: int, length: int = 6, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (count, length, head.shape.context_dim)
    return [torch.randn(size, generator=generator) for cross in head.crosses if cross]


def plainly(head: FlowHead, noise: Tensor, state: Tensor, contexts: list[Tensor], mask: Tensor) -> Tensor:
    """Denoising with nothing kept and nothing left out: everything anew at every step, every token through every block."""
    assert head.state_encoder is not None and head.position_embedding is not None
    x, count, horizon = noise, len(noise), noise.shape[1]
    for step in range(4):
        bucket = torch.full((count,), int(step / 4 * 1000))
        time = F.silu(head.model.timestep_encoder(bucket))
        encoder = head.action_encoder
        code = sinusoid(bucket, encoder.width, cosine_first=False, last=False)
        code = code[:, None].expand(-1, horizon, -1)
        hidden = encoder.layer3(F.silu(encoder.layer2(torch.cat([encoder.layer1(x), code], -1))))
        hidden = hidden + head.position_embedding.weight[:horizon]
        future = head.future_tokens.weight.expand(count, -1, -1)
        tokens = torch.cat([head.state_encoder(state)[:, None], future, hidden], 1)
        given = iter(contexts)
        for block, cross in zip(head.model.transformer_blocks, head.crosses, strict=True):
            kv = block.attn1.project(next(given), mask) if cross else None  # type: ignore[union-attr, operator]
            tokens = block(tokens, block.norm1.modulation(time), kv)  # type: ignore[union-attr, operator]
        final = head.final_modulation(time)
        x = x + head.action_decoder(head.read_out(tokens[:, -horizon:], final)) / 4
    return x


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_changes_nothing(kind: str) -> None:
    """Keys and values once, conditioning once, last block and cross-only blocks on the actions alone: the same chunk."""
    head, noise, state = flow_head(kind), torch.randn(3, 8, 2), torch.randn(3, 3)
    contexts, mask = contexts_of(head, 3), torch.ones(3, 6, dtype=torch.bool)
    mask[1, :3] = False
    fast = head.sample(noise, head.step_conditioning(SCHEDULE, 4), contexts, mask, state)
    torch.testing.assert_close(fast, plainly(head, noise, state, contexts, mask), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_seen(kind: str) -> None:
    head, noise, state = flow_head(kind), torch.randn(1, 8, 2), torch.randn(1, 3)
    contexts, mask = contexts_of(head, 1), torch.tensor([[False] * 2 + [True] * 4])
    conditioning = head.step_conditioning(SCHEDULE, 4)
    padded = head.sample(noise, conditioning, contexts, mask, state)
    short = head.sample(noise, conditioning, [c[:, 2:] for c in contexts], None, state)
    torch.testing.assert_close(padded, short, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_several_draws_share_one_context(kind: str) -> None:
    """R draws over B contexts = R * B samples with copies of the contexts, values and gradients."""
    head, action, state = flow_head(kind), torch.randn(2, 8, 2), torch.randn(2, 3)
    noise, time = torch.randn(6, 8, 2), torch.rand(6)
    buckets, mask = SCHEDULE.bucket(time), torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    contexts = [context.requires_grad_() for context in contexts_of(head, 2)]
    shared = head.errors(action, noise, time, state, contexts, mask, buckets)
    gradients = torch.autograd.grad(shared.mean(), contexts)
    copies = [context.detach().repeat(3, 1, 1).requires_grad_() for context in contexts]
    repeated = head.errors(
        action.repeat(3, 1, 1), noise, time, state.repeat(3, 1), copies, mask.repeat(3, 1), buckets
    )
    torch.testing.assert_close(shared, repeated, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(repeated.mean(), copies), strict=True):
        torch.testing.assert_close(ours, theirs.view(3, *ours.shape).sum(0), atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_conditioning_is_kept_until_a_weight_changes() -> None:
    head = flow_head("gr00t")
    first = head.step_conditioning(SCHEDULE, 4)
    assert head.step_conditioning(SCHEDULE, 4) is first and not first.blocks.requires_grad
    assert head.step_conditioning(SCHEDULE, 5) is not first
    kept = head.step_conditioning(SCHEDULE, 4)
    head.load_state_dict(flow_head("gr00t", seed=1).state_dict())
    changed = head.step_conditioning(SCHEDULE, 4)
    assert changed is not kept
    torch.testing.assert_close(
        changed.blocks, flow_head("gr00t", seed=1).step_conditioning(SCHEDULE, 4).blocks
    )
    head.train()
    assert head.step_conditioning(SCHEDULE, 4) is not head.step_conditioning(SCHEDULE, 4)


# ---- time -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 1.0), (2.0, 3.0)])
def test_times_follow_the_beta_distribution(alpha: float, beta: float) -> None:
    schedule = FlowSchedule(alpha, beta)
    times = schedule.sample(200_000, torch.Generator().manual_seed(0)).double()
    noise_share = schedule.s * (1 - times)  # ~ Beta(alpha, beta)
    mean = alpha / (alpha + beta)
    variance = alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    assert noise_share.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / 200_000))
    assert noise_share.var().item() == pytest.approx(variance, rel=0.02)
    assert times.min() >= 1 - 1 / schedule.s - 1e-6 and times.max() <= 1
    if (alpha, beta) == (1.5, 1.0):  # its distribution function is x^1.5
        assert (noise_share < 0.5).double().mean().item() == pytest.approx(0.5**1.5, abs=0.005)


def test_buckets() -> None:
    times = torch.tensor([-0.001, 0.0, 0.0009, 0.5, 0.9999, 1.0])
    assert SCHEDULE.bucket(times).tolist() == [-1, 0, 0, 500, 999, 1000]
    assert SCHEDULE.step_buckets(4).tolist() == [0, 250, 500, 750]
    assert SCHEDULE.step_buckets(3).tolist() == [0, 333, 666]


def test_sinusoids() -> None:
    code = sinusoid(torch.tensor([0, 7]), 6, cosine_first=True, last=True)
    assert code[0].tolist() == [1, 1, 1, 0, 0, 0]
    angles = [7 / 10000 ** (k / 2) for k in range(3)]
    expected = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)])
    torch.testing.assert_close(code[1], expected)
    other = sinusoid(torch.tensor([7]), 6, cosine_first=False, last=False)[0]
    angles = [7 / 10000 ** (k / 3) for k in range(3)]
    torch.testing.assert_close(other, torch.tensor([*map(math.sin, angles), *map(math.cos, angles)]))


def test_shapes_are_checked() -> None:
    with pytest.raises(ConfigError, match="multiple of heads"):
        flow_head("gr00t", width=33)
    with pytest.raises(ConfigError, match="too few"):
        flow_head("gr00t", max_positions=4)


# ---- real-time chunking ---------------------------------------------------------------------------------------
def test_prefix_weights_are_those_of_the_paper() -> None:
    weights = prefix_weights(known=6, committed=2, horizon=8)
    c = [(6 - i) / (6 - 2 + 1) for i in range(2, 6)]
    soft = [x * (math.exp(x) - 1) / (math.e - 1) for x in c]
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, *soft, 0.0, 0.0]))
    assert prefix_weights(3, 3, 4).tolist() == [1, 1, 1, 0]
    for bad in ((0, 0, 4), (5, 2, 4), (2, 3, 4)):
        with pytest.raises(ConfigError, match="prefix"):
            prefix_weights(*bad)


CURVE = (0.6 + 0.05 * torch.arange(8))[None, :, None]  # a chunk is this, or its mirror image


@pytest.fixture(scope="module")
def mirrored() -> tuple[FlowHead, Tensor]:
    """A head trained on two kinds of chunk, +CURVE and -CURVE, for one and the same context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"action_dim": 1, "state_dim": 0, "context_dim": 8, "depth": 2, "future_tokens": 2}
        head, context, count = flow_head("gr00t", **sizes).train(), torch.randn(1, 2, 8), 64
        optimizer = torch.optim.Adam(head.parameters(), lr=4e-3)
        for step in range(300):
            optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 300)
            action = CURVE * (torch.randint(0, 2, (count,)) * 2.0 - 1)[:, None, None]
            time = SCHEDULE.sample(count).clamp(min=0)
            buckets, contexts = SCHEDULE.bucket(time), [context.expand(count, -1, -1)]
            error = head.errors(action, torch.randn_like(action), time, None, contexts, None, buckets)
            optimizer.zero_grad()
            error.mean().backward()
            optimizer.step()
    return head.eval(), context


@torch.no_grad()
@pytest.mark.parametrize(("strength", "least"), [(5.0, 0.95), (0.0, 0.75)])
def test_a_chunk_goes_on_from_what_is_committed(
    mirrored: tuple[FlowHead, Tensor], strength: float, least: float
) -> None:
    """With 4 positive actions committed the rest is positive and joins on; without, half of the chunks are negative."""
    head, context = mirrored
    count, known = 64, 4
    noise = torch.randn(count, 8, 1, generator=torch.Generator().manual_seed(1))
    contexts = [context.expand(count, -1, -1)]
    conditioning = head.step_conditioning(SCHEDULE, 8)
    free = head.sample(noise, conditioning, contexts)
    assert 0.3 < (free[:, -1] > 0).float().mean() < 0.7
    assert (free.abs() - CURVE).abs().mean() < 0.05

    prefix = CURVE[:, :known].expand(count, -1, -1)
    weights = prefix_weights(known, known, 8)
    guide = guide_to(pad_prefix(prefix, 8), weights, known, noise, strength)
    chunk = head.sample(noise, conditioning, contexts, guide=guide)
    torch.testing.assert_close(chunk[:, :known], prefix, atol=1e-5, rtol=0)  # the stated tolerance
    assert (chunk[:, -1] > 0).float().mean() >= least
    if strength:
        jump = (chunk[:, known] - chunk[:, known - 1] - 0.05).abs()  # one step of the curve is 0.05
        assert jump.mean() < 0.08 and jump.median() < 0.05
        late = guide_to(
            pad_prefix(CURVE[:, :6].expand(count, -1, -1), 8), prefix_weights(6, 3, 8), 3, noise, 5.0
        )
        soft = head.sample(noise, conditioning, contexts, guide=late)  # 3 committed, 3 more that only pull
        hard = guide_to(pad_prefix(prefix[:, :3], 8), prefix_weights(3, 3, 8), 3, noise, 5.0)
        error = (soft[:, 3:6] - CURVE[:, 3:6]).abs().mean()
        assert (
            error
            < (head.sample(noise, conditioning, contexts, guide=hard)[:, 3:6] - CURVE[:, 3:6]).abs().mean()
        )
