"""An evaluation on a Ray cluster: workers that play, a driver that writes every finished episode into the one ledger.

    vla-agents eval --agent runs/mine --suite libero_10 --ray.workers 8 --ray.gpus 0.25 --ray.address auto

A worker makes env and agent once and is given episodes by the handful. What it finishes comes back at once, so no folder is
shared but that of the checkpoint, and a worker that dies costs the episodes that were open in it, which are played again.
An episode follows from its seed, so it does not matter who plays it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_agents.embodiment import embodiment_of
from vla_agents.errors import ConfigError, MissingDependencyError, SimulatorError, VlaAgentsError
from vla_agents.eval.evaluate import EvalConfig, evaluate, make_eval_agent, make_eval_env
from vla_agents.eval.ledger import Entry, Ledger, LedgerKeeper, differ, fingerprint, from_row, to_row
from vla_agents.eval.report import Timing
from vla_agents.eval.video import VideoRecorder
from vla_agents.progress import ProgressBar
from vla_agents.versions import package_versions

_LEAST = 4  # handfuls per worker: the fewer, the longer the last ones wait for the slowest


def play_on_ray(
    config: EvalConfig, ledger: Ledger, seeds: Sequence[int], bar: ProgressBar, begin: Callable[[], None]
) -> tuple[Timing, bool]:
    """Play these seeds on a cluster. Videos go to `config.out`.

    Args:
        config: What to play, and `config.ray`.
        ledger: Gets every episode as it ends.
        seeds: One per episode.
        bar: Is told of every episode.
        begin: Opens the ledger; called when the first worker has its env and its agent.

    Returns:
        Timing, and whether Ctrl-C ended it.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: The cluster cannot be reached or is too small, or has other versions or weights.
        SimulatorError: Workers die at the same episodes time and again.
    """
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("ray", "ray", "vla-agents eval --ray.workers") from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, config)
    try:
        pool = _Pool(ray, config, ledger, bar)
        first = pool.new_player()
        begin()
        try:
            return pool.play(seeds, first), False
        except KeyboardInterrupt:
            return pool.timing(), True
        finally:
            pool.close()
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, config: EvalConfig) -> None:
    options = config.ray
    address = options.address or "local"
    size: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    if address == "local" and options.cpus * options.workers > (os.cpu_count() or 1):
        size["num_cpus"] = max(
            1, round(options.cpus * options.workers)
        )  # more workers than cores, as asked for
    try:
        _require_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level="error", **size)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster at {address!r} ({error})",
            "start one with `ray start --head`, or leave --ray.address out to use this machine",
        ) from error
    for name, needed in (("CPU", options.cpus), ("GPU", options.gpus)):
        there = ray.cluster_resources().get(name, 0.0)
        if needed * options.workers > there:
            raise ConfigError(
                f"{options.workers} workers of {needed:g} {name} each are more than the {there:g} of the cluster",
                f"fewer --ray.workers, or a smaller --ray.{name.lower()}s (fractions are possible)",
            )


def _require_answer(address: str) -> None:
    """Ray itself tries for minutes where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()


