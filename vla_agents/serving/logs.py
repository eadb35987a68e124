"""Logs a machine can read: one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_USUAL = frozenset(vars(logging.makeLogRecord({})))


class JsonLines(logging.Formatter):
    """Time (UTC), level, logger, message, and what else was said with it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _USUAL and key != "message"}
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and tracebacks below."""
        more = {k: v for k, v in vars(record).items() if k not in _USUAL and k not in ("message", "asctime")}
        said = " ".join(f"{key}={value}" for key, value in more.items())
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname:<7} {record.getMessage()}"
        line += f"  {said}" if said else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_to_stderr(style: str, level: str) -> None:
    """Write this library's logs in one of the styles `"text"` and `"json"`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.getLogger("vla_agents.serving").setLevel(level.upper())
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # strangers' faults; ours are counted
