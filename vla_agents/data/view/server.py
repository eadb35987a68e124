"""A web server for one person at this machine: a page over one dataset, and nothing else of the disk.

It listens on 127.0.0.1 only. Whoever asks needs the token in the address, and has to have asked for this machine by
name: a page elsewhere whose name was made to point here (DNS rebinding) sends its own name and is refused. Addresses hold
numbers, never paths.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vla_agents.data.view.content import Content
from vla_agents.errors import ConfigError, VlaAgentsError

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
FILES = {"": "page.html", "page.js": "page.js", "page.css": "page.css", "curves.js": "curves.js"}
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Viewer(ThreadingHTTPServer):
    """The server; `serve_forever` runs it, `shutdown` and `close` end it.

    Args:
        content: What is shown.
        port: 0 takes a free one.

    Attributes:
        url: The address to open, with the token.
    """

    daemon_threads = True

    def __init__(self, content: Content, port: int = 0) -> None:
        self.content, self.token = content, secrets.token_urlsafe(18)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} cannot be used ({error})", "give another one, or 0 for any that is free"
            ) from None
        self.port = int(self.server_address[1])
        self.hosts = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{self.port}/{self.token}/"

    def close(self) -> None:
        """Let go of the port and stop the check."""
        self.server_close()
        self.content.close()


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    server_version, sys_version = "vla-agents", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self.headers.get("Host", "") not in self.server.hosts:
            self._error(HTTPStatus.MISDIRECTED_REQUEST, "ask for 127.0.0.1")
            return
        asked = urlsplit(self.path)
        pieces = asked.path.split("/")
        if len(pieces) < 3 or not hmac.compare_digest(pieces[1].encode(), self.server.token.encode()):
            self._error(HTTPStatus.FORBIDDEN, "the address lacks the token: take the one the command printed")
            return
        try:
            self._answer(pieces[2:], {key: values[-1] for key, values in parse_qs(asked.query).items()})
        except (IndexError, ValueError) as error:
            self._error(HTTPStatus.NOT_FOUND, str(error))
        except VlaAgentsError as error:
            self._error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, pieces: list[str], query: dict[str, str]) -> None:
        content = self.server.content
        match pieces:
            case [name] if name in FILES:
                file = HERE / FILES[name]
                self._send(file.read_bytes(), f"{_TYPES[file.suffix]}; charset=utf-8")
            case ["data", "dataset"]:
                self._json(content.summary())
            case ["data", "findings"]:
                self._json(content.findings())
            case ["data", "episodes"]:
                first, count = _number(query.get("first", "0")), _number(query.get("count", "100"))
                self._json(content.rows(first, count, query.get("words", ""), query.get("only", "")))
            case ["data", "episode", number]:
                index = _number(number)
                if index >= len(content.lengths):
                    raise IndexError(f"no episode {index}")
                self._json(content.episode(index))
            case ["picture", episode, camera, step] if step.endswith(".jpg"):
                found = content.picture(_number(episode), _number(camera), _number(step.removesuffix(".jpg")))
                self._send(found, "image/jpeg", "private, max-age=3600")
            case ["pictures", episode, camera, block]:
                pieces_of = content.block(_number(episode), _number(camera), _number(block))
                body = b"".join(len(one).to_bytes(4, "big") + one for one in pieces_of)
                self._send(body, "application/octet-stream", "private, max-age=3600")
            case _:
                raise IndexError("nothing there")

    def _json(self, content: Any) -> None:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._send(text.encode(errors="replace"), "application/json; charset=utf-8")

    def _send(self, body: bytes, kind: str, cache: str = "no-store", status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Cache-Control": cache}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: HTTPStatus, text: str) -> None:
        self._send(text.encode(errors="replace"), "text/plain; charset=utf-8", status=status)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _number(text: str) -> int:
    """A number from 0 on, in plain digits."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{text[:20]!r} is no number")
    return int(text)
