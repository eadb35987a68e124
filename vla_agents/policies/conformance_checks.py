"""The checks of `vla_agents.policies.conformance`: each says what it saw, or raises `Failed` with what to do about it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vla_agents.errors import ConfigError, VlaAgentsError
from vla_agents.policies.policy import Batch, Policy
from vla_agents.policies.samples import select

# Of actions in normalised units, and of losses, relative.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


class Failed(Exception):
    """A check did not hold."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


@dataclass
class Subject:
    """A policy, and the samples it is tried out on."""

    policy: Policy
    batch: Batch
    seed: int

    @property
    def tolerance(self) -> float:
        """That of its least exact weights."""
        kinds = {p.dtype for p in self.policy.parameters() if p.is_floating_point()}
        return max(TOLERANCE.get(kind, 0.05) for kind in kinds)

    @torch.no_grad()
    def act(self, batch: Batch, policy: Policy | None = None, *, reseed: bool = True) -> Tensor:
        """Its actions in eval mode, or those of another policy; from the seed, or as its generator stands."""
        policy = (policy or self.policy).eval()
        if reseed:
            policy.seed(self.seed)
        return policy.predict_action(replace(batch, action=None, mask=None))

    def losses(self, batch: Batch, *, training: bool = False) -> dict[str, float]:
        """Its losses as numbers, torch's generators seeded."""
        torch.manual_seed(self.seed)
        with torch.no_grad():
            return {name: float(loss) for name, loss in self.policy.train(training)(batch).items()}

    def normalized(self, actions: Tensor) -> Tensor:
        """Actions in the policy's normalised units."""
        return torch.as_tensor(self.policy.normalizers["action"].normalize(actions))


# ---- the checks ---------------------------------------------------------------------------------------------------
def _losses(subject: Subject) -> str:
    losses = subject.policy.train()(subject.batch)
    if not isinstance(losses, dict) or not losses:
        raise Failed(f"forward gives {type(losses).__name__} {losses!r}", 'return {"name": loss}')
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise Failed(
                f"the loss {name!r} is no scalar but {shape}", "return the mean over all entries that count"
            )
        if not torch.isfinite(loss):
            raise Failed(
                f"the loss {name!r} is {float(loss)}", "look for a division by zero or a wrong scale"
            )
    weight = subject.policy.loss_weight(subject.batch)
    if isinstance(weight, dict) and set(weight) != set(losses):
        raise Failed(
            f"loss_weight counts {sorted(weight)}, forward gives {sorted(losses)}", "count every loss"
        )
    return ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items()) + f", weight {weight}"


def _actions(subject: Subject) -> str:
    policy, actions = subject.policy, subject.act(subject.batch)
    wanted = (len(subject.batch), policy.horizon, policy.embodiment.action_dim)
    if tuple(actions.shape) != wanted or actions.dtype != torch.float32:
        raise Failed(f"predict_action gives {actions.dtype} {tuple(actions.shape)}", f"give float32 {wanted}")
    if not torch.isfinite(actions).all():
        raise Failed("actions are not finite", "look for NaN in the weights or the normalisation")
    return f"float32 {wanted}"


def _determinism(subject: Subject) -> str:
    if not torch.equal(subject.act(subject.batch), subject.act(subject.batch)):
        raise Failed(
            "two predictions under one seed differ", "draw from a generator that Policy.seed(seed) seeds"
        )
    for training in (False, True):
        first, second = (subject.losses(subject.batch, training=training) for _ in range(2))
        if first != second:
            raise Failed(
                f"two losses of one batch differ {'in training' if training else 'in eval mode'}: {first}, {second}",
                "draw from Batch.seeds, and nothing in eval mode that these do not fix",
            )
    return "actions and losses repeat to the bit"


def _gradients(subject: Subject) -> str:
    policy = subject.policy.train()
    losses = policy(subject.batch)
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    learning = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if not learning:
        raise Failed("no parameter asks for a gradient", "requires_grad_(True) for what is to learn")
    unreached = [name for name, p in learning.items() if p.grad is None]
    if unreached:
        raise Failed(
            f"no gradient reaches {_listing(unreached)}", "use them in forward, or requires_grad_(False)"
        )
    gradients = {name: p.grad for name, p in learning.items() if p.grad is not None}
    dead = [name for name, gradient in gradients.items() if gradient.ndim > 1 and not gradient.any()]
    if dead:
        raise Failed(
            f"the gradient is all zero at {_listing(dead)}",
            "something cuts it off (detach, a factor of 0); behind an output layer of zeros take a step first",
        )
    broken = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    if broken:
        raise Failed(f"the gradient is not finite at {_listing(broken)}", "look for a division by zero")
    frozen = sum(not p.requires_grad for p in policy.parameters())
    return f"reach all {len(learning)} parameters that are to learn; {frozen} are frozen"


def _save_load(subject: Subject) -> str:
    from vla_agents.policies.checkpoint import load_policy, save_policy

    policy = subject.policy
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_policy(save_policy(policy, Path(folder) / "policy"), device=str(policy.device))
    ours, theirs = policy.state_dict(), loaded.state_dict()
    other = sorted(ours.keys() ^ theirs.keys()) or [n for n in ours if not torch.equal(ours[n], theirs[n])]
    if type(loaded) is not type(policy) or other:
        raise Failed(
            f"{type(loaded).__name__} comes back with other weights: {_listing(other)}",
            "build the module from config, embodiment and load_parts alone",
        )
    if not torch.equal(subject.act(subject.batch), subject.act(subject.batch, loaded)):
        raise Failed(
            "the weights come back, and the actions differ",
            "something that matters is neither a weight nor in config, save_parts or the statistics",
        )
    return f"{len(ours)} tensors and the actions come back to the bit"


