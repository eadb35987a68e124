"""Closed-loop evaluation: an agent, an env, fixed seeds, a report.

report = evaluate(env, agent, seeds=range(100_000, 100_100))

What `vla-agents eval` does beside this (files, resuming, videos) is in `run.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, VectorEnv
from rich.console import Console

from vla_agents.agent import Agent, Observation, PolicyAgent
from vla_agents.arguments import Options, make_agent
from vla_agents.bodies import fitting_body
from vla_agents.chunking import make_chunker
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.vector import make_env, make_vec
from vla_agents.envs.wrappers import SwappedInstruction
from vla_agents.errors import ConfigError
from vla_agents.eval.report import EvalReport, Timing
from vla_agents.eval.video import VideoRecorder
from vla_agents.progress import ProgressBar
from vla_agents.rollout import EpisodeResult, Listener, rollout
from vla_agents.versions import package_versions

EPISODES = 100
FIRST_SEED = 100_000  # recordings start at 0: what is evaluated has not been seen in training


@dataclass(frozen=True)
class RayConfig:
    """Where one machine is not enough: workers on a Ray cluster, each with --num-envs environments and the agent."""

    workers: int = 0
    """How many workers play; 0: play in this process, without Ray."""
    address: str = ""
    """The cluster: auto, or HOST:PORT of its head; left out, Ray is started on this machine alone."""
    cpus: float = 1.0
    """Cores of each worker."""
    gpus: float = 0.0
    """GPUs of each worker; 0.25 lets four share one."""
    retries: int = 2
    """How often an episode is played again whose worker died."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate an agent in closed loop. See also `vla-agents eval compare A B`, `eval merge OUT PARTS`, `eval suites`."""

    agent: str = "expert"
    """Who acts: a checkpoint (folder or hub id), "expert" (the environment's own) or "random"."""
    suite: str = ""
    """A benchmark by name, e.g. libero_object: env, episodes and protocol as published ("list" shows all)."""
    env: str = "vla_agents/Tabletop-v0"
    """Id of the environment, where no suite is named."""
    env_args: Options = field(default_factory=dict)
    """Options of the environment, e.g. task=lift image_size=64."""
    episodes: int | None = None
    """Number of episodes; by default 100, or all of the suite."""
    seed: int = FIRST_SEED
    """Reset seed of the first episode; the next ones count up. Keep away from the seeds trained on."""
    num_envs: int = 8
    """Environments side by side; the policy plans for all that need it in one batch."""
    asynchronous: bool = False
    """A process per environment."""
    execute: int | None = None
    """Actions of a chunk to carry out before planning anew; by default what the checkpoint says."""
    ensemble: Literal["act", "cosine"] | None = None
    """Plan at every step and average the chunks: ACT's exponential or CogACT's adaptive weights."""
    device: str | None = None
    """Where the policy runs, e.g. "cuda"; by default a GPU where there is one."""
    swapped: bool = False
    """The same scenes with another instruction each: the control that shows that language is used."""
    max_steps: int | None = None
    """Cut episodes off after so many steps, beside the environment's own limit."""
    out: Path = Path("runs/eval")
    """Folder for results.json, report.html and videos."""
    videos: int = 6
    """How many episodes to keep as videos, failures first."""
    metrics: Path | None = None
    """metrics.jsonl whose curves the page shows; by default that of the checkpoint's training run."""
    resume: bool = False
    """Go on with the evaluation in --out; episodes that are finished are not played again."""
    overwrite: bool = False
    """Replace an unfinished evaluation in --out."""
    shard: str = ""
    """Play a part of the episodes, e.g. 2/4 on the second of four machines; `vla-agents eval merge` puts them together."""
    exact: bool = False
    """The policy plans for each environment by itself: results do not depend on --num-envs to the last bit; slower."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Play on a Ray cluster."""


def evaluate(
    env: gymnasium.Env | VectorEnv,
    agent: Agent,
    seeds: Iterable[int],
    *,
    listeners: Sequence[Listener] = (),
    max_steps: int | None = None,
    config: dict[str, Any] | None = None,
    keep_partial: bool = False,
    mark_errors: bool = False,
    title: str = "evaluating",
    progress: bool = True,
    console: Console | None = None,
) -> EvalReport:
    """Play one episode per seed and report.

    Args:
        env: A single env, or a vector env made by `make_vec`.
        agent: Acts. Neither it nor the env is closed.
        seeds: One per episode.
        listeners: Told what happens, e.g. a `VideoRecorder`.
        max_steps: Cut episodes off after so many steps.
        config: Plain data about what is evaluated, kept in the report.
        keep_partial: On Ctrl-C, return a report marked `partial` of the finished episodes instead of raising.
        mark_errors: Go on where the agent cannot act; such episodes are marked as errors, see `rollout`.
        title: Of the progress bar.
        progress: Whether to draw one.
        console: Where it is drawn.
    """
    order = [int(seed) for seed in seeds]
    timed, finished = _Timed(agent), _Finished()
    partial = False
    started = time.monotonic()
    with ProgressBar(title, len(order), console=console, visible=progress) as bar:
        try:
            results = rollout(
                env, timed, order, [finished, *listeners, bar], max_steps=max_steps, mark_errors=mark_errors
            )
        except KeyboardInterrupt:
            if not keep_partial:
                raise
            partial = True
            position = {seed: index for index, seed in enumerate(order)}
            results = sorted(finished.results, key=lambda result: position[result.seed])
    timing = Timing(
        seconds=time.monotonic() - started,
        act_seconds=timed.seconds,
        actions=sum(result.steps for result in results),
        episodes=tuple(result.seconds for result in results),
        num_envs=getattr(env, "num_envs", 1),
        asynchronous=isinstance(env, AsyncVectorEnv),
    )
    renderer = next((str(r.info["renderer"]) for r in results if "renderer" in r.info), "")
    return EvalReport(tuple(results), dict(config or {}), package_versions(), renderer, timing, partial)


