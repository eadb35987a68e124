"""A headless Chromium that is driven through its own debugging protocol; nothing but websockets is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip


class Browser:
    """One page at phone size, with touch."""

    def __init__(self, folder: Path, width: int = 390, height: int = 844) -> None:
        from websockets.sync.client import connect

        assert CHROMIUM is not None
        self._process = subprocess.Popen(
            [CHROMIUM, *QUIET, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = self._port(folder / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=60) as answer:
            pages = json.load(answer)
        target = next(page for page in pages if page["type"] == "page")
        self._opened = contextlib.ExitStack()
        self._socket = self._opened.enter_context(
            connect(target["webSocketDebuggerUrl"], max_size=None, open_timeout=60)
        )
        self._number = 0
        self.call("Page.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=5)

    def _port(self, file: Path) -> int:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            if file.exists() and (lines := file.read_text().split()):
                return int(lines[0])
            time.sleep(0.1)
        raise TimeoutError("Chromium did not start")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=90))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def before_load(self, script: str) -> None:
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < until, f"{condition} never became true; the page says {self.text()!r}"
            time.sleep(0.05)

    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def centre(self, selector: str) -> tuple[float, float]:
        x, y = self.run(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        return x, y

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """`kind`: touchStart, touchMove, touchEnd, touchCancel."""
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def tap(self, selector: str) -> None:
        self.touch("touchStart", self.centre(selector))
        self.touch("touchEnd")

    def key(self, kind: str, key: str) -> None:
        self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._opened.close()
        self._process.terminate()
        self._process.wait(30)
