"""A phone, a headset, or any browser as a device: we serve a small page, and it sends what the hand does.

The page has touch pads, and reads gamepads and keys at the browser; with WebXR a headset's controller leads the tool
while its grip is squeezed. Everything but the page needs the token; one hand at a time is let in. What arrives late or out
of order is dropped, and silence stops the tool (`Clutch`).
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import math
import secrets
import ssl
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import rich

from vla_agents.collect.devices.hand import EndEffectorDevice, HandSource, Motion
from vla_agents.collect.devices.phone_hand import Hand
from vla_agents.collect.teleop import Event
from vla_agents.errors import (
    ConfigError,
    MissingDependencyError,
    PortBusyError,
    PortNotFoundError,
    PortPermissionError,
)

logger = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("phone.html")
TELL_S = 0.2
WRONG_TOKEN, BUSY, NONSENSE = 4401, 4409, 4400


class PhoneSource(HandSource):
    """The server of the page.

    Args:
        host: Address to listen at; loopback by default.
        port: 0 for any free one.
        token: Without it nobody is let in; empty: a new one each time.
        cert, key: PEM files of a certificate, for https.
        insecure: Whether to serve other machines without a certificate.
    """

    name = "phone"
    has_clutch = True

    def __init__(
        self, host: str, port: int, token: str, cert: str = "", key: str = "", insecure: bool = False
    ) -> None:
        self.host, self.port, self.token = host, port, token or secrets.token_urlsafe(12)
        self._tls = bool(cert)
        self._cert, self._key = cert, key
        if bool(key) and not cert:
            raise ConfigError("key is given without cert", "give both, PEM files")
        if not _is_loopback(host) and not cert and not insecure:
            raise ConfigError(
                f"the page would be served at {host} to other machines without encryption, the token with it",
                "give cert= and key= (docs/teleoperation.md says how to make them; headsets need https anyway); or go "
                "through `adb reverse` or an SSH tunnel; or accept it with insecure=true on a network of your own",
            )
        self.hand = Hand()
        self._server: Any = None
        self._lock = threading.Lock()
        self._client: Any = None
        self._heard = -math.inf
        self.told = ""  # what the page shows
        self.is_open = True  # the gripper, for its button

    @property
    def url(self) -> str:
        """Where the page is, with the token."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}/#{self.token}"

    def open(self) -> None:
        """Serve."""
        if self._server is not None:
            return
        try:
            from websockets.sync.server import serve
        except ImportError as error:
            raise MissingDependencyError("websockets", "teleop", "the phone device") from error
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                context.load_cert_chain(self._cert, self._key or None)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"the certificate {self._cert} cannot be used ({error})", "give PEM files"
                ) from error
        try:
            self._server = serve(
                self._talk,
                self.host,
                self.port,
                ssl=context,
                process_request=self._request,
                max_size=4096,
                open_timeout=10,
                ping_interval=5,
                ping_timeout=10,
                logger=logging.getLogger("vla_agents.collect.phone"),
            )
        except PermissionError as error:
            raise PortPermissionError(
                f"no permission for port {self.port}", "choose one above 1023"
            ) from error
        except OSError as error:
            busy = "in use" in str(error)
            raise (PortBusyError if busy else PortNotFoundError)(
                f"the page cannot be served at {self.host}:{self.port} ({error.strerror or error})",
                "choose another port=, or 0 for any"
                if busy
                else "host= is an address of this machine, e.g. 127.0.0.1",
            ) from error
        self.port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, name="phone", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        server, self._server = self._server, None
        with self._lock:
            client, self._client = self._client, None
        if server is not None:
            server.shutdown()
        if client is not None:
            client.close(1001)

    def read(self) -> Motion:
        """What the page says."""
        return self.hand.motion()

    def events(self) -> list[Event]:
        """Buttons of the page."""
        return self.hand.take_events()

    @property
    def trouble(self) -> str:
        """Nobody is there. The token is not in it: others may read this."""
        return "" if self._client is not None else "no page is connected: open the address that was printed"

    def controls(self) -> dict[str, str]:
        """Of the page."""
        return {
            "open": self.url,
            "hold a pad": "dead-man's switch; drag: move (left pad), up and down, turn (strips)",
            "headset": "squeeze the grip: the tool follows the controller; trigger: gripper",
            "buttons of the page": "gripper, save, discard, success, failure, redo, pause",
        }

    # ---- connections --------------------------------------------------------------------------------------
    def _request(self, connection: Any, request: Any) -> Any:
        """The page for everybody, the socket for pages from here."""
        path = urlsplit(request.path).path
        if path == "/ws":
            origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
            if origin is not None and urlsplit(origin).netloc != host:
                return connection.respond(HTTPStatus.FORBIDDEN, "the page is from elsewhere\n")
            return None
        if path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, "no such page\n")
        response = connection.respond(HTTPStatus.OK, PAGE.read_text(encoding="utf-8"))
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Frame-Options"] = "DENY"
        return response

    def _talk(self, socket: Any) -> None:
        """One page, until it goes."""
        from websockets.exceptions import ConnectionClosed

        try:
            if not self._let_in(socket):
                return
            self.hand.newcomer()
            said = 0.0
            for message in socket:
                with self._lock:
                    if self._client is not socket:
                        socket.close(BUSY, "another page took over")
                        return
                    self._heard = time.monotonic()
                try:
                    self.hand.take(message, time.monotonic())
                except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                    logger.warning("a page sends nonsense: %s", error)
                    socket.close(NONSENSE, "not understood")
                    return
                if time.monotonic() - said > TELL_S:
                    said = time.monotonic()
                    socket.send(
                        json.dumps({"told": self.told, "open": self.is_open, "dropped": self.hand.dropped})
                    )
        except ConnectionClosed:
            pass
        finally:
            with self._lock:
                if self._client is socket:
                    self._client = None
                    self.hand.newcomer()

    def _let_in(self, socket: Any) -> bool:
        try:
            first = json.loads(socket.recv(timeout=5))
            token = str(first["token"])
        except (TimeoutError, ValueError, KeyError, TypeError):
            token = ""
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            logger.warning("a page without the right token was refused")
            time.sleep(0.5)  # nobody tries many
            socket.close(WRONG_TOKEN, "wrong token")
            return False
        with self._lock:
            if self._client is not None and time.monotonic() - self._heard < 1.0:
                socket.close(BUSY, "another page leads already")
                return False
            self._client, self._heard = socket, time.monotonic()
        return True


