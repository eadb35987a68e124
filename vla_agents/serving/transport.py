"""A websocket to a policy server for programs that call and wait: no event loop, no thread.

The protocol is the `websockets` package's, driven here over a plain socket: what a robot's planning thread needs is one
message out and one in, and its own package's synchronous client hands every message through another thread.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vla_agents.errors import (
    AuthorizationError,
    ConfigError,
    ConnectionLostError,
    FrameError,
    MissingDependencyError,
    ServerBusyError,
)
from vla_agents.serving.security import client_tls

CHUNK = 2**16  # bytes read at once; more would be fresh memory of the system's each time
UNIX = "ws+unix"


class Wire:
    """One connection.

    Args:
        url: `ws://host:port/path`, `wss://...`, or `ws+unix:///path/of/socket`.
        token: Is carried in the Authorization header.
        subprotocol: To ask for; None: none.
        ca_file: Authorities to check the server's certificate against; None: the system's.
        timeout_s: For connecting, and for each message where nothing else is said.
        max_bytes: Of a message received.

    Raises:
        ConnectionLostError: Nobody answers, or no websocket.
        AuthorizationError: The server wants another token.
        ServerBusyError: The server is loading, stopping or full.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        subprotocol: str | None = None,
        ca_file: str | None = None,
        timeout_s: float = 10.0,
        max_bytes: int = 32 * 2**20,
    ) -> None:
        try:
            from websockets.client import ClientProtocol
            from websockets.uri import parse_uri
        except ImportError as error:
            raise MissingDependencyError("websockets", "serving", "talking to a policy server") from error
        self._where, self._timeout_s, self._max_bytes = url, timeout_s, max_bytes
        self._eof = self._is_text = False
        self.is_waiting = False  # sent something, and its answer has not come yet
        self._early: list[Any] = []
        self._parts: list[bytes] = []
        self._frame = _MaskedFrame()
        self._socket = self._connect(url, ca_file)
        http = "ws://localhost/" if url.startswith(UNIX) else url
        self._protocol = ClientProtocol(
            parse_uri(http),
            subprotocols=None if subprotocol is None else [subprotocol],  # type: ignore[list-item]
            max_size=max_bytes,
        )
        try:
            self._shake_hands(token)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, url: str, ca_file: str | None) -> socket.socket:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss", UNIX) or (parts.scheme != UNIX and not parts.hostname):
            raise ConfigError(
                f"{url!r} is no address of a server", "e.g. ws://127.0.0.1:8000, ws+unix:///run/policy.sock"
            )
        try:
            if parts.scheme == UNIX:
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(self._timeout_s)
                sock.connect(parts.path)
                return sock
            port = parts.port or (443 if parts.scheme == "wss" else 80)
            sock = socket.create_connection((parts.hostname, port), timeout=self._timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if parts.scheme == "wss":
                return client_tls(ca_file).wrap_socket(sock, server_hostname=parts.hostname)
            return sock
        except ssl.SSLCertVerificationError as error:
            raise AuthorizationError(
                f"{_bare(url)}: the server's certificate is not trusted ({error.verify_message})",
                "give its CA file",
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConnectionLostError(
                f"{_bare(url)}: {reason}", "is the server running? `vla-agents serve CKPT`"
            ) from None

    def _shake_hands(self, token: str | None) -> None:
        request = self._protocol.connect()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        self._protocol.send_request(request)
        self._flush()
        end = time.monotonic() + self._timeout_s
        events: list[Any] = []
        while not events and self._protocol.handshake_exc is None:
            if self._eof:
                raise ConnectionLostError(f"{_bare(self._where)} closed the connection")
            self._read(end)
            events = self._protocol.events_received()
        if self._protocol.handshake_exc is not None:
            status = getattr(getattr(self._protocol.handshake_exc, "response", None), "status_code", None)
            where = _bare(self._where)
            if status == 401:
                raise AuthorizationError(
                    f"{where} wants a token, or another one", "set VLA_AGENTS_TOKEN or token_file"
                )
            if status == 503:
                raise ServerBusyError(f"{where} is loading, stopping or full", "try again later")
            raise ConnectionLostError(
                f"{where} is no policy server ({self._protocol.handshake_exc})"
            ) from None
        self._early = list(events[1:])

    @property
    def is_unix(self) -> bool:
        """Whether the server is reached through a Unix socket."""
        return self._where.startswith(UNIX)

    @property
    def timeout_s(self) -> float:
        """For each message."""
        return self._timeout_s

    def elsewhere(self, ask: Callable[[bytes | memoryview], bytes], data: bytes | memoryview) -> bytes:
        """The answer to a message that another way than this connection takes."""
        self.is_waiting = True
        answer = ask(data)
        self.is_waiting = False
        return answer

    def send(self, data: bytes | memoryview) -> None:
        """Send a binary message.

        Raises:
            ConnectionLostError: The connection is closed, or breaks.
        """
        from websockets.protocol import State

        if self._protocol.state is not State.OPEN:
            raise self._lost()
        self.is_waiting = True
        self._flush()
        self._write(self._frame.write(data))

    def receive(self, timeout_s: float | None = None) -> bytes | str:
        """The next message: bytes, or text where the server sends that.

        Raises:
            ConnectionLostError: The connection broke, or nothing came in time.
        """
        end = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while True:
            message = self._assemble()
            if message is not None:
                self.is_waiting = False
                return message
            if self._eof or self._protocol.close_rcvd is not None or self._protocol.parser_exc is not None:
                raise self._lost()
            self._read(end)

    def _assemble(self) -> bytes | str | None:
        """The next whole message of what was read, None where there is none yet."""
        from websockets.frames import Opcode

        self._early += self._protocol.events_received()
        while self._early:
            event = self._early.pop(0)
            if event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                continue
            if event.opcode is not Opcode.CONT:
                self._parts, self._is_text = [], event.opcode is Opcode.TEXT
            self._parts.append(event.data)
            if event.fin:
                data = bytes(self._parts[0]) if len(self._parts) == 1 else b"".join(self._parts)
                return data.decode("utf-8", "replace") if self._is_text else data
        return None

    def _read(self, end: float) -> None:
        left = end - time.monotonic()
        if left <= 0:
            raise ConnectionLostError(f"{_bare(self._where)}: no answer in time")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(CHUNK)
        except TimeoutError:
            raise ConnectionLostError(f"{_bare(self._where)}: no answer in time") from None
        except OSError as error:
            raise ConnectionLostError(f"{_bare(self._where)}: {error.strerror or error}") from None
        if data:
            self._protocol.receive_data(data)
        else:
            self._eof = True
            self._protocol.receive_eof()
        with suppress(ConnectionLostError):  # an answer to what was just read; what was read comes first
            self._flush()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionLostError(f"{_bare(self._where)}: {error.strerror or error}") from None

    def _lost(self) -> Exception:
        close = self._protocol.close_rcvd
        reason = f": {close.reason or close.code}" if close is not None else ""
        if not isinstance(self._protocol.parser_exc, EOFError | None):
            return FrameError(f"{_bare(self._where)} sent what is no websocket message, or too large a one")
        return ConnectionLostError(f"{_bare(self._where)} closed the connection{reason}")

    def abort(self) -> None:
        """Break the connection off, from another thread: whoever waits for a message gets a `ConnectionLostError`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say goodbye, without waiting for an answer."""
        with suppress(Exception):  # it was closed already, one way or the other
            self._protocol.send_close(1000)
            self._flush()
        self._socket.close()


class _MaskedFrame:
    """A client's binary frame (RFC 6455, 5.2), written into memory that is kept from one to the next.

    `websockets` makes three copies of a message, each in fresh memory: for two pictures that takes longer than sending.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def write(self, data: bytes | memoryview) -> memoryview:
        """The frame that carries data; good until the next one is written."""
        size = len(data)
        start = 16  # the header ends here, so that whole words are masked
        if start + size > len(self._memory):
            self._memory = np.empty(start + size + size // 8, np.uint8)
        mask = secrets.token_bytes(4)
        if size < 126:
            header = struct.pack("!BB", 0x82, 0x80 | size)
        elif size < 2**16:
            header = struct.pack("!BBH", 0x82, 0x80 | 126, size)
        else:
            header = struct.pack("!BBQ", 0x82, 0x80 | 127, size)
        begin = start - len(header) - len(mask)
        self._memory[begin:start] = np.frombuffer(header + mask, np.uint8)
        words = size // 8
        key = np.frombuffer(2 * mask, np.uint64)
        given, out = np.frombuffer(data, np.uint8), self._memory[start : start + size]
        np.bitwise_xor(given[: 8 * words].view(np.uint64), key, out=out[: 8 * words].view(np.uint64))
        rest = given[8 * words :]
        np.bitwise_xor(rest, np.frombuffer(2 * mask, np.uint8)[: len(rest)], out=out[8 * words :])
        return self._memory[begin : start + size].data


def _bare(url: str) -> str:
    """The URL without its query, in which a token may stand."""
    return url.split("?")[0]
