"""All checks over one dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from vla_agents.data.bars import bar
from vla_agents.data.check import episodes as whole
from vla_agents.data.check import files, numbers, pictures, times
from vla_agents.data.check.findings import Finding, Report, numbers_without, ordered
from vla_agents.data.episode import Episode, EpisodeReader
from vla_agents.data.subset import SubsetReader
from vla_agents.errors import ConfigError, DatasetError

Images = Literal["off", "sample", "all"]


def check_dataset(
    reader: EpisodeReader,
    *,
    images: Images = "sample",
    progress: bool = False,
    tick: Callable[[int, int], None] | None = None,
    refused: DatasetError | None = None,
) -> Report:
    """Look for what spoils training: in the numbers of every episode, and in as many pictures as asked for.

    Episodes that cannot be read are findings; give a reader that keeps them (`open_with_bad`) where opening is refused.

    Args:
        reader: The dataset; nothing of it is changed.
        images: `"off"`: none is decoded; `"sample"`: the first, the last and a run in the middle of up to 50 episodes;
            `"all"`.
        progress: Show a progress bar.
        tick: Called with (episodes done, all of them) after each; may raise to stop.
        refused: Why `open_dataset` would not open it.
    """
    if images not in ("off", "sample", "all"):
        raise ConfigError(f"images is {images!r}", "off, sample or all")
    lengths = _lengths(reader)
    report = Report(reader.path, reader.format, len(reader), int(lengths.sum()), images)
    found = _refusals(reader, refused)
    read: dict[int, Episode] = {}
    with bar("checking numbers", len(reader), shown=progress) as advance:
        for k in range(len(reader)):
            found += _one(reader, k, int(lengths[k]), read)
            advance()
            if tick is not None:
                tick(k + 1, len(reader))
    found += _all(reader, read, lengths)
    found += _looked(reader, read, images, report, progress)
    report.findings = _with_commands(ordered(found), reader, skip_bad=refused is not None)
    return report


def _lengths(reader: EpisodeReader) -> np.ndarray:
    """int64 (N,): steps per episode, 0 where it cannot be read."""
    try:
        return reader.lengths()
    except DatasetError:
        found = np.zeros(len(reader), np.int64)
        for k in range(len(reader)):
            with contextlib.suppress(DatasetError):
                found[k] = len(reader.read(k, images=False))
        return found


def _refusals(reader: EpisodeReader, refused: DatasetError | None) -> list[Finding]:
    """What is wrong beside the episodes that the reader has."""
    errors = [*([] if refused is None else [refused]), *getattr(reader, "skipped", {}).values()]
    return [
        Finding("unreadable", "error", str(e.problem), remedy=e.remedy or "copy the dataset again")
        for e in errors
    ]


def _one(reader: EpisodeReader, number: int, length: int, read: dict[int, Episode]) -> list[Finding]:
    """Checks that need one episode's numbers only; keeps them in `read`."""
    try:
        episode = reader.read(number, images=False)
    except DatasetError as error:
        return [_unreadable(number, error)]
    found = whole.short(number, length)
    read[number] = episode
    found += numbers.not_finite(number, episode)
    found += numbers.limits(number, episode)
    found += numbers.constant(number, episode)
    found += times.order(number, episode)
    found += whole.instruction(number, episode.tasks or (episode.instruction,))
    found += whole.repeated(number, episode)
    rows: Any = getattr(reader, "rows", None)
    if rows is not None:  # LeRobot
        found += times.stamps(number, rows(number)["timestamp"], _fps(reader))
    return found


def _all(reader: EpisodeReader, read: dict[int, Episode], lengths: np.ndarray) -> list[Finding]:
    """Checks that need all episodes."""
    body = reader.embodiment
    found = numbers.jumps(read, body, "state") + numbers.jumps(read, body, "action")
    found += numbers.outliers(read, body)
    found += numbers.constant_dimensions(read, body)
    clock = times.simulated(read, _fps(reader))
    found += clock
    for number, episode in read.items() if not clock else ():
        found += times.rhythm(number, episode, _fps(reader)) + times.cameras(number, episode)
    found += whole.doubles(read)
    found += whole.lag(read, body)
    found += whole.wordings({k: episode.instruction for k, episode in read.items()})
    found += whole.success({k: episode.success for k, episode in read.items()})
    if hasattr(reader, "videos"):
        for camera in body.camera_names:
            try:
                videos = reader.videos(camera)
            except DatasetError as error:  # a link that leads out
                found.append(Finding("video", "error", str(error), remedy=error.remedy))
                continue
            if videos is not None:
                complete = not isinstance(reader, SubsetReader)
                found += files.frames_of_rows(camera, videos, lengths, complete)
    if (
        reader.format.startswith("LeRobot")
        and len(read) == len(reader)
        and not isinstance(reader, SubsetReader)
    ):
        found += files.statistics_file(reader.path, reader.columns())
    return found


