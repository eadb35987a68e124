"""What tests of serving share: planners, raw connections, hostile bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fake_env import FakePolicy, make_embodiment

from vla_agents.agent import PolicyAgent
from vla_agents.embodiment import Embodiment
from vla_agents.serving.codec import Encoder, decode
from vla_agents.serving.messages import SUBPROTOCOL
from vla_agents.serving.transport import Wire

TOKEN = "a-token-that-is-long-enough"
BODY = make_embodiment()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other threads or processes do."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def fake_agent(**options: Any) -> PolicyAgent:
    return PolicyAgent(FakePolicy(**options))  # type: ignore[arg-type]


class Planner:
    """Plans chunks that hold the state's first value, the seed's first draw and the prefix; notes how it was asked."""

    continues = True

    def __init__(self, body: Embodiment = BODY, horizon: int = 6, seconds: float = 0.0) -> None:
        self.embodiment, self.horizon, self.default_execute = body, horizon, 3
        self.seconds = seconds
        self.batches: list[int] = []
        self.committed: list[int] = []
        self.gate: threading.Event | None = None
        self.entered = threading.Event()

    def generator(self, seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    def plan_batch(
        self,
        observations: Sequence[dict[str, Any]],
        generators: Sequence[Any],
        prefixes: Sequence[np.ndarray] | None = None,
        committed: int = 0,
    ) -> list[np.ndarray]:
        self.batches.append(len(observations))
        self.committed.append(committed)
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(60)
        time.sleep(self.seconds)
        chunks = []
        for index, (obs, generator) in enumerate(zip(observations, generators, strict=True)):
            if obs["instruction"] == "explode":
                raise RuntimeError("secret: /home/somebody/checkpoint")
            chunk = np.zeros((self.horizon, self.embodiment.action_dim), np.float32)
            chunk[:, 0] = np.nan if obs["instruction"] == "nan" else obs["state"][0]
            chunk[:, 1] = -1 if generator is None else generator.random()
            chunk[:, 2] = obs["images"]["front"][0, 0, 0]
            if prefixes is not None:
                chunk[: len(prefixes[index])] = prefixes[index]
            chunks.append(chunk)
        return chunks


class Raw:
    """A client that says whatever a test wants."""

    def __init__(
        self, url: str, subprotocol: str | None = SUBPROTOCOL, *, greet: bool = True, **options: Any
    ) -> None:
        self.wire = Wire(url, subprotocol=subprotocol, **{"timeout_s": 60.0, **options})
        self.encoder = Encoder()
        self.hello = self.hear() if subprotocol else {}
        if subprotocol and greet:
            self.say({"type": "hello", "protocol": 1})
            assert self.hear()["type"] == "ready"

    def say(self, message: Any) -> None:
        self.wire.send(message if isinstance(message, bytes) else self.encoder.encode(message))

    def hear(self) -> Any:
        data = self.wire.receive()
        return decode(data) if isinstance(data, bytes) else data

    def ask(self, message: Any) -> Any:
        self.say(message)
        return self.hear()

    def close(self) -> None:
        self.wire.close()
