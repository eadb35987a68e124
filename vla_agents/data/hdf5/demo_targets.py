"""Conversion to the HDF5 files of robomimic and LIBERO, which their own programs read.

Demos that come from a file of the same kind are copied as they are, in full precision. Others get the group
`vla_agents` beside what those programs know; with it they come back as they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.data.convert.targets import TargetOptions, origin, root_of, whole_numbers
from vla_agents.data.episode import Episode, EpisodeReader
from vla_agents.data.hdf5.demos import OURS, DemoReader
from vla_agents.data.hdf5.file import Hdf5File
from vla_agents.data.hdf5.libero import CAMERAS, LIBERO_MARKS, STATE, LiberoReader
from vla_agents.data.hdf5.out import copy_group, mark_file, plain_name, write_ours
from vla_agents.data.hdf5.robomimic import RobomimicReader
from vla_agents.data.hdf5.targets import Hdf5Target
from vla_agents.embodiment import Part

if TYPE_CHECKING:
    import h5py

_AT_ROOT = ("states", "robot_states", "actions_abs")  # extras that lie beside `actions`
_LIBERO = (("xyz", 3), ("axis_angle", 3), ("gripper_position", 2))


class DemoTarget(Hdf5Target):
    """Common to both: `data/demo_N` with `actions`, `obs`, `rewards`, `dones`."""

    reader: type[DemoReader]
    ending = "_image"
    done_type: Any = np.int64
    never: Sequence[str] = ()
    always: Mapping[str, Any] = MappingProxyType(
        {}
    )  # attributes of `data` that are as we write, whatever the source says

    @classmethod
    def losses(cls, source: EpisodeReader, options: TargetOptions) -> list[str]:
        """What of the source this format cannot hold, a line each."""
        return [] if _copies(cls, root_of(source)) else super().losses(source, options)

    def _add_demo(self, file: h5py.File, source: EpisodeReader, index: int) -> None:
        """Append one demo to a file."""
        reader, at = origin(source, index)
        data = file.require_group("data")
        name = f"demo_{len(data)}"
        try:
            demo = data.create_group(name)
            if _copies(type(self), reader) and isinstance(reader, DemoReader):
                length = self._copy(reader, at, demo)
            else:
                length = self._write(reader, at, demo)
                mark_file(file, self.embodiment, fps=self.fps, state_keys=self._state_keys())
            self._next(demo, length)
        except BaseException:
            del data[name]
            raise
        demo.attrs["num_samples"] = length
        data.attrs["total"] = int(data.attrs.get("total", 0)) + length
        self.episodes += 1
        self.frames += length

    def _copy(self, reader: DemoReader, at: int, demo: h5py.Group) -> int:
        """A demo of the same kind, in full precision; it is read first, so that a damaged one is not copied."""
        episode = reader.read(at, images=False)
        length = len(episode)
        where = reader.demo(at)
        with Hdf5File(where.file) as source:
            copy_group(source, where.group.rstrip("/"), demo)
            if reader.is_ours and OURS not in demo.file.attrs:
                demo.file.attrs[OURS] = source.attribute(OURS)
            self._file_attributes(demo.file, source.attributes("data"), episode.instruction)
            self._masks(demo, reader.masks_of(at) if isinstance(reader, RobomimicReader) else [])
        demo.require_group(OURS).attrs["index"] = self.episodes
        return length

    def _write(self, reader: EpisodeReader, at: int, demo: h5py.Group) -> int:
        """An episode of any format."""
        episode = whole_numbers(reader, at, self.fps)
        demo["actions"], demo["rewards"] = episode.action, episode.reward
        demo["dones"] = (episode.terminated | episode.truncated).astype(self.done_type)
        obs = demo.create_group("obs")
        if episode.state is not None:
            for key, where in zip(self._state_keys(), self.embodiment.state_slices().values(), strict=True):
                obs[key] = episode.state[:, where]
        for camera in self.embodiment.camera_names:
            self._frames(obs, self._camera_key(camera), reader, at, camera, len(episode))
        beside = [name for name in episode.extras if not _place_extra(demo, name, episode.extras[name])]
        self._more(demo, episode)
        write_ours(demo, episode, self.episodes, beside)
        stored = episode.metadata.get("attributes")
        for name, value in stored.items() if isinstance(stored, dict) else ():
            if isinstance(value, str | int | float | list) and name != "num_samples":
                demo.attrs[name] = value
        dataset = episode.metadata.get("dataset_attributes")
        known = {**dataset} if isinstance(dataset, dict) else {}
        self._file_attributes(demo.file, {**known, **self.always}, episode.instruction)
        masks = episode.metadata.get("masks")
        self._masks(demo, masks if isinstance(masks, list) else [])
        return len(episode)

    def _state_keys(self) -> list[str]:
        """The names of the state's parts among the observations."""
        return [plain_name(part.name.replace("/", ".")) for part in self.embodiment.state]

    def _camera_key(self, camera: str) -> str:
        return plain_name(camera) + self.ending

    def _more(self, demo: h5py.Group, episode: Episode) -> None:
        """Observations that the format's own programs expect."""

    def _next(self, demo: h5py.Group, length: int) -> None:
        """`next_obs`, where the format's own programs expect it."""

    def _masks(self, demo: h5py.Group, masks: list[Any]) -> None:
        """Note to which filters the demo belongs."""

    def _file_attributes(self, file: h5py.File, known: dict[str, Any], instruction: str) -> None:
        """Attributes of `data`, set once: those of the source, and what must be there."""
        data = file["data"]
        for name, value in known.items():
            if name not in data.attrs and name not in ("total", "num_demos", *self.never):
                data.attrs[name] = value
        if "env_args" not in data.attrs:
            kwargs = {"control_freq": self.fps}
            env = {"env_name": self.embodiment.name, "type": 2, "env_kwargs": kwargs}
            data.attrs["env_args"] = json.dumps(env)


