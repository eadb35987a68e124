"""Is it a policy? What every policy must hold to, tried out on random samples of its own embodiment.

    report = check_policy(policy)        # or: vla-agents check-policy runs/demo/train

    losses       named scalars, finite, one number of `loss_weight` for each
    actions      float32 (B, H, D), finite
    determinism  the same seed gives the same actions and the same losses, to the bit
    gradients    reach every parameter that is to learn
    save_load    a checkpoint gives back weights and actions to the bit
    batch        a batch gives the actions of its samples, and the loss of its parts weighed by `loss_weight`
    mask         actions past the end of an episode change no loss, the others do
    refusals     a missing camera, a picture of another size, a state of another length are typed errors
    prefix       actions committed to come back as they were (policies that take a prefix)

No optimiser step is taken; gradients, mode and torch's generators are left as they were. What moves on is the policy's own
generator of noise (`Policy.seed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vla_agents.errors import ConfigError, PolicyCheckError, VlaAgentsError
from vla_agents.policies.conformance_checks import CHECKS, Failed, Subject
from vla_agents.policies.policy import Policy
from vla_agents.policies.samples import random_batch


@dataclass(frozen=True)
class CheckRow:
    """One check.

    Args:
        name: See the module docstring.
        passed: Whether it held.
        found: What was seen, or what is wrong.
        remedy: What to do about it.
    """

    name: str
    passed: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class PolicyReport:
    """All checks of a policy.

    Args:
        policy: Its class.
        rows: One per check.
    """

    policy: str
    rows: tuple[CheckRow, ...]

    @property
    def failed(self) -> tuple[CheckRow, ...]:
        """The checks that did not hold."""
        return tuple(row for row in self.rows if not row.passed)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        marks = {True: "ok  ", False: "FAIL"}
        return "\n".join(f"{marks[row.passed]}  {row.name:<{width}}  {row.found}" for row in self.rows)


def check_policy(policy: Policy, *, samples: int = 4, seed: int = 0) -> PolicyReport:
    """Try a policy out.

    Args:
        policy: Prepared (`Policy.prepare`) and, for `save_load`, registered in `POLICIES`.
        samples: Size of the batches, at least 3.
        seed: Of the random samples.

    Returns:
        A row for each check, all passed.

    Raises:
        PolicyCheckError: Listing what did not hold, and what to do about it; it has the report too.
    """
    if samples < 3:
        raise ConfigError(f"samples={samples} is too few to tell a batch from its parts", "at least 3")
    subject = Subject(policy, random_batch(policy, samples, seed), seed)
    rows = []
    for name, check in CHECKS.items():
        with _undisturbed(policy):
            rows.append(_row(name, check, subject))
    report = PolicyReport(type(policy).__name__, tuple(rows))
    if report.failed:
        raise PolicyCheckError(
            report.policy, {row.name: (row.found, row.remedy) for row in report.failed}, report
        )
    return report


def _row(name: str, check: Callable[[Subject], str], subject: Subject) -> CheckRow:
    try:
        return CheckRow(name, True, check(subject))
    except Failed as failure:
        return CheckRow(name, False, str(failure), failure.remedy)
    except VlaAgentsError as error:
        return CheckRow(name, False, error.problem, error.remedy)
    except Exception as error:  # whatever a policy does wrong is what this is to find out
        return CheckRow(
            name, False, f"{type(error).__name__}: {error}", "see the traceback of this call alone"
        )


@contextmanager
def _undisturbed(policy: Policy) -> Iterator[None]:
    training, gradients = policy.training, {p: p.grad for p in policy.parameters()}
    try:
        with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
            policy.zero_grad(set_to_none=True)
            yield
    finally:
        policy.train(training)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
