"""What `vla-agents collect` is told, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_agents.arguments import Options


@dataclass(frozen=True)
class CollectConfig:
    """Record episodes into a dataset."""

    out: Path
    """Folder of the dataset."""
    env: str = "vla_agents/Tabletop-v0"
    """Id of the environment."""
    env_args: Options = field(default_factory=dict)
    """Options of the environment, e.g. task=lift image_size=64."""
    robot: str = ""
    """A robot in place of an environment, e.g. so101; `vla-agents robot --help` helps to get it ready."""
    port: str = ""
    """Serial port of the robot, e.g. /dev/ttyACM0."""
    name: str = ""
    """What the robot is called (its calibration), where there are several."""
    robot_args: Options = field(default_factory=dict)
    """More options of the robot, e.g. host=192.168.1.10."""
    cameras: Options = field(default_factory=dict)
    """Cameras of the robot, NAME=SOURCE, e.g. front=0 wrist=/dev/video2 side=rtsp://192.168.1.7/live."""
    camera_size: tuple[int, int] = (480, 640)
    """Height and width of their pictures."""
    hz: float | None = None
    """Actions per second of the robot; by default what its driver says."""
    speed: float = 1.0
    """Share of the robot's velocity and acceleration limits to keep to."""
    agent: str = ""
    """Who acts: "expert" (the environment's own), "random", or a checkpoint (folder or hub id). By default the device
    where there is one, else the expert. Both an agent and a device: the agent drives, the device takes over."""
    agent_args: Options = field(default_factory=dict)
    """Options of a checkpoint, e.g. execute=8 when_late=slow."""
    device: str = ""
    """What a person drives with: keyboard, gamepad, spacemouse, leader, phone; or expert, replay."""
    device_args: Options = field(default_factory=dict)
    """Options of the device, e.g. port=/dev/ttyACM1 for a leader arm."""
    instructions: tuple[str, ...] = ()
    """The tasks, one per saved episode in turn; by default the environment's own, on a robot they are asked for."""
    ask: bool = False
    """Have the task typed before the first episode; "t" between episodes changes it."""
    reset_time: float | None = None
    """Seconds to put the objects back before each episode (Enter cuts them short, below 0: until Enter); by default 10 on
    a robot, 0 in simulation."""
    countdown: float | None = None
    """Seconds counted down before each episode; by default 3 where a person drives."""
    view: Literal["auto", "terminal", "web", "both", "none"] = "auto"
    """Where live pictures and meters are: the terminal, a page at this machine, or both. auto: the terminal."""
    sound: bool = False
    """Ring the terminal's bell when an episode begins and ends."""
    episodes: int = 100
    """How many episodes the dataset shall have in the end."""
    seed: int = 0
    """Reset seed of the first episode; the next ones count up."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the executed action, in action units; the label stays clean."""
    noise_dims: int = 3
    """How many leading action values are disturbed (3: the translation)."""
    noise_probability: float = 1.0
    """Share of the steps that are disturbed."""
    bursts: float = 0.0
    """Share of the episodes in which a few random actions are executed, whatever the agent says."""
    only_success: bool | None = None
    """Drop episodes that fail; by default for the expert only."""
    max_steps: int | None = None
    """Cut episodes off after so many steps, beside the environment's own limit."""
    format: Literal["lerobot", "hdf5"] = "lerobot"
    """Format on disk: LeRobot v3.0 (h264 video), or HDF5 (lossless pictures)."""
    durable: bool = True
    """Whether a saved episode survives a power cut (fsync), not only a killed process."""
    resume: bool = False
    """Go on with the dataset in `out` where one is there already."""
    workers: int = 1
    """Processes that simulate side by side; the dataset is the same for any number."""


@dataclass(frozen=True)
class CollectResult:
    """What came of it.

    Args:
        path: The dataset.
        episodes: Episodes in it now.
        recorded: Episodes this call added.
        ended: Episodes this call played, the dropped ones included.
        judged: How many of those somebody judged, the env or a person.
        succeeded: How many of those succeeded.
        steps: Steps this call added.
        seconds: Wall time.
    """

    path: Path
    episodes: int
    recorded: int
    ended: int
    judged: int
    succeeded: int
    steps: int
    seconds: float

    @property
    def success(self) -> float:
        """Share of the judged episodes that succeeded (1.0 where none was judged)."""
        return self.succeeded / self.judged if self.judged else 1.0

    @property
    def outcome(self) -> str:
        """In words."""
        if not self.judged:
            return "nobody judged success"
        line = f"success {100 * self.success:.1f} %"
        return line if self.judged == self.ended else f"{line} of the {self.judged} that were judged"
