"""Acting by compiled graphs: the same actions, few shapes, undone by training, refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_env import observation
from tiny import BODY, random_batch, tiny_policy
from tiny_backbones import make

from vla_agents.agent import load_agent
from vla_agents.errors import ConfigError
from vla_agents.policies.checkpoint import save_policy
from vla_agents.policies.compiling import LENGTHS, check_compiler, round_up
from vla_agents.policies.policy import Policy
from vla_agents.policies.qwen_speech import ROOM

TEXTS = ("lift it", "pick up the red block", "put the green block on the blue pad, please")
POLICIES: dict[str, Any] = {
    "oft": lambda: make("qwen_oft", "qwen3_vl"),
    "oft, Qwen2.5": lambda: make("qwen_oft", "qwen2_5_vl", queries="prompt", prompt="do {instruction} now"),
    "gr00t": lambda: make("qwen_gr00t", "qwen3_vl"),
    "pi": lambda: make("qwen_pi", "qwen2_5_vl", semantics="interleaved"),
    "fast": lambda: make("qwen_fast", "qwen3_vl"),
}
LONG = {"oft, Qwen2.5"}  # its graphs are those of "oft" and "pi"


def observations() -> list[dict[str, Any]]:
    found = []
    for seed, text in enumerate(TEXTS):
        obs = observation(BODY, seed) | {"instruction": text}
        found.append(obs | {"state": np.clip(obs["state"], -1, 1)})
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.long] if k in LONG else []) for k in POLICIES]
)
def test_compiled_acts_the_same(kind: str) -> None:
    """One observation, three of different length (a batch of four), and others of the same shapes without compiling.

    Every shape takes minutes of a busy machine; batches are made by what the policies share, so one of them has them.
    """
    policy: Policy = POLICIES[kind]()
    every = observations()
    sets = [every[:1], every, every[1:2], every[::-1]] if kind == "oft" else [every[:1], every[1:2]]

    def plans() -> list[np.ndarray]:
        return [policy.plan(some, [policy.generator(i) for i in range(len(some))]) for some in sets]

    wanted = plans()
    policy.compile_acting()
    compiled = plans()
    for own, other in zip(compiled, wanted, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for own, other in zip(plans(), compiled, strict=True):
            np.testing.assert_allclose(own, other, atol=1e-6)
    policy.train()  # learning runs as written, and acting after it too
    sum(policy(random_batch(2, horizon=policy.horizon)).values()).backward()  # type: ignore[union-attr]
    policy.zero_grad(set_to_none=True)
    assert not policy.eval().is_compiled
    np.testing.assert_array_equal(plans()[0], wanted[0])


@pytest.mark.slow
def test_load_agent_compiles(tmp_path: Path) -> None:
    folder = save_policy(tiny_policy(), tmp_path / "checkpoint")
    plain: Any = load_agent(folder, device="cpu")
    agent: Any = load_agent(folder, device="cpu", compile=True)
    agent.policy.warm_up(TEXTS[:1])
    with torch.compiler.set_stance("fail_on_recompile"):
        np.testing.assert_allclose(agent.act(observations()[0]), plain.act(observations()[0]), atol=1e-5)


def test_prompts_of_a_compiled_policy_have_few_lengths() -> None:
    policy = tiny_policy()
    policy.backbone.prompts.multiple = LENGTHS  # type: ignore[union-attr]
    batch = random_batch(3)
    for some in ([0], [1], [0, 1, 2]):
        views = [view[some] for view in batch.images.values()]
        inputs = policy.backbone.inputs(views, [batch.instructions[i] for i in some])  # type: ignore[operator]
        assert inputs["input_ids"].shape[1] % LENGTHS == 0 and inputs["attention_mask"] is not None
    assert [round_up(count) for count in (1, 2, 3, 4, 5, 8)] == [1, 2, 4, 4, 8, 8]


def test_an_answer_may_be_longer_than_the_room_of_its_cache() -> None:
    backbone = tiny_policy().backbone
    batch = random_batch(2)
    views, texts = list(batch.images.values()), batch.instructions
    said = torch.randint(0, 200, (ROOM + 8, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        speech = backbone.speak(views, texts)
        for ids in said:
            speech.say(ids)
        inputs = backbone.inputs(views, texts)  # type: ignore[operator]
        whole = torch.cat([inputs["input_ids"], said.T], 1)
        mask = torch.cat([inputs.mask, torch.ones_like(said.T, dtype=torch.bool)], 1)
        types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(said.T, dtype=torch.int32)], 1)
        arguments = dict(inputs) | {
            "input_ids": whole, "attention_mask": mask.int(), "mm_token_type_ids": types, "position_ids": None,
        }  # fmt: skip
        hidden = backbone.vlm.model(**arguments, use_cache=False).last_hidden_state[:, -1]
    torch.testing.assert_close(speech.hidden, hidden, atol=1e-5, rtol=1e-4)


def test_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler.*a-compiler-that-is-not-there"):
        check_compiler()
    with pytest.raises(ConfigError, match="needs a C"):
        tiny_policy().compile_acting()
    with pytest.raises(ConfigError, match="compile=True is not for attention='eager'"):
        tiny_policy(attention="eager").compile_acting()
    for family in ("florence2", "clip", "qwen3_5"):
        policy = make("qwen_gr00t", family)
        with pytest.raises(ConfigError, match="compile=True is not for"):
            policy.compile_acting()
        assert not policy.is_compiled
