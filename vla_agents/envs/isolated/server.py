"""The simulator's side of an `IsolatedEnv`: started by it, `python -m vla_agents.envs.isolated.server SOCKET MEMORY`.

Both arguments are file descriptors that were handed down. It answers one question after the other until the line is closed,
and does not outlive the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import sys
from typing import Any

import gymnasium

from vla_agents.envs.isolated.line import Line, LineClosedError
from vla_agents.envs.isolated.spaces import to_plain

_PR_SET_PDEATHSIG = 1


class Simulator:
    """An env that is asked by messages; each method answers one kind of question."""

    env: gymnasium.Env

    def make(self, env: str, options: dict[str, Any]) -> dict[str, Any]:
        """Make it; what the other side must know about it."""
        from vla_agents.embodiment import embodiment_of
        from vla_agents.envs.vector import make_env

        self.env = make_env(env, **options)
        embodiment = None
        with contextlib.suppress(Exception):  # any Gymnasium env may be isolated
            embodiment = embodiment_of(self.env).to_dict()
        return {
            "embodiment": embodiment,
            "observation_space": to_plain(self.env.observation_space),
            "action_space": to_plain(self.env.action_space),
            "metadata": self.env.metadata,
            "expert": hasattr(self.env.unwrapped, "expert_action"),
        }

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> Any:
        """(observation, info)"""
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """(observation, reward, terminated, truncated, info)"""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """A picture, or None."""
        return self.env.render()

    def expert_action(self) -> Any:
        """What the env's expert would do."""
        return self.env.unwrapped.expert_action()  # type: ignore[attr-defined]


def serve(line: Line) -> None:
    """Answer until the line is closed."""
    simulator = Simulator()
    while True:
        try:
            name, arguments = line.receive(None)
        except LineClosedError:
            return
        try:
            answer: Any = {"answer": getattr(simulator, name)(*arguments)}
            line.send(answer)
        except LineClosedError:
            return
        except Exception as error:
            line.send({"error": _error(error)})


def _error(error: Exception) -> dict[str, Any]:
    text = str(error).split("\n")
    return {
        "kind": type(error).__name__,
        "message": getattr(error, "problem", text[0]),
        "remedy": getattr(error, "remedy", ""),
    }


def _die_with_the_parent() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Answer on the line whose descriptors the command line names."""
    _die_with_the_parent()
    file, memory = int(sys.argv[1]), int(sys.argv[2])
    sock = socket.socket(fileno=file)
    serve(Line(sock, mmap.mmap(memory, os.fstat(memory).st_size), second=True))
    sys.stderr.flush()
    os._exit(0)  # without the complaints of simulators that are taken down


if __name__ == "__main__":
    main()
