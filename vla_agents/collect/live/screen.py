"""The operator's screen in a terminal: what goes on, what cameras see, whether the rate is kept, what to press."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from vla_agents.collect.live import session as live
from vla_agents.collect.live.picture import colours, fitted, half_blocks, kitty, speaks_kitty
from vla_agents.collect.live.session import Session

PERIOD_S = 0.12
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_PHASES = {live.RECORDING: "\x1b[1;97;41m", live.PAUSED: "\x1b[1;30;43m", live.COUNTDOWN: "\x1b[1;30;43m"}
KEYS = "Enter save  y success  n failure  Backspace discard  r redo  p pause  Tab take over  q quit"
WAITING_KEYS = "Enter start now  t type another task  q quit"


class Screen:
    """Draws a session in a thread of its own, on the terminal's second screen; `close` brings the first one back.

    Args:
        session: What is shown.
        title: The first line.
        total: How many episodes there shall be; 0 for no end.
        saved: How many there are.
        meter: Free space and the like.
        stream: The terminal.
        note: What else to tell, e.g. the address of a page.
    """

    def __init__(
        self,
        session: Session,
        *,
        title: str,
        total: int,
        saved: Callable[[], int],
        meter: Callable[[], str] = lambda: "",
        stream: TextIO | None = None,
        note: str = "",
    ) -> None:
        self._session, self._title, self._total, self._saved = session, title, total, saved
        self._meter, self._note = meter, note
        self._out = sys.stdout if stream is None else stream
        self._depth, self._kitty = colours(), speaks_kitty()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._log = _LogLines(session)

    def __enter__(self) -> Screen:
        self._log.take()
        self._write("\x1b[?1049h\x1b[?25l\x1b[2J")
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; what was said last stays readable."""
        self._ended.set()
        self._thread.join(2.0)
        self._log.give_back()
        clear = "\x1b_Ga=d,q=2\x1b\\" if self._kitty else ""
        self._write(f"{clear}\x1b[?25h\x1b[?1049l")
        for line in self._session.messages:
            self._write(f"{line}\n")

    def bell(self) -> None:
        """A sound."""
        self._write("\a")

    def lines(self, columns: int, rows: int) -> list[str]:
        """What is shown, line by line, at most `rows`; pictures as half blocks (or room for them)."""
        session, meters = self._session, self._session.meters
        colour = _PHASES.get(session.phase, "\x1b[1;30;46m")
        left = (
            f" {session.left:.0f}"
            if session.phase in (live.WAITING, live.COUNTDOWN) and session.left >= 0
            else ""
        )
        of = f" of {self._total}" if self._total else ""
        playing = session.phase in (live.RECORDING, live.PAUSED)
        clock = f"  {meters.seconds:.1f} s, {meters.steps} steps" if playing else ""
        head = [
            f"{_BOLD}{self._title}{_PLAIN}",
            f"{colour} {session.phase.upper()}{left} {_PLAIN}  episode {self._saved() + 1}{of}{clock}  {session.driver}",
            f"task: {session.typed}▏" if session.phase == live.TYPING else f"task: {session.instruction}",
        ]
        trouble = "" if session.device is None else session.device.trouble
        rate = f"{meters.hz:.1f} of {meters.wanted:g} Hz   {meters.late} late ticks   {meters.repeated} repeated pictures"
        tail = [
            f"{rate}   {self._meter()}",
            *([f"\x1b[33m{session.device.name}: {trouble}{_PLAIN}"] if session.device and trouble else []),
            *([f"{_DIM}{self._note}{_PLAIN}"] if self._note else []),
            *(f"{_DIM}{message}{_PLAIN}" for message in list(session.messages)[-2:]),
            f"{_DIM}{KEYS if playing else WAITING_KEYS}{_PLAIN}",
        ]
        if session.device is not None and rows > 16:
            tail += [f"{_DIM}{what}: {does}{_PLAIN}" for what, does in session.device.controls().items()][:4]
        head, tail = [_cut(line, columns) for line in head], [_cut(line, columns) for line in tail]
        room = max(rows - len(head) - len(tail), 0)
        return [*head, *self._pictures(columns, room), *tail][:rows]

    def _pictures(self, columns: int, rows: int) -> list[str]:
        images = dict(self._session.images)
        if not images or rows < 3:
            return []
        width = (columns - len(images) + 1) // len(images)
        blocks = []
        for image in images.values():
            size = fitted(image.shape, width, rows - 1)
            shown = [" " * size[0]] * size[1] if self._kitty else half_blocks(image, *size, self._depth)
            blocks.append((size, shown))
        names = " ".join(set_cell_size(name, size[0]) for name, (size, _) in zip(images, blocks, strict=True))
        tallest = max(size[1] for size, _ in blocks)
        body = [
            " ".join(shown[row] if row < size[1] else " " * size[0] for size, shown in blocks)
            for row in range(tallest)
        ]
        return [f"{_DIM}{names}{_PLAIN}", *body]

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            columns, rows = shutil.get_terminal_size()
            lines = self.lines(columns, rows)
            text = "".join(f"\x1b[{k + 1};1H{line}\x1b[0m\x1b[K" for k, line in enumerate(lines))
            self._write(f"{text}\x1b[J" if len(lines) < rows else text)
            if self._kitty:
                self._write(self._real_pictures(columns, rows))

    def _real_pictures(self, columns: int, rows: int) -> str:
        images = dict(self._session.images)
        if not images:
            return ""
        room = rows - 10
        width = (columns - len(images) + 1) // len(images)
        text, at = "", 1
        for number, image in enumerate(images.values(), 1):
            size = fitted(image.shape, width, max(room, 1))
            text += f"\x1b[5;{at}H{kitty(image, *size, number)}"
            at += size[0] + 1
        return text

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal has gone: the recording goes on
            self._out.write(text)
            self._out.flush()


class _LogLines(logging.Handler):
    """Warnings go to the screen's messages as long as it is there; on the terminal they would tear it."""

    def __init__(self, session: Session) -> None:
        super().__init__(logging.WARNING)
        self._session = session
        self._others: list[logging.Handler] = []

    def take(self) -> None:
        root = logging.getLogger()
        self._others, root.handlers = root.handlers, [self]

    def give_back(self) -> None:
        logging.getLogger().handlers = self._others

    def emit(self, record: logging.LogRecord) -> None:
        self._session.say(record.getMessage())


def _cut(line: str, columns: int) -> str:
    """At most so many characters that are seen."""
    text, shown, position = "", 0, 0
    while position < len(line):
        if line[position] == "\x1b":
            end = line.index("m", position) + 1
            text, position = text + line[position:end], end
            continue
        shown += cell_len(line[position])
        if shown > columns:
            break
        text, position = text + line[position], position + 1
    return text + _PLAIN
