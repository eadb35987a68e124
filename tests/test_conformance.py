"""check_policy: the four frameworks pass, and a policy that is broken in one way fails that check and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BODY, random_batch
from tiny_all import FRAMEWORKS, framework, framework_config
from tiny_flow import normalizers
from torch import Tensor, nn

from vla_agents import cli
from vla_agents.errors import ConfigError, PolicyCheckError
from vla_agents.policies import check_policy
from vla_agents.policies.checkpoint import POLICIES, make_policy, save_policy
from vla_agents.policies.conformance import CHECKS
from vla_agents.policies.policy import Batch, Policy
from vla_agents.policies.qwen_fast import QwenFAST
from vla_agents.policies.qwen_gr00t import QwenGR00T
from vla_agents.policies.qwen_oft import QwenOFT


@pytest.mark.parametrize("kind", FRAMEWORKS)
def test_every_framework_passes(kind: str) -> None:
    policy = framework(kind)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    state = torch.get_rng_state()
    report = check_policy(policy)
    assert [row.name for row in report.rows] == list(CHECKS) and not report.failed
    assert f"reach all {sum(p.requires_grad for p in policy.parameters())}" in str(report)
    expected = "come back as they were" if kind in ("qwen_gr00t", "qwen_pi") else "takes no prefix"
    assert expected in str(report)
    # It leaves no trace.
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters()) and not policy.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{"horizon": 1, "execute": 1}, {"dtype": "bfloat16"}])
def test_corners_pass(options: dict[str, Any]) -> None:
    check_policy(framework("qwen_oft", **options))
    check_policy(framework("qwen_gr00t", **options))


# ---- broken on purpose --------------------------------------------------------------------------------------------
class LossOfSamples(QwenOFT):
    """Gives a loss per sample."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"action_l1": super().forward(batch)["action_l1"].expand(len(batch))}


