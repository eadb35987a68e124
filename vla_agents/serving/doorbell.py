"""A second, shorter way for a client on the same machine: pictures lie in shared memory, and a few bytes ring for them.

    client    writes pictures and state into the shared memory, rings: one packet, a `plan`
    planning  reads it, checks, plans, answers: one packet, `chunks` or `error`

The server's event loop and the websocket have no part in it, so that a request changes threads not once. The packets go
through a Unix socket that keeps messages apart (SOCK_SEQPACKET), with a name of 128 random bits that the client was told
through its websocket; only the same user is let in. The websocket stays: what is not a `plan`, or is too large for a
packet, goes through it, and with it the door is shut.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import time
from contextlib import suppress
from typing import Any

from vla_agents.errors import FrameError, VlaAgentsError
from vla_agents.serving import messages
from vla_agents.serving.batching import Brought
from vla_agents.serving.codec import Decoder, Encoder
from vla_agents.serving.doorbell_client import MOST
from vla_agents.serving.planning import Planned
from vla_agents.serving.session import Session
from vla_agents.serving.shared_memory import ServerMemory


def is_supported() -> bool:
    """Whether this system has such sockets, and tells who is at the other end: Linux."""
    return hasattr(socket, "SOCK_SEQPACKET") and hasattr(socket, "SO_PEERCRED") and hasattr(os, "eventfd")


class Doorbell:
    """The server's side, of one client. Made and shut in the event loop, everything else is the planning thread's.

    Args:
        session: The client.
        memory: What it shares; is closed with the door.
    """

    def __init__(self, session: Session, memory: ServerMemory) -> None:
        self._session, self._memory = session, memory
        self._encoder, self._decode = Encoder(), Decoder(session.limits, memory.read_array)
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self.name = f"vla-agents-{secrets.token_hex(16)}"
        self._listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind("\0" + self.name)
        self._listener.listen(1)
        self._loop.add_reader(self._listener.fileno(), self._let_in)

    # ---- event loop ---------------------------------------------------------------------------------------
    def _let_in(self) -> None:
        assert self._listener is not None
        with suppress(OSError):
            guest, _ = self._listener.accept()
            credentials = guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", credentials)[1] != os.geteuid():
                guest.close()
                return
            guest.setblocking(False)
            self._socket = guest
            self._stop_listening()
            self._session.server.batcher.attach(self)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def shut(self) -> None:
        """The session is over: the planning thread will find nobody there any more."""
        self._stop_listening()
        if self._socket is None:
            self._memory.close()
            return
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # ---- planning thread ----------------------------------------------------------------------------------
    def fileno(self) -> int:
        """Of the socket."""
        assert self._socket is not None
        return self._socket.fileno()

    def close(self) -> None:
        """Let go of socket and memory."""
        assert self._socket is not None
        self._socket.close()
        self._memory.close()

    def take(self) -> Brought | None:
        """The request that was brought, checked; None where it was refused."""
        assert self._socket is not None
        since = time.monotonic()
        try:
            data = self._socket.recv(MOST + 1)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError
        self._session.heard(len(data), since)
        request = None
        try:
            if len(data) > MOST:
                raise FrameError(f"a packet of more than {MOST} bytes", "send it through the websocket")
            message = self._decode(data)
            request = messages.request_id(message)
            if not isinstance(message, dict) or message.get("type") != "plan":
                raise FrameError("what is no plan came through the shared memory's door")
            return self._brought(message, request)
        except VlaAgentsError as error:
            if self._session.count_fault(error):
                self._loop.call_soon_threadsafe(self._session.abort)
                raise ConnectionResetError from None
            self._say(messages.error_message(error, request))
            return None

    def _brought(self, message: dict[str, Any], request: str | int | None) -> Brought:
        server = self._session.server
        asked = messages.read_plan(message, server.embodiment, server.horizon, server.continues)
        job = self._session.request(**vars(asked))
        name = self._session.name_of(request)

        def done(answer: Planned | Exception) -> None:
            self._session.settled(name, answer)
            if isinstance(answer, Planned):
                self._say(messages.chunks_message(request, answer))
            else:
                self._say(messages.error_message(answer, request))
            self._session.answered()

        return job, done

    def _say(self, message: dict[str, Any]) -> None:
        """Never waits: a client that does not take its answer is cut off."""
        assert self._socket is not None
        data = self._encoder.encode(message)
        if len(data) > MOST:
            data = self._encoder.encode(
                messages.error_message(
                    FrameError(f"an answer of more than {MOST} bytes", "ask through the websocket"),
                    message["id"],
                )
            )
        try:
            self._socket.send(data)
        except OSError:
            with suppress(RuntimeError):  # the loop is closed: the server stopped in the meantime
                self._loop.call_soon_threadsafe(self._session.abort)
            return
        self._session.server.metrics.sent.add(by=len(data))
