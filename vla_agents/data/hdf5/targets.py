"""Conversion to HDF5: our own layout, ALOHA's, and groups `episode_N`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_agents.data.convert.targets import Target, TargetOptions, origin, rate_of, root_of, whole_numbers
from vla_agents.data.episode import Episode, EpisodeReader
from vla_agents.data.hdf5.aloha import BASE, EXTRAS, IMAGES, QPOS
from vla_agents.data.hdf5.groups import CAMERA
from vla_agents.data.hdf5.out import (
    compression_of,
    mark_file,
    plain_name,
    write_beside,
    write_frames,
    write_ours,
)
from vla_agents.data.hdf5.reader import DATASET, FORMAT, VERSION, episode_file
from vla_agents.data.recording.recorder import json_text
from vla_agents.errors import ConfigError

if TYPE_CHECKING:
    import h5py


class Hdf5Target(Target):
    """Base of the HDF5 targets: nothing of an episode is lost, at most other programs do not see it."""

    program = ""  # who does not see what lies beside
    compressed = "none"

    def __init__(self, path: Path, sources: Sequence[EpisodeReader], options: TargetOptions) -> None:
        super().__init__(path, sources, options)
        self._compression: Mapping[str, Any] = compression_of(options.compression, self.compressed)

    @classmethod
    def losses(cls, source: EpisodeReader, options: TargetOptions) -> list[str]:
        """What of the source this format cannot hold, a line each."""
        root = root_of(source)
        lines = list(getattr(root, "reduced", []))
        lines += [n for n in source.notes if n.startswith(("columns that no episode shows", "left out"))]
        if options.fps is not None and options.fps != rate_of(source):
            lines.append(f"rate: {rate_of(source):g} Hz is called {options.fps:g}")
        return lines

    def finish(self) -> None:
        """Nothing comes last."""

    def _frames(
        self, group: h5py.Group, name: str, reader: EpisodeReader, at: int, camera: str, length: int
    ) -> None:
        size = next((c.height, c.width) for c in self.embodiment.cameras if c.name == camera)
        write_frames(group, name, reader.stream(at, camera), (length, *size), self._compression, reader.path)


class OurHdf5Target(Hdf5Target):
    """Our own layout: a file per episode."""

    compressed = "gzip"

    def __init__(self, path: Path, sources: Sequence[EpisodeReader], options: TargetOptions) -> None:
        super().__init__(path, sources, options)
        path.mkdir()

    def add(self, source: EpisodeReader, index: int) -> None:
        """Write one episode."""
        import h5py

        reader, at = origin(source, index)
        episode = whole_numbers(reader, at, self.fps)
        path = episode_file(self.path, self.episodes)
        try:
            with h5py.File(path, "w") as file:
                for camera in self.embodiment.camera_names:
                    self._frames(file, f"images/{plain_name(camera)}", reader, at, camera, len(episode))
                file["action"], file["reward"] = episode.action, episode.reward
                if episode.state is not None:
                    file["state"] = episode.state
                write_beside(file, episode, episode.extras)
                self._attributes(file, episode)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self.episodes += 1
        self.frames += len(episode)

    def _attributes(self, file: h5py.File, episode: Episode) -> None:
        attributes = {
            "format": FORMAT,
            "version": VERSION,
            "instruction": episode.instruction,
            "fps": self.fps,
            "embodiment": json.dumps(self.embodiment.to_dict()),
            "metadata": json_text(episode.metadata),
        }
        for name, value in attributes.items():
            file.attrs[name] = value
        if episode.success is not None:
            file.attrs["success"] = episode.success

    def finish(self) -> None:
        """Write dataset.json."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "fps": self.fps,
            "embodiment": self.embodiment.to_dict(),
        }
        (self.path / DATASET).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class AlohaTarget(Hdf5Target):
    """ALOHA's layout: `episode_N.hdf5`, pictures as they are (RGB)."""

    def __init__(self, path: Path, sources: Sequence[EpisodeReader], options: TargetOptions) -> None:
        super().__init__(path, sources, options)
        if not self.embodiment.state:
            raise ConfigError(
                f"{sources[0].path}: ALOHA's files need a state (qpos), and there is none",
                "use another format",
            )
        path.mkdir()

    def add(self, source: EpisodeReader, index: int) -> None:
        """Write one episode."""
        import h5py

        reader, at = origin(source, index)
        episode = whole_numbers(reader, at, self.fps)
        path = self.path / f"episode_{self.episodes}.hdf5"
        try:
            with h5py.File(path, "w") as file:
                file.attrs["sim"] = bool(_attribute(episode, "sim"))
                file.attrs["compress"] = False
                for camera in self.embodiment.camera_names:
                    self._frames(file, f"{IMAGES}/{plain_name(camera)}", reader, at, camera, len(episode))
                file.require_group(IMAGES)
                base = self.embodiment.action[-1].size if self._has_base() else 0
                file["action"] = episode.action[:, : episode.action.shape[1] - base]
                if base:
                    file[BASE] = episode.action[:, -base:]
                file[QPOS] = episode.state
                held = {new: old for old, new in EXTRAS.items() if new in episode.extras}
                for new, old in held.items():
                    file[old] = episode.extras[new]
                write_ours(file, episode, self.episodes, [n for n in episode.extras if n not in held])
                mark_file(file, self.embodiment, fps=self.fps)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self.episodes += 1
        self.frames += len(episode)

    def _has_base(self) -> bool:
        last = self.embodiment.action[-1]
        return last.name == "base" and len(self.embodiment.action) > 1


class GroupsTarget(Hdf5Target):
    """One file of groups `episode_N`."""

    def add(self, source: EpisodeReader, index: int) -> None:
        """Write one episode."""
        import h5py

        reader, at = origin(source, index)
        episode = whole_numbers(reader, at, self.fps)
        with h5py.File(self.path, "a") as file:
            name = f"episode_{self.episodes}"
            try:
                group = file.create_group(name)
                cameras = self.embodiment.camera_names
                for camera in cameras:
                    to = "images" if cameras == (CAMERA,) else f"images/{plain_name(camera)}"
                    self._frames(group, to, reader, at, camera, len(episode))
                group["actions"] = episode.action
                if episode.state is not None:
                    group["robot_state"] = episode.state
                group["instruction"] = episode.instruction
                if episode.success is not None:
                    group["success"] = episode.success
                write_ours(group, episode, self.episodes, episode.extras)
            except BaseException:
                del file[name]
                raise
            mark_file(file, self.embodiment, fps=self.fps)
        self.episodes += 1
        self.frames += len(episode)


def _attribute(episode: Episode, name: str) -> Any:
    found = episode.metadata.get("attributes")
    return found.get(name) if isinstance(found, dict) else None
