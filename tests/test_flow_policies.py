"""Qwen-GR00T and Qwen-PI as policies: noise, masks, gradients, prefixes, checkpoints."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_env import ENV_ID, make_embodiment, observation
from tiny import BODY, random_batch, rows, vlm_folder
from tiny_flow import KINDS, flow_policy, normalizers

from vla_agents.agent import PolicyAgent
from vla_agents.envs import make_env, make_vec
from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.policies.checkpoint import load_policy, make_policy, save_policy
from vla_agents.policies.heads.gr00t import dit_size
from vla_agents.policies.qwen_pi import QwenPIConfig
from vla_agents.policies.tiny import FAMILIES
from vla_agents.rollout import Listener, StepEvent, rollout

every_kind = pytest.mark.parametrize("kind", KINDS)


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_samples(kind: str, family: str) -> None:
    """Given the same noise; and a seed gives a batch the noise that its samples get one after the other."""
    policy, batch = flow_policy(kind, family), random_batch(4)
    policy.seed(3)
    together = policy.predict_action(batch)
    assert together.shape == (4, 4, 4) and together.dtype == torch.float32 and together.isfinite().all()
    policy.seed(3)
    for index in range(4):
        alone = policy.predict_action(rows(batch, [index]))[0]
        torch.testing.assert_close(alone, together[index], atol=2e-5, rtol=1e-4)


@torch.no_grad()
@every_kind
def test_sampling_is_its_own(kind: str) -> None:
    """Deterministic under a seed, different without; the global generator is neither read nor moved."""
    policy, batch = flow_policy(kind), random_batch(1)
    policy.seed(1)
    first, state = policy.predict_action(batch), torch.get_rng_state()
    assert not torch.equal(policy.predict_action(batch), first)
    policy.seed(1)
    torch.manual_seed(5)
    assert torch.equal(policy.predict_action(batch), first)
    torch.set_rng_state(state)
    twin = copy.deepcopy(policy)
    assert torch.equal(twin.predict_action(batch), policy.predict_action(batch))


@every_kind
def test_loss_ignores_what_lies_past_the_end(kind: str) -> None:
    """It neither counts nor tells the network anything."""
    policy, batch = flow_policy(kind), random_batch(4)
    assert batch.mask is not None and batch.action is not None and not batch.mask.all()
    before = policy(batch)["action_flow"]
    spoiled = batch.action.clone()
    spoiled[~batch.mask] = 77.0
    torch.testing.assert_close(policy(replace(batch, action=spoiled))["action_flow"], before)
    changed = batch.action.clone()
    changed[batch.mask] += 0.5
    assert policy(replace(batch, action=changed))["action_flow"] != before
    everything = replace(batch, mask=torch.ones_like(batch.mask))
    torch.testing.assert_close(
        policy(everything)["action_flow"], policy(replace(batch, mask=None))["action_flow"]
    )


@every_kind
def test_loss_is_fresh_in_training_and_repeatable_in_evaluation(kind: str) -> None:
    policy, batch = flow_policy(kind), random_batch(2)
    assert policy(batch)["action_flow"] == policy(batch)["action_flow"]
    policy.train()
    torch.manual_seed(0)
    first, second = policy(batch)["action_flow"], policy(batch)["action_flow"]
    assert first != second
    torch.manual_seed(0)
    assert policy(batch)["action_flow"] == first


@every_kind
def test_gradients_reach_all_that_should_learn(kind: str) -> None:
    policy = flow_policy(kind).train()
    policy(random_batch(4))["action_flow"].backward()
    named = dict(policy.named_parameters())
    learning = {name: p for name, p in named.items() if p.requires_grad}
    # Position table rows beyond the horizon and a block's key bias cannot matter.
    assert [n for n, p in learning.items() if p.grad is None] == []
    assert [n for n, p in learning.items() if "bias" not in n and not p.grad.any()] == []
    assert any("visual" in name for name in learning) and any("embed_tokens" in name for name in learning)
    frozen = {
        name.removeprefix("head.") for name in named if name.startswith("head.") and name not in learning
    }
    idle = {
        "model.proj_out_1.weight",
        "model.proj_out_1.bias",
        "model.proj_out_2.weight",
        "model.proj_out_2.bias",
    }
    if kind == "gr00t":
        assert frozen == set()
    else:
        assert idle <= frozen and (kind == "cross_only") == ("future_tokens.weight" in frozen)


@every_kind
def test_layers_nobody_reads_are_not_run(kind: str) -> None:
    policy = flow_policy(kind)  # the tiny VLM has 2 layers
    last = policy.backbone.vlm.model.language_model.layers[-1]
    calls: list[int] = []
    last.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        policy.predict_action(random_batch(1))
    assert len(calls) == (kind != "interleaved")
    assert all(p.requires_grad == (kind != "interleaved") for p in last.parameters())


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("guidance", [5.0, 0.0])
def test_a_prefix_comes_back(kind: str, guidance: float) -> None:
    policy, batch = flow_policy(kind, guidance=guidance), random_batch(2)
    prefix = torch.rand(2, 3, 4) - 0.5
    noise = policy.draw_noise(2)
    free = policy.predict_action(batch, noise=noise)
    chunk = policy.predict_action(batch, prefix, noise=noise)
    assert torch.equal(chunk[:, :3], prefix) and chunk.shape == (2, 4, 4) and chunk.isfinite().all()
    # In cross-only blocks no action sees another one: nothing can follow from a prefix.
    assert torch.allclose(chunk[:, 3:], free[:, 3:], atol=1e-5) == (kind == "cross_only")
    soft = policy.predict_action(batch, prefix, committed=1, noise=noise)
    assert torch.equal(soft[:, :1], prefix[:, :1]) and not torch.equal(soft[:, 1:3], prefix[:, 1:3])
    with torch.inference_mode():
        torch.testing.assert_close(policy.predict_action(batch, prefix, noise=noise), chunk)
    for bad in (prefix[:1], prefix[..., :3], torch.rand(2, 5, 4), prefix[:, :0]):
        with pytest.raises(ConfigError, match="prefix"):
            policy.predict_action(batch, bad)


@torch.no_grad()
@every_kind
def test_saved_and_loaded_is_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    policy, batch = flow_policy(kind), random_batch(2)
    loaded = load_policy(save_policy(policy, tmp_path / "checkpoint"), device="cpu")
    for each in (policy, loaded):
        each.seed(2)
    assert type(loaded) is type(policy) and loaded.config == policy.config
    assert torch.equal(loaded.predict_action(batch), policy.predict_action(batch))


@torch.no_grad()
def test_state_where_it_is_wanted() -> None:
    batch = random_batch(2)
    policy = flow_policy("gr00t")
    noise = policy.draw_noise(2)
    other = replace(batch, state=torch.zeros(2, 3))
    assert not torch.allclose(
        policy.predict_action(batch, noise=noise), policy.predict_action(other, noise=noise)
    )
    with pytest.raises(ConfigError, match="no state"):
        policy.predict_action(replace(batch, state=None))
    blind = flow_policy("gr00t", state="none", state_size=5)
    assert torch.equal(blind.predict_action(batch, noise=noise), blind.predict_action(other, noise=noise))
    assert blind.head.state_encoder is not None and blind.head.state_encoder.layer1.in_features == 5
    assert not blind.head.state_encoder.layer1.weight.requires_grad


def test_half_precision_heads() -> None:
    policy = flow_policy("gr00t", head_dtype="bfloat16", dtype="bfloat16")
    assert {p.dtype for p in policy.head.parameters()} == {torch.bfloat16}
    batch = random_batch(2)
    loss = policy.train()(batch)["action_flow"]
    loss.backward()
    assert loss.dtype == torch.float32
    with torch.no_grad():
        assert policy.eval().predict_action(batch).dtype == torch.float32


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="lacks"):
        flow_policy("gr00t", prompt="do it")
    with pytest.raises(ConfigError, match="at least 1"):
        flow_policy("gr00t", steps=0)
    with pytest.raises(ConfigError, match="more than the VLM"):
        flow_policy("interleaved", depth=3)
    with pytest.raises(UnknownNameError, match="DiT-L"):
        dit_size("DiT-XL")
    assert dit_size("DiT-L") == (1536, 32, 16)
    default = make_policy("qwen_pi", QwenPIConfig(vlm=str(vlm_folder())), BODY, normalizers())
    assert default.head.shape.heads == 1 and default.head.shape.depth == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["gr00t", "interleaved"])
def test_an_episode_draws_the_same_alone_and_in_company(kind: str) -> None:
    """Noise belongs to the episode: one env or four, in another order, after other episodes."""
    policy = flow_policy(kind, body=make_embodiment(), state="none")
    seeds = [3, 14, 15, 92, 65]

    def actions(env: Any, order: list[int]) -> dict[int, np.ndarray]:
        log = ActionLog()
        rollout(env, PolicyAgent(policy), order, [log], max_steps=5)
        return {seed: np.stack(taken) for seed, taken in log.taken.items()}

    alone = actions(make_env(ENV_ID), seeds)
    assert abs(alone[3][0] - alone[14][0]).max() > 1e-2
    for env, order in ((make_vec(ENV_ID, 4), seeds), (make_vec(ENV_ID, 2), seeds[::-1])):
        together = actions(env, order)
        assert together.keys() == alone.keys()
        for seed in seeds:
            np.testing.assert_allclose(together[seed], alone[seed], atol=2e-5)


class ActionLog(Listener):
    """The actions of each episode, by seed."""

    def __init__(self) -> None:
        self.taken: dict[int, list[np.ndarray]] = {}
        self._seed: dict[int, int] = {}

    def on_reset(self, slot: int, seed: int, obs: dict[str, Any], info: dict[str, Any]) -> None:
        self._seed[slot] = seed
        self.taken[seed] = []

    def on_step(self, slot: int, step: StepEvent) -> None:
        self.taken[self._seed[slot]].append(step.action.copy())


def test_one_seed_for_all_slots() -> None:
    agent = PolicyAgent(flow_policy("gr00t", body=make_embodiment()))
    vector = observation(make_embodiment(), lead=(2,)) | {"instruction": ["do it", "do it"]}
    for key in ("front", "wrist"):
        vector["images"][key][1] = vector["images"][key][0]
    vector["state"][1] = vector["state"][0]
    agent.reset(seed=5)
    first = agent.act(vector)
    assert abs(first[0] - first[1]).max() > 1e-2  # each slot its own noise
    agent.reset(np.array([False, True]), seed=[0, 6])
    np.testing.assert_allclose(agent.act(vector)[1], first[1], atol=2e-5)  # 5 + 1
    agent.reset(seed=5)
    np.testing.assert_array_equal(agent.act(vector), first)
