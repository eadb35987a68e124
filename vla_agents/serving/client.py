"""Our protocol, from the client's side: requests for chunks, over a line that is dialled again when it breaks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

import vla_agents
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ActionError, FrameError, ServingError
from vla_agents.observations import Observation
from vla_agents.serving.codec import Decoder, Encoder
from vla_agents.serving.doorbell_client import MOST, Ringer
from vla_agents.serving.line import Line
from vla_agents.serving.messages import PROTOCOL, SUBPROTOCOL, raise_error, read_embodiment
from vla_agents.serving.security import is_loopback
from vla_agents.serving.shared_memory import ALIGNMENT, ClientMemory, is_supported
from vla_agents.serving.transport import Wire

log = logging.getLogger(__name__)
_SMALLEST_MEMORY = 2**20
_FIRST_ID = 2**16  # ids of one width, so that messages are laid out alike (`codec.Decoder`)


class PolicyClient:
    """Speaks our protocol.

    Args:
        url: `ws://`, `wss://` or `ws+unix://`.
        embodiment: What this side senses and does; None: whatever the policy was trained on.
        shared_memory: Use it, where the server is on this machine and offers it.
        **line: Of `Line`.

    Attributes:
        embodiment: The served policy's.
        horizon: Actions per chunk.
        default_execute: How many of them are carried out, where nothing else is said.
        continues: Whether chunks can go on from a prefix.
        revision: Which load of the checkpoint planned last.
        timing: Of the last plan on the server: `queue_ms`, `infer_ms`, `batch`.
    """

    def __init__(
        self, url: str, *, embodiment: Embodiment | None = None, shared_memory: bool = True, **line: Any
    ) -> None:
        self.embodiment: Embodiment
        self.horizon = self.default_execute = self.revision = 0
        self.continues = False
        self.timing: dict[str, Any] = {}
        self._ours = embodiment
        self._encoder, self._decode = Encoder(), Decoder()
        self._count = _FIRST_ID
        host = urlsplit(url).hostname
        self._may_share = shared_memory and is_supported() and (host is None or is_loopback(host))
        self._offered = False
        self._memory: ClientMemory | None = None
        self._ringer: Ringer | None = None
        self._line = Line(url, self._greet, subprotocol=SUBPROTOCOL, **line)
        self._line.call(lambda wire: None)

    @property
    def reconnects(self) -> int:
        """How often the connection broke and came back."""
        return self._line.reconnects

    # ---- what can be asked --------------------------------------------------------------------------------
    def plan(
        self,
        observations: Sequence[Observation],
        slots: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        prefixes: np.ndarray | None = None,
        committed: int = 0,
    ) -> np.ndarray:
        """Chunks (n, H, D) for n observations; see `messages` for the arguments.

        Raises:
            VlaAgentsError: What the server answered.
            ConnectionLostError: It could not be reached.
        """
        message: dict[str, Any] = {"type": "plan"}
        optional = {"slots": slots, "seeds": seeds, "prefixes": prefixes}
        message |= {
            k: v if isinstance(v, np.ndarray) else list(v) for k, v in optional.items() if v is not None
        }
        if committed:
            message["committed"] = committed

        slim = [self._slim(obs) for obs in observations]

        def exchange(wire: Wire) -> dict[str, Any]:
            given = self._through_memory(wire, slim)
            return self._ask(wire, message | {"observations": given}, "chunks", self._door(len(slim)))

        answer = self._line.call(exchange)
        self.revision, self.timing = answer["revision"], answer["timing"]
        chunks = answer["chunks"]
        wanted = (len(observations), self.horizon, self.embodiment.action_dim)
        if not isinstance(chunks, np.ndarray) or chunks.shape != wanted or not np.isfinite(chunks).all():
            raise ActionError(f"the server planned {np.shape(chunks)}, expected finite actions {wanted}")
        return chunks.astype(np.float32)  # a copy: the message is read-only

    def reset(self, slots: Sequence[int] | None = None) -> None:
        """New episodes begin in these slots (all: None)."""
        message = {"type": "reset"} | ({} if slots is None else {"slots": list(slots)})
        self._line.call(lambda wire: self._ask(wire, message, "done"))

    def ping(self) -> None:
        """Hear that the server is there."""
        self._line.call(lambda wire: self._ask(wire, {"type": "ping"}, "done"))

    def close(self) -> None:
        """Hang up."""
        self._line.close()
        self._forget_memory()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- the wire -----------------------------------------------------------------------------------------
    def _greet(self, wire: Wire) -> None:
        self._forget_memory()
        hello = self._read(wire.receive(), "hello")
        if hello.get("protocol") != PROTOCOL:
            raise ServingError(
                f"the server speaks version {hello.get('protocol')} of the protocol, this is {PROTOCOL}"
            )
        body = read_embodiment(hello["embodiment"])
        if self._ours is not None:
            body.require(self._ours, ours="the served policy", theirs="this client")
        shape = (int(hello["horizon"]), int(hello["execute"]), bool(hello["continues"]))
        if self.horizon and (
            body.differences(self.embodiment) or shape[::2] != (self.horizon, self.continues)
        ):
            raise ServingError("another policy is served there now", "load the agent anew")
        self.embodiment = body
        self.horizon, self.default_execute, self.continues = shape
        self._offered = self._may_share and hello.get("shared_memory") is True
        ours = {"type": "hello", "protocol": PROTOCOL, "client": f"vla-agents {vla_agents.__version__}"}
        if self._ours is not None:
            ours["embodiment"] = self._ours.to_dict()
        wire.send(self._encoder.encode(ours))
        self._read(wire.receive(), "ready")

    def _ask(
        self, wire: Wire, message: dict[str, Any], kind: str, door: Ringer | None = None
    ) -> dict[str, Any]:
        self._count += 1
        with self._encoder.view(message | {"id": self._count}) as data:
            if door is not None and len(data) <= MOST:
                heard: bytes | str = wire.elsewhere(door.ask, data)
            else:
                wire.send(data)
                heard = wire.receive()
        answer = self._read(heard, kind)
        if answer.get("id") != self._count:
            raise FrameError(f"the server answered request {answer.get('id')!r}, not {self._count}")
        return answer

    def _slim(self, obs: Observation) -> Observation:
        """What the policy sees of it."""
        body = self.embodiment
        images = {name: obs["images"][name] for name in body.camera_names}
        found: Observation = {"images": images, "instruction": obs["instruction"]}
        if body.state_dim:
            found["state"] = np.asarray(obs["state"], np.float32)
        return found

    def _through_memory(self, wire: Wire, observations: Sequence[Observation]) -> list[Observation]:
        """The observations with their pictures in shared memory, as far as there is some with room for them."""
        if not self._offered:
            return list(observations)
        if self._memory is None:
            self._memory = self._share(wire, observations)
            if self._memory is None:
                self._offered = False
                return list(observations)
        memory = self._memory
        memory.rewind()

        def placed(image: Any) -> Any:
            told = memory.put(image) if isinstance(image, np.ndarray) else None
            return image if told is None else told

        return [
            obs | {"images": {camera: placed(image) for camera, image in obs["images"].items()}}
            for obs in observations
        ]

    def _share(self, wire: Wire, observations: Sequence[Observation]) -> ClientMemory | None:
        images = [image for obs in observations for image in obs["images"].values()]
        size = 2 * sum(getattr(image, "nbytes", 0) + ALIGNMENT for image in images)
        answer = self._ask(wire, {"type": "share", "size": max(size, _SMALLEST_MEMORY)}, "shared")
        try:
            memory = ClientMemory(answer)
        except (OSError, KeyError, ValueError) as error:
            log.info("no shared memory with %s (%s): pictures are sent", self._line.url, error)
            return None
        if "doorbell" in answer:
            try:
                self._ringer = Ringer(str(answer["doorbell"]), wire.timeout_s)
            except OSError as error:
                log.info("no door to %s (%s): requests go through the connection", self._line.url, error)
        return memory

    def _door(self, count: int) -> Ringer | None:
        """The shorter way, where there is one and an answer fits through it."""
        size = 4 * count * self.horizon * self.embodiment.action_dim
        return self._ringer if size < MOST - 1024 else None

    def _forget_memory(self) -> None:
        if self._ringer is not None:
            self._ringer.close()
            self._ringer = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _read(self, data: bytes | str, kind: str) -> dict[str, Any]:
        """A message of the server's of that type; an error is raised."""
        message = self._decode(data) if isinstance(data, bytes) else None
        if not isinstance(message, dict):
            raise FrameError(
                "the server sent what is no message of this protocol", "is it a vla-agents server?"
            )
        if message.get("type") == "error":
            raise_error(message)
        if message.get("type") != kind:
            raise FrameError(f"the server sent {str(message.get('type'))[:40]!r} instead of {kind!r}")
        return message
