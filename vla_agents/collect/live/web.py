"""The operator's screen as a page at this machine: live pictures (MJPEG) and the meters. It shows; it takes no orders.

It listens on 127.0.0.1 only, and whoever asks needs the token in the address and has to have asked for this machine by
name. From another computer: `ssh -L PORT:127.0.0.1:PORT robot`.
"""

from __future__ import annotations

import hmac
import io
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from vla_agents.collect.live.session import Session
from vla_agents.errors import ConfigError

log = logging.getLogger(__name__)
FPS = 12.0
QUALITY = 80
_PAGE = """<!doctype html><meta charset="utf-8"><title>vla-agents collect</title>
<style>body{font:16px system-ui,sans-serif;margin:1rem;background:#111;color:#eee}img{height:46vh;margin:.3rem;
image-rendering:pixelated;background:#222}#phase{font-size:2rem;font-weight:700}#phase.recording{color:#ff5252}
.dim{color:#aaa}</style><div id="phase"></div><div id="task"></div><div id="pictures"></div>
<div id="meters"></div><div id="messages" class="dim"></div><script src="page.js"></script>"""
_SCRIPT = """const put=(id,text)=>{document.getElementById(id).textContent=text};let shown='';
async function turn(){try{const s=await (await fetch('state')).json();
put('phase',s.phase+(s.left>0?' '+Math.ceil(s.left):''));document.getElementById('phase').className=s.phase;
put('task',`episode ${s.episode}: ${s.task}`);
put('meters',`${s.hz.toFixed(1)} of ${s.wanted} Hz, ${s.steps} steps, ${s.late} late ticks, `+
`${s.repeated} repeated pictures, ${s.meter} ${s.driver} ${s.trouble}`);put('messages',s.messages.join(' | '));
if(s.cameras.join()!==shown){shown=s.cameras.join();const box=document.getElementById('pictures');box.replaceChildren();
s.cameras.forEach((name,k)=>{const i=document.createElement('img');i.alt=i.title=name;i.src=`camera/${k}`;box.append(i)})}
}catch(e){put('phase','the recording has ended')}setTimeout(turn,250)}turn()"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self'; connect-src 'self'"
)


class Page(ThreadingHTTPServer):
    """The server, in threads of its own; `close` ends it.

    Args:
        session: What is shown.
        saved: How many episodes there are.
        meter: Free space and the like.
        port: 0 takes a free one.

    Attributes:
        url: The address to open, with the token.
    """

    daemon_threads = True

    def __init__(
        self,
        session: Session,
        *,
        saved: Callable[[], int],
        meter: Callable[[], str] = lambda: "",
        port: int = 0,
    ) -> None:
        self.session, self.saved, self.meter, self.token = session, saved, meter, secrets.token_urlsafe(12)
        self.ended = threading.Event()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"port {port} cannot be used ({error})", "give another one, or 0") from None
        number = int(self.server_address[1])
        self.hosts = {f"{name}:{number}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{number}/{self.token}/"
        threading.Thread(target=self.serve_forever, args=(0.1,), name="live-page", daemon=True).start()

    def close(self) -> None:
        """Hang up."""
        self.ended.set()
        self.shutdown()
        self.server_close()

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        session, meters = self.session, self.session.meters
        return {
            "phase": session.phase, "left": session.left, "episode": self.saved() + 1, "task": session.instruction,
            "hz": meters.hz, "wanted": meters.wanted, "steps": meters.steps, "late": meters.late,
            "repeated": meters.repeated, "meter": self.meter(), "driver": session.driver,
            "trouble": "" if session.device is None else session.device.trouble,
            "messages": list(session.messages), "cameras": list(session.images),
        }  # fmt: skip

    def jpeg(self, number: int) -> bytes:
        """The newest picture of a camera."""
        image = list(self.session.images.values())[number]
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
        return file.getvalue()


class _Handler(BaseHTTPRequestHandler):
    server: Page
    server_version, sys_version = "vla-agents", ""
    timeout = 30

    def do_GET(self) -> None:
        pieces = self.path.split("/")
        if self.headers.get("Host", "") not in self.server.hosts:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif len(pieces) < 3 or not hmac.compare_digest(pieces[1].encode(), self.server.token.encode()):
            self.send_error(HTTPStatus.FORBIDDEN, "the address lacks the token")
        else:
            try:
                self._answer(pieces[2:])
            except (IndexError, ValueError):
                self.send_error(HTTPStatus.NOT_FOUND)
            except OSError:  # the browser has gone
                self.close_connection = True

    def _answer(self, pieces: list[str]) -> None:
        match pieces:
            case [""]:
                self._send(_PAGE.encode(), "text/html; charset=utf-8")
            case ["page.js"]:
                self._send(_SCRIPT.encode(), "text/javascript; charset=utf-8")
            case ["state"]:
                self._send(json.dumps(self.server.state()).encode(), "application/json")
            case ["camera", number] if number.isdecimal():
                self._stream(int(number))
            case _:
                raise IndexError

    def _stream(self, number: int) -> None:
        """Pictures as they come, until somebody hangs up."""
        self.server.jpeg(number)  # or there is none
        self._head("multipart/x-mixed-replace; boundary=picture")
        while not self.server.ended.is_set():
            picture = self.server.jpeg(number)
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            self.wfile.write(head.encode() + picture + b"\r\n")
            time.sleep(1 / FPS)

    def _send(self, body: bytes, kind: str) -> None:
        self._head(kind, len(body))
        self.wfile.write(body)

    def _head(self, kind: str, length: int | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        headers = {"Content-Type": kind, "Cache-Control": "no-store", "Content-Security-Policy": _POLICY,
                   "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
