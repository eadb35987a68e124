"""Parts of HDF5 files being written: pictures block by block, what other programs have no place for, exact copies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.data.episode import Episode
from vla_agents.data.hdf5.demos import OURS
from vla_agents.data.hdf5.file import Hdf5File
from vla_agents.data.hdf5.reader import FLAGS
from vla_agents.data.recording.recorder import json_text
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    import h5py

_BLOCK = 1 << 19  # bytes of pictures compressed together
GZIP: dict[str, Any] = {"compression": "gzip", "compression_opts": 1}


def write_frames(
    group: h5py.Group,
    name: str,
    frames: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    compression: Mapping[str, Any],
    where: Path,
) -> None:
    """Write pictures, uint8 (H, W, 3), as a dataset (T, H, W, 3).

    Args:
        group: Where to.
        name: Of the dataset.
        frames: The pictures.
        shape: `(T, H, W)`.
        compression: Arguments of `create_dataset`.
        where: The dataset they come from, for errors.
    """
    length, height, width = shape
    block = max(1, min(16, _BLOCK // (height * width * 3), length)) if compression else 1
    dataset = group.create_dataset(
        name, (length, height, width, 3), np.uint8, chunks=(block, height, width, 3), **compression
    )
    done, waiting = 0, []
    for image in frames:
        waiting.append(image)
        if len(waiting) == block:
            dataset[done : done + block] = np.stack(waiting)
            done, waiting = done + block, []
    if waiting:
        dataset[done : done + len(waiting)] = np.stack(waiting)
    if done + len(waiting) != length:
        raise DatasetError(where, f"{name} has {done + len(waiting)} pictures for {length} steps")


def write_beside(group: h5py.Group, episode: Episode, extras: Iterable[str]) -> None:
    """Flags, times, tasks and extras, as `read_beside` reads them.

    Args:
        group: Where to.
        episode: The episode; pictures are not looked at.
        extras: Which of its extras.
    """
    import h5py

    for name in FLAGS:
        group[name] = getattr(episode, name)
    group["time"] = episode.time
    for name in ("executed", "commanded"):
        if getattr(episode, name) is not None:
            group[name] = getattr(episode, name)
    if episode.repeated.any():
        group["repeated"] = episode.repeated
    if episode.tasks is not None:
        names = list(dict.fromkeys(episode.tasks))
        group["tasks"] = np.array([names.index(task) for task in episode.tasks], np.int32)
        group["task_names"] = json.dumps(names)
    for name in extras:
        values = episode.extras[name]
        group.require_group("extras").create_dataset(
            name.replace("/", "%2F"),
            data=values.astype(object) if values.dtype.kind == "U" else values,
            dtype=h5py.string_dtype() if values.dtype.kind == "U" else None,
        )


def write_ours(group: h5py.Group, episode: Episode, number: int, extras: Iterable[str]) -> None:
    """The group `vla_agents` of a demo: what the other program has no place for."""
    ours = group.create_group(OURS)
    write_beside(ours, episode, extras)
    ours["reward"] = episode.reward
    ours.attrs["index"] = number
    ours.attrs["instruction"] = episode.instruction
    ours.attrs["metadata"] = json_text(episode.metadata)
    if episode.success is not None:
        ours.attrs["success"] = episode.success


def mark_file(file: h5py.File, embodiment: Embodiment, **fields: Any) -> None:
    """The attribute `vla_agents` of a file: what its numbers and pixels mean."""
    file.attrs[OURS] = json.dumps({"embodiment": embodiment.to_dict(), **fields})


def copy_group(source: Hdf5File, name: str, target: h5py.Group) -> None:
    """Copy a group with all it holds, types and attributes included; nothing that leads out of the file."""
    for key in source.names(name or "/"):
        inner = f"{name}/{key}" if name else key
        if source.is_group(inner):
            copy_group(source, inner, target.create_group(key))
            continue
        if source.is_virtual(inner):  # `next_obs` of ours; the caller makes it anew
            continue
        found = source.dataset(inner)
        layout = {"chunks": found.chunks, "compression": found.compression, "shuffle": found.shuffle}
        layout |= {"compression_opts": found.compression_opts}
        made = target.create_dataset(key, found.shape, found.dtype, **(layout if found.chunks else {}))
        block = max(1, (1 << 24) // max(1, found.dtype.itemsize * int(np.prod(found.shape[1:]))))
        for start in range(0, found.shape[0], block) if found.shape else ():
            made[start : start + block] = source.values(inner, slice(start, start + block))
        if not found.shape:
            made[()] = source.values(inner)
    copy_attributes(source, name, target)


def copy_attributes(source: Hdf5File, name: str, target: h5py.Group) -> None:
    """Copy the attributes of a group."""
    for key in source.attribute_names(name or "/"):
        target.attrs[key] = source.attribute(key, name or "/")


def compression_of(option: str | None, otherwise: str) -> dict[str, Any]:
    """Arguments of `create_dataset` for pictures."""
    return dict(GZIP) if (option or otherwise) == "gzip" else {}


def plain_name(name: str) -> str:
    """A name that HDF5 takes for one, not for a path."""
    if name in ("", ".", "..") or "/" in name:
        raise ConfigError(f"{name!r} cannot be a name in HDF5", "rename the camera or part: no '/'")
    return name
