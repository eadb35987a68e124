"""The one call everything passes through: `agent.act(obs)`.

A trained policy, a policy on another machine, a person at a device, a scripted expert, a replayed episode:
each is an `Agent`. Single observations are `{"images": {camera: uint8 (H, W, 3)}, "state": float32 (S,),
"instruction": str}`; vector observations carry a leading N on every array and a sequence of N instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from vla_agents.base_agent import Agent as Agent
from vla_agents.embodiment import Embodiment, embodiment_of
from vla_agents.errors import ActionError, ConfigError
from vla_agents.observations import Observation, batch_size, check_observation, take
from vla_agents.registry import Registry

if TYPE_CHECKING:
    from vla_agents.chunking import Chunker
    from vla_agents.policies.policy import Policy
    from vla_agents.transforms import Transform


class RandomAgent(Agent):
    """Uniformly random actions from the embodiment's action space; every slot has its own generator."""

    def __init__(self, embodiment: Embodiment, seed: int = 0) -> None:
        self._embodiment = embodiment
        self._seed = seed
        self._spaces: dict[int, spaces.Box] = {}

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Reseed where a seed is given."""
        if isinstance(seed, Sequence):
            for slot in range(len(seed)):
                if mask is None or mask[slot]:
                    self._space(slot).seed(int(seed[slot]))
        elif seed is not None:
            self._seed = seed
            self._spaces.clear()

    def act(self, obs: Observation) -> np.ndarray:
        """One random action per observation."""
        count = batch_size(obs)
        if count is None:
            return self._space(0).sample()
        return np.stack([self._space(slot).sample() for slot in range(count)])

    def _space(self, slot: int) -> spaces.Box:
        if slot not in self._spaces:
            self._spaces[slot] = self._embodiment.action_space()
            self._spaces[slot].seed(self._seed + slot)
        return self._spaces[slot]


class ExpertAgent(Agent):
    """The scripted expert of an env, as an Agent: it asks `expert_action()`, which sees behind the scenes.

    Args:
        env: An env whose base class has `expert_action() -> float32 (D,)`, or a vector env of such.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._vector = hasattr(env, "num_envs")
        single = (
            env.envs[0] if getattr(env, "envs", None) else env
        )  # envs in other processes cannot be looked at
        if not hasattr(single, "num_envs") and not hasattr(single.unwrapped, "expert_action"):
            raise ConfigError(f"{env} has no scripted expert", "give the env class a method expert_action()")

    def act(self, obs: Observation) -> np.ndarray:
        """The expert's action for the state the env is in (the observation itself is not looked at)."""
        if self._vector:
            return np.stack(self._env.call("expert_action")).astype(np.float32)
        return np.asarray(self._env.unwrapped.expert_action(), np.float32)


