"""An agent whose policy is on another machine: `load_agent("ws://host:8000")`.

Chunks are planned there and played here, so that a tick costs the network nothing most of the time, and what is checked is
checked on both sides. Needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.agent import Agent, ChunkingAgent
from vla_agents.async_agent import asynchronous_for
from vla_agents.chunking import Chunker, make_chunker
from vla_agents.embodiment import Embodiment, embodiment_of
from vla_agents.errors import ConfigError, suggest
from vla_agents.observations import Observation
from vla_agents.serving.client import PolicyClient

if TYPE_CHECKING:
    from vla_agents.transforms import Transform

_LINE = ("token", "token_file", "ca_file", "timeout_s", "patience_s")


class RemoteAgent(ChunkingAgent):
    """A served policy in a control loop.

    Args:
        url: `ws://host:port`, `wss://host:port`, `ws+unix:///path/of/socket`.
        embodiment: The env's; a server whose policy was trained for another one is refused. None: the policy's own.
        transforms: From the env's observations to the policy's, in order.
        chunker: How chunks become actions.
        execute: Actions of a chunk to carry out; None: the policy's default.
        ensemble: `"act"` or `"cosine"`: plan every tick, and average.
        shared_memory: See `PolicyClient`.
        **line: Of `Line`: `token`, `token_file`, `ca_file`, `timeout_s`, `patience_s`.
    """

    def __init__(
        self,
        url: str,
        *,
        embodiment: Embodiment | None = None,
        transforms: Sequence[Transform] = (),
        chunker: Chunker | None = None,
        execute: int | None = None,
        ensemble: str | None = None,
        shared_memory: bool = True,
        **line: Any,
    ) -> None:
        if execute is not None and ensemble is not None:
            raise ConfigError(f"execute={execute} and ensemble={ensemble!r} exclude each other")
        self.transform = _compose(transforms)
        seen = (
            embodiment
            if embodiment is None or self.transform is None
            else self.transform.embodiment(embodiment)
        )
        self.client = PolicyClient(url, embodiment=seen, shared_memory=shared_memory, **line)
        try:
            horizon = self.client.horizon
            made = chunker or make_chunker(
                min(self.client.default_execute, horizon) if execute is None else execute, horizon, ensemble
            )
        except BaseException:
            self.client.close()
            raise
        super().__init__(embodiment or self.client.embodiment, made)

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """As every `ChunkingAgent`; the server is told."""
        super().reset(mask, seed=seed)
        self.client.reset(None if mask is None else [int(slot) for slot in np.flatnonzero(mask)])

    def plan_slots(self, slots: Sequence[int], observations: Sequence[Observation]) -> Sequence[np.ndarray]:
        """In one request."""
        seeds = [self.take_seed(slot) for slot in slots]
        if self.transform is None:
            return list(self.client.plan(observations, slots, seeds))
        chunks = self.client.plan([self.transform.observation(obs) for obs in observations], slots, seeds)
        states = [obs.get("state") for obs in observations]
        return [
            self.transform.inverse_chunk(chunk, state) for chunk, state in zip(chunks, states, strict=True)
        ]

    def plan(self, obs: Observation, prefix: np.ndarray | None = None, committed: int = 0) -> np.ndarray:
        """A whole chunk (H, D) for one observation; see `PolicyAgent.plan`."""
        seed, known = [self.take_seed(0)], None if prefix is None else prefix[None]
        if self.transform is None:
            return self.client.plan([obs], [0], seed, known, committed)[0]
        state = obs.get("state")
        if prefix is not None:
            known = self.transform.chunk(prefix, state)[None]
        (chunk,) = self.client.plan([self.transform.observation(obs)], [0], seed, known, committed)
        return self.transform.inverse_chunk(chunk, state)

    @property
    def horizon(self) -> int:
        """Actions per chunk."""
        return self.client.horizon

    @property
    def default_execute(self) -> int:
        """How many of them are carried out, where nothing else is said."""
        return self.client.default_execute

    @property
    def continues(self) -> bool:
        """Whether `plan` takes a prefix."""
        return self.client.continues

    def close(self) -> None:
        """Hang up."""
        self.client.close()


def _compose(transforms: Sequence[Transform]) -> Transform | None:
    """They bring scipy with them, which a robot's computer may do without."""
    if not transforms:
        return None
    from vla_agents.transforms import Compose

    return Compose(tuple(transforms))


_AGENT = ("embodiment", "transforms", "chunker", "execute", "ensemble", "shared_memory")
_ASYNCHRONOUS = ("when_late", "continue_chunks")


def connect(url: str, *, env: Any = None, **overrides: Any) -> Agent:
    """What `load_agent` does with the address of a server of ours.

    Args:
        url: See `RemoteAgent`.
        env: Its embodiment is compared with the served policy's.
        **overrides: Of `RemoteAgent`; `asynchronous`, and with it `when_late` and `continue_chunks`, as for a checkpoint.

    Raises:
        ConfigError: An option that does not exist or belongs to the server.
        EmbodimentMismatchError: The policy was trained for another body.
        ServingError: The server cannot be reached, or refuses.
    """
    known = (*_AGENT, *_LINE, "asynchronous", *_ASYNCHRONOUS)
    for key in overrides:
        if key not in known:
            raise ConfigError(
                f"{key}: no option of a served policy{suggest(key, known)}",
                "device, compile and the like are options of `vla-agents serve`",
            )
    given = {key: value for key, value in overrides.items() if value is not None}
    late = {key: given.pop(key) for key in _ASYNCHRONOUS if key in given}
    asynchronous = bool(given.pop("asynchronous", False))
    if late and not asynchronous:
        raise ConfigError(f"{sorted(late)} belong to asynchronous planning", "add asynchronous=True")
    if env is not None:
        given.setdefault("embodiment", embodiment_of(env))
    if not asynchronous:
        return RemoteAgent(url, **given)
    for key in ("ensemble", "chunker"):
        if key in given:
            raise ConfigError(f"asynchronous planning does its own chunking: {key} does not go with it")
    execute = given.pop("execute", None)
    agent = RemoteAgent(url, **given)
    try:
        return asynchronous_for(agent, env, execute=execute, **late)
    except BaseException:
        agent.close()
        raise
