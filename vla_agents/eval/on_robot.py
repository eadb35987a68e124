"""A policy on a robot, with a person beside it: `vla-agents robot run so101 --port ... --agent runs/cups`.

The person puts the objects back, judges every episode by a key, and may take over with a device. What comes of it is
the same report as of an evaluation in simulation.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import rich
from rich.console import Console
from tyro.conf import Positional

from vla_agents.arguments import Options
from vla_agents.async_agent import AsyncAgent, AsyncReport
from vla_agents.collect.live.desk import Desk, set_up
from vla_agents.collect.station import make_station
from vla_agents.config import save_yaml, to_dict
from vla_agents.embodiment import embodiment_of
from vla_agents.errors import ConfigError
from vla_agents.eval.evaluate import evaluate
from vla_agents.eval.report import EvalReport
from vla_agents.eval.video import VideoRecorder
from vla_agents.rollout import EpisodeResult, Listener
from vla_agents.takeover import Takeover


@dataclass(frozen=True)
class RunConfig:
    """Run a policy on a robot; y and n judge an episode, Tab takes over where there is a device."""

    robot: Positional[str]
    """Kind of robot, e.g. so101, ur, ros."""
    agent: str
    """A checkpoint (folder or hub id) that was trained for this robot and its cameras."""
    agent_args: Options = field(default_factory=dict)
    """Options of it, e.g. execute=8 when_late=slow."""
    port: str = ""
    """Serial port of an arm of bus servos."""
    name: str = ""
    """What this arm is called, where there are several."""
    robot_args: Options = field(default_factory=dict)
    """More options of the robot, e.g. units=deg, host=192.168.1.10."""
    cameras: Options = field(default_factory=dict)
    """NAME=SOURCE, e.g. front=0 wrist=/dev/video2: the names and the size of the training."""
    camera_size: tuple[int, int] = (480, 640)
    """Height and width of their pictures."""
    hz: float | None = None
    """Actions per second; by default what the driver says."""
    speed: float = 0.5
    """Share of the robot's velocity and acceleration limits to keep to; 1 when the policy is trusted."""
    instructions: tuple[str, ...] = ()
    """The tasks, one per episode in turn; by default they are asked for."""
    ask: bool = False
    """Have the task typed before the first episode."""
    episodes: int = 10
    """How many."""
    max_steps: int | None = None
    """Cut episodes off after so many steps."""
    device: str = ""
    """What a person takes over with: keyboard, gamepad, spacemouse, leader, phone."""
    device_args: Options = field(default_factory=dict)
    """Options of the device."""
    reset_time: float | None = None
    """Seconds to put the objects back before each episode (Enter cuts them short, below 0: until Enter); 10."""
    countdown: float | None = None
    """Seconds counted down before each episode; 3."""
    view: Literal["auto", "terminal", "web", "both", "none"] = "auto"
    """Where live pictures and meters are: the terminal, a page at this machine, or both. auto: the terminal."""
    sound: bool = False
    """Ring the terminal's bell when an episode begins and ends."""
    out: Path = Path("runs/robot")
    """Folder for results.json, run.yaml and videos."""
    videos: int = 6
    """How many episodes to keep as videos, failures first."""
    seed: int = 0
    """Of what the policy draws at random."""


class _Count(Listener):
    """Tells the screen which episode it is, and what became of the last one; sums up how the planning kept up."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self.ended = desk, 0
        agent = desk.agent.policy if isinstance(desk.agent, Takeover) else desk.agent
        self._planner = agent if isinstance(agent, AsyncAgent) else None
        self._planned = AsyncReport()
        desk.saved = lambda: self.ended

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """One more, unless it does not count."""
        if self._planner is not None:
            self._planned += self._planner.report()
        dropped = result.info.get("discarded", False)
        self.ended += not dropped
        outcome = "success" if result.success else "failure" if result.judged else "nobody judged it (y, n)"
        self._desk.say("discarded" if dropped else outcome)

    def planning(self) -> str:
        """What there is to say of it."""
        if self._planner is None:
            return "planning: synchronous, the arm waits for every chunk"
        how = "go on from what is committed" if self._planner.continues_chunks else "begin anew"
        return f"planning: {self._planned}; chunks {how}"


def run_on_robot(config: RunConfig, *, console: Console | None = None) -> EvalReport:
    """Play, and report; the robot is left safe however it ends.

    Raises:
        EmbodimentMismatchError: The policy was trained for another body, other cameras or sizes; nothing has moved.
        VlaAgentsError: What robot, cameras, device and checkpoint say.
    """
    if config.episodes < 1:
        raise ConfigError(f"episodes is {config.episodes}, it must be at least 1")
    console = console or rich.get_console()
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(contextlib.closing(make_station(config)))
        desk = set_up(config, env, stack, console, f"vla-agents robot run {config.robot}  {config.agent}")
        count = _Count(desk)
        videos = VideoRecorder(config.out / "videos", config.videos, embodiment_of(env).control_hz)
        report = evaluate(
            desk.env,
            desk.agent,
            range(config.seed, config.seed + config.episodes),
            listeners=[count, *([videos] if config.videos else [])],
            max_steps=config.max_steps,
            config={k: v for k, v in to_dict(config).items() if k not in ("out", "videos")},
            keep_partial=True,
            progress=False,
        )
        videos.finish()
    kept = tuple(
        dataclasses.replace(result, task=result.task or result.instruction)
        for result in report.episodes
        if not result.info.get("discarded", False)
    )
    report = dataclasses.replace(report, episodes=kept)
    config.out.mkdir(parents=True, exist_ok=True)
    save_yaml(config, config.out / "run.yaml")
    if kept:
        report.save(config.out / "results.json")
        console.print(report.table(f"{config.agent} on {config.robot}"))
        console.print(count.planning(), soft_wrap=True, markup=False, highlight=False)
    return report