class ChunkingAgent(Agent):
    """What plans chunks, in a control loop: checks, plans where a chunk is needed, hands out actions.

    Every slot of a vector env has its own chunk state, so episodes may start and end at different times; only the slots
    that need a plan are planned for, together. Subclasses write `plan_slots`.

    Args:
        embodiment: What observations and actions mean.
        chunker: How chunks become actions.
    """

    def __init__(self, embodiment: Embodiment, chunker: Chunker) -> None:
        self.embodiment, self.chunker = embodiment, chunker
        self._last_instructions: list[str] = []
        self._idle: set[int] = set()
        self._seeds: dict[int, int] = {}  # slot -> seed that has not been drawn from yet
        self._seed: int | None = None  # of slots not met since: this + slot
        self._met: set[int] = set()

    def plan_slots(self, slots: Sequence[int], observations: Sequence[Observation]) -> Sequence[np.ndarray]:
        """A chunk (H, D) in the embodiment's units for each of these slots' single observations, checked already."""
        raise NotImplementedError

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Drop the chunks of the slots that start anew (all where `mask` is None).

        Every slot draws from a generator of its own, so what a policy samples in an episode depends on the episode's seed
        and not on the other slots. One number for several slots seeds slot i with seed + i.
        """
        self.replan(mask)
        if mask is None:
            self._last_instructions = []
            self._idle.clear()
        else:
            self._idle -= set(map(int, np.flatnonzero(mask)))
        if seed is not None:
            self._reseed(mask, seed)

    def _reseed(self, mask: np.ndarray | None, seed: int | Sequence[int]) -> None:
        if mask is None:
            self._seeds, self._seed, self._met = {}, None, set()
            if not isinstance(seed, Sequence):
                self._seed = int(seed)
                return
        slots = range(len(seed)) if mask is None else np.flatnonzero(np.asarray(mask, bool))  # type: ignore[arg-type]
        for slot in map(int, slots):
            self._seeds[slot] = int(seed[slot]) if isinstance(seed, Sequence) else int(seed) + slot

    def take_seed(self, slot: int) -> int | None:
        """The seed that a slot was given and has not drawn from yet; None where there is none."""
        default = None if self._seed is None or slot in self._met else self._seed + slot
        self._met.add(slot)
        return self._seeds.pop(slot, default)

    def idle(self, mask: np.ndarray) -> None:
        """Plan nothing for these slots; their action is zero until they are reset."""
        self._idle = {int(slot) for slot in np.flatnonzero(mask)}

    def due(self, mask: np.ndarray) -> bool:
        """Whether one of these slots has used up its chunk."""
        return any(self.chunker.needs_plan(int(slot)) for slot in np.flatnonzero(mask))

    def replan(self, mask: np.ndarray | None = None) -> None:
        """Drop the chunks; what the policy draws at random goes on."""
        for slot in [None] if mask is None else list(map(int, np.flatnonzero(mask))):
            self.chunker.reset(slot)

    def act(self, obs: Observation) -> np.ndarray:
        """float32 (D,), or (N, D) for N observations. An instruction that changes drops that slot's chunk."""
        count = batch_size(obs)
        items = [obs] if count is None else [take(obs, slot) for slot in range(count)]
        busy = [slot for slot in range(len(items)) if slot not in self._idle]
        for slot in busy:
            check_observation(items[slot], self.embodiment, slot=None if count is None else slot)
        self._drop_chunks_of_changed_instructions([item["instruction"] for item in items])
        waiting = [slot for slot in busy if self.chunker.needs_plan(slot)]
        if waiting:
            chunks = self.plan_slots(waiting, [items[slot] for slot in waiting])
            for slot, chunk in zip(waiting, chunks, strict=True):
                self.chunker.add(slot, chunk)
        actions = np.zeros((len(items), self.embodiment.action_dim), np.float32)
        for slot in busy:
            actions[slot] = self.chunker.next(slot)
        if not np.isfinite(actions).all():
            error = ActionError(
                f"the policy gave a non-finite action: {actions[~np.isfinite(actions).all(-1)][0].tolist()}",
                "the weights or the statistics are damaged: check the checkpoint with `vla-agents info`",
            )
            error.actions = actions
            raise error
        return actions[0] if count is None else actions

    def _drop_chunks_of_changed_instructions(self, now: list[str]) -> None:
        for slot, (old, new) in enumerate(zip(self._last_instructions, now, strict=False)):
            if old != new:
                self.chunker.reset(slot)
        self._last_instructions = now


