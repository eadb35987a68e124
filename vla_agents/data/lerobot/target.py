"""Conversion to LeRobot v3.0, v2.1 and v2.0: one parquet file, and one mp4 per camera, for each episode.

From another version of LeRobot everything is taken over as it is: columns of any type, feature names, pictures,
video packets, and statistics of pictures; only indices are counted anew. From other formats the columns are those
that `LeRobotWriter` records, and what an episode holds beyond them, a column each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vla_agents.data.convert.targets import Target, TargetOptions, origin
from vla_agents.data.episode import EpisodeReader
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.arrow import metadata_of, png, stills, write_table
from vla_agents.data.lerobot.images import encoded
from vla_agents.data.lerobot.info import DATA_V2, VIDEO_V2
from vla_agents.data.lerobot.losses import losses_of
from vla_agents.data.lerobot.meta import MetaV2, MetaV3
from vla_agents.data.lerobot.reader import LeRobotReader
from vla_agents.data.lerobot.schema import Schema, episode_columns, passing_columns, schema_of
from vla_agents.data.lerobot.stats import NAMES
from vla_agents.data.lerobot.summary import (
    SAMPLES,
    Merged,
    PictureStats,
    Summary,
    picture_summary,
    summary_of,
)
from vla_agents.data.video.copy import copy_frames, encode_frames
from vla_agents.errors import ConfigError, DatasetError


class _LeRobotTarget(Target):
    """Common to all versions."""

    version: str
    whole_rates = True

    def __init__(self, path: Path, sources: Sequence[EpisodeReader], options: TargetOptions) -> None:
        super().__init__(path, sources, options)
        if self.fps != round(self.fps) or self.fps < 1:
            raise ConfigError(
                f"LeRobot stores a whole number of frames per second, the source has {self.fps:g}",
                "pass fps (--fps): the nominal rate; the real times are stored beside it",
            )
        self.schema: Schema = schema_of(self.sources, options, round(self.fps), self.version)
        self._pictures: dict[int, PictureStats] = {}
        self._merged = Merged()
        self._meta = (MetaV3 if self.version == lerobot.VERSION else MetaV2)(path, self.schema, self.version)
        (path / "meta").mkdir(parents=True)

    @classmethod
    def losses(cls, source: EpisodeReader, options: TargetOptions) -> list[str]:
        """What of the source this format cannot hold, a line each."""
        return losses_of(source, options, cls.version)

    # ---- an episode ---------------------------------------------------------------------------------------
    def add(self, source: EpisodeReader, index: int) -> None:
        """Write one episode."""
        reader, at = origin(source, index)
        videos = {key: self._video_path(key) for key in self.schema.videos}
        try:
            self._add(reader, at, videos)
        except BaseException:
            for path in (*videos.values(), self._data_path()):
                path.unlink(missing_ok=True)
            raise

    def _add(self, reader: EpisodeReader, at: int, videos: dict[str, Path]) -> None:
        if self.schema.passing and isinstance(reader, LeRobotReader):
            rows = passing_columns(reader, at, self.schema)
        else:
            rows = episode_columns(reader, at, self.schema)
        summaries: dict[str, Summary] = {key: summary_of(values) for key, values in rows.numbers.items()}
        for path in videos.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:  # the encoders and decoders work outside of Python's lock
            jobs = {
                key: pool.submit(self._camera, reader, at, key, videos.get(key), rows.length)
                for key in self.schema.cameras
            }
            for key, job in jobs.items():
                column, summary = job.result()
                if column is not None:
                    rows.columns[key] = column
                if summary is not None:
                    summaries[key] = summary
        numbers = {
            "episode_index": np.full(rows.length, self.episodes),
            "index": np.arange(rows.length) + self.frames,
            "task_index": np.array(self._meta.task_numbers(rows.tasks)),
            "frame_index": np.arange(rows.length),
        }
        columns = rows.columns | {key: pa.array(values, pa.int64()) for key, values in numbers.items()}
        order = [key for key in self.schema.features if key in columns]
        table = pa.table({key: columns[key] for key in order})
        path = self._data_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(table.replace_schema_metadata(metadata_of(self.schema.features)), path)
        self._meta.add(self.episodes, self.frames, rows, summaries)
        self._merged.add(summaries, rows.length)
        self.episodes += 1
        self.frames += rows.length

    def _camera(
        self, reader: EpisodeReader, at: int, key: str, video: Path | None, length: int
    ) -> tuple[pa.Array | None, Summary | None]:
        """Write a camera's video, or give the column of its pictures; and the statistics of its pictures."""
        camera = self.schema.cameras[key]
        theirs = reader if isinstance(reader, LeRobotReader) else None
        old = theirs.camera_key(camera) if theirs and camera else key
        if theirs and video is not None and theirs.info.is_video(old) and not self.schema.encodes:
            stamps = theirs.rows(at)["timestamp"].astype(np.float64)
            source = theirs.index.video_file(at, old)
            times = theirs.index.video_start(at, old) + stamps
            if copy_frames(source, times, theirs.fps, video, self.schema.fps):
                self.note("videos copied without a loss")
                return None, self._summary(reader, at, key, old, None)
            if not camera:
                raise DatasetError(
                    source, f"{key}: this depth video cannot be cut without a loss", "leave it out"
                )
            self.note("videos encoded anew, because they could not be cut without a loss")
        elif theirs and video is None and not theirs.info.is_video(old):
            names = [f"frame-{k:06d}.png" for k in range(length)]
            return stills(encoded(theirs.index, at, old), names), self._summary(reader, at, key, old, None)
        frames = _Sampled(reader.stream(at, camera), length)
        if video is not None:
            encode_frames(frames, self.schema.settings[key], video)
            self.note("videos encoded")
            column = None
        else:
            contents = [png(image) for image in frames]
            column = stills(contents, [f"frame-{k:06d}.png" for k in range(length)])
        if frames.count != length:
            raise DatasetError(
                reader.path, f"episode {at}: {key} has {frames.count} pictures for {length} steps"
            )
        return column, self._summary(reader, at, key, old, frames.kept)

    def _summary(
        self, reader: EpisodeReader, at: int, key: str, old: str, seen: list[np.ndarray] | None
    ) -> Summary | None:
        """Statistics of a camera in one episode: those the source holds, or of a sample of its pictures."""
        camera = self.schema.cameras[key]
        if not camera:  # depth
            return None
        known: Summary = {}
        if seen is None and isinstance(reader, LeRobotReader):
            known = self._pictures.setdefault(id(reader), PictureStats(reader.index)).of(at, old)
        if len(known) == len(NAMES):
            return known
        if seen is None:
            steps = np.unique(np.linspace(0, int(reader.lengths()[at]) - 1, SAMPLES).round().astype(int))
            seen = list(reader.frames(at, camera, steps))
        return picture_summary(seen) | known

    # ---- the dataset --------------------------------------------------------------------------------------
    def finish(self) -> None:
        """Write meta/."""
        self._meta.finish(self.episodes, self.frames, self._merged)
        if self.schema.stores_embodiment:
            body = json.dumps(self.embodiment.to_dict(), indent=2) + "\n"
            (self.path / lerobot.EMBODIMENT).write_text(body, encoding="utf-8")
        for file in self.schema.copied_files:
            shutil.copyfile(file, self.path / "meta" / file.name)

    def _data_path(self) -> Path:
        raise NotImplementedError

    def _video_path(self, key: str) -> Path:
        raise NotImplementedError


