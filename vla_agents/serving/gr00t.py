"""GR00T's ZeroMQ protocol (N1.5 and N1.6), served beside the websockets; `pip install 'vla-agents[gr00t]'`.

    client   {"endpoint": "get_action", "data": {...}, "api_token": "..."}
    server   N1.5: {"action.PART": (H, d)}    N1.6: [{PART: (B, H, d)}, {}]    or {"error": text}

N1.5's data is the observation, with keys `video.CAMERA` (T, H, W, 3), `state.PART` (T, d) and
`annotation.human.task_description`; N1.6's is `{"observation": {"video": {CAMERA: (B, T, H, W, 3)}, "state": {PART: (B, T,
d)}, "language": {...: [[text]]}}, "options": ...}`. Of several times the last is seen. `kill` is refused.

ZeroMQ has no headers, so the token comes in the message: it is looked for without building anything else of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import numpy as np

from vla_agents.errors import FrameError, MissingDependencyError, ServingError, VlaAgentsError
from vla_agents.serving.arrays import WireLimits
from vla_agents.serving.codec import Encoder, decode
from vla_agents.serving.foreign_arrays import numpy_file_map, with_numpy_files
from vla_agents.serving.keys import Keys
from vla_agents.serving.messages import MAX_OBSERVATIONS, error_message
from vla_agents.serving.security import check_exposure, matches
from vla_agents.serving.server import PolicyServer
from vla_agents.serving.session import Session

log = logging.getLogger(__name__)
UNAUTHORIZED = "Unauthorized: Invalid API token"
_KEY = "annotation.human.task_description"


class Gr00tServer:
    """Answers GR00T's clients for a policy server, while that runs.

    Args:
        server: Plans, limits and counts.
        port: To listen on, at the server's host; 0 takes a free one.
    """

    def __init__(self, server: PolicyServer, port: int = 5555) -> None:
        self._server, self._port = server, port
        self._session = Session(server, None, "gr00t")
        self._encoder = Encoder(numpy_file_map)
        self._task: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self) -> None:
        """Listen."""
        try:
            import zmq
            import zmq.asyncio
        except ImportError as error:
            raise MissingDependencyError("pyzmq", "gr00t", "serving GR00T's clients") from error
        config = self._server.config
        warning = check_exposure(config.host, config.token, tls=False)
        if warning:
            log.warning(warning)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, config.limits.max_bytes)
        self._socket.setsockopt(zmq.RCVHWM, 2 * config.max_clients)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(f"tcp://{config.host}:{self._port or '*'}")
        except zmq.ZMQError as error:
            self._socket.close()
            raise ServingError(
                f"cannot listen on port {self._port}: {error}", "take another --gr00t-port"
            ) from None
        self.url = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Listen no more, once what is under way is answered."""
        if self._task is None:
            return
        self._task.cancel()
        if self._requests:
            await asyncio.wait(self._requests, timeout=self._server.config.drain_s)
        self._socket.close()
        self._context.term()

    async def _run(self) -> None:
        while True:
            *route, data = await self._socket.recv_multipart()
            self._server.metrics.received.add(by=len(data))
            if len(self._requests) >= 2 * self._server.config.max_clients:
                self._server.metrics.refused.add("clients")
                continue
            task = asyncio.create_task(self._serve(route, data))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _serve(self, route: list[bytes], data: bytes) -> None:
        begin = time.monotonic()
        reply = await self._reply(data)
        self._server.metrics.sent.add(by=len(reply))
        await self._socket.send_multipart([*route, reply])
        self._server.metrics.seconds.add(time.monotonic() - begin)

    async def _reply(self, data: bytes) -> bytes:
        token = self._server.config.token
        if token is not None and not matches(token, find_token(data, self._server.config.limits)):
            self._server.metrics.refused.add("token")
            return self._encoder.encode({"error": UNAUTHORIZED})
        try:
            message = decode(data, self._server.config.limits, with_numpy_files)
            return self._encoder.encode(await self._answer(message))
        except Exception as error:
            if isinstance(error, VlaAgentsError):
                self._server.metrics.refused.add("gr00t")
            said = error_message(error, None)
            return self._encoder.encode({"error": f"{said['code']}: {said['message']}"})

    async def _answer(self, message: Any) -> Any:
        if not isinstance(message, dict):
            raise FrameError("a message that is no map")
        endpoint, data = message.get("endpoint", "get_action"), message.get("data") or {}
        if endpoint == "ping":
            return {"status": "ok", "message": "Server is running"}
        if endpoint == "reset":
            self._session.forget()
            return {"ok": True}
        if endpoint == "get_modality_config":
            return self._modalities()
        if endpoint != "get_action" or not isinstance(data, dict):
            raise FrameError(
                f"endpoint {str(endpoint)[:40]!r} is not served",
                "get_action, reset, ping, get_modality_config",
            )
        newer = isinstance(data.get("observation"), dict)
        return await (self._newer(data["observation"]) if newer else self._older(data))

    async def _older(self, data: dict[str, Any]) -> dict[str, Any]:
        """N1.5: one observation, flat."""
        keys, body = self._server.keys or Keys(), self._server.embodiment
        planned = await self._session.plan([keys.observation(data, body)])
        return {f"action.{name}": planned.chunks[0][:, part] for name, part in body.action_slices().items()}

    async def _newer(self, observation: dict[str, Any]) -> list[Any]:
        """N1.6: B observations."""
        keys, body = self._server.keys or Keys(), self._server.embodiment
        video = observation.get("video")
        sizes = (
            {len(v) for v in video.values() if isinstance(v, np.ndarray) and v.ndim}
            if isinstance(video, dict)
            else set()
        )
        if len(sizes) != 1 or not 1 <= min(sizes) <= MAX_OBSERVATIONS:
            raise FrameError(
                f"video must be a map of pictures (B, T, H, W, 3), B the same and at most {MAX_OBSERVATIONS}"
            )
        (count,) = sizes
        rows = [keys.observation(_row(observation, index, count), body) for index in range(count)]
        planned = await self._session.plan(rows)
        return [{name: planned.chunks[:, :, part] for name, part in body.action_slices().items()}, {}]

    def _modalities(self) -> dict[str, Any]:
        body = self._server.embodiment

        def config(steps: int, names: list[str]) -> dict[str, Any]:
            found = {"delta_indices": list(range(steps)), "modality_keys": names}
            return {"__ModalityConfig_class__": True, "as_json": found}

        return {
            "video": config(1, list(body.camera_names)),
            "state": config(1, [part.name for part in body.state]),
            "action": config(self._server.horizon, [part.name for part in body.action]),
            "language": config(1, [_KEY]),
        }


def _row(value: Any, index: int, count: int) -> Any:
    """What belongs to one of the observations."""
    if isinstance(value, dict):
        return {key: _row(item, index, count) for key, item in value.items()}
    if isinstance(value, np.ndarray | list) and len(value) == count:
        return value[index]
    raise FrameError(f"what is not of {count} observations, beside video that is")


def find_token(data: bytes, limits: WireLimits) -> str:
    """The `api_token` of a request, or an empty string; everything else of it is skipped."""
    from msgpack import Unpacker

    reader = Unpacker(max_buffer_size=limits.max_bytes, max_str_len=limits.max_text, raw=True)
    try:
        reader.feed(data)
        for _ in range(min(reader.read_map_header(), 64)):
            length = data[reader.tell()]
            if (
                0xA0 <= length < 0xC0
                and data[reader.tell() + 1 :].startswith(b"api_token")
                and length == 0xA9
            ):
                reader.skip()
                found = reader.unpack() if 0xA0 <= data[reader.tell()] < 0xDC else b""
                return found.decode("utf-8", "replace") if isinstance(found, bytes) else ""
            reader.skip()
            reader.skip()
    except Exception:  # whatever msgpack says to bytes that are no map
        return ""
    return ""
