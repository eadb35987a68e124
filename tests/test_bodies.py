"""What lies between a policy and its bodies comes back with the checkpoint, and acting takes it from there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import BODY as TINY
from tiny import tiny_policy

from vla_agents.agent import load_agent, take
from vla_agents.bodies import Body, choose_body, load_bodies, save_bodies
from vla_agents.common_body import common_body
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import CheckpointError, ConfigError, EmbodimentError, EmbodimentMismatchError
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.checkpoint import load_policy, save_policy
from vla_agents.relative import RelativeActions
from vla_agents.transforms import Compose, RenameCameras, ResizeImages

ARM = replace(TINY, name="arm", action=(Part("position", 3, "xyz", unit="m"), TINY.action[1]))
OTHER = Embodiment(
    "other",
    action=(Part("joints", 2, "joint_position"),),
    state=(Part("joints", 2, "joint_position"),),
    cameras=(Camera("front", 48, 64), Camera("side", 48, 64)),
    control_hz=20.0,
)
ARM = replace(ARM, cameras=(Camera("front", 48, 64), Camera("wrist", 48, 64)))


class _Env:
    def __init__(self, body: Embodiment) -> None:
        self.embodiment = body


def ways() -> dict[str, Body]:
    """Two bodies, each resized, relative, and normalised by itself into a common one."""
    chains = []
    for body in (ARM, OTHER):
        resize = ResizeImages(32, 32)
        chains.append((resize, RelativeActions(resize.embodiment(body))))
    ends = [Compose(chain).embodiment(body) for chain, body in zip(chains, (ARM, OTHER), strict=True)]
    plans = []
    for k, end in enumerate(ends):
        size, half = end.action_dim, (1.0 + k,)
        stats = VectorStats(
            5, (0.5,) * size, half * size, (-1.0,) * size, half * size, (-1.0,) * size, half * size
        )
        plans.append({"action": Normalizer(end.action, stats, {"*": "min_max"})})
    members = common_body(ends, plans)
    return {
        body.name: Body(body, (*chain, member))
        for body, chain, member in zip((ARM, OTHER), chains, members, strict=True)
    }


def look(body: Embodiment, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = {c.name: rng.integers(0, 255, (1, c.height, c.width, 3), np.uint8) for c in body.cameras}
    state = rng.uniform(-1, 1, (1, body.state_dim)).astype(np.float32)
    return {"images": images, "state": state, "instruction": ["lift it"]}


def test_saved_and_loaded(tmp_path: Path) -> None:
    save_bodies(tmp_path, ways())
    again = load_bodies(tmp_path)
    assert list(again) == ["arm", "other"]
    chunk = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    for name, body in ways().items():
        assert again[name].embodiment == body.embodiment
        ours, theirs = Compose(body.transforms), Compose(again[name].transforms)
        assert ours.embodiment(body.embodiment) == theirs.embodiment(body.embodiment)
        obs = take(look(body.embodiment), 0)
        assert np.array_equal(ours.observation(obs)["state"], theirs.observation(obs)["state"])
        assert np.array_equal(
            ours.inverse_chunk(chunk, obs["state"]), theirs.inverse_chunk(chunk, obs["state"])
        )
    save_bodies(tmp_path / "nothing", {"arm": Body(ARM)})  # nothing between: nothing is written
    assert load_bodies(tmp_path / "nothing") == {}
    with pytest.raises(ConfigError, match="RenameCameras cannot be kept"):
        save_bodies(tmp_path, {"arm": Body(ARM, (RenameCameras((("front", "x"),)),))})


@pytest.mark.parametrize("content", ["", "[]", '{"a": {}}', '{"a": {"embodiment": 3, "transforms": []}}'])
def test_damaged_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "bodies.json").write_text(content)
    with pytest.raises((CheckpointError, EmbodimentError), match=r"bodies\.json"):
        load_bodies(tmp_path)
    save_bodies(tmp_path, ways())
    data = json.loads((tmp_path / "bodies.json").read_text())
    data["arm"]["transforms"][0]["kind"] = "run_program"
    (tmp_path / "bodies.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="unknown transform"):
        load_bodies(tmp_path)


def test_an_agent_acts_with_each_body_it_was_trained_on(tmp_path: Path) -> None:
    bodies = ways()
    target = Compose(bodies["arm"].transforms).embodiment(ARM)
    policy = tiny_policy(body=target)
    policy.bodies = bodies
    save_policy(policy, tmp_path / "policy")
    assert list(load_policy(tmp_path / "policy", device="cpu").bodies) == ["arm", "other"]
    for body in (ARM, OTHER):
        agent = load_agent(tmp_path / "policy", env=_Env(body))
        obs = look(body)
        chain = Compose(bodies[body.name].transforms)
        single = take(obs, 0)
        expected = chain.inverse_chunk(policy.plan([chain.observation(single)])[0], single["state"])
        np.testing.assert_allclose(agent.act(obs)[0], expected[0], atol=1e-6)
    assert load_agent(tmp_path / "policy", env=_Env(target)).act(look(target)).shape == (1, target.action_dim)
    with pytest.raises(ConfigError, match=r"trained on several bodies: \['arm', 'other'\]"):
        load_agent(tmp_path / "policy")
    assert load_agent(tmp_path / "policy", embodiment=OTHER).embodiment == OTHER  # type: ignore[attr-defined]
    with pytest.raises(EmbodimentMismatchError, match="arm: control rate"):
        load_agent(tmp_path / "policy", env=_Env(replace(ARM, control_hz=5.0)))


def test_which_body() -> None:
    bodies = ways()
    arm = bodies["arm"]
    direct = Compose(arm.transforms).embodiment(ARM)
    assert choose_body({"arm": arm}, direct, None, policy="p") is arm
    assert choose_body(bodies, direct, replace(ARM, name="renamed"), policy="p") is arm
    assert choose_body(bodies, direct, direct, policy="p").transforms == ()
    twice = bodies | {"again": Body(ARM, arm.transforms)}
    assert choose_body(twice, direct, ARM, policy="p").transforms == arm.transforms
    twice["again"] = Body(ARM, arm.transforms[:2])
    with pytest.raises(ConfigError, match=r"that of \['again', 'arm'\], which were normalised differently"):
        choose_body(twice, direct, ARM, policy="p")
