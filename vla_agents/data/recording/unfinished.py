"""Episodes that were open when the process died: put aside where a writer opens the dataset, and read for `repair`."""

from __future__ import annotations

import base64
import json
import logging
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_agents.data import atomic
from vla_agents.data.episode import Step
from vla_agents.data.recording import journal

logger = logging.getLogger(__name__)

FOLDER = ".unfinished"


@dataclass
class Unfinished:
    """What is left of an episode.

    Args:
        folder: Where its files are.
        id: Of this episode and no other.
        index: How many episodes the dataset had when it began.
        cameras: Names, in the order of their numbers.
        instruction: What the agent was told.
        metadata: What was given when it began.
        options: What its writer was made with, beside the embodiment.
        extradata: Camera -> what its decoder must know.
        steps: The rows, without pictures.
        pictures: Camera number -> its compressed pictures in order.
    """

    folder: Path
    id: str
    index: int
    cameras: list[str]
    instruction: str
    metadata: dict[str, Any]
    options: dict[str, Any]
    extradata: dict[str, bytes]
    steps: list[Step] = field(default_factory=list)
    pictures: dict[int, list[journal.Picture]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From the first row to the last."""
        return self.steps[-1].time - self.steps[0].time


def read_unfinished(folder: Path, *, rows: int | None = None) -> Unfinished | None:
    """The episode whose journal is in a folder; None where there is no journal, or no whole row in it.

    Args:
        folder: Where to look.
        rows: Stop after so many rows.
    """
    file = folder / journal.FILE
    if not file.is_file() or file.is_symlink():
        return None
    found: Unfinished | None = None
    counts: dict[int, int] = {}
    try:
        for kind, content, at in journal.records(file):
            if found is None:
                if kind != journal.HEAD:
                    return None
                found = _head(folder, json.loads(content))
            elif kind == journal.STEP:
                found.steps.append(journal.unpack_step(content, found.cameras))
                if len(found.steps) == rows:
                    break
            else:
                camera, frame, picture = journal.unpack_picture(file, kind, content, at)
                if frame == counts.get(camera, 0):  # in order, or not at all
                    found.pictures.setdefault(camera, []).append(picture)
                    counts[camera] = frame + picture.count
    except (ValueError, KeyError, TypeError, struct.error) as error:
        logger.warning("%s: not a journal of an episode (%s)", file, error)
        return None
    return found if found is not None and found.steps else None


def _head(folder: Path, head: dict[str, Any]) -> Unfinished:
    return Unfinished(
        folder=folder,
        id=str(head["id"]),
        index=int(head["index"]),
        cameras=[str(name) for name in head["cameras"]],
        instruction=str(head["instruction"]),
        metadata=dict(head["metadata"]),
        options=dict(head["options"]),
        extradata={str(name): base64.b64decode(text) for name, text in head["extradata"].items()},
    )


def put_aside(root: Path, saved: int) -> Unfinished | None:
    """Keep what a dead process left of an episode that is not among the saved ones, and return the start of it."""
    left = root / atomic.TEMPORARY
    found = read_unfinished(left, rows=1)
    if found is None or found.index != saved:
        return None
    folder = root / FOLDER
    atomic.make_folder(folder, durable=False)
    number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
    atomic.hook("rename", folder)
    os.replace(left, folder / f"{number:03d}")
    return found


def find_unfinished(root: Path, saved: int) -> list[Unfinished]:
    """What can be repaired in a dataset of so many saved episodes, oldest first."""
    aside = root / FOLDER
    folders = sorted(p for p in aside.iterdir() if p.is_dir()) if aside.is_dir() else []
    found = [read_unfinished(folder) for folder in folders]
    last = read_unfinished(root / atomic.TEMPORARY)
    if last is not None and last.index == saved:
        found.append(last)
    return [one for one in found if one is not None]
