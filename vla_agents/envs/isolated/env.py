"""`vla_agents/Isolated-v0`: any Gymnasium env, played in another Python environment and a process of its own."""

from __future__ import annotations

import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.envs.isolated.environments import python_of
from vla_agents.envs.isolated.process import SimulatorDiedError, SimulatorProcess
from vla_agents.envs.isolated.spaces import from_plain
from vla_agents.errors import ConfigError, SimulatorError


class IsolatedEnv(gymnasium.Env[Any, Any]):
    """An env whose simulator cannot disturb us: neither by its packages, nor by crashing, nor by hanging.

    Results are those of the env itself, bit for bit. When the simulator dies or hangs, it is started again and brought
    back to where it was, by the same reset and the same actions; that it sees the same on the way is checked.
    `info["restarts"]` counts it. A step at which it dies again and again ends the episode: truncated, with
    `info["error"]`, and `rollout` reports an error and not a failure.

    Args:
        env: Id of the env, registered there by `vla_agents` or as `"module:id"`.
        where: Name of an environment made by `vla-agents envs install`, or the path of a Python; "" is our own.
        step_timeout_s: Time for a step, or for any other question but the next two.
        reset_timeout_s: Time for a reset (the first one compiles scenes and shaders).
        start_timeout_s: Time to start the simulator and make the env.
        restarts: How often it may die in an episode.
        memory_mb: Shared memory for arrays; half of it carries observations.
        variables: Environment variables for the simulator.
        render_mode: As the env has them.
        **options: The env's own.

    Raises:
        ConfigError: No such environment or option.
        SimulatorError: The env cannot be made.
    """

    def __init__(
        self,
        *,
        env: str,
        where: str = "",
        step_timeout_s: float = 60.0,
        reset_timeout_s: float = 300.0,
        start_timeout_s: float = 600.0,
        restarts: int = 2,
        memory_mb: int = 64,
        variables: dict[str, str] | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        for name, value in (
            ("step_timeout_s", step_timeout_s), ("reset_timeout_s", reset_timeout_s), ("start_timeout_s", start_timeout_s),
            ("memory_mb", memory_mb),
        ):  # fmt: skip
            if not value > 0:
                raise ConfigError(f"{name} is {value}", "it must be above 0")
        self._python = python_of(where) if where else Path(sys.executable)
        self._env, self._options = (
            env,
            options | ({} if render_mode is None else {"render_mode": render_mode}),
        )
        self._timeouts = {"reset": reset_timeout_s, "make": start_timeout_s}
        self._step_timeout_s, self._most_restarts, self._memory_mb = step_timeout_s, restarts, memory_mb
        self._variables = dict(variables or {})
        self._process: SimulatorProcess | None = None
        self._journal: list[
            tuple[str, tuple[Any, ...], bytes]
        ] = []  # of this episode: asked, with what, digest
        self._restarts = 0
        self._last_seen: Any = None
        try:
            known = self._start()
        except SimulatorDiedError as error:
            raise SimulatorError(f"{env} in {self._python}: the simulator {error}") from None
        self.observation_space = from_plain(known["observation_space"])
        self.action_space = from_plain(known["action_space"])
        self.metadata, self.render_mode = known["metadata"], render_mode
        self._has_expert = bool(known["expert"])
        if known["embodiment"] is not None:
            self.embodiment = Embodiment.from_dict(known["embodiment"], where=env)

    # ---- Gymnasium ----------------------------------------------------------------------------------------
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; an unseeded one gets a seed drawn here, so that it can be played again."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._journal, self._restarts = [], 0
        try:
            obs, info = self._ask("reset", seed, options)
        except SimulatorDiedError as error:
            raise SimulatorError(
                f"{self._env}: at reset with seed {seed} the simulator {error}",
                f"it was tried {self._restarts + 1} times; the next reset starts it again",
            ) from None
        self._last_seen = obs
        return obs, self._told(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As the env's own."""
        if not self._journal:
            raise gymnasium.error.ResetNeeded("call reset() first")
        try:
            obs, reward, terminated, truncated, info = self._ask("step", np.asarray(action).copy())
        except SimulatorDiedError as error:
            problem = f"step {self._steps()}: the simulator {error}"
            self._journal = []
            return self._last_seen, 0.0, False, True, self._told({"success": False, "error": problem})
        self._last_seen = obs
        return obs, reward, terminated, truncated, self._told(info)

    def render(self) -> Any:
        """As the env's own."""
        return self._ask("render") if self._journal else None

    def close(self) -> None:
        """End the simulator."""
        process, self._process = getattr(self, "_process", None), None
        if process is not None:
            process.close()

    def __getattr__(self, name: str) -> Any:
        if name == "expert_action" and self.__dict__.get("_has_expert"):
            return partial(self._ask, "expert_action")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __del__(self) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the simulator, None where none runs."""
        return None if self._process is None else self._process.pid

    # ---- parts --------------------------------------------------------------------------------------------
    def _start(self) -> dict[str, Any]:
        self._process = SimulatorProcess(self._python, self._memory_mb, self._variables)
        try:
            known: dict[str, Any] = self._put("make", self._env, self._options)
        except BaseException:
            self.close()
            raise
        return known

    def _put(self, name: str, *arguments: Any) -> Any:
        assert self._process is not None
        timeout = self._timeouts.get(name, self._step_timeout_s)
        return self._process.ask(name, *arguments, timeout_s=timeout)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """The answer, from a simulator that is started again where it dies."""
        while True:
            try:
                if self._process is None:
                    self._start()
                    self._replay()
                answer = self._put(name, *arguments)
                self._journal.append((name, arguments, _digest(name, answer)))
                return answer
            except SimulatorDiedError:
                self.close()
                self._restarts += 1
                if self._restarts > self._most_restarts:
                    raise

    def _replay(self) -> None:
        for index, (name, arguments, digest) in enumerate(self._journal):
            if _digest(name, self._put(name, *arguments)) != digest:
                self._journal = []
                raise SimulatorError(
                    f"{self._env}: started again after a crash, it went another way at question {index} ({name})",
                    "it is not deterministic, so the episode cannot be played again",
                )

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {"restarts": self._restarts} if self._restarts else info

    def _steps(self) -> int:
        return sum(name == "step" for name, *_ in self._journal)


def _digest(name: str, answer: Any) -> bytes:
    """Of what counts in an answer: not `info`, where times may stand."""
    found = hashlib.blake2b(digest_size=16)

    def take(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                found.update(key.encode())
                take(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                take(item)
        elif isinstance(value, np.ndarray):
            found.update(value.dtype.str.encode() + str(value.shape).encode())
            found.update(np.ascontiguousarray(value).tobytes())
        else:
            found.update(repr(value).encode())

    take(answer[:-1] if name in ("reset", "step") else answer)
    return found.digest()
