"""A client's side of the server: what every protocol needs to read messages, have them planned and answer.

A protocol is a coroutine `speak(session)`, which reads and answers until the client leaves.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import FrameError, ServerBusyError, VlaAgentsError
from vla_agents.observations import Observation
from vla_agents.serving.arrays import WireLimits
from vla_agents.serving.messages import MAX_OBSERVATIONS, DrainingError, code_of
from vla_agents.serving.planning import Planned, PlanRequest
from vla_agents.serving.straight import Straight

if TYPE_CHECKING:
    from vla_agents.serving.server import PolicyServer

log = logging.getLogger(__name__)
MAX_FAULTS = 20  # messages that are none, until the connection is closed


class Left(Exception):
    """The client went away, was silent for too long, or was sent away: the session is over."""


class Session:
    """One client.

    Args:
        server: Which it talks to.
        connection: A websocket connection, or None where messages come another way.
        protocol: The protocol's name, for metrics and logs.
    """

    def __init__(self, server: PolicyServer, connection: Any, protocol: str) -> None:
        self.server, self.protocol = server, protocol
        self._connection = connection
        self.id = secrets.token_hex(4)
        self._generators: dict[int, Any] = {}
        self._faults = self._count = 0
        self._received_at = 0.0
        self.waits_since: float | None = None  # for a message
        self.sends_since: float | None = None
        self._closing: Any = None
        self._straight = None if connection is None else Straight(connection)

    @property
    def embodiment(self) -> Embodiment:
        """What observations must look like and what actions mean."""
        return self.server.embodiment

    @property
    def limits(self) -> WireLimits:
        """What a message may cost."""
        return self.server.config.limits

    # ---- the wire -----------------------------------------------------------------------------------------
    async def receive(self, timeout: float | None = None) -> bytes:
        """The next message.

        Raises:
            Left: There is none any more.
            TimeoutError: None came in that time (only where one is given).
            FrameError: It is text.
        """
        from websockets.exceptions import ConnectionClosed

        self.waits_since = time.monotonic()
        try:
            if timeout is None:  # a silent client is found by the server's sweep: a timer costs too much
                data = await self._connection.recv()
            else:
                async with asyncio.timeout(timeout):
                    data = await self._connection.recv()
        except ConnectionClosed:
            raise Left from None
        finally:
            self.waits_since = None
        self._received_at = time.monotonic()
        self.server.metrics.received.add(by=len(data))
        if isinstance(data, str):
            raise FrameError("a text message", "messages are binary: msgpack")
        return data

    async def send(self, data: bytes | str) -> None:
        """A message to the client, who is left where it does not take it in time."""
        from websockets.exceptions import ConnectionClosed

        self.sends_since = time.monotonic()
        try:
            await self._connection.send(data)
        except ConnectionClosed:
            raise Left from None
        finally:
            self.sends_since = None
        self.server.metrics.sent.add(by=len(data))

    def sweep(self, now: float) -> None:
        """Send a client away that is silent for too long, or that does not take its answer."""
        config = self.server.config
        if self.sends_since is not None and now - self.sends_since > config.send_s:
            self._connection.transport.abort()
        elif self.waits_since is not None and now - self.waits_since > config.idle_s:
            self.waits_since = now
            self._closing = asyncio.ensure_future(self._connection.close(1001, "idle for too long"))

    async def leave(self, code: int, reason: str) -> None:
        """End the session; its place is free from now on, however long the client takes to hear it."""
        self.server.release(self._connection)
        await self._connection.close(code, reason)
        raise Left

    async def fault(self, error: VlaAgentsError) -> None:
        """Count a message that was none; a client that sends many of them is sent away."""
        if self.count_fault(error):
            await self.leave(1008, "too many messages that were none")

    def count_fault(self, error: VlaAgentsError) -> bool:
        """Whether that was one too many."""
        self.server.metrics.refused.add(code_of(error))
        self._faults += isinstance(error, FrameError)
        return self._faults > MAX_FAULTS

    def heard(self, size: int, now: float) -> None:
        """A message came by another way than the connection."""
        self._received_at = now
        if self.waits_since is not None:
            self.waits_since = now
        self.server.metrics.received.add(by=size)

    def abort(self) -> None:
        """Break the connection off, in the event loop."""
        self._connection.transport.abort()

    # ---- planning -----------------------------------------------------------------------------------------
    def forget(self, slots: Sequence[int] | None = None) -> None:
        """Episodes begin in these slots (all: None): what they drew from is gone."""
        for slot in list(self._generators) if slots is None else slots:
            self._generators.pop(slot, None)

    async def plan(
        self, observations: Sequence[Observation], *, request: str | int | None = None, **options: Any
    ) -> Planned:
        """Have chunks planned for observations that were checked; options are `request`'s.

        Raises:
            ServerBusyError: Too many wait, or the server is about to stop.
            Exception: What the policy raised.
        """
        planned, _ = await self._planned(self.request(observations, **options), request, None)
        return planned

    async def plan_and_send(
        self,
        observations: Sequence[Observation],
        reply: Callable[[Planned], bytes],
        *,
        request: str | int | None = None,
        **options: Any,
    ) -> None:
        """As `plan`; sends the client what `reply` makes of it, which may be called from the planning thread."""
        planned, is_sent = await self._planned(self.request(observations, **options), request, reply)
        if not is_sent:
            await self.send(reply(planned))

    def request(
        self,
        observations: Sequence[Observation],
        slots: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        prefixes: Sequence[np.ndarray] | None = None,
        committed: int = 0,
    ) -> PlanRequest:
        """What to ask the batcher for.

        Raises:
            FrameError: Too many observations.
            ServerBusyError: The server is about to stop.
        """
        count = len(observations)
        if count > MAX_OBSERVATIONS:
            raise FrameError(f"{count} observations at once, at most {MAX_OBSERVATIONS} are taken")
        if self.server.state != "ready":
            raise DrainingError(f"the server is {self.server.state}", "connect again")
        return PlanRequest(
            observations,
            range(count) if slots is None else slots,
            [None] * count if seeds is None else seeds,
            prefixes,
            committed,
            self.id,
            self._generators,
        )

    def name_of(self, request: str | int | None) -> str | int:
        """What a request is called in the log."""
        self._count += 1
        return request if request is not None else f"{self.id}-{self._count}"

    def settled(self, name: str | int, answer: Planned | Exception) -> None:
        """Count and log how a request came out."""
        if isinstance(answer, Planned):
            outcome = "done"
            self._tell(name, answer)
        elif isinstance(answer, ServerBusyError):
            outcome = "busy"
        else:
            outcome = "failed"
            known = isinstance(answer, VlaAgentsError)
            told = f"request {name} of session {self.id} failed"
            if known:
                log.warning("%s: %s", told, answer)
            else:
                log.error(told, exc_info=answer)
        self.server.metrics.requests.add(self.protocol, outcome)

    async def _planned(
        self, asked: PlanRequest, request: str | int | None, reply: Callable[[Planned], bytes] | None
    ) -> tuple[Planned, bool]:
        """What the policy planned, and whether the reply is sent already."""
        name = self.name_of(request)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Planned, bool]] = loop.create_future()

        def settle(answer: Planned | Exception, is_sent: bool) -> None:
            if future.done():  # nobody waits any more
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result((answer, is_sent))

        def done(answer: Planned | Exception) -> None:
            is_sent = reply is not None and isinstance(answer, Planned) and self._send_straight(reply, answer)
            with suppress(RuntimeError):  # the loop is closed: the server stopped in the meantime
                loop.call_soon_threadsafe(settle, answer, is_sent)

        self.server.in_flight += 1
        try:
            self.server.batcher.submit(asked, done)
            planned, is_sent = await future
        except Exception as error:
            self.settled(name, error)
            raise
        except BaseException:  # the session is cancelled
            self.server.metrics.requests.add(self.protocol, "failed")
            raise
        finally:
            self.server.in_flight -= 1
        self.settled(name, planned)
        return planned, is_sent

    def _send_straight(self, reply: Callable[[Planned], bytes], planned: Planned) -> bool:
        """In the planning thread, which no error may end: where this fails, the loop does it and finds the same."""
        try:
            data = reply(planned)
            is_sent = self._straight is not None and self._straight.send(data)
        except Exception:
            return False
        if is_sent:
            self.server.metrics.sent.add(by=len(data))
        return is_sent

    def end(self) -> None:
        """The connection is over."""
        if self._straight is not None:
            self._straight.close()

    def answered(self) -> None:
        """The answer to the last message is sent."""
        self.server.metrics.seconds.add(time.monotonic() - self._received_at)

    def _tell(self, name: str | int, planned: Planned) -> None:
        if log.isEnabledFor(logging.INFO):
            log.info(
                "planned",
                extra={
                    "session": self.id,
                    "request": name,
                    "protocol": self.protocol,
                    "observations": len(planned.chunks),
                    "batch": planned.batch,
                    "queue_ms": round(planned.queue_s * 1000, 2),
                    "infer_ms": round(planned.infer_s * 1000, 2),
                    "revision": planned.revision,
                },
            )
