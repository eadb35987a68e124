"""Make whole episodes of those that were open when the process died.

Rows and pictures that had not reached the disk at that moment are lost: at most the last second. What is there is
checked by its checksums, and compressed pictures are copied as they are. Saved episodes are not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data import atomic
from vla_agents.data.episode import EpisodeReader
from vla_agents.data.hdf5.writer import Hdf5Writer
from vla_agents.data.lerobot.writer import LeRobotWriter
from vla_agents.data.open import open_dataset
from vla_agents.data.recording.rebuild import CopiedVideo, intact, lossless
from vla_agents.data.recording.recorder import StepWriter
from vla_agents.data.recording.unfinished import Unfinished, find_unfinished, put_aside
from vla_agents.data.video.encode import VideoSettings
from vla_agents.embodiment import Embodiment
from vla_agents.errors import DatasetError

RECOVERED = "recovered"  # in the metadata of such an episode
_LEROBOT = ("fps", "robot_type", "codec", "crf", "preset", "pix_fmt")
_HDF5 = ("fps", "compression")


def find(path: str | Path) -> list[Unfinished]:
    """The episodes of a dataset that can be repaired, oldest first. Nothing is changed.

    Raises:
        DatasetError: An episode is being recorded at this moment.
        RecordingError: The folder may not be written to.
    """
    root = Path(path)
    reader = open_dataset(root)
    if not find_unfinished(root, len(reader)):
        return []
    with _locked(root):  # whoever writes now would be disturbed
        found = find_unfinished(root, len(reader))
    known = _recovered(reader) if found else set()
    return [one for one in found if one.id not in known]


def usable(found: Unfinished, body: Embodiment) -> int:
    """How many rows have all their pictures, going by the checksums."""
    return min([len(found.steps), *(intact(found, k, camera) for k, camera in enumerate(body.cameras))])


def repair(path: str | Path, found: Unfinished) -> int:
    """Append what is left of an episode to the dataset, and remove what it was made of.

    Args:
        path: The dataset's folder.
        found: One of `find(path)`.

    Returns:
        The index of the episode. Its metadata have the key `"recovered"`; nobody has judged it, and its last step is
        marked as cut off.

    Raises:
        DatasetError: What is left contradicts the dataset.
        RecordingError: The disk refused; what can be repaired is still there.
    """
    root = Path(path)
    reader = open_dataset(root)
    body = reader.embodiment
    rows = usable(found, body)
    if not rows:
        raise DatasetError(
            found.folder, "no row has all its pictures", "nothing can be made of it: delete it"
        )
    with _locked(root):
        put_aside(root, len(reader))
    with _writer(root, body, found) as writer:
        found = next(one for one in find_unfinished(root, len(writer)) if one.id == found.id)
        repeated = sum(step.repeated for step in found.steps[:rows])
        note = {"id": found.id, "rows": rows, "lost_rows": len(found.steps) - rows, "repeated": repeated}
        writer.begin(found.instruction, {**found.metadata, RECOVERED: note})
        pictures = _pictures(writer, found, rows)
        for k, step in enumerate(found.steps[:rows]):
            images = {name: next(frames) for name, frames in pictures.items()}
            writer.add(replace(step, images=images, truncated=step.truncated or k == rows - 1))
        index = writer.save(None)
    atomic.remove(found.folder)
    with contextlib.suppress(OSError):
        found.folder.parent.rmdir()
    return index


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        lock = atomic.FolderLock(root)
    except OSError as error:
        raise atomic.recording_error(error, root, "locking the dataset") from error
    try:
        yield
    finally:
        lock.release()


def _writer(root: Path, body: Embodiment, found: Unfinished) -> StepWriter:
    lerobot = (root / "meta" / "info.json").exists()
    kind: Any = LeRobotWriter if lerobot else Hdf5Writer
    known = _LEROBOT if lerobot else _HDF5
    options = {name: found.options[name] for name in known if name in found.options}
    try:
        return kind(root, body, resume=True, repairable=False, **options)
    except TypeError as error:
        raise DatasetError(found.folder, f"was recorded with strange options: {options} ({error})") from error


def _pictures(writer: StepWriter, found: Unfinished, rows: int) -> dict[str, Iterator[np.ndarray]]:
    """The decoded pictures of each camera; where the writer makes videos, it is given copies of what is there."""
    cameras = writer.embodiment.cameras
    if not isinstance(writer, LeRobotWriter):
        return {c.name: lossless(found, k, c, rows) for k, c in enumerate(cameras)}
    videos: dict[str, CopiedVideo] = {}

    def make(number: int, settings: VideoSettings, target: atomic.TempFile | None) -> CopiedVideo:
        camera = cameras[number]
        videos[camera.name] = CopiedVideo(found, number, camera, settings, rows, target)
        return videos[camera.name]

    writer.use_videos(make)
    return {name: video.pictures() for name, video in videos.items()}


def _recovered(reader: EpisodeReader) -> set[str]:
    """Which were repaired before: a repair that was killed behind its last rename leaves the folder."""
    found = set()
    for k in range(len(reader)):
        try:
            note = reader.read(k, images=False).metadata.get(RECOVERED)
        except DatasetError:  # a saved one that is damaged keeps nobody from repairing another
            continue
        if isinstance(note, dict):
            found.add(str(note.get("id")))
    return found
