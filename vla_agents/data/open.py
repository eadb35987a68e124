"""Which format a folder or file holds, and the reader or writer for it."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from vla_agents.data.episode import EpisodeReader, EpisodeWriter
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, DatasetError, DatasetNotFoundError, UnknownNameError

log = logging.getLogger(__name__)

# Format -> module:class that records episodes in it.
WRITERS = {
    "lerobot": "lerobot.writer:LeRobotWriter",
    "hdf5": "hdf5.writer:Hdf5Writer",
}
FORMATS = tuple(WRITERS)
# Formats that are written when the writer is closed.
ASSEMBLED = ("lerobot-v2.1", "lerobot-v2.0", "robomimic", "libero", "aloha", "groups")
# Reader -> the options of `open_dataset` that it understands, beside `embodiment`.
_DEMOS = ("instruction", "fps")
_OPTIONS = {
    "lerobot.reader:LeRobotReader": (),
    "hdf5.reader:Hdf5Reader": (),
    "hdf5.aloha:AlohaReader": (*_DEMOS, "colour"),
    "hdf5.libero:LiberoReader": (*_DEMOS, "mask", "state_keys"),
    "hdf5.robomimic:RobomimicReader": (*_DEMOS, "mask", "state_keys"),
    "hdf5.groups:EpisodeGroupsReader": _DEMOS,
}
# Layouts of HDF5 files, the most particular first: module, function that recognises it, reader.
_LAYOUTS = (
    ("hdf5.libero", "is_libero", "LiberoReader"),
    ("hdf5.robomimic", "is_robomimic", "RobomimicReader"),
    ("hdf5.aloha", "is_aloha", "AlohaReader"),
    ("hdf5.groups", "is_groups", "EpisodeGroupsReader"),
)
_LOOKED_FOR = (
    "meta/info.json (LeRobot), dataset.json (HDF5 of vla_agents) or .hdf5 files (ALOHA, robomimic, LIBERO)"
)


def open_dataset(
    path: str | Path, *, embodiment: Embodiment | None = None, skip_bad: bool = False, **options: Any
) -> EpisodeReader:
    """Open a dataset of any known format for reading; what it is follows from its content.

    Args:
        path: The dataset's folder, or a single HDF5 file.
        embodiment: What the numbers and pixels mean, where the dataset does not say so or is wrong.
        skip_bad: Leave out episodes that cannot be read (`reader.skipped` names them) instead of raising when they are
            read. Looks at every episode's numbers, and at its first and last pictures.
        options: For files that lack them: `instruction=` (text), `fps=`; for ALOHA `colour="rgb"|"bgr"`; for robomimic and
            LIBERO `mask=` (a filter key) and `state_keys=` (observations that make up the state).

    Returns:
        A reader; its `format` says what was found, its `notes` what was assumed.

    Raises:
        DatasetNotFoundError: There is none.
        DatasetError: It is damaged or contradicts itself.
        ConfigError: An option that this format does not have, or an embodiment that does not fit.
    """
    reader = _opened(Path(path), embodiment, skip_bad, options)
    if skip_bad:
        from vla_agents.data.subset import readable

        return readable(reader)
    return reader


def open_with_bad(path: str | Path, *, embodiment: Embodiment | None = None, **options: Any) -> EpisodeReader:
    """As `open_dataset(..., skip_bad=True)`, but bad episodes keep their numbers; reading one is a `DatasetError`."""
    return _opened(Path(path), embodiment, True, options)


def _opened(
    path: Path, embodiment: Embodiment | None, skip_bad: bool, options: dict[str, Any]
) -> EpisodeReader:
    kind = _reader_of(path, skip_bad)
    for name in options:
        if name not in _OPTIONS[kind]:
            known = ", ".join(_OPTIONS[kind]) or "none beside embodiment and skip_bad"
            raise ConfigError(
                f"{path}: option {name!r} is not for {kind.split(':')[1]}", f"its options: {known}"
            )
    if skip_bad:
        options = options | {"skip_bad": True}
    reader = _load(kind)(path, embodiment=embodiment, **options)
    log.info("%s: %s; %s", path, reader.format, "; ".join(reader.notes) or "nothing assumed")
    return reader


def create_dataset(
    path: str | Path, embodiment: Embodiment, format: str = "lerobot", **options: Any
) -> EpisodeWriter:
    """Start a dataset, or go on with one (`resume=True`).

    Args:
        path: The dataset's folder; made where missing.
        embodiment: What the numbers and pixels mean.
        format: `"lerobot"` (v3.0, compressed video) or `"hdf5"` (lossless pictures); or one of those that are put together
            when the writer is closed: `"lerobot-v2.1"`, `"lerobot-v2.0"`, `"robomimic"`, `"libero"`, `"aloha"`, `"groups"`.
        options: Of `LeRobotWriter`, `Hdf5Writer` or `AssembledWriter`.
    """
    if format in WRITERS:
        return _load(WRITERS[format])(path, embodiment, **options)
    if format not in ASSEMBLED:
        raise UnknownNameError("dataset format", format, (*FORMATS, *ASSEMBLED))
    return _load("convert.assembled:AssembledWriter")(path, embodiment, format=format, **options)


def _load(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(f"vla_agents.data.{module}"), attribute)


def _reader_of(path: Path, skip_bad: bool) -> str:
    if not path.exists():
        if path.with_name(path.name + ".recording").exists():
            raise DatasetNotFoundError(
                path,
                f"is not there yet: its episodes lie in {path.name}.recording",
                "finish it: create_dataset(..., resume=True).close()",
            )
        raise DatasetNotFoundError(
            path,
            "no such folder",
            f"looked for a folder with {_LOOKED_FOR}; the current folder is {Path.cwd()}",
        )
    if (path / "meta" / "info.json").exists():
        return "lerobot.reader:LeRobotReader"
    if (path / "dataset.json").exists():
        return "hdf5.reader:Hdf5Reader"
    from vla_agents.data.hdf5.demos import SUFFIXES, hdf5_files

    if path.is_file() and path.suffix not in SUFFIXES and not _is_hdf5(path):
        raise DatasetError(
            path, "is a file, not a dataset's folder", f"give the folder that holds {_LOOKED_FOR}"
        )
    files = hdf5_files(path)
    if not files:
        found = sorted(entry.name for entry in path.iterdir())[:8]
        raise DatasetNotFoundError(
            path,
            f"no dataset there: neither {_LOOKED_FOR}",
            f"the folder holds {', '.join(found) or 'nothing'}",
        )
    return _layout_of(files, skip_bad)


def _is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5 by its content, whatever its name."""
    import h5py

    return bool(h5py.is_hdf5(path))


def _layout_of(files: list[Path], skip_bad: bool) -> str:
    """The layout of the first HDF5 file that can be read."""
    from vla_agents.data.hdf5.file import Hdf5File

    for number, path in enumerate(files):
        try:
            with Hdf5File(path) as file:
                for module, recognises, reader in _LAYOUTS:
                    if _load(f"{module}:{recognises}")(file):
                        return f"{module}:{reader}"
                if file.attribute("format", optional=True) == "vla_agents_episodes":
                    raise DatasetNotFoundError(
                        path.parent / "dataset.json",
                        f"is missing, though {path.name} is an episode of vla_agents",
                        "copy the whole folder again, and give the folder, not a file in it",
                    )
                content = ", ".join(file.names()[:8]) or "nothing"
        except DatasetNotFoundError:
            raise
        except DatasetError:
            if not skip_bad or number + 1 == len(files):
                raise
            continue
        raise DatasetError(
            path,
            f"is HDF5 of no known layout; it holds {content}",
            "known: ALOHA (observations/qpos), robomimic and LIBERO (data/demo_N/actions), groups (episode_N/actions); "
            "episodes of vla_agents are opened by their folder",
        )
    raise AssertionError