class HalfAChunk(QwenOFT):
    def predict_action(self, batch: Batch, prefix: Tensor | None = None) -> Tensor:
        return super().predict_action(batch, prefix)[:, : self.horizon // 2]


class Restless(QwenOFT):
    """Draws from a generator that no seed sets."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.noise = torch.Generator().manual_seed(0)

    def predict_action(self, batch: Batch, prefix: Tensor | None = None) -> Tensor:
        actions = super().predict_action(batch, prefix)
        return actions + 1e-6 * torch.randn(actions.shape, generator=self.noise)


class RestlessLoss(QwenOFT):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        return {"action_l1": super().forward(batch)["action_l1"] * (1 + 1e-6 * self.calls)}


class IdlePart(QwenOFT):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.forgotten = nn.Linear(3, 3)


class CutOff(QwenOFT):
    """The head learns, what it reads does not."""

    def hidden_at_queries(self, batch: Batch) -> Tensor:
        return super().hidden_at_queries(batch).detach()


class TimesZero(QwenOFT):
    def hidden_at_queries(self, batch: Batch) -> Tensor:
        hidden = super().hidden_at_queries(batch)
        return hidden.detach() + 0 * hidden


class Forgetful(QwenOFT):
    """What it does depends on something no checkpoint holds."""

    made = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        type(self).made += 1
        self.offset = 0.1 * self.made

    def predict_action(self, batch: Batch, prefix: Tensor | None = None) -> Tensor:
        return super().predict_action(batch, prefix) + self.offset


class Sociable(QwenOFT):
    """A sample's actions depend on the others."""

    def predict_action(self, batch: Batch, prefix: Tensor | None = None) -> Tensor:
        actions = super().predict_action(batch, prefix)
        return actions + 0.1 * actions.mean(0, keepdim=True)


class MiscountingFAST(QwenFAST):
    def loss_weight(self, batch: Batch) -> int:
        return batch.weight


class MiscountingMask(QwenOFT):
    def loss_weight(self, batch: Batch) -> int:
        return len(batch)


class Endless(QwenOFT):
    """Learns what lies past the end of an episode."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        target = self.normalizers["action"].normalize(batch.action)  # type: ignore[arg-type]
        return {"action_l1": (self.normalized_actions(batch) - target).abs().mean()}

    def loss_weight(self, batch: Batch) -> int:
        return len(batch)


class Deaf(QwenOFT):
    """Its loss looks at no action."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        error = self.normalized_actions(batch).abs().mean(-1)
        return {"action_l1": (error * batch.mask).sum() / batch.mask.sum()}  # type: ignore[operator, union-attr]


class Credulous(QwenOFT):
    """Takes any picture."""

    def views(self, batch: Batch) -> list[Tensor]:
        return [batch.images[name] for name in self.embodiment.camera_names]


class Slippery(QwenGR00T):
    """Forgets what it was committed to."""

    def predict_action(self, batch: Batch, prefix: Tensor | None = None, **options: Any) -> Tensor:
        return super().predict_action(batch, **options)


BROKEN: list[tuple[type[Policy], str, str]] = [
    (LossOfSamples, "losses", r"no scalar but \(4,\)"),
    (HalfAChunk, "actions", r"\(4, 2, 4\)"),
    (Restless, "determinism", "two predictions under one seed differ"),
    (RestlessLoss, "determinism", "two losses of one batch differ"),
    (IdlePart, "gradients", "no gradient reaches forgotten.weight, forgotten.bias"),
    (CutOff, "gradients", "no gradient reaches backbone"),
    (TimesZero, "gradients", "all zero at backbone"),
    (Forgetful, "save_load", "the actions differ"),
    (Sociable, "batch", "differ from those of its samples"),
    (MiscountingFAST, "batch", "weighed by loss_weight"),
    (MiscountingMask, "batch", "weighed by loss_weight"),
    (Endless, "mask", "past the end of the episode change action_l1"),
    (Deaf, "mask", "change no loss"),
    (Credulous, "refusals", "raises KeyError, no typed error"),
    (Slippery, "prefix", "come back changed"),
]
# A loss that is no number cannot be compared, a chunk too short not be put beside a whole one, and so on.
ALSO = {
    LossOfSamples: {"determinism", "gradients", "batch", "mask"},
    Restless: {"save_load"},
    RestlessLoss: {"mask"},
}


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(POLICIES._entries)
    for cls, *_ in BROKEN:
        POLICIES.register(cls.__name__, cls, overwrite=True)
    yield
    POLICIES._entries.clear()
    POLICIES._entries.update(before)


def broken(cls: type[Policy]) -> Policy:
    """A tiny policy of a class whose base is one of the four."""
    kind = next(name for name in FRAMEWORKS if issubclass(cls, POLICIES.get(name)))
    policy = make_policy(cls.__name__, framework_config(kind), BODY, normalizers())
    policy.prepare(random_batch(300, seed=5).action.numpy())  # type: ignore[union-attr]
    return policy.eval()


@pytest.mark.parametrize(
    ("cls", "check", "problem"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_is_broken_is_found(cls: type[Policy], check: str, problem: str, registered: None) -> None:
    with pytest.raises(PolicyCheckError, match=problem) as caught:
        check_policy(broken(cls))
    error = caught.value
    assert set(error.failed) <= {check} | ALSO.get(cls, set()) and check in error.failed
    assert all(remedy for _, remedy in error.failed.values()) and "->" in str(error)
    assert [row.name for row in error.report.failed] == list(error.failed)


def test_every_check_has_a_policy_that_fails_it() -> None:
    assert {check for _, check, _ in BROKEN} == set(CHECKS)


def test_all_that_is_wrong_is_listed_at_once() -> None:
    """Neither registered nor prepared."""

    class Unknown(QwenFAST): ...

    good = framework("qwen_fast")
    policy = Unknown(good.config, good.backbone, BODY, normalizers())  # type: ignore[arg-type]
    with pytest.raises(PolicyCheckError) as caught:
        check_policy(policy)
    assert "no action tokenizer yet" in caught.value.failed["losses"][0]
    assert "not a registered policy" in caught.value.failed["save_load"][0]
    assert len(caught.value.failed) > 5
    with pytest.raises(ConfigError, match="too few"):
        check_policy(good, samples=2)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_policy(framework("qwen_pi"), tmp_path / "policy")
    assert cli.main(["check-policy", str(folder)]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in CHECKS) and "FAIL" not in told and told.startswith("ok    losses ")
    assert cli.main(["check-policy", str(tmp_path / "nothing")]) == 1
    assert "no such folder" in capsys.readouterr().err
