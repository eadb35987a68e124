"""Making envs the way the rest of the library wants them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from vla_agents.envs.wrappers import Idle
from vla_agents.errors import ConfigError, UnknownNameError, VlaAgentsError, suggest

CLOSE_S = 5.0  # s that workers have to close their envs
_Wrappers = tuple[Callable[[gymnasium.Env], gymnasium.Env], ...]


def make_env(env_id: str, wrappers: _Wrappers = (), **kwargs: Any) -> gymnasium.Env:
    """`gymnasium.make` with clear errors for unknown ids and options, and without its slow checker.

    Args:
        env_id: A registered id, e.g. `"vla_agents/Tabletop-v0"`, or `"module:id"` where importing the
            module registers it.
        wrappers: Applied in order.
        **kwargs: Handed to the env.
    """
    import vla_agents  # noqa: F401  registers our ids in a fresh worker process

    env = gymnasium.make(_known_id(env_id, kwargs), disable_env_checker=True, **kwargs)
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def make_vec(
    env_id: str, num_envs: int, *, asynchronous: bool = False, wrappers: _Wrappers = (), **kwargs: Any
) -> VectorEnv:
    """A vector env whose slots are reset one by one (`AutoresetMode.DISABLED`), as `rollout` needs it.

    Args:
        env_id: A registered id.
        num_envs: Number of slots.
        asynchronous: A process per env (instructions may hold any Unicode: nothing goes through shared
            memory).
        wrappers: Applied to every env, in order.
        **kwargs: Handed to every env.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs is {num_envs}, it must be at least 1")
    make = partial(make_env, env_id, (*wrappers, Idle), **kwargs)
    if asynchronous:
        return _AsyncVectorEnv(
            [partial(_in_worker, make)] * num_envs,
            shared_memory=False,
            autoreset_mode=AutoresetMode.DISABLED,
            context="spawn",
        )
    return _SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED, copy=True)


class _SyncVectorEnv(SyncVectorEnv):
    """Slots that can sleep, see `rollout`."""

    can_idle = True


class _AsyncVectorEnv(AsyncVectorEnv):
    """Slots that can sleep; raises a worker's own error, where Gymnasium makes one from the message.

    And `close` ends whatever came before. A Ctrl-C may fall between any two questions and answers; Gymnasium's own
    `close` then waits for ever for an answer that has been read already. Here a conversation that was broken off
    is not taken up again: the workers, which hold nothing that must be saved, are ended.
    """

    can_idle = True
    _talking = False  # a question was asked whose answer has not been read to its end

    def reset(self, **options: Any) -> Any:
        """As Gymnasium's."""
        return self._ask(super().reset, **options)

    def step(self, actions: Any) -> Any:
        """As Gymnasium's."""
        return self._ask(super().step, actions)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As Gymnasium's."""
        return self._ask(super().call, name, *args, **kwargs)

    def _ask(self, question: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._talking:
            raise ConfigError(
                "the vector env was interrupted in the middle of a call", "close it, make a new one"
            )
        self._talking = True
        found = question(*args, **kwargs)
        self._talking = False
        return found

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Let the workers close their envs; end those that do not within `timeout` (5 s)."""
        deadline = time.monotonic() + (CLOSE_S if timeout is None else timeout)
        pipes = [pipe for pipe in self.parent_pipes if pipe is not None and not pipe.closed]
        if not (terminate or self._talking):
            for pipe in pipes:
                with contextlib.suppress(OSError):
                    pipe.send(("close", None))
            for process in self.processes:
                process.join(max(deadline - time.monotonic(), 0.0))
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(CLOSE_S)
            if process.is_alive():
                process.kill()
                process.join(CLOSE_S)
        for pipe in pipes:
            pipe.close()

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        results = list(successes)
        if all(results):
            return
        errors = [self.error_queue.get() for ok in results if not ok]
        for index, *_ in errors:
            self.parent_pipes[index].close()
            self.parent_pipes[index] = None  # type: ignore[call-overload]
        self._state, self._talking = AsyncState.DEFAULT, False
        _, kind, value, trace = min(errors, key=lambda error: error[0])
        if isinstance(value, VlaAgentsError):
            raise value
        raise kind(f"{value}\n\n(in a worker process)\n{trace}")


def _in_worker(make: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    """Make the env; where that happens in a process of its own, Ctrl-C is left to the main one."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return make()


def _known_id(env_id: str, kwargs: dict[str, Any]) -> str:
    """The id without its module; raises for an id or an option that does not exist."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"environment {env_id!r}: {error}", f"is {module!r} installed and importable?"
            ) from error
    if name not in gymnasium.registry:
        ours = [known for known in gymnasium.registry if "/" in known]
        raise UnknownNameError("environment", name, ours)
    spec = gymnasium.registry[name]
    known = _options(spec)
    for key in kwargs:
        if known is not None and key not in known:
            raise ConfigError(
                f"{name} has no option {key!r}{suggest(key, known)}", f"known: {', '.join(sorted(known))}"
            )
    return name


def _options(spec: EnvSpec) -> set[str] | None:
    """What an env can be made with; None where it takes anything."""
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    if creator is None:
        return None
    parameters = inspect.signature(creator).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters} | {"max_episode_steps"}