class Player:
    """Plays episodes in a process where Ray put it.

    Env and agent live as long as it does, in one thread, as OpenGL wants it.
    """

    def __init__(self, config: EvalConfig) -> None:
        self._config = config
        self._jobs: queue.Queue[tuple[list[int], queue.Queue]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def identity(self) -> dict[str, Any]:
        """Make env and agent; then what decides results: weights and package versions here."""
        for _ in self.play([]):
            pass
        return {"weights": fingerprint(self._config.agent), "versions": package_versions()}

    def play(self, seeds: list[int]) -> Iterator[dict[str, Any]]:
        """Rows of the ledger as episodes end, then `{"video": name, "data": mp4}` and `{"act_seconds", "actions"}`."""
        found: queue.Queue[Any] = queue.Queue()
        self._jobs.put((seeds, found))
        while (item := found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            env: Any = None
            while True:
                seeds, found = self._jobs.get()
                try:
                    if env is None:
                        env = stack.enter_context(contextlib.closing(make_eval_env(self._config)))
                        agent = stack.enter_context(make_eval_agent(self._config, env))
                        rate = embodiment_of(env).control_hz
                        film = VideoRecorder(Path(folder), self._config.videos, rate)
                    if seeds:
                        self._play(env, agent, film, seeds, found)
                except BaseException as error:  # reaches who asked, whatever it is
                    found.put(error)
                found.put(None)

    def _play(self, env: Any, agent: Any, film: VideoRecorder, seeds: list[int], found: queue.Queue) -> None:
        before = set(film.folder.glob("*.mp4"))
        report = evaluate(
            env,
            agent,
            seeds,
            listeners=[LedgerKeeper(_Post(found)), *([film] if self._config.videos else [])],  # type: ignore[arg-type]
            max_steps=self._config.max_steps,
            mark_errors=True,
            progress=False,
        )
        for path in sorted(set(film.folder.glob("*.mp4")) - before):
            found.put({"video": path.name, "data": path.read_bytes()})
        found.put({"act_seconds": report.timing.act_seconds, "actions": report.timing.actions})


class _Post:
    """In a worker the ledger's place: what is added goes home."""

    def __init__(self, found: queue.Queue) -> None:
        self._found = found

    def add(self, entry: Entry) -> None:
        self._found.put({"row": to_row(entry) | {"seconds": entry.result.seconds}})


class _Pool:
    """The driver's side: hands seeds out, takes episodes in, replaces workers that died."""

    def __init__(self, ray: Any, config: EvalConfig, ledger: Ledger, bar: ProgressBar) -> None:
        self._ray, self._config, self._ledger, self._bar = ray, config, ledger, bar
        self._started = time.monotonic()
        self._act = 0.0
        self._actions = 0
        self._lost: Counter[int] = Counter()
        self._todo: deque[list[int]] = deque()
        self._players: list[Any] = []
        self._playing: dict[
            Any, tuple[Any, list[int]]
        ] = {}  # stream -> player, seeds that have not come back

    def new_player(self) -> Any:
        """A worker that has env and agent, the same as here."""
        options = self._config.ray
        remote = self._ray.remote(num_cpus=options.cpus, num_gpus=options.gpus)(Player)
        player = remote.remote(replace(self._config, out=Path("unused")))
        self._players.append(player)
        theirs = self._get(player.identity.remote())
        ours = {key: self._ledger.identity[key] for key in theirs}
        if differences := differ(theirs, ours):
            raise ConfigError(
                f"a worker would play another evaluation: {'; '.join(differences)}",
                "the cluster's machines need the same checkpoint under the same path, and the same package versions",
            )
        return player

    def play(self, seeds: Sequence[int], first: Any) -> Timing:
        """All of them; the first worker is there already."""
        options = self._config.ray
        size = max(self._config.num_envs, -(-len(seeds) // (_LEAST * options.workers)))
        self._todo.extend(list(seeds[k : k + size]) for k in range(0, len(seeds), size))
        self._hand_out(first)
        for _ in range(min(options.workers, len(self._todo) + 1) - 1):
            self._hand_out(self.new_player())
        while self._playing:
            ready, _ = self._ray.wait(list(self._playing), num_returns=1, timeout=1.0)
            for stream in ready:
                self._take(stream)
        return self.timing()

    def timing(self) -> Timing:
        """So far."""
        count = self._config.ray.workers * self._config.num_envs
        seconds = time.monotonic() - self._started
        return Timing(seconds, self._act, self._actions, num_envs=count, asynchronous=True)

    def close(self) -> None:
        """End the workers."""
        for player in self._players:
            with contextlib.suppress(Exception):
                self._ray.kill(player)

    def _get(self, reference: Any) -> Any:
        """Its value; errors of ours as they were raised in the worker."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VlaAgentsError):
                raise error.cause from None
            raise

    def _hand_out(self, player: Any) -> None:
        if self._todo:
            seeds = self._todo.popleft()
            stream = player.play.options(num_returns="streaming").remote(seeds)
            self._playing[stream] = (player, list(seeds))

    def _take(self, stream: Any) -> None:
        """The next piece of a stream, its end, or its death."""
        player, open_seeds = self._playing[stream]
        try:
            piece = self._get(next(stream))
        except StopIteration:
            del self._playing[stream]
            self._hand_out(player)
        except self._ray.exceptions.RayActorError as error:
            del self._playing[stream]
            self._bury(player, open_seeds, error)
        else:
            self._keep(piece, open_seeds)

    def _keep(self, piece: dict[str, Any], open_seeds: list[int]) -> None:
        if "row" in piece:
            entry = from_row(piece["row"])
            self._ledger.add(entry)
            open_seeds.remove(entry.result.seed)
            self._bar.on_end(0, entry.result)
        elif "video" in piece:
            folder = self._config.out / "videos"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / Path(piece["video"]).name).write_bytes(piece["data"])
        else:
            self._act += piece["act_seconds"]
            self._actions += piece["actions"]

    def _bury(self, player: Any, open_seeds: list[int], error: BaseException) -> None:
        self._players.remove(player)
        self._lost.update(open_seeds)
        often = [seed for seed in open_seeds if self._lost[seed] > self._config.ray.retries]
        if often:
            why = str(error).splitlines()[0]
            raise SimulatorError(
                f"workers died {self._lost[often[0]]} times while they played seed {often[0]} (or beside it): {why}",
                "memory, or a simulator that crashes; what is finished is on disk, --resume goes on with the rest",
            ) from error
        if open_seeds:
            self._todo.appendleft(open_seeds)
        self._hand_out(self.new_player())