class PolicyAgent(ChunkingAgent):
    """A policy in a control loop, with the transforms between it and the env.

    Args:
        policy: The policy; its embodiment is what it was trained on.
        chunker: How chunks become actions; None takes the policy's own default.
        transforms: From the env's observations to the policy's, in order.
        embodiment: The env's embodiment where transforms stand between; None: the policy's own.
        exact: Plan for each env by itself, not in a batch: actions do not depend on the number of envs, not even in the
            last bit (batches of other sizes round differently); slower.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        chunker: Chunker | None = None,
        transforms: tuple[Transform, ...] = (),
        embodiment: Embodiment | None = None,
        exact: bool = False,
    ) -> None:
        from vla_agents.chunking import RecedingHorizon
        from vla_agents.transforms import Compose

        self.policy = policy.eval()
        self.transform = Compose(transforms)
        super().__init__(embodiment or policy.embodiment, chunker or RecedingHorizon(policy.default_execute))
        policy.embodiment.require(
            self.transform.embodiment(self.embodiment), ours="policy", theirs="env after transforms"
        )
        self._generators: dict[int, Any] = {}
        self.exact = exact

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """As every `ChunkingAgent`."""
        super().reset(mask, seed=seed)
        if mask is None and seed is not None:
            self._generators.clear()

    def generator(self, seed: int) -> Any:
        """A source of randomness for `plan_batch`."""
        return self.policy.generator(seed)

    def _generator(self, slot: int) -> Any:
        """The slot's own, or None (the policy's own) where it was never given a seed."""
        seed = self.take_seed(slot)
        if seed is not None:
            self._generators[slot] = self.policy.generator(seed)
        return self._generators.get(slot)

    def plan_slots(self, slots: Sequence[int], observations: Sequence[Observation]) -> Sequence[np.ndarray]:
        """Through the policy in one batch."""
        generators = [self._generator(slot) for slot in slots]
        if not self.exact:
            return self.plan_batch(observations, generators)
        pairs = zip(observations, generators, strict=True)
        return [chunk for obs, generator in pairs for chunk in self.plan_batch([obs], [generator])]

    def plan_batch(
        self,
        observations: Sequence[Observation],
        generators: Sequence[Any],
        prefixes: Sequence[np.ndarray] | None = None,
        committed: int = 0,
    ) -> list[np.ndarray]:
        """Whole chunks (H, D) in the env's units, past the chunker, in one batch.

        Args:
            observations: Single ones, checked already.
            generators: One for each, of `policy.generator`, or None.
            prefixes: For each, (P, D) with the same P: the actions from its observation on that are known already.
            committed: How many of those will be carried out for sure.
        """
        states = [obs.get("state") for obs in observations]
        seen = [self.transform.observation(obs) for obs in observations]
        if prefixes is None:
            chunks = self.policy.plan(seen, generators)  # (n, H, D)
        else:
            known = [self.transform.chunk(p, state) for p, state in zip(prefixes, states, strict=True)]
            chunks = self.policy.plan(seen, generators, prefix=np.stack(known), committed=committed)
        return [self.transform.inverse_chunk(c, state) for c, state in zip(chunks, states, strict=True)]

    @property
    def horizon(self) -> int:
        """Actions per chunk."""
        return self.policy.horizon

    @property
    def default_execute(self) -> int:
        """How many actions of a chunk are carried out, where nothing else is said."""
        return self.policy.default_execute

    @property
    def continues(self) -> bool:
        """Whether `plan` takes a prefix."""
        return bool(getattr(self.policy, "continues", False))

    def plan(self, obs: Observation, prefix: np.ndarray | None = None, committed: int = 0) -> np.ndarray:
        """`plan_batch` of one observation; what an `AsyncAgent` calls."""
        prefixes = None if prefix is None else [prefix]
        (chunk,) = self.plan_batch([obs], [self._generator(0)], prefixes, committed)
        return chunk


def load_agent(path: str | Path, *, env: Any = None, **overrides: Any) -> Agent:
    """An agent from a checkpoint folder (or a hub id of one).

    Args:
        path: Checkpoint folder, a run folder (its `best`, else its `last` checkpoint is taken), a hub id, or the address
            of a server that has one: `ws://host:8000` (`vla-agents serve`), `openpi+ws://...`, `starvla+ws://...`, see
            `docs/serving.md` for its options.
        env: Where given, the env's embodiment is compared with the checkpoint's, and a mismatch refused.
        **overrides: `device`, `execute` (actions of a chunk to carry out), `ensemble` (`"act"` or
            `"cosine"`), `exact` (plan for each env by itself), `transforms`, `chunker`, `embodiment` (the env's);
            `asynchronous` (plan in a thread while the
            last chunk plays), and with it `when_late` (`"hold"` or `"slow"`) and `continue_chunks`; `compile` (act by
            compiled graphs, which takes minutes before the first act, see `Policy.warm_up`); see `docs/agents.md`. For a
            StarVLA checkpoint also what its files do not say: the fields of `StarVLAOptions` (`vlm`, `unnormalization`,
            `final_norm`, ...) and `policy_embodiment` (what its observations and actions mean); see `docs/starvla.md`.

    Raises:
        CheckpointError: Missing, incomplete or damaged.
        ConfigError: An option that does not exist, or is for other checkpoints, or has to be given and is not.
        EmbodimentMismatchError: The env senses or does something else than the policy was trained on.
    """
    scheme, separator, _ = str(path).partition("://")
    if separator:
        return SERVERS.get(scheme)(str(path), env=env, **overrides)
    from vla_agents.bodies import choose_body
    from vla_agents.chunking import make_chunker
    from vla_agents.policies.checkpoint import load_policy
    from vla_agents.policies.starvla.options import policy_options
    from vla_agents.relative import is_relative, with_relative_actions

    starvla = policy_options(path, overrides, _AGENT_OPTIONS)
    execute, ensemble = overrides.get("execute"), overrides.get("ensemble")
    if execute is not None and ensemble is not None:
        raise ConfigError(
            f"execute={execute} and ensemble={ensemble!r} exclude each other", "an ensemble plans every tick"
        )
    asynchronous = _asynchronous(overrides)
    policy = load_policy(path, device=overrides.get("device"), merge_lora=True, **starvla)
    chunker = overrides.get("chunker") or make_chunker(
        policy.default_execute if execute is None else execute, policy.horizon, ensemble
    )
    body = overrides.get("embodiment")
    wanted = body or (None if env is None else embodiment_of(env))
    transforms = tuple(overrides.get("transforms", ()))
    if "transforms" not in overrides and policy.bodies:
        found = choose_body(policy.bodies, policy.embodiment, wanted, policy=f"checkpoint {path}")
        transforms, body = found.transforms, found.embodiment
    elif is_relative(policy.embodiment):
        transforms, body = with_relative_actions(transforms, wanted, policy=f"checkpoint {path}"), wanted
    exact = bool(overrides.get("exact"))
    agent = PolicyAgent(policy, chunker=chunker, transforms=transforms, embodiment=body, exact=exact)
    if env is not None:
        agent.embodiment.require(embodiment_of(env), ours=f"checkpoint {path}", theirs="env")
    if overrides.get("compile"):
        policy.compile_acting()
    if asynchronous is None:
        return agent
    from vla_agents.async_agent import asynchronous_for

    return asynchronous_for(agent, env, execute=execute, **asynchronous)


def _asynchronous(overrides: dict[str, Any]) -> dict[str, Any] | None:
    """Options of the asynchronous agent, None where a synchronous one is asked for."""
    given: dict[str, Any] = {k: overrides[k] for k in ("when_late", "continue_chunks") if k in overrides}
    if not overrides.get("asynchronous", False):
        if given:
            raise ConfigError(f"{sorted(given)} belong to asynchronous planning", "add asynchronous=True")
        return None
    for key in ("ensemble", "chunker"):
        if overrides.get(key) is not None:
            raise ConfigError(f"asynchronous planning does its own chunking: {key} does not go with it")
    return given


# The scheme of an address -> what makes an agent of it; the servers' clients stand above this module.
_REMOTE, _FOREIGN = "vla_agents.serving.remote", "vla_agents.serving.foreign"
SERVERS = Registry(
    "kind of server",
    dict.fromkeys(("ws", "wss", "ws+unix"), f"{_REMOTE}:connect")
    | dict.fromkeys(("openpi+ws", "openpi+wss"), f"{_FOREIGN}:connect_openpi")
    | dict.fromkeys(("starvla+ws", "starvla+wss"), f"{_FOREIGN}:connect_starvla"),
)

_AGENT_OPTIONS = frozenset(
    {"device", "execute", "ensemble", "transforms", "chunker", "embodiment", "compile", "exact"}
    | {"asynchronous", "when_late", "continue_chunks"}
)
