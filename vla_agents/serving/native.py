"""Our own protocol, from the server's side. See `messages` for what is said, `docs/serving.md` for the specification."""

from __future__ import annotations

from typing import Any

import vla_agents
from vla_agents.errors import EmbodimentMismatchError, FrameError, VlaAgentsError
from vla_agents.serving import doorbell, messages
from vla_agents.serving.codec import Decoder, Encoder
from vla_agents.serving.session import Left, Session
from vla_agents.serving.shared_memory import ServerMemory, is_supported


class NativeProtocol:
    """What one client of ours says and hears.

    Args:
        session: The client.
        is_local: Whether it is on this machine, so that memory can be shared.
    """

    def __init__(self, session: Session, is_local: bool) -> None:
        self._session, self._shares = session, is_local and is_supported()
        self._encoder, self._decode = Encoder(), Decoder(session.limits)
        self._memory: ServerMemory | None = None
        self._doorbell: doorbell.Doorbell | None = None

    async def speak(self) -> None:
        """Greet, then answer until the client leaves."""
        try:
            await self._say(self._hello())
            if not await self._meet():
                return
            while True:
                await self._answer_one()
        finally:
            if self._doorbell is not None:
                self._doorbell.shut()
            elif self._memory is not None:
                self._memory.close()

    def _hello(self) -> dict[str, Any]:
        server = self._session.server
        return {
            "type": "hello",
            "protocol": messages.PROTOCOL,
            "server": f"vla-agents {vla_agents.__version__}",
            "embodiment": server.embodiment.to_dict(),
            "horizon": server.horizon,
            "execute": server.default_execute,
            "continues": server.continues,
            "revision": server.batcher.revision,
            "max_bytes": self._session.limits.max_bytes,
            "shared_memory": self._shares,
        }

    async def _meet(self) -> bool:
        """Hear the client's hello; False where its body is another, which it is told."""
        try:
            hello = self._decode(await self._session.receive(self._session.server.config.hello_s))
            messages.fields(hello, ("type", "protocol"), ("client", "embodiment"))
            if hello["type"] != "hello":
                raise FrameError("the first message must be a hello")
            if hello["protocol"] != messages.PROTOCOL:
                raise FrameError(f"another version of the protocol; this server speaks {messages.PROTOCOL}")
            if hello.get("embodiment") is not None:
                theirs = messages.read_embodiment(hello["embodiment"])
                self._session.embodiment.require(theirs, ours="served policy", theirs="client")
        except (FrameError, EmbodimentMismatchError) as error:
            await self._session.fault(error)
            await self._say(messages.error_message(error, None))
            await self._session.leave(1008, messages.code_of(error))
        except TimeoutError:
            await self._session.leave(1008, "no hello")
        await self._say({"type": "ready", "session": self._session.id})
        return True

    async def _answer_one(self) -> None:
        request = None
        try:
            message = self._decode(await self._session.receive())
            request = messages.request_id(message)
            answer = await self._answer(message, request)
            if answer is None:
                return self._session.answered()
        except Left:
            raise
        except VlaAgentsError as error:
            await self._session.fault(error)
            answer = messages.error_message(error, request)
        except Exception as error:  # of the policy; logged where it was planned
            self._session.server.metrics.refused.add("failed")
            answer = messages.error_message(error, request)
        await self._say(answer)
        self._session.answered()

    async def _answer(self, message: Any, request: str | int | None) -> dict[str, Any] | None:
        """Do what a message asks for; the answer, or None where it is sent already."""
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise FrameError("a message that is no map with a string 'type'")
        kind = message["type"]
        if kind == "plan":
            await self._plan(message, request)
            return None
        if kind == "reset":
            messages.fields(message, ("type",), ("id", "slots"))
            slots = message.get("slots")
            if slots is not None and not (
                isinstance(slots, list) and all(type(slot) is int and 0 <= slot < 2**16 for slot in slots)
            ):
                raise FrameError("slots must be a list of whole numbers")
            self._session.forget(slots)
        elif kind == "share":
            return self._share(message, request)
        elif kind == "ping":
            messages.fields(message, ("type",), ("id",))
        else:
            raise FrameError(
                f"unknown type {kind[:40]!r}{messages.suggest(kind[:40], _KINDS)}", f"known: {_KINDS}"
            )
        return {"type": "done", "id": request}

    async def _plan(self, message: dict[str, Any], request: str | int | None) -> None:
        server = self._session.server
        asked = messages.read_plan(message, server.embodiment, server.horizon, server.continues)
        await self._session.plan_and_send(
            reply=lambda planned: self._encoder.encode(messages.chunks_message(request, planned)),
            request=request,
            **vars(asked),
        )

    def _share(self, message: dict[str, Any], request: str | int | None) -> dict[str, Any]:
        messages.fields(message, ("type", "size"), ("id",))
        if not self._shares or self._memory is not None:
            raise FrameError("this connection has no shared memory to give", "send arrays in the message")
        self._memory = ServerMemory(message["size"], self._session.limits)
        self._decode = Decoder(self._session.limits, self._memory.read_array)
        answer = {"type": "shared", "id": request, **self._memory.describe()}
        if doorbell.is_supported():
            self._doorbell = doorbell.Doorbell(self._session, self._memory)
            answer["doorbell"] = self._doorbell.name
        return answer

    async def _say(self, message: dict[str, Any]) -> None:
        await self._session.send(self._encoder.encode(message))


_KINDS = ("plan", "reset", "ping", "share")