def _batch(subject: Subject) -> str:
    batch, bound = subject.batch, subject.tolerance
    together = subject.act(batch)
    singles = [subject.act(select(batch, [row]), reseed=row == 0) for row in range(len(batch))]
    error = float((subject.normalized(together) - subject.normalized(torch.cat(singles))).abs().max())
    if not error <= bound:
        raise Failed(
            f"actions of a batch differ from those of its samples by {error:.2g} (normalised), bound {bound:g}",
            "mask the padding, and draw noise row by row",
        )
    rows = range(len(batch))
    parts = [select(batch, rows[:1]), select(batch, rows[1:])]
    whole = subject.losses(batch)
    for name, expected in whole.items():
        found = _weighed(subject, parts, name)
        if not abs(found - expected) <= bound * abs(expected) + 1e-6:
            raise Failed(
                f"{name} of a batch is {expected:.6g}, of its parts weighed by loss_weight {found:.6g}",
                "loss_weight must count what the loss is a mean over, and draws must come from Batch.seeds",
            )
    return f"actions differ by {error:.2g} (normalised), bound {bound:g}; losses add up"


def _weighed(subject: Subject, parts: Sequence[Batch], name: str) -> float:
    total, count = 0.0, 0
    for part in parts:
        weight = subject.policy.loss_weight(part)
        mine = weight[name] if isinstance(weight, dict) else weight
        total, count = total + mine * subject.losses(part).get(name, 0.0), count + mine
    return total / max(1, count)


def _mask(subject: Subject) -> str:
    batch = subject.batch
    assert batch.action is not None and batch.mask is not None
    inside = batch.mask[..., None]
    other = batch.action.flip(0) + 0.3 * batch.action.std()
    before = subject.losses(batch)
    if bool(inside.all()):
        return "one action per chunk: nothing lies past an end"
    beyond = subject.losses(replace(batch, action=torch.where(inside, batch.action, other)))
    wrong = [n for n in before if not abs(beyond[n] - before[n]) <= 1e-6 * max(1.0, abs(before[n]))]
    if wrong:
        raise Failed(
            f"actions past the end of the episode change {_listing(wrong)}", "weigh the loss by Batch.mask"
        )
    if subject.losses(replace(batch, action=torch.where(inside, other, batch.action))) == before:
        raise Failed("actions inside the episode change no loss", "compare the prediction with Batch.action")
    return "only actions inside the episode count"


def _refusals(subject: Subject) -> str:
    policy, batch = subject.policy, subject.batch
    spoiled: dict[str, Batch] = {}
    for camera in policy.embodiment.cameras[:1]:
        image = batch.images[camera.name]
        others = {name: view for name, view in batch.images.items() if name != camera.name}
        larger = torch.cat([image, image], 1)
        spoiled[f"a batch without the camera {camera.name!r}"] = replace(batch, images=others)
        spoiled["a picture of another size"] = replace(batch, images=others | {camera.name: larger})
    if batch.state is not None:
        spoiled["a state of another length"] = replace(batch, state=batch.state[:, 1:])
    for what, bad in spoiled.items():
        for call, run in (("predict_action", subject.act), ("forward", subject.losses)):
            _must_refuse(what, call, run, bad)
    return f"{len(spoiled)} kinds of bad input are typed errors"


def _must_refuse(what: str, call: str, run: Callable[[Batch], object], bad: Batch) -> None:
    remedy = "take pictures by Policy.views(batch), which refuses what does not fit"
    try:
        run(bad)
    except VlaAgentsError:
        return
    except Exception as error:
        raise Failed(f"{what}: {call} raises {type(error).__name__}, no typed error", remedy) from error
    raise Failed(f"{what}: {call} takes it", remedy)


def _prefix(subject: Subject) -> str:
    policy, batch = subject.policy.eval(), subject.batch
    assert batch.action is not None
    length = max(1, policy.horizon // 2)
    given = batch.action[:, :length]
    policy.seed(subject.seed)
    acting = replace(batch, action=None, mask=None)
    try:
        with torch.no_grad():
            chunk = policy.predict_action(acting, prefix=given)
    except ConfigError:
        return "takes no prefix, and says so"
    error = float((chunk[:, :length] - given).abs().max())
    if chunk.shape[:2] != (len(batch), policy.horizon) or not error <= 1e-5:
        raise Failed(
            f"{length} actions committed to come back changed by {error:.2g}",
            "return the prefix as it was given, or raise ConfigError where there is no support for one",
        )
    return f"{length} of {policy.horizon} actions come back as they were"


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


CHECKS: dict[str, Callable[[Subject], str]] = {
    "losses": _losses,
    "actions": _actions,
    "determinism": _determinism,
    "gradients": _gradients,
    "save_load": _save_load,
    "batch": _batch,
    "mask": _mask,
    "refusals": _refusals,
    "prefix": _prefix,
}
