"""Agents whose policy is served by another project: `load_agent("openpi+ws://host:8000", env=env)`, `starvla+ws://...`.

Such a server does not say what its policy senses and does, so it is the env's embodiment that counts, and nobody can check
that it is the right one: that is what our own protocol is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_agents.agent import Agent, ChunkingAgent
from vla_agents.async_agent import asynchronous_for
from vla_agents.chunking import Chunker, make_chunker
from vla_agents.embodiment import Embodiment, embodiment_of
from vla_agents.errors import ActionError, ConfigError, FrameError, RemotePolicyError, suggest
from vla_agents.observations import Observation
from vla_agents.serving.codec import Decoder, Encoder
from vla_agents.serving.keys import Keys
from vla_agents.serving.line import Line
from vla_agents.serving.transport import Wire

_LINE = ("token", "token_file", "ca_file", "timeout_s", "patience_s")
_ASYNCHRONOUS = ("asynchronous", "when_late", "continue_chunks")


class ForeignAgent(ChunkingAgent):
    """A chunk-planning client of a server that speaks first and then answers maps with maps.

    Args:
        url: `ws://` or `wss://`.
        embodiment: What the env senses and does.
        execute: Actions of a chunk to carry out; needed where the server does not say how many it plans.
        ensemble: `"act"` or `"cosine"`; needs `horizon` where the server does not say it.
        chunker: Instead of these.
        horizon: Actions per chunk, where the server does not say it.
        **line: Of `Line`.

    Attributes:
        metadata: What the server said about itself.
    """

    continues = False

    def __init__(
        self,
        url: str,
        embodiment: Embodiment,
        *,
        execute: int | None = None,
        ensemble: str | None = None,
        chunker: Chunker | None = None,
        horizon: int | None = None,
        **line: Any,
    ) -> None:
        self._encoder, self._decode = Encoder(), Decoder()
        self.metadata: dict[str, Any] = {}
        self._line = Line(url, self._greet, **line)
        try:
            self._line.call(lambda wire: None)
            said = [self.metadata.get(key) for key in ("action_chunk_size", "action_horizon", "horizon")]
            self.horizon = horizon or next((n for n in said if type(n) is int and n > 0), 0)
            made = chunker or self._chunker(execute, ensemble)
        except BaseException:
            self._line.close()
            raise
        super().__init__(embodiment, made)

    def _chunker(self, execute: int | None, ensemble: str | None) -> Chunker:
        if execute is not None and ensemble is not None:
            raise ConfigError(f"execute={execute} and ensemble={ensemble!r} exclude each other")
        if not self.horizon and (execute is None or ensemble is not None):
            raise ConfigError(
                "the server does not say how many actions it plans", "give execute=, e.g. 5, or horizon="
            )
        return make_chunker(execute or self.horizon, self.horizon or execute or 1, ensemble)

    @property
    def default_execute(self) -> int:
        """All that were planned, where nothing else is said."""
        if not self.horizon:
            raise ConfigError("the server does not say how many actions it plans", "give horizon=")
        return self.horizon

    def ask(self, wire: Wire, observations: Sequence[Observation]) -> list[Any]:
        """The chunk for each observation, as the server sends it."""
        raise NotImplementedError

    def plan_slots(self, slots: Sequence[int], observations: Sequence[Observation]) -> Sequence[np.ndarray]:
        """Planned on the server."""
        chunks = self._line.call(lambda wire: self.ask(wire, observations))
        if len(chunks) != len(observations):
            raise ActionError(f"the server planned {len(chunks)} chunks for {len(observations)} observations")
        return [self._checked(chunk) for chunk in chunks]

    def plan(self, obs: Observation, prefix: np.ndarray | None = None, committed: int = 0) -> np.ndarray:
        """A whole chunk (H, D); such servers take no prefix."""
        (chunk,) = self.plan_slots([0], [obs])
        return chunk

    def _checked(self, chunk: Any) -> np.ndarray:
        width = self.embodiment.action_dim
        if not isinstance(chunk, np.ndarray) or chunk.ndim != 2 or chunk.shape[1] != width or not len(chunk):
            raise ActionError(
                f"the server planned {np.shape(chunk)}, expected (H, {width}) for {self.embodiment.name!r}",
                "is it a policy for this body?",
            )
        return np.array(chunk, np.float32)

    def exchange(self, wire: Wire, message: dict[str, Any]) -> dict[str, Any]:
        """Say a map and hear one; a text is an error."""
        wire.send(self._encoder.encode(message))
        answer = wire.receive()
        if isinstance(answer, str):
            raise RemotePolicyError(f"the server says: {answer.strip()[-500:]}")
        found = self._decode(answer)
        if not isinstance(found, dict):
            raise FrameError("the server answered with what is no map")
        return found

    def _greet(self, wire: Wire) -> None:
        first = wire.receive()
        found = self._decode(first) if isinstance(first, bytes) else None
        if not isinstance(found, dict):
            raise FrameError("the server did not introduce itself with a map", "is it of that kind?")
        self.metadata = found

    def close(self) -> None:
        """Hang up."""
        self._line.close()


class OpenPIAgent(ForeignAgent):
    """A client of openpi's `serve_policy.py`.

    Args:
        keys: Our names -> keys of the served policy. By default the first camera is `observation/image`, one with "wrist"
            in its name `observation/wrist_image`, another `observation/NAME`; the state is `observation/state`, the
            instruction `prompt`. Where parts of the state are named, those are sent instead of the whole.
        **options: Of `ForeignAgent`.
    """

    def __init__(
        self, url: str, embodiment: Embodiment, *, keys: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        self._keys = Keys(dict(keys or {}))
        known = {*embodiment.camera_names, *(part.name for part in embodiment.state), "state", "instruction"}
        for name in self._keys.names:
            if name not in known:
                raise ConfigError(f"keys: {name!r} is nothing of {embodiment.name!r}{suggest(name, known)}")
        super().__init__(url, embodiment, **options)

    def ask(self, wire: Wire, observations: Sequence[Observation]) -> list[Any]:
        """One request each."""
        return [self.exchange(wire, self._message(obs)).get("actions") for obs in observations]

    def _message(self, obs: Observation) -> dict[str, Any]:
        message: dict[str, Any] = {self._keys.path("instruction", "prompt"): obs["instruction"]}
        for index, camera in enumerate(self.embodiment.camera_names):
            default = "observation/image" if index == 0 else f"observation/{camera}"
            default = "observation/wrist_image" if "wrist" in camera else default
            message[self._keys.path(camera, default)] = obs["images"][camera]
        parts = self.embodiment.state_slices()
        named = [name for name in parts if name in self._keys.names]
        for name in named:
            message[self._keys.names[name]] = obs["state"][parts[name]]
        if parts and not named:
            message[self._keys.path("state", "observation/state")] = obs["state"]
        return message


class StarVLAAgent(ForeignAgent):
    """A client of StarVLA's `server_policy.py`.

    Args:
        unnorm_key: Which of its statistics un-normalise the actions; None: the server's default.
        send_state: Whether the policy sees the state; the published checkpoints do not.
        **options: Of `ForeignAgent`.
    """

    def __init__(
        self,
        url: str,
        embodiment: Embodiment,
        *,
        unnorm_key: str | None = None,
        send_state: bool = False,
        **options: Any,
    ) -> None:
        self._key, self._sends_state = unnorm_key, send_state
        super().__init__(url, embodiment, **options)
        known = self.metadata.get("available_unnorm_keys")
        if unnorm_key is not None and isinstance(known, list) and unnorm_key not in known:
            self.close()
            raise ConfigError(f"the server has no statistics {unnorm_key!r}", f"it has {known}")

    def ask(self, wire: Wire, observations: Sequence[Observation]) -> list[Any]:
        """One request for all."""
        examples = [self._example(obs) for obs in observations]
        payload = {"examples": examples} | ({} if self._key is None else {"unnorm_key": self._key})
        answer = self.exchange(wire, {"type": "infer", "request_id": "vla-agents", "payload": payload})
        if not answer.get("ok"):
            problem = answer.get("error")
            raise RemotePolicyError(
                f"the server says: {problem.get('message') if isinstance(problem, dict) else problem}"
            )
        data = answer.get("data")
        actions = data.get("actions") if isinstance(data, dict) else None
        if actions is None:
            raise ConfigError(
                "the server sends no 'actions'",
                "StarVLA before 2026 sends normalised ones: serve with a newer one",
            )
        return list(actions)

    def _example(self, obs: Observation) -> dict[str, Any]:
        pictures = [obs["images"][name] for name in self.embodiment.camera_names]
        example = {"image": pictures, "lang": obs["instruction"]}
        if self._sends_state:
            example["state"] = np.asarray(obs["state"], np.float32)[None]
        return example


def connect_openpi(url: str, *, env: Any = None, **overrides: Any) -> Agent:
    """What `load_agent` does with `openpi+ws://...`; options are `OpenPIAgent`'s, and `asynchronous` with its own."""
    return _connect(OpenPIAgent, ("keys",), url, env, overrides)


