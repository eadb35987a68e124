"""The process of a simulator: started, asked, and ended whatever happens."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium

from vla_agents import errors
from vla_agents.envs.isolated.line import Line, LineClosedError
from vla_agents.errors import ConfigError, SimulatorError, VlaAgentsError

_CLOSE_S = 5.0
_SHOWN = 12  # lines of what a dead simulator printed last
# Errors that are raised here as what they were there; anything else is a SimulatorError that names it.
_SAME = ("ActionError", "ConfigError", "EmbodimentError", "RenderingError", "SimulatorError")


class SimulatorProcess:
    """A simulator in a process of its own.

    Args:
        python: The Python of its environment, which can import `vla_agents`.
        memory_mb: Shared memory for arrays, half of it for each direction.
        variables: Environment variables beside ours.
    """

    def __init__(self, python: Path, memory_mb: int, variables: dict[str, str]) -> None:
        if sys.platform == "win32":
            raise ConfigError(
                "isolated envs need file descriptors that are handed down, which Windows lacks", "use WSL"
            )
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115  (closed by close)
        size = memory_mb * 2**20
        with tempfile.TemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
            file.truncate(size)
            ours, theirs = socket.socketpair()
            with theirs:
                command = [str(python), "-m", "vla_agents.envs.isolated.server"]
                try:
                    self._process = subprocess.Popen(
                        [*command, str(theirs.fileno()), str(file.fileno())],
                        pass_fds=(theirs.fileno(), file.fileno()),
                        stdin=subprocess.DEVNULL,
                        stdout=self._log,
                        stderr=self._log,
                        env={**_inherited(python), **variables},
                        start_new_session=True,  # Ctrl-C is ours to handle
                    )
                except OSError as error:
                    raise ConfigError(f"{python} does not start: {error}", "vla-agents envs list") from error
            self._line = Line(ours, mmap.mmap(file.fileno(), size), second=False)

    def ask(self, name: str, *arguments: Any, timeout_s: float) -> Any:
        """Ask, and wait for the answer.

        Raises:
            SimulatorDiedError: It has gone, or did not answer in time (it is ended then).
            VlaAgentsError: The env's own error.
        """
        try:
            self._line.send([name, list(arguments)])
            answer = self._line.receive(timeout_s)
        except TimeoutError:
            self.kill()
            raise SimulatorDiedError(f"gave no answer to {name} within {timeout_s:g} s") from None
        except KeyboardInterrupt:
            self.kill()  # an answer that comes later would be taken for that of the next question
            raise
        except LineClosedError:
            self.kill()
            raise SimulatorDiedError(f"{self._end()} in {name}{self.last_words()}") from None
        if "error" in answer:
            raise _as_raised(**answer["error"])
        return answer["answer"]

    def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, and let go of everything."""
        self._line.close()  # at which it ends by itself
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._log.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def last_words(self) -> str:
        """What it printed last."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()[-_SHOWN:]
        return "".join(f"\n    | {line}" for line in lines)

    def _end(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
        return f"ended with status {code}"


class SimulatorDiedError(Exception):
    """Internal: there is nobody to answer any more."""


def _inherited(python: Path) -> dict[str, str]:
    """Our variables, without those that lead another Python to our packages."""
    variables = dict(os.environ)
    if Path(sys.executable) != python:
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            variables.pop(name, None)
    return variables


def _as_raised(kind: str, message: str, remedy: str) -> Exception:
    if kind in _SAME:
        made: VlaAgentsError = getattr(errors, kind)(message, remedy)
        return made
    if kind == "ResetNeeded":
        return gymnasium.error.ResetNeeded(message)
    return SimulatorError(f"{kind}: {message}", remedy)