class PolicyEvaluator:
    """Evaluates a policy in training: `evaluator(policy, step)`, as the Trainer calls it.

    The env is made once and kept, until `close`.

    Args:
        config: `agent`, `out`, `videos`, `device` and `metrics` are not used.
        progress: Whether to draw a progress bar.
        folder: Where reports and videos go, a folder `step_000500` for each evaluation; None: nowhere.
        videos: How many episodes are filmed each time.
    """

    def __init__(
        self, config: EvalConfig, *, progress: bool = False, folder: Path | None = None, videos: int = 2
    ) -> None:
        check_config(config)
        self._config, self._progress, self._folder, self._videos = config, progress, folder, videos
        self._env: gymnasium.Env | VectorEnv | None = None
        self.reports: dict[int, EvalReport] = {}

    def __call__(self, policy: Any, step: int) -> dict[str, float]:
        """Success and its interval, and the success of each task where there are several; the whole report is kept in
        `reports[step]`."""
        config = self._config
        if self._env is None:
            self._env = make_eval_env(config)
        there = embodiment_of(self._env)
        body = fitting_body(policy, there, f"evaluation env {config.env}")
        was_training = policy.training
        execute = policy.default_execute if config.execute is None else config.execute
        chunker = make_chunker(execute, policy.horizon, config.ensemble)
        agent = PolicyAgent(policy, chunker=chunker, transforms=body.transforms, embodiment=body.embodiment)
        try:
            seeds = range(config.seed, config.seed + (config.episodes or EPISODES))
            film = None
            if self._folder is not None and self._videos:
                film = VideoRecorder(self._folder / f"step_{step:06d}", self._videos, there.control_hz)
            report = evaluate(
                self._env,
                agent,
                seeds,
                max_steps=config.max_steps,
                listeners=[film] if film else [],
                progress=self._progress,
            )
            if film is not None:
                film.finish()
        finally:
            policy.train(was_training)
        if self._folder is not None:
            (self._folder / f"step_{step:06d}").mkdir(parents=True, exist_ok=True)
            report.save(self._folder / f"step_{step:06d}" / "report.json")
        self.reports[step] = report
        found = report.overall
        overall = {"success": found.success, "success_low": found.low, "success_high": found.high}
        tasks = report.tasks if len(report.tasks) > 1 else {}
        return overall | {f"success/{name}": of_task.success for name, of_task in tasks.items()}

    def check(self, policy: Any) -> None:
        """Before training: whether the env can be made, and has the policy's body."""
        with contextlib.closing(make_env(self._config.env, **self._config.env_args)) as env:
            fitting_body(policy, embodiment_of(env), f"evaluation env {self._config.env}")

    def close(self) -> None:
        """Close the env."""
        if self._env is not None:
            self._env.close()
            self._env = None


def make_eval_env(config: EvalConfig) -> gymnasium.Env | VectorEnv:
    """The env a config describes; a single one where `num_envs` is 1."""
    wrappers = (SwappedInstruction,) if config.swapped else ()
    count = min(config.num_envs, config.episodes or EPISODES)
    if count == 1 and not config.asynchronous:
        return make_env(config.env, wrappers, **config.env_args)
    return make_vec(config.env, count, asynchronous=config.asynchronous, wrappers=wrappers, **config.env_args)


def make_eval_agent(config: EvalConfig, env: gymnasium.Env | VectorEnv) -> Agent:
    """The agent a config describes."""
    options: dict[str, Any] = {
        "execute": config.execute,
        "ensemble": config.ensemble,
        "device": config.device,
        "exact": config.exact or None,
    }
    return make_agent(config.agent, env, seed=config.seed, **options)


def check_config(config: EvalConfig) -> None:
    """Raise `ConfigError` for counts that make no sense."""
    if config.ray.workers < 0 or config.ray.cpus < 0 or config.ray.gpus < 0 or config.ray.retries < 0:
        raise ConfigError(f"{config.ray}: none of these may be negative")
    for name in ("episodes", "num_envs"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}, it must be at least 1")
    for name in ("seed", "videos"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} is {getattr(config, name)}, it must not be negative")


class _Finished(Listener):
    """Keeps results as they come, so that an interrupted rollout leaves them."""

    def __init__(self) -> None:
        self.results: list[EpisodeResult] = []

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        self.results.append(result)


class _Timed(Agent):
    """Another agent, and how long it thinks."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.seconds = 0.0

    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        self._agent.reset(mask, seed=seed)

    def idle(self, mask: np.ndarray) -> None:
        self._agent.idle(mask)

    def due(self, mask: np.ndarray) -> bool:
        return self._agent.due(mask)

    @property
    def intervened(self) -> bool | np.ndarray:
        return self._agent.intervened

    def act(self, obs: Observation) -> np.ndarray:
        started = time.perf_counter()
        action = self._agent.act(obs)
        self.seconds += time.perf_counter() - started
        return action


Evaluate = Callable[[Any, int], dict[str, float]]
"""What the Trainer is handed; `PolicyEvaluator` is one."""
