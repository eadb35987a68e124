"""Qwen-GR00T and Qwen-PI against what StarVLA computed: weights, actions, loss and gradient norms, fp32 on the CPU."""

from __future__ import annotations

from typing import Any

import golden
import numpy as np
import pytest
import torch

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.flow_policy import FlowPolicy
from vla_agents.policies.qwen_gr00t import QwenGR00T, QwenGR00TConfig
from vla_agents.policies.qwen_pi import QwenPI, QwenPIConfig
from vla_agents.policies.qwen_vl import QwenVLBackbone

BODY = Embodiment(
    name="fixture",
    action=(Part("action", 7, "other", -1, 1),),
    state=(Part("state", 8, "other", -9, 9),),
    cameras=tuple(Camera(name, 224, 224) for name in golden.CAMERAS),
    control_hz=10.0,
)
PROMPT = (
    "Your task is {instruction}. To identify the key objects for your task. "
    "Locate their bounding boxes in [x1,y1,x2,y2] format."
)
PREFIXES = {"backbone.vlm.": "qwen_vl_interface.model.", "head.": "action_model."}
COUNTS = {"single": 1, "batch": 2}
ACTIONS, LOSS, GRADIENT = 1e-4, 1e-4, 1e-3  # the bars; measured errors are below 1e-5


def starvla_policy(framework: str, **config: Any) -> FlowPolicy:
    """Our policy with the fixture's weights; loading is strict."""
    common = {
        "horizon": 8, "prompt": PROMPT, "final_norm": False, "future_tokens": 8, "positions": 64, "heads": 4,
    } | config  # fmt: skip
    normalizers = {
        "action": Normalizer(BODY.action, VectorStats.identity(7), {"*": "none"}),
        "state": Normalizer(BODY.state, VectorStats.identity(8), {"*": "none"}),
    }
    backbone = QwenVLBackbone.from_config(golden.vlm())
    policy: FlowPolicy
    if framework == "QwenPI":
        policy = QwenPI(QwenPIConfig(**common), backbone, BODY, normalizers)
    else:
        sizes = {"width": 64, "depth": 4, "hidden": 64, "output": 64, "repeats": 4}
        policy = QwenGR00T(QwenGR00TConfig(**(sizes | common)), backbone, BODY, normalizers)
    weights = {}
    for name, tensor in golden.state_dict(framework).items():
        for ours, theirs in PREFIXES.items():
            if name.startswith(theirs):
                weights[ours + name.removeprefix(theirs)] = tensor.float()
    policy.load_state_dict(weights)
    return policy.eval()


def difference(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """Largest absolute one."""
    return float(np.abs(ours.numpy() - theirs).max())


@torch.no_grad()
@pytest.mark.parametrize("which", COUNTS)
@pytest.mark.parametrize("framework", ["QwenGR00T", "QwenPI"])
def test_actions_from_pictures(framework: str, which: str) -> None:
    expected = golden.outputs(framework)
    policy = starvla_policy(framework)
    batch = golden.examples(framework, count=COUNTS[which])
    noise = torch.from_numpy(expected[f"{which}.noise"])
    actions = policy.predict_action(batch, noise=noise)
    assert difference(actions, expected[f"{which}.normalized_actions"]) <= ACTIONS


@torch.no_grad()
@pytest.mark.parametrize("which", COUNTS)
def test_actions_of_the_older_semantics(which: str) -> None:
    with np.load(golden.fixture("QwenPI") / "outputs_legacy_allcross.npz") as file:
        expected = file[f"{which}.normalized_actions"]
    noise = torch.from_numpy(golden.outputs("QwenPI")[f"{which}.noise"])
    batch = golden.examples("QwenPI", count=COUNTS[which])
    policy = starvla_policy("QwenPI", semantics="cross_only")
    assert difference(policy.predict_action(batch, noise=noise), expected) <= ACTIONS
    other = starvla_policy("QwenPI").predict_action(batch, noise=noise)
    assert difference(other, expected) > 0.1  # the same weights mean something else


@torch.no_grad()
@pytest.mark.parametrize("framework", ["QwenGR00T", "QwenPI"])
def test_actions_from_stored_hidden_states(framework: str) -> None:
    """The head alone, and the backbone alone."""
    expected = golden.outputs(framework)
    policy = starvla_policy(framework)
    batch = golden.examples(framework, count=1)
    if framework == "QwenPI":
        stored = [torch.from_numpy(expected["single.hidden_states"][number]) for number in policy.layers]
    else:
        stored = [torch.from_numpy(expected["single.last_hidden"])] * len(policy.layers)
    contexts, mask = policy.encode(batch)
    assert max(difference(c, s.numpy()) for c, s in zip(contexts, stored, strict=True)) <= ACTIONS
    actions = policy.head.sample(
        torch.from_numpy(expected["single.noise"]),
        policy.head.condition(policy.schedule.step_buckets(4)),
        stored,
        mask,
        batch.state,
    )
    assert difference(actions, expected["single.normalized_actions"]) <= ACTIONS


@pytest.mark.parametrize("framework", ["QwenGR00T", "QwenPI"])
def test_loss_and_gradients(framework: str) -> None:
    """The norm of every gradient; parameters that get none in StarVLA get none here."""
    expected, meta = golden.outputs(framework), golden.meta(framework)
    policy = starvla_policy(framework)
    noise, time = (torch.from_numpy(expected[f"train.{name}"]) for name in ("noise", "t"))
    assert len(noise) == 2 * policy.repeats
    loss = policy(golden.examples(framework, count=2), noise=noise, time=time)["action_flow"]
    assert loss.item() == pytest.approx(float(expected["train.loss"]), rel=LOSS)
    loss.backward()
    norms, without = {}, set()
    for name, parameter in policy.named_parameters():
        ours = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        theirs = PREFIXES[ours] + name.removeprefix(ours)
        if parameter.grad is None:
            without.add(theirs)
        else:
            norms[theirs] = float(parameter.grad.norm())
    assert without == set(meta["train.params_without_grad"])
    # Gradients that vanish in exact arithmetic (key biases, 1e-8) are rounding errors.
    assert norms == pytest.approx(meta["train.grad_norms"], rel=GRADIENT, abs=1e-6)