class PhoneDevice(EndEffectorDevice):
    """Leads the tool by a phone, a headset, or a browser.

    Args:
        env: Whose actions.
        host, port, token, cert, key, insecure: See `PhoneSource`.
        keys: Not needed: the page has buttons for the recording.
        **options: Of `EndEffectorDevice`; `scale` is how far the tool goes per way of the hand.
    """

    def __init__(
        self,
        env: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 8642,
        token: str = "",
        cert: str = "",
        key: str = "",
        insecure: bool = False,
        keys: Any = None,
        **options: Any,
    ) -> None:
        self.page = PhoneSource(host, port, str(token), cert, key, insecure)
        super().__init__(env, self.page, **options)

    def connect(self) -> None:
        """Serve, and say where."""
        super().connect()
        rich.get_console().print(
            f"Open this on the phone, headset or browser: {self.page.url}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )

    def act(self, obs: Any) -> np.ndarray:
        """See `EndEffectorDevice`; the page is told how it stands."""
        action = super().act(obs)
        self._tell(obs, "ready")
        return action

    def follow(self, obs: Any, action: np.ndarray) -> None:
        """See `EndEffectorDevice`; likewise."""
        super().follow(obs, action)
        self._tell(obs, "the policy drives")

    def _tell(self, obs: Any, otherwise: str) -> None:
        self.page.told = self.trouble or ("leading" if self.engaged else otherwise)
        self.page.is_open = self.map.opening(obs) > 0.5


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