def connect_starvla(url: str, *, env: Any = None, **overrides: Any) -> Agent:
    """What `load_agent` does with `starvla+ws://...`; options are `StarVLAAgent`'s, and `asynchronous` with its own."""
    return _connect(StarVLAAgent, ("unnorm_key", "send_state"), url, env, overrides)


def _connect(
    kind: type[ForeignAgent], own: tuple[str, ...], url: str, env: Any, overrides: dict[str, Any]
) -> Agent:
    known = ("embodiment", "execute", "ensemble", "chunker", "horizon", *own, *_LINE, *_ASYNCHRONOUS)
    for key in overrides:
        if key not in known:
            raise ConfigError(f"{key}: no option of such a server{suggest(key, known)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    late = {key: given.pop(key) for key in _ASYNCHRONOUS if key in given}
    body = given.pop("embodiment", None) or (None if env is None else embodiment_of(env))
    if body is None:
        raise ConfigError(
            "such a server does not say what its policy senses and does", "give env= or embodiment="
        )
    address = url.split("+", 1)[1]
    if not late.pop("asynchronous", False):
        if late:
            raise ConfigError(f"{sorted(late)} belong to asynchronous planning", "add asynchronous=True")
        return kind(address, body, **given)
    execute = given.get("execute")
    return asynchronous_for(kind(address, body, **given), env, execute=execute, **late)
