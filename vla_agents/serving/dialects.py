"""What clients of other projects say, answered on the same port: openpi's, StarVLA's, vla-eval's.

openpi      server: a map; client: a flat map of arrays and a prompt; server: {"actions"} or a text, which is an error
StarVLA     server: a map; client: {"examples": [{"image": [...], "lang", "state"}]}; server: {"status", "ok", "data"}
vla-eval    client: {"type": "hello"}; server: the same; then observation -> action, one at a time

openpi's and StarVLA's clients wait for the server to speak first, and vla-eval's does not. So a server that is not told
who comes waits for a moment: what is said into the silence is vla-eval. A path (`/openpi`, `/starvla`, `/vla-eval`) leaves
no doubt.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import numpy as np

import vla_agents
from vla_agents.chunking import RecedingHorizon
from vla_agents.errors import FrameError, VlaAgentsError
from vla_agents.serving.codec import Decoder, Encoder, decode
from vla_agents.serving.foreign_arrays import str_map, with_pictures
from vla_agents.serving.keys import Keys
from vla_agents.serving.messages import MAX_OBSERVATIONS, error_message, read_observation
from vla_agents.serving.planning import Planned
from vla_agents.serving.session import Left, Session

log = logging.getLogger(__name__)
SILENCE_S = 0.25
STARVLA_TYPES = ("ping", "infer", "predict_action", "init", "reset")
# Our conventions by vla-eval's names, where it has one.
VLA_EVAL_FORMATS = {
    "delta_xyz": ("position", "delta_xyz"),
    "xyz": ("position", "absolute_xyz"),
    "delta_axis_angle": ("rotation", "axis_angle"),
    "axis_angle": ("rotation", "axis_angle"),
    "euler_xyz": ("rotation", "euler_xyz"),
    "quaternion_xyzw": ("rotation", "quaternion_xyzw"),
    "gripper_close_pm1": ("gripper", "binary_close_positive"),
    "gripper_open_pm1": ("gripper", "binary_close_negative"),
    "gripper_open_01": ("gripper", "continuous_01"),
    "gripper_close_01": ("gripper", "binary_close_01"),
}


async def speak_foreign(session: Session) -> None:
    """Answer a client that is none of ours, until it leaves."""
    first: bytes | None = None
    if session.protocol == "auto":
        try:
            first = await session.receive(SILENCE_S)
            session.protocol = "vla-eval"
        except TimeoutError:
            pass
    if session.protocol == "vla-eval":
        await VlaEval(session).speak(first)
    else:
        await Waiting(session).speak()


def keys_of(session: Session) -> Keys:
    """What the client calls our cameras."""
    return session.server.keys or Keys()


async def answered(
    session: Session, answer: Callable[[], Awaitable[bytes | str | None]], fault: Callable[..., Any]
) -> None:
    """Send the answer, where it is not sent already, or what stands for the error that came instead."""
    try:
        reply = await answer()
    except Left:
        raise
    except VlaAgentsError as error:
        await session.fault(error)
        reply = fault(error_message(error, None))
    except Exception as error:  # of the policy; logged where it was planned
        session.server.metrics.refused.add("failed")
        reply = fault(error_message(error, None))
    if reply is not None:
        await session.send(reply)
    session.answered()


def _sentence(error: dict[str, Any]) -> str:
    return f"{error['code']}: {error['message']}" + (f" ({error['remedy']})" if error["remedy"] else "")


# ---- openpi and StarVLA -----------------------------------------------------------------------------------
class Waiting:
    """Clients that wait for a map of ours before they ask: openpi's and StarVLA's, told apart by what they ask."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._encoder, self._decode = Encoder(), Decoder(session.limits)
        self._told_key = self._starvla = False
        self._id: str | int = "default"
        self._begin = 0.0

    async def speak(self) -> None:
        """Introduce the policy, then answer."""
        await self._session.send(self._encoder.encode(self._metadata()))
        while True:
            data = await self._session.receive()
            self._begin, self._starvla = time.monotonic(), False
            self._id = "default"
            await answered(self._session, lambda data=data: self._answer(data), self._fault)  # type: ignore[misc]

    def _metadata(self) -> dict[str, Any]:
        server, body = self._session.server, self._session.embodiment
        size = [body.cameras[0].height, body.cameras[0].width] if body.cameras else None
        return {
            "server": f"vla-agents {vla_agents.__version__}",
            "env": "vla_agents_policy_server",
            "embodiment": body.to_dict(),
            "action_chunk_size": server.horizon,
            "action_horizon": server.horizon,
            "action_dim": body.action_dim,
            "available_unnorm_keys": [body.name],
            "default_unnorm_key": body.name,
            "training_obs_image_size": size,
            "cameras": list(body.camera_names),
            "action_keys": [f"action.{part.name}" for part in body.action],
            "state_keys": [f"state.{part.name}" for part in body.state],
        }

    async def _answer(self, data: bytes) -> bytes | None:
        message = self._decode(data)
        if not isinstance(message, dict):
            raise FrameError("a message that is no map")
        kind = message.get("type")
        is_starvla = "examples" in message or "payload" in message or kind in STARVLA_TYPES
        if self._session.protocol == "starvla" or (self._session.protocol == "auto" and is_starvla):
            self._starvla = True
            return await self._answer_starvla(message)
        await self._answer_openpi(message)
        return None

    async def _answer_openpi(self, message: dict[str, Any]) -> None:
        observation = keys_of(self._session).observation(message, self._session.embodiment)

        def reply(planned: Planned) -> bytes:
            timing = {"infer_ms": planned.infer_s * 1000, "total_ms": (time.monotonic() - self._begin) * 1000}
            return self._encoder.encode({"actions": planned.chunks[0], "server_timing": timing})

        await self._session.plan_and_send([observation], reply)

    async def _answer_starvla(self, message: dict[str, Any]) -> bytes:
        given = message.get("request_id", "default")
        self._id = given if isinstance(given, str | int) and len(str(given)) <= 128 else "default"
        kind = message.get("type", "infer")
        answer: dict[str, Any] = {"status": "ok", "ok": True, "request_id": self._id}
        if kind in ("ping", "init", "reset"):
            if kind == "reset":
                self._session.forget()
            return self._encoder.encode(answer | {"type": kind})
        if kind not in ("infer", "predict_action"):
            raise FrameError(f"unknown type {str(kind)[:40]!r}", f"known: {', '.join(STARVLA_TYPES)}")
        payload = message.get("payload", message)
        examples = payload.get("examples") if isinstance(payload, dict) else None
        if not isinstance(examples, list) or not 1 <= len(examples) <= MAX_OBSERVATIONS:
            raise FrameError(f"examples must be a list of 1 to {MAX_OBSERVATIONS} maps")
        self._check_key(payload.get("unnorm_key"))
        planned = await self._session.plan([self._example(example) for example in examples], request=self._id)
        data = {"actions": planned.chunks}
        return self._encoder.encode(answer | {"type": "inference_result", "data": data})

    def _example(self, example: Any) -> dict[str, Any]:
        body = self._session.embodiment
        if not isinstance(example, dict):
            raise FrameError("an example that is no map")
        pictures = example.get("image")
        pictures = pictures if isinstance(pictures, list) else [pictures]
        if len(pictures) != len(body.cameras):
            raise FrameError(
                f"{len(pictures)} pictures, expected {len(body.cameras)}: {', '.join(body.camera_names)}"
            )
        state = example.get("state")
        if isinstance(state, np.ndarray | list) and np.ndim(state) == 2:  # (T, S): what it is now
            state = state[-1] if len(state) else None
        found = {
            "images": dict(zip(body.camera_names, pictures, strict=True)),
            "instruction": example.get("lang"),
            "state": state if body.state else None,
        }
        return read_observation(found, body)

    def _check_key(self, key: Any) -> None:
        """One policy has one set of statistics, so there is nothing to choose; another name is worth a line."""
        if key is not None and key != self._session.embodiment.name and not self._told_key:
            self._told_key = True
            log.warning(
                "session %s asks for unnorm_key %r; there is one set of statistics", self._session.id, key
            )

    def _fault(self, error: dict[str, Any]) -> bytes | str:
        if not self._starvla:
            return _sentence(error)  # what openpi's client takes for an error
        answer = {"status": "error", "ok": False, "type": "inference_result", "request_id": self._id}
        return self._encoder.encode(answer | {"error": {"message": _sentence(error), "code": error["code"]}})