class LeRobotV3Target(_LeRobotTarget):
    """LeRobot v3.0."""

    version = lerobot.VERSION

    def _at(self) -> dict[str, int]:
        chunk, file = lerobot.file_of(self.episodes)
        return {"chunk_index": chunk, "file_index": file}

    def _data_path(self) -> Path:
        return self.path / lerobot.DATA.format(**self._at())

    def _video_path(self, key: str) -> Path:
        return self.path / lerobot.VIDEO.format(video_key=key, **self._at())


class LeRobotV21Target(_LeRobotTarget):
    """LeRobot v2.1."""

    version = "v2.1"

    def _at(self) -> dict[str, int]:
        return {"episode_chunk": self.episodes // lerobot.CHUNK, "episode_index": self.episodes}

    def _data_path(self) -> Path:
        return self.path / DATA_V2.format(**self._at())

    def _video_path(self, key: str) -> Path:
        return self.path / VIDEO_V2.format(video_key=key, **self._at())


class LeRobotV20Target(LeRobotV21Target):
    """LeRobot v2.0."""

    version = "v2.0"


class _Sampled:
    """Pictures passed on one by one, some of which are kept for statistics."""

    def __init__(self, frames: Iterable[np.ndarray], length: int) -> None:
        self._frames = frames
        self._every = max(1, length // SAMPLES)
        self.count = 0
        self.kept: list[np.ndarray] = []

    def __iter__(self) -> Any:
        for image in self._frames:
            if self.count % self._every == 0:
                self.kept.append(image)
            self.count += 1
            yield image
