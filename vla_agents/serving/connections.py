"""Details of the server's connections: counted from the first moment, let in or not, kept alive."""

from __future__ import annotations

import json
import logging
import socket
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vla_agents.serving.messages import SUBPROTOCOL
from vla_agents.serving.metrics import CONTENT_TYPE
from vla_agents.serving.security import is_authorized, is_loopback
from vla_agents.serving.settings import PATHS

if TYPE_CHECKING:
    from vla_agents.serving.server import PolicyServer

log = logging.getLogger(__name__)


def connection_class(server: PolicyServer) -> type:
    """Connections that are counted from the moment they are made."""
    from websockets.asyncio.server import ServerConnection

    class Counted(ServerConnection):
        """A connection that its server knows of."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if not server.connection_made(transport):
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            server.connection_lost(self)

    return Counted


def select_subprotocol(connection: Any, offered: Any) -> Any:
    """Ours, where the client speaks it; clients of other protocols offer none."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def admit(server: PolicyServer, connection: Any, request: Any) -> Any:
    """Answer health and metrics; let a client in (None), or not. Nothing but headers was read yet."""
    path = urlsplit(request.path).path
    if "Origin" in request.headers:  # a web page, which must not reach this machine's servers
        return _refuse(server, connection, HTTPStatus.FORBIDDEN, "origin")
    if path in ("/health", "/healthz"):
        status = HTTPStatus.OK if server.state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
        return respond(connection, status, json.dumps({"status": server.state}) + "\n", "application/json")
    if not is_authorized(server.config.token, request.headers, request.path):
        return _refuse(server, connection, HTTPStatus.UNAUTHORIZED, "token")
    if path == "/metrics":
        return respond(connection, HTTPStatus.OK, server.metrics.text(), CONTENT_TYPE)
    if path != "/" and path not in PATHS:
        return _refuse(server, connection, HTTPStatus.NOT_FOUND, "path")
    if server.state != "ready":
        return _refuse(server, connection, HTTPStatus.SERVICE_UNAVAILABLE, "not ready")
    if not server.take(connection):
        return _refuse(server, connection, HTTPStatus.SERVICE_UNAVAILABLE, "clients")
    return None


def _refuse(server: PolicyServer, connection: Any, status: HTTPStatus, reason: str) -> Any:
    server.metrics.refused.add(reason)
    log.info("refused", extra={"reason": reason, "status": int(status)})
    return respond(connection, status, "", "text/plain")


def respond(connection: Any, status: HTTPStatus, text: str, content_type: str) -> Any:
    """An HTTP answer in place of a websocket."""
    response = connection.respond(status, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
    return response


def keep_alive(sock: Any) -> None:
    """Have the kernel find out within about half a minute that a peer is gone; large buffers, so that a picture fits."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def is_local(connection: Any) -> bool:
    """Whether the client is on this machine."""
    peer = connection.remote_address
    return not isinstance(peer, tuple) or is_loopback(str(peer[0]))


def is_live(path: Path) -> bool:
    """Whether somebody listens on that Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(path)) == 0
