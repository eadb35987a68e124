"""A network camera: MJPEG over HTTP, as phones and many cheap cameras send it. It can hang, hang up and come back."""

from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


class MjpegServer:
    """`with MjpegServer() as server: ... server.url`. Pictures are of one colour each: red, green, blue, red, ..."""

    COLOURS = ((250, 10, 10), (10, 250, 10), (10, 10, 250))

    def __init__(self, height: int = 48, width: int = 64, fps: float = 60.0, port: int = 0) -> None:
        self.stop, self.silent, self.hang_up = threading.Event(), threading.Event(), threading.Event()
        pictures = [self._jpeg(height, width, colour) for colour in self.COLOURS]
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                number = 0
                while not (server.stop.wait(1.0 / fps) or server.hang_up.is_set()):
                    if server.silent.is_set():
                        continue
                    picture = pictures[number % 3]
                    number += 1
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    try:
                        self.wfile.write(head.encode() + picture + b"\r\n")
                    except OSError:
                        return

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/video"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @staticmethod
    def _jpeg(height: int, width: int, colour: tuple[int, int, int]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.full((height, width, 3), colour, np.uint8)).save(file, "JPEG", quality=95)
        return file.getvalue()

    def close(self) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
