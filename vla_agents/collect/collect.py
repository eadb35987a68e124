"""Episodes of an expert, a policy or chance, into a dataset: `collect(CollectConfig(out=Path("data")))`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import rich
from gymnasium.vector import VectorEnv
from rich.console import Console
from rich.text import Text

from vla_agents.arguments import make_agent
from vla_agents.collect.config import CollectConfig as CollectConfig
from vla_agents.collect.config import CollectResult as CollectResult
from vla_agents.collect.live.desk import Desk, set_up
from vla_agents.collect.live.session import Quit, Session
from vla_agents.collect.recorder import Recorder
from vla_agents.collect.space import expected_bytes, meter, warning
from vla_agents.collect.station import make_station
from vla_agents.config import save_yaml, to_dict
from vla_agents.data import create_dataset, open_dataset
from vla_agents.data.recording.recorder import StepWriter
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.vector import make_vec
from vla_agents.envs.wrappers import ActionNoise
from vla_agents.errors import ConfigError, DatasetNotFoundError, RecordingError, VlaAgentsError
from vla_agents.progress import ProgressBar
from vla_agents.robots.env import RobotEnv
from vla_agents.rollout import EpisodeResult, Listener, rollout
from vla_agents.versions import package_versions

USUAL_STEPS = 300  # of an episode, where the env does not say
GIVE_UP = 50  # failures in a row, where only successes are kept


def collect(config: CollectConfig, *, console: Console | None = None, progress: bool = True) -> CollectResult:
    """Record until the dataset has `config.episodes` episodes.

    An episode is a function of its seed, and each is on disk whole or not at all. So an interrupted call that
    is repeated with `resume=True` leads to the dataset that an uninterrupted one would have made (but for the
    capture times).

    Args:
        config: What to record, and where to.
        console: Where the progress bar is drawn.
        progress: Whether to draw one.

    Raises:
        DatasetExistsError: `out` holds a dataset and `resume` is not set.
        ConfigError: The dataset to resume was recorded with other settings.
        RecordingError: The disk is full, or nothing succeeds; what was saved before is intact.
        KeyboardInterrupt: Ctrl-C; what was saved is intact, and a line says how to go on.
    """
    _check(config)
    started = time.monotonic()
    console = console or rich.get_console()
    before, first = _resume_point(config)
    if before >= config.episodes:
        return _told(CollectResult(config.out, before, 0, 0, 0, 0, 0, 0.0), console)
    try:
        with contextlib.ExitStack() as stack:
            recorder = _record(config, before, first, stack, console, progress)
    except KeyboardInterrupt:
        _say(console, _how_to_go_on(config))
        raise
    counts = recorder.saved, recorder.ended, recorder.judged, recorder.succeeded, recorder.steps
    seconds = time.monotonic() - started
    return _told(CollectResult(config.out, before + recorder.saved, *counts, seconds), console)


def _record(
    config: CollectConfig,
    before: int,
    first: int,
    stack: contextlib.ExitStack,
    console: Console,
    progress: bool,
) -> Recorder:
    """Play and write; env, agent and writer are closed by the stack."""
    env = stack.enter_context(contextlib.closing(_make_env(config)))
    real = isinstance(env.unwrapped, RobotEnv)
    if isinstance(env.unwrapped, RobotEnv) and config.robot:
        env.unwrapped.connect()  # what is wrong with it is said before there is a dataset
    desk = None
    if config.device or config.robot:
        assert isinstance(env, gymnasium.Env)
        desk = set_up(config, env, stack, console, f"vla-agents collect  {config.out}")
    agent = desk.agent if desk else stack.enter_context(make_agent(_who(config), env, **config.agent_args))
    writer = create_dataset(config.out, embodiment_of(env), config.format, **_options(config, real=real))
    stack.callback(writer.close)
    save_yaml(config, config.out / "run.yaml")
    recorder = Recorder(
        writer,
        only_success=_only_success(config),
        limit=config.episodes - before,
        slots=config.workers,
        metadata={"collect": _settings(config), "versions": package_versions()},
        on_saved=None if desk is None else lambda index: desk.say(f"episode {index + 1} saved"),
        on_error=partial(_refused, desk.say if desk else partial(_say, console)) if real else None,
    )
    _warn(config, env, config.episodes - before, desk.say if desk else partial(_say, console))
    note = (lambda: meter(writer.status())) if isinstance(writer, StepWriter) else None
    if desk is not None:
        desk.saved = lambda: before + recorder.saved
        desk.meter = lambda: "" if note is None else Text.from_markup(note()).plain
        listeners: list[Listener] = [recorder, _Told(desk)]
        with contextlib.suppress(Quit):
            seeds = _seeds(first, recorder, config, desk.session)
            rollout(desk.env, agent, seeds, listeners, max_steps=config.max_steps)
        return recorder
    bar = ProgressBar(
        "collecting",
        config.episodes,
        done=before,
        count=lambda: before + recorder.saved,
        console=console,
        visible=progress,
        note=note,
    )
    stack.enter_context(bar)
    rollout(env, agent, _seeds(first, recorder, config), [recorder, bar], max_steps=config.max_steps)
    return recorder


class _Told(Listener):
    """Says what became of an episode."""

    def __init__(self, desk: Desk) -> None:
        self._say = desk.say

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """A line."""
        if result.info.get("discarded", False):
            self._say("discarded")


def _options(config: CollectConfig, *, real: bool) -> dict[str, Any]:
    """Of the writer. A simulated episode can be played again; on a robot nothing waits and nothing is thrown away."""
    options: dict[str, Any] = {"resume": config.resume, "durable": config.durable, "keep_unfinished": real}
    if real:
        options["late_frames"] = "repeat"
        if config.format == "lerobot":
            options["camera_times"] = True
    return options


def _refused(say: Callable[[str], None], error: RecordingError) -> None:
    """On a robot, a disk that refuses is told at once, and the episode goes on; after it, `_seeds` ends the recording."""
    say(f"This episode is not recorded: {error}")


def _warn(
    config: CollectConfig, env: gymnasium.Env | VectorEnv, episodes: int, say: Callable[[str], None]
) -> None:
    """Say so where the disk may not suffice."""
    longest = config.max_steps or getattr(env.spec, "max_episode_steps", None) or USUAL_STEPS
    said = warning(config.out, expected_bytes(embodiment_of(env), config.format, episodes, longest))
    if said:
        say(said)


def _check(config: CollectConfig) -> None:
    for name in ("episodes", "workers"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}, it must be at least 1")
    if config.workers > 1 and (config.device or config.robot):
        raise ConfigError(f"workers is {config.workers}", "a person or a robot needs 1")
    if config.seed < 0:
        raise ConfigError(f"seed is {config.seed}, it must not be negative")
    if config.noise < 0 or not 0 <= config.noise_probability <= 1 or not 0 <= config.bursts <= 1:
        raise ConfigError(
            f"noise is {config.noise} with probability {config.noise_probability}, bursts is {config.bursts}",
            "noise is a standard deviation (0 or more), noise_probability and bursts lie between 0 and 1",
        )


def _who(config: CollectConfig) -> str:
    """The agent, where no device is alone."""
    return config.agent or ("" if config.device else "expert")


def _only_success(config: CollectConfig) -> bool:
    return _who(config) == "expert" if config.only_success is None else config.only_success


def _make_env(config: CollectConfig) -> gymnasium.Env | VectorEnv:
    noise = partial(
        ActionNoise,
        std=config.noise,
        dims=config.noise_dims,
        probability=config.noise_probability,
        bursts=config.bursts,
    )
    wrappers = (noise,) if config.noise or config.bursts else ()
    if config.workers == 1:
        return make_station(config, wrappers)
    return make_vec(config.env, config.workers, asynchronous=True, wrappers=wrappers, **config.env_args)


def _seeds(
    first: int, recorder: Recorder, config: CollectConfig, session: Session | None = None
) -> Iterator[int]:
    """Seeds until the recorder has what it needs; `rollout` asks for the next one when a slot is free."""
    seed, before = first, recorder.saved
    while recorder.saved - before < (recorder.limit or 0):
        if recorder.refused is not None:
            raise recorder.refused
        if _only_success(config) and recorder.failed_in_a_row >= GIVE_UP:
            raise RecordingError(
                f"{config.env}: {GIVE_UP} episodes in a row failed, up to seed {seed - 1}; none was saved",
                "look at some with `vla-agents eval --agent expert --videos 4`, use less noise, "
                "or keep failures too (only_success=False)",
            )
        yield seed
        if session is None or not session.take_redo():
            seed += 1


def _settings(config: CollectConfig) -> dict[str, Any]:
    """What decides the content of the episodes; stored with each, and compared on resume."""
    free = {"out", "episodes", "format", "durable", "resume", "workers", "port", "device_args", "instructions", "ask",
            "reset_time", "countdown", "view", "sound"}  # fmt: skip
    usual = to_dict(CollectConfig(config.out))
    newer = {"robot", "name", "robot_args", "cameras", "camera_size", "hz", "speed", "agent_args", "device"}
    return {
        k: v for k, v in to_dict(config).items() if k not in free and (k not in newer or v != usual[k])
    } | {"only_success": _only_success(config), "agent": _who(config)}


def _resume_point(config: CollectConfig) -> tuple[int, int]:
    """Episodes that are there already, and the seed to go on with."""
    if not config.resume:
        return 0, config.seed
    try:
        reader = open_dataset(config.out)
    except DatasetNotFoundError:
        return 0, config.seed
    count = len(reader)
    if count == 0:
        return 0, config.seed
    metadata = reader.read(count - 1, images=False).metadata
    theirs, ours = metadata.get("collect"), _settings(config)
    if theirs is None or "seed" not in metadata:
        raise ConfigError(
            f"{config.out}: its last episode was not recorded by `collect`: no seed to go on with",
            "choose another folder",
        )
    different = [
        f"{key}: there {theirs.get(key)!r}, now {ours.get(key)!r}"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]
    if different:
        raise ConfigError(
            f"{config.out} was recorded with other settings: " + "; ".join(different),
            "use the same settings to resume, or another folder",
        )
    return count, int(metadata["seed"]) + 1


def _told(result: CollectResult, console: Console) -> CollectResult:
    """Say what the dataset holds now."""
    line = f"{result.path} has {result.episodes} episodes: {result.recorded} recorded now"
    if result.ended:
        line += f", {result.steps:,} steps, {result.outcome}"
    _say(console, line)
    return result


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _how_to_go_on(config: CollectConfig) -> str:
    try:
        saved = len(open_dataset(config.out))
    except VlaAgentsError:  # interrupted before the dataset was made
        saved = 0
    return (
        f"Stopped: {saved} of {config.episodes} episodes are saved in {config.out}. "
        "Go on by repeating the command with --resume."
    )
