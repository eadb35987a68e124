"""Questions that are put to a process of its own: what may crash, hang, or take seconds to import."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_MARK = "vla-agents doctor: "
# What the question `answer(...)`s is the result, whatever else libraries print.
_FRAME = """
import json, os, sys
def answer(value):
    sys.stdout.write("\\n" + {mark!r} + json.dumps(value) + "\\n")
    sys.stdout.flush()
    os._exit(0)  # without what libraries have to say, or crash of, at the end
{question}
"""


class ProbeError(RuntimeError):
    """The process gave no answer; says how it ended."""


def ask(question: str, *args: str, timeout: float = 60.0, **environment: str) -> Any:
    """Run Python code that calls `answer(value)`; returns the value.

    Args:
        question: The code; `sys.argv[1:]` are `args`.
        *args: Handed to it.
        timeout: Seconds to wait.
        **environment: Beside this process's.

    Raises:
        ProbeError: It crashed, raised, or took too long.
    """
    code = _FRAME.format(mark=_MARK, question=question)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *args],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": _path(), **environment},
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"no answer within {timeout:g} s") from error
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    if done.returncode < 0:
        raise ProbeError(f"it crashed ({signal.Signals(-done.returncode).name})")
    said = [line for line in done.stderr.splitlines() if line.strip()]
    raise ProbeError(said[-1] if said else f"it ended with code {done.returncode}")


def _path() -> str:
    """Where this process found the package, after what it was told anyway."""
    ours = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH", ""), ours)))
