"""The policy server: one port on which clients of several protocols are answered, and health and metrics always are.

    event loop   connections, checks, codec, health, metrics      never waits for the policy
    planning     the policy, one batch at a time (`batching`)

Everything that a peer can make large or slow has a limit (`ServerConfig`), and nothing it sends is looked at before its
token was.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vla_agents.cpu import keep_freed_memory
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, MissingDependencyError, ServingError
from vla_agents.serving.batching import Batcher
from vla_agents.serving.connections import (
    admit,
    connection_class,
    is_live,
    is_local,
    keep_alive,
    select_subprotocol,
)
from vla_agents.serving.messages import SUBPROTOCOL
from vla_agents.serving.metrics import ServerMetrics
from vla_agents.serving.planning import BatchPlanner
from vla_agents.serving.security import check_exposure, server_tls
from vla_agents.serving.session import Left, Session
from vla_agents.serving.settings import PATHS, ServerConfig

log = logging.getLogger(__name__)
HANDSHAKES = 32  # connections beyond the clients' that may be about to say who they are


class PolicyServer:
    """Serves a planner.

    Args:
        config: See there.
        load: Makes the planner, warmed up; called in a thread, again at each reload.
        keys: What foreign protocols call our cameras and state (`foreign.Keys`); None: by rule.
    """

    def __init__(self, config: ServerConfig, load: Callable[[], BatchPlanner], keys: Any = None) -> None:
        self.config, self.keys, self._load = config, keys, load
        self.state = "loading"  # -> ready -> draining -> stopped
        self.in_flight = 0
        self._sessions: set[Any] = set()
        self._talking: set[Session] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._open = 0
        self.metrics = ServerMetrics(
            lambda: len(self._sessions),
            lambda: self.batcher.queued,
            lambda: self.state == "ready",
            lambda: self.batcher.revision,
        )
        self.batcher = Batcher(
            max_batch=config.max_batch,
            wait_s=config.batch_wait_s,
            max_queued=config.max_queued,
            observe=self._observe,
        )
        self.embodiment: Embodiment
        self.horizon = self.default_execute = 0
        self.continues = False
        self.url = ""
        self._listener: Any = None
        self._tls = server_tls(config.tls_cert, config.tls_key)
        warning = "" if config.unix else check_exposure(config.host, config.token, self._tls is not None)
        if warning:
            log.warning(warning)

    # ---- life ---------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Listen, then load the policy; clients are let in when it is ready.

        Raises:
            ServingError: The address is taken, or cannot be opened.
            Exception: What loading raised.
        """
        try:
            from websockets.asyncio.server import serve, unix_serve
        except ImportError as error:
            raise MissingDependencyError("websockets", "serving", "a policy server") from error
        keep_freed_memory()
        options: dict[str, Any] = {
            "process_request": partial(admit, self),
            "subprotocols": [SUBPROTOCOL],
            "select_subprotocol": select_subprotocol,
            "compression": None,
            "max_size": self.config.limits.max_bytes,
            "max_queue": 2,
            "open_timeout": self.config.hello_s,
            "close_timeout": 1,
            "ping_interval": None,  # dead peers are found by TCP keep-alive, silent ones by idle_s
            "write_limit": 2**20,
            "server_header": None,
            "create_connection": connection_class(self),
            "ssl": self._tls,
        }
        try:
            if self.config.unix is not None:
                self._listener = await self._listen_unix(unix_serve, options)
            else:
                self._listener = await serve(
                    self._serve_client, self.config.host, self.config.port, **options
                )
                port = self._listener.sockets[0].getsockname()[1]
                host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
                self.url = f"{'ws' if self._tls is None else 'wss'}://{host}:{port}"
        except OSError as error:
            await asyncio.to_thread(self.batcher.close)
            where = self.config.unix or f"{self.config.host}:{self.config.port}"
            raise ServingError(
                f"cannot listen on {where}: {error.strerror or error}", "take another port"
            ) from None
        log.info("listening", extra={"url": self.url, "token": self.config.token is not None})
        try:
            planner = await asyncio.to_thread(self._load)
        except BaseException:
            await self.stop(drain=False)
            raise
        self.embodiment, self.horizon = planner.embodiment, planner.horizon
        self.default_execute, self.continues = planner.default_execute, planner.continues
        self.batcher.swap(planner)
        self.state = "ready"
        self._sweeping = asyncio.create_task(self._sweep())
        log.info("ready", extra={"url": self.url, "revision": self.batcher.revision})

    async def _sweep(self) -> None:
        """Look after clients that are slow or silent."""
        period = min(1.0, self.config.idle_s / 4, self.config.send_s / 4)
        while True:
            await asyncio.sleep(period)
            for session in list(self._talking):
                session.sweep(time.monotonic())

    async def _listen_unix(self, unix_serve: Any, options: dict[str, Any]) -> Any:
        path = Path(self.config.unix or "").absolute()
        if path.is_socket() and is_live(path):  # asyncio would take its place
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        before = os.umask(0o177)
        try:
            listener = await unix_serve(self._serve_client, str(path), **options)
        finally:
            os.umask(before)
        self.url = f"ws+unix://{path}"
        return listener

    async def reload(self) -> bool:
        """Load the policy anew and plan with it from the next batch on; False where it is refused and the old one stays."""
        try:
            planner = await asyncio.to_thread(self._load)
            planner.embodiment.require(self.embodiment, ours="reloaded policy", theirs="served policy")
            shape = (planner.horizon, planner.continues)
            if shape != (self.horizon, self.continues):
                raise ConfigError(
                    f"the reloaded policy plans {planner.horizon} actions (continues: {planner.continues}), the "
                    f"served one {self.horizon} ({self.continues})",
                    "clients were told: restart the server",
                )
        except Exception as error:
            log.error("reload refused: %s", error)
            self.metrics.reloads.add("refused")
            return False
        self.batcher.swap(planner)
        self.metrics.reloads.add("done")
        log.info("reloaded", extra={"revision": self.batcher.revision})
        return True

    async def stop(self, *, drain: bool = True) -> None:
        """Take no more, finish what is under way (at most `drain_s`), close."""
        if self.state == "stopped":
            return
        self.state = "draining"
        log.info("draining", extra={"in_flight": self.in_flight, "clients": len(self._sessions)})
        if self._listener is not None:
            self._listener.close(close_connections=False)
        if drain:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.config.drain_s):
                    while self.in_flight or self.batcher.planning:
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(0.05)  # answers are on their way
        self.state = "stopped"
        if self._sweeping is not None:
            self._sweeping.cancel()
        connections = list(self._sessions)
        closing = [asyncio.ensure_future(c.close(1001, "the server stops")) for c in connections]
        if closing:
            await asyncio.wait(closing, timeout=3)
        if self._listener is not None:
            self._listener.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await self._listener.wait_closed()
        if self.config.unix is not None:
            Path(self.config.unix).unlink(missing_ok=True)
        await asyncio.to_thread(self.batcher.close)
        log.info("stopped")

    # ---- connections --------------------------------------------------------------------------------------
    def _observe(self, batch: int, seconds: float) -> None:
        self.metrics.batch.add(batch)
        self.metrics.inference.add(seconds)

    def take(self, connection: Any) -> bool:
        """Whether there is room for one more client, who is counted from here on: a crowd cannot slip in together."""
        if len(self._sessions) >= self.config.max_clients:
            return False
        self._sessions.add(connection)
        return True

    def connection_made(self, transport: Any) -> bool:
        """Whether one more connection may say who it is; dead peers are found from here on."""
        self._open += 1
        if self._open > self.config.max_clients + HANDSHAKES:
            self.metrics.refused.add("connections")
            return False
        keep_alive(transport.get_extra_info("socket"))
        return True

    def release(self, connection: Any) -> None:
        """Count a connection as a client no more."""
        self._sessions.discard(connection)

    def connection_lost(self, connection: Any) -> None:
        """A connection is gone."""
        self._open -= 1
        self._sessions.discard(connection)

    async def _serve_client(self, connection: Any) -> None:
        from vla_agents.serving.dialects import speak_foreign
        from vla_agents.serving.native import NativeProtocol

        path = urlsplit(connection.request.path).path
        native = connection.subprotocol == SUBPROTOCOL
        session = Session(self, connection, "vla-agents" if native else PATHS.get(path, self.config.root))
        self._talking.add(session)
        log.info("connected", extra={"session": session.id, "protocol": session.protocol})
        try:
            if native:
                await NativeProtocol(session, is_local(connection)).speak()
            else:
                await speak_foreign(session)
        except Left:
            pass
        except Exception:
            log.exception("session %s ended", session.id)
            await connection.close(1011, "internal error")
        finally:
            self._sessions.discard(connection)
            self._talking.discard(session)
            self.batcher.forget(session.id)
            session.end()
            log.info("disconnected", extra={"session": session.id})


@contextmanager
def serving(
    planner: BatchPlanner, config: ServerConfig | None = None, keys: Any = None
) -> Iterator[PolicyServer]:
    """A server in a thread of this process, ready, and stopped at the end; for tests, notebooks and benchmarks.

    Args:
        planner: E.g. what `load_agent` returns.
        config: By default any free port on this machine.
        keys: See `PolicyServer`.
    """
    server = PolicyServer(config or ServerConfig(port=0), lambda: planner, keys)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="policy server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
