"""What a conversion writes to: one class per format, each episode taken from a reader of any format."""

from __future__ import annotations

import dataclasses
import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_agents.data.episode import Episode, EpisodeReader
from vla_agents.data.subset import SubsetReader
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, UnknownNameError

# Format -> module:class, the suffix of a target that is a single file ("" for a folder), and what it is.
TARGETS = {
    "lerobot-v3.0": ("lerobot.target:LeRobotV3Target", "", "LeRobot v3.0"),
    "lerobot-v2.1": ("lerobot.target:LeRobotV21Target", "", "LeRobot v2.1"),
    "lerobot-v2.0": ("lerobot.target:LeRobotV20Target", "", "LeRobot v2.0"),
    "hdf5": ("hdf5.targets:OurHdf5Target", "", "HDF5 of vla_agents"),
    "aloha": ("hdf5.targets:AlohaTarget", "", "HDF5 of ALOHA and ACT"),
    "robomimic": ("hdf5.demo_targets:RobomimicTarget", ".hdf5", "HDF5 of robomimic"),
    "libero": ("hdf5.demo_targets:LiberoTarget", "", "HDF5 of LIBERO"),
    "groups": ("hdf5.targets:GroupsTarget", ".hdf5", "HDF5 with groups episode_N"),
}
ALIASES = {"lerobot": "lerobot-v3.0", "lerobot-v3": "lerobot-v3.0", "lerobot-v2": "lerobot-v2.1"}
LOSSLESS = "lossless"


@dataclass(frozen=True)
class TargetOptions:
    """How the target is written, where its format leaves a choice.

    Args:
        fps: Nominal rate; None takes the source's. Steps stay the ones they are, none is left out or made up. The
            embodiment gets it as its `control_hz`, unless it only rounds one that the format cannot hold.
        video_quality: LeRobot: constant rate factor of the video (lower is better), or `"lossless"` for PNG pictures in
            place of video. None copies the source's video or pictures as they are, where it has some, and encodes others
            as a recording does (18 for small pictures, 20 for larger ones).
        codec: LeRobot: `"h264"` or `"av1"`, where video is encoded.
        compression: HDF5: of the pictures, `"gzip"` or `"none"`. None: gzip in our own layout, none in those of others.
        robot_type: LeRobot's field of that name; None takes the source's, or the embodiment's name.
    """

    fps: float | None = None
    video_quality: int | str | None = None
    codec: str = "h264"
    compression: str | None = None
    robot_type: str | None = None

    def __post_init__(self) -> None:
        quality = self.video_quality
        if isinstance(quality, str) and quality != LOSSLESS:
            raise ConfigError(f"video_quality is {quality!r}", f"give a number from 0 to 51, or {LOSSLESS!r}")
        if isinstance(quality, int) and not 0 <= quality <= 51:
            raise ConfigError(f"video_quality is {quality}, expected 0 (best) to 51")
        if self.compression not in (None, "gzip", "none"):
            raise UnknownNameError("compression", self.compression, ("gzip", "none"))


class Target(ABC):
    """A dataset that is being written at `path`, which nobody looks at before `finish`.

    Args:
        path: A folder that does not exist yet (a file, where the format is one).
        sources: Where the episodes come from: of one embodiment.
        options: How to write.
    """

    whole_rates = False  # whether the format holds whole numbers of steps per second only

    def __init__(self, path: Path, sources: Sequence[EpisodeReader], options: TargetOptions) -> None:
        self.path, self.sources, self.options = path, list(sources), options
        self.fps = options.fps or rate_of(sources[0])
        self.embodiment: Embodiment = self._at_rate(sources[0].embodiment)
        self.episodes = self.frames = 0
        self.notes: dict[str, int] = {}  # what was done -> how often, for the report
        self._lock = threading.Lock()

    def _at_rate(self, body: Embodiment) -> Embodiment:
        """The embodiment at the rate that was asked for."""
        rounded = self.whole_rates and body.control_hz % 1 and abs(body.control_hz - self.fps) < 1
        if self.options.fps is None or rounded:
            return body
        return dataclasses.replace(body, control_hz=float(self.fps))

    @classmethod
    @abstractmethod
    def losses(cls, source: EpisodeReader, options: TargetOptions) -> list[str]:
        """What of the source this format cannot hold, a line each; empty where nothing is lost."""

    @abstractmethod
    def add(self, source: EpisodeReader, index: int) -> None:
        """Write one episode. If it raises a `DatasetError`, nothing of that episode is in the target."""

    @abstractmethod
    def finish(self) -> None:
        """Write what comes last."""

    def note(self, what: str, count: int = 1) -> None:
        """Count something for the report."""
        with self._lock:
            self.notes[what] = self.notes.get(what, 0) + count


def target_class(name: str) -> type[Target]:
    """The target of a format, by its name or alias."""
    name = ALIASES.get(name, name)
    if name not in TARGETS:
        raise UnknownNameError("dataset format", name, [*TARGETS, *ALIASES])
    module, attribute = TARGETS[name][0].split(":")
    return getattr(importlib.import_module(f"vla_agents.data.{module}"), attribute)


def origin(source: EpisodeReader, index: int) -> tuple[EpisodeReader, int]:
    """The dataset itself and the position in it, behind any choice of episodes."""
    while isinstance(source, SubsetReader):
        index, source = source.indices[index], source.source
    return source, index


def whole_numbers(reader: EpisodeReader, index: int, fps: float | None = None) -> Episode:
    """An episode without pictures, but with all its extras, and with times as of `times_at`."""
    episode = reader.read(index, images=False)
    episode.time = times_at(episode.time, rate_of(reader), fps)
    wide = getattr(reader, "wide", None)
    episode.extras |= {} if wide is None else wide(index)
    return episode


def times_at(times: np.ndarray, old: float, new: float | None) -> np.ndarray:
    """Times (T,) that only count steps at the old nominal rate count them at the new one; measured ones stay."""
    steps = np.arange(len(times))
    counted = new is not None and new != old and np.allclose(times, steps / old, rtol=0, atol=1e-4)
    return steps / new if counted and new else times


def rate_of(source: EpisodeReader) -> float:
    """Nominal steps per second of a dataset."""
    found = getattr(source, "fps", None)
    return float(source.embodiment.control_hz if found is None else found)


def root_of(source: EpisodeReader) -> EpisodeReader:
    """The dataset itself, behind any choice of episodes."""
    while isinstance(source, SubsetReader):
        source = source.source
    return source


def format_of(source: EpisodeReader) -> str:
    """The name among `TARGETS` of the format that a reader reads."""
    reader = root_of(source)
    kind, version = type(reader).__name__, getattr(getattr(reader, "info", None), "version", "")
    return {
        "LeRobotReader": f"lerobot-{version}", "Hdf5Reader": "hdf5", "AlohaReader": "aloha",
        "RobomimicReader": "robomimic", "LiberoReader": "libero", "EpisodeGroupsReader": "groups",
    }.get(kind, "hdf5")  # fmt: skip