class RobomimicTarget(DemoTarget):
    """One file in robomimic's layout."""

    reader = RobomimicReader
    never = LIBERO_MARKS  # of a file that comes from LIBERO: they would make it one of LIBERO's

    def __init__(self, path: Path, sources: Sequence[EpisodeReader], options: TargetOptions) -> None:
        super().__init__(path, sources, options)
        self._members: dict[str, list[str]] = {}

    def add(self, source: EpisodeReader, index: int) -> None:
        """Write one episode."""
        import h5py

        with h5py.File(self.path, "a") as file:
            self._add_demo(file, source, index)

    def finish(self) -> None:
        """Write the filters."""
        import h5py

        with h5py.File(self.path, "a") as file:
            for mask, names in self._members.items():
                file.create_dataset(f"mask/{mask}", data=np.array([name.encode() for name in names]))

    def _masks(self, demo: h5py.Group, masks: list[Any]) -> None:
        for mask in masks:
            self._members.setdefault(plain_name(str(mask)), []).append(demo.name.split("/")[-1])

    def _next(self, demo: h5py.Group, length: int) -> None:
        """`next_obs` is `obs` one step later, the last one repeated; of pictures a view, so that they lie there once."""
        import h5py

        if "next_obs" in demo and len(demo["next_obs"]) == len(demo["obs"]):
            return
        following = demo.require_group("next_obs")
        for name, values in demo["obs"].items():
            if name in following:
                continue
            if values.ndim < 3:
                rows = values[()]
                following[name] = np.concatenate([rows[1:], rows[-1:]])
                continue
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            view = h5py.VirtualSource(".", values.name, values.shape)
            layout[: length - 1], layout[length - 1 :] = view[1:], view[length - 1 :]
            following.create_virtual_dataset(name, layout)


class LiberoTarget(DemoTarget):
    """A folder of `<task>_demo.hdf5`, one for each instruction, in LIBERO's layout."""

    reader = LiberoReader
    ending = "_rgb"
    done_type = np.uint8
    always = MappingProxyType({"macros_image_convention": "opengl"})

    def __init__(self, path: Path, sources: Sequence[EpisodeReader], options: TargetOptions) -> None:
        super().__init__(path, sources, options)
        self._names: dict[Any, str] = {}
        path.mkdir()

    def add(self, source: EpisodeReader, index: int) -> None:
        """Write one episode."""
        import h5py

        reader, at = origin(source, index)
        if isinstance(reader, LiberoReader):
            key: Any = reader.demo(at).file
            name = key.name.removesuffix(key.suffix).removesuffix("_demo")
        else:
            key = reader.read(at, images=False).instruction
            name = re.sub(r"[^A-Za-z0-9]+", "_", key).strip("_").lower()[:120] or "no_instruction"
        if key not in self._names:
            self._names[key] = name if name not in self._names.values() else f"{name}_{len(self._names)}"
        with h5py.File(self.path / f"{self._names[key]}_demo.hdf5", "a") as file:
            self._add_demo(file, source, index)
            file["data"].attrs["num_demos"] = len(file["data"])

    def _state_keys(self) -> list[str]:
        return list(STATE) if _is_libero(self.embodiment.state) else super()._state_keys()

    def _camera_key(self, camera: str) -> str:
        return next((key for key, name in CAMERAS.items() if name == camera), super()._camera_key(camera))

    def _frames(
        self, group: h5py.Group, name: str, reader: EpisodeReader, at: int, camera: str, length: int
    ) -> None:
        super()._frames(group, name, _BottomRowFirst(reader), at, camera, length)  # type: ignore[arg-type]

    def _more(self, demo: h5py.Group, episode: Episode) -> None:
        obs = demo["obs"]
        if _is_libero(self.embodiment.state) and "ee_states" not in obs and episode.state is not None:
            obs["ee_states"] = episode.state[:, :6]

    def _file_attributes(self, file: h5py.File, known: dict[str, Any], instruction: str) -> None:
        super()._file_attributes(file, known, instruction)
        attributes = file["data"].attrs
        info = json.loads(attributes.get("problem_info", "{}"))
        if info.get("language_instruction") != instruction and "problem_info" not in known:
            attributes["problem_info"] = json.dumps(
                {"problem_name": "", "domain_name": "robosuite"}
                | info
                | {"language_instruction": instruction}
            )
        for name in ("env_name", "bddl_file_name"):
            if name not in attributes:
                attributes[name] = ""


class _BottomRowFirst:
    """A reader whose pictures lie as LIBERO stores them."""

    def __init__(self, reader: EpisodeReader) -> None:
        self._reader, self.path = reader, reader.path

    def stream(self, index: int, camera: str) -> Any:
        for image in self._reader.stream(index, camera):
            yield image[::-1]


def _copies(target: type[DemoTarget], reader: EpisodeReader) -> bool:
    """Whether demos of this reader can be copied as they are."""
    return type(reader) is target.reader and not getattr(reader, "overridden", True)


def _is_libero(state: tuple[Part, ...]) -> bool:
    return tuple((part.kind, part.size) for part in state) == _LIBERO


def _place_extra(demo: h5py.Group, name: str, values: np.ndarray) -> bool:
    """Put an extra where it has a place of its own; False where it has none."""
    first, _, rest = name.partition(".")
    place = (
        name if name in _AT_ROOT else f"{first}/{rest}" if rest and first in ("obs", "action_dict") else ""
    )
    if not place or "/" in rest or place in demo:
        return False
    demo[place] = values
    return True