# ---- vla-eval ---------------------------------------------------------------------------------------------
class VlaEval:
    """The harness asks for one action at a time: chunks are played here, anew in every episode."""

    def __init__(self, session: Session) -> None:
        self._session, self._encoder = session, Encoder(str_map)
        self._chunker = RecedingHorizon(session.server.default_execute)
        self._instruction: Any = None
        self._seq = 0

    async def speak(self, first: bytes | None) -> None:
        """Answer until the client leaves; `first` was received already."""
        while True:
            data = await self._session.receive() if first is None else first
            first = None
            self._seq, self._silent = 0, False
            await self._one(data)

    async def _one(self, data: bytes) -> None:
        async def answer() -> bytes | str:
            # Pictures come as PNG or JPEG: reading them takes milliseconds, which others shall not wait for.
            message = await asyncio.to_thread(decode, data, self._session.limits, with_pictures)
            return await self._answer(message)

        with suppress(_NoAnswer):
            await answered(
                self._session, answer, lambda error: self._message("error", {"error": _sentence(error)})
            )

    async def _answer(self, message: Any) -> bytes:
        if not isinstance(message, dict) or not isinstance(message.get("payload"), dict):
            raise FrameError("a message without a payload")
        seq = message.get("seq")
        self._seq = seq if type(seq) is int and abs(seq) < 2**53 else 0
        kind, payload = message.get("type"), message["payload"]
        if kind == "hello":
            return self._message("hello", self._hello())
        if kind == "observation":
            return self._message("action", {"actions": await self._act(payload)})
        if kind in ("episode_start", "episode_end", "error"):
            self._chunker.reset(None)
            self._session.forget()
            raise _NoAnswer
        raise FrameError(f"unknown type {str(kind)[:40]!r}")

    async def _act(self, payload: dict[str, Any]) -> np.ndarray:
        observation = keys_of(self._session).observation(payload, self._session.embodiment)
        if observation["instruction"] != self._instruction:
            self._instruction = observation["instruction"]
            self._chunker.reset(0)
        if self._chunker.needs_plan(0):
            planned = await self._session.plan([observation])
            self._chunker.add(0, planned.chunks[0])
        return self._chunker.next(0)

    def _hello(self) -> dict[str, Any]:
        body = self._session.embodiment
        specs = {}
        for part in body.action:
            name, convention = VLA_EVAL_FORMATS.get(part.kind, (part.name, part.kind))
            specs[name] = {"name": name, "dims": part.size, "format": convention}
        observed = {
            name: {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"} for name in body.camera_names
        }
        observed["language"] = {"name": "language", "dims": 0, "format": "language"}
        return {
            "harness_version": f"vla-agents {vla_agents.__version__}",
            "protocol_version": 1,
            "model_server": "vla-agents",
            "capabilities": {},
            "action_spec": specs,
            "observation_spec": observed,
            "embodiment": json.loads(json.dumps(body.to_dict())),
        }

    def _message(self, kind: str, payload: dict[str, Any]) -> bytes:
        return self._encoder.encode(
            {"type": kind, "payload": payload, "seq": self._seq, "timestamp": time.time()}
        )


class _NoAnswer(Left):
    """To this message none is expected."""