def _looked(
    reader: EpisodeReader, read: dict[int, Episode], images: Images, report: Report, progress: bool
) -> list[Finding]:
    """Checks of pictures."""
    cameras = reader.embodiment.camera_names
    if images == "off" or not cameras or not read:
        return []
    chosen = list(read)
    if images == "sample" and len(chosen) > pictures.SAMPLED:
        at = np.linspace(0, len(chosen) - 1, pictures.SAMPLED).astype(int)
        chosen = [chosen[k] for k in at]
    states = [e.state for e in read.values() if e.state is not None and np.isfinite(e.state).all()]
    spread = np.ptp(np.concatenate(states), axis=0) if states else np.zeros(0)
    fps, found = _fps(reader), []
    with bar("looking at pictures", len(chosen) * len(cameras), shown=progress) as advance:
        for k in chosen:
            length = len(read[k])
            steps = np.arange(length) if images == "all" else pictures.sampled_steps(length, fps)
            state = pictures.travel(read[k], spread)
            try:
                for camera in cameras:
                    shown: Iterable[np.ndarray] = (
                        reader.stream(k, camera) if images == "all" else reader.frames(k, camera, steps)
                    )
                    found += pictures.look(k, camera, steps, shown, state, fps)
                    report.pictures += len(steps)
                    advance()
                found += pictures.twins(k, reader, length // 2)
            except (DatasetError, ValueError) as error:
                found.append(_unreadable(k, error))
    return found


def _unreadable(number: int, error: Exception) -> Finding:
    """An episode whose numbers or pictures cannot be had."""
    text = str(error)
    step = re.search(r"frame (\d+)", text)
    return Finding(
        "not_finite" if "is not finite" in text else "unreadable",
        "error",
        text,
        number,
        int(step[1]) if step else None,
        remedy="copy it again where a good copy is left, else leave it out",
        leave_out=True,
    )


def _with_commands(found: list[Finding], reader: EpisodeReader, *, skip_bad: bool) -> list[Finding]:
    """Each finding with the command that mends it, where one does."""
    from vla_agents.data.convert.targets import format_of

    try:
        kind = format_of(reader)
    except (KeyError, ConfigError):
        kind = "lerobot"
    old, new = shlex.quote(str(reader.path)), shlex.quote(f"{str(reader.path).rstrip('/')}_mended")
    copy = f"vla-agents data convert {old} {new} --to {kind}{' --skip-bad' * skip_bad}"
    mended = []
    for finding in found:
        command = finding.command
        if finding.check == "rate" and finding.value:
            command = f"{copy} --fps {finding.value:.3g}"
        elif finding.check in ("statistics", "extra_frames"):
            command = copy
        elif finding.leave_out and finding.episode is not None and finding.severity != "note":
            rest = numbers_without([finding.episode], len(reader))
            command = f"{copy} --episodes {rest}" if rest else ""
        mended.append(dataclasses.replace(finding, command=command))
    return mended


def copy_without(report: Report, kind: str, *, skip_bad: bool = False) -> str:
    """The command that makes a copy without the bad episodes; empty where there are none, or nothing would be left."""
    kind += " --skip-bad" * skip_bad
    rest = numbers_without(report.bad_episodes, report.episodes)
    if not report.bad_episodes or not rest:
        return ""
    new = shlex.quote(f"{str(report.path).rstrip('/')}_mended")
    return f"vla-agents data convert {shlex.quote(str(report.path))} {new} --to {kind} --episodes {rest}"


def _fps(reader: EpisodeReader) -> float:
    return float(getattr(reader, "fps", reader.embodiment.control_hz))
