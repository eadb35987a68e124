"""Writes LeRobot v3.0: one parquet file per episode, one mp4 per episode and camera.

What `save` gives its name, in this order: videos, data, tasks, statistics, the episode's row in
meta/episodes, and at last meta/info.json, whose `total_episodes` is the commit point. Each file is complete
before it has its name, so whatever the instant of a `kill -9`, info.json counts only episodes that are whole.
What is beyond the count is ignored by readers (also by LeRobot, which counts likewise), and cleaned away by
`resume=True`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa

from vla_agents.data import atomic
from vla_agents.data.episode import Step
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.embodiment import load_embodiment
from vla_agents.data.lerobot.features import make_features
from vla_agents.data.lerobot.index import read_index
from vla_agents.data.lerobot.info import Info
from vla_agents.data.lerobot.rows import EpisodeRows, to_parquet
from vla_agents.data.lerobot.stats import Statistics, Total, sample_pixels
from vla_agents.data.numbers import json_text
from vla_agents.data.recording.journal import CameraLog
from vla_agents.data.recording.recorder import ReadableErrors, StepWriter
from vla_agents.data.recording.status import Late, WriterOptions
from vla_agents.data.recording.streaming import EncoderThread, PictureSink
from vla_agents.data.video.encode import VideoEncoder, VideoSettings
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, DatasetError


class LeRobotWriter(StepWriter):
    """Records episodes as a LeRobot v3.0 dataset.

    Args:
        path: The dataset's folder; made where missing.
        embodiment: What the numbers and pixels mean; stored in meta/embodiment.json.
        fps: Nominal rate, a whole number; the embodiment's `control_hz` by default.
        robot_type: LeRobot's field of that name; the embodiment's name by default.
        codec: `"h264"` or `"av1"`.
        crf: Quality; lower is closer to the original (measured in docs/data.md); None chooses by size.
        preset: The encoder's speed; None for a fast one.
        pix_fmt: `"yuv420p"`, `"yuv444p"`, or None to choose by size (see `VideoSettings`).
        camera_times: Also store when each camera took its picture (`Step.camera_times`), for robots.
        options: `resume`, `durable`, `metadata`, `late_frames`, ... (see `StepWriter`).
    """

    marker = lerobot.INFO

    def __init__(
        self,
        path: str | Path,
        embodiment: Embodiment,
        *,
        fps: int | None = None,
        robot_type: str | None = None,
        codec: str = "h264",
        crf: int | None = None,
        preset: str | None = None,
        pix_fmt: str | None = None,
        camera_times: bool = False,
        **options: Unpack[WriterOptions],
    ) -> None:
        rate = embodiment.control_hz if fps is None else fps
        if rate != int(rate) or rate < 1:
            raise ConfigError(
                f"LeRobot stores a whole number of frames per second, got {rate:g}",
                "pass fps=... (the nominal rate; the real capture times are stored beside it)",
            )
        self.fps = int(rate)
        self._robot_type: str | None = robot_type or embodiment.name
        self._settings = {
            c.name: VideoSettings(
                c.height, c.width, self.fps, codec=codec, crf=crf, preset=preset, pix_fmt=pix_fmt
            )
            for c in embodiment.cameras
        }
        info = {name: settings.info() for name, settings in self._settings.items()}
        features = make_features(embodiment, info, camera_times=camera_times)
        self._features_text = json.dumps(features)  # most of info.json, and constant
        self._columns = [key for key, feature in features.items() if feature["dtype"] != "video"]
        self._statistics = Statistics(embodiment)
        self._tasks: list[str] = []
        self._episodes = self._frames = 0
        self._total = Total.empty(self._statistics.size)
        self._rows: pa.Table | None = None  # rows of the last file of meta/episodes
        self._encoders: dict[str, PictureSink] = {}
        self._made_with = {"crf": crf, "preset": preset, "codec": codec, "pix_fmt": pix_fmt}
        self._growing: list[atomic.TempFile] = []
        self._numbers: list[Step] = []
        self._pixels: dict[str, list[np.ndarray]] = {}
        super().__init__(path, embodiment, **options)

    def __len__(self) -> int:
        return self._episodes

    # ---- the dataset --------------------------------------------------------------------------------------
    def _create(self) -> None:
        body = json.dumps(self.embodiment.to_dict(), indent=2) + "\n"
        atomic.write_file(self.path, self.path / lerobot.EMBODIMENT, body.encode(), durable=self.durable)
        atomic.write_file(self.path, self.path / lerobot.INFO, self._info_json(0, 0, 0), durable=self.durable)

    def _load(self) -> None:
        info = Info.load(self.path)
        self._require_same(info)
        self._episodes, self._frames = info.total_episodes, info.total_frames
        self._tasks = lerobot.read_tasks(self.path) if self._episodes else []
        self._tasks = self._tasks[: info.raw.get("total_tasks")]
        self._robot_type = info.raw.get("robot_type")
        self._read_rows(info)
        self._clean()

    def _require_same(self, info: Info) -> None:
        if not (self.path / lerobot.EMBODIMENT).exists():
            raise DatasetError(
                self.path,
                "was not written by vla_agents, and cannot be appended to",
                "record into a new folder",
            )
        stored = load_embodiment(info).embodiment
        stored.require(self.embodiment, ours=f"dataset {self.path}", theirs="the embodiment to record")
        if info.fps != self.fps:
            raise ConfigError(
                f"{self.path}: has {info.fps} fps, asked to append at {self.fps}", f"pass fps={info.fps}"
            )
        self._features_text = json.dumps(
            info.features
        )  # of an older version: without some of today's columns
        self._columns = [key for key, feature in info.features.items() if feature["dtype"] != "video"]
        for name, settings in self._settings.items():
            old = info.features[lerobot.IMAGES + name].get("info", {})
            if (old.get("video.codec"), old.get("video.pix_fmt")) != (settings.codec, settings.pix_fmt):
                raise ConfigError(
                    f"{self.path}: camera {name!r} is stored as {old.get('video.codec')} "
                    f"{old.get('video.pix_fmt')}, asked to append {settings.codec} {settings.pix_fmt}",
                    "pass the same codec and pix_fmt",
                )

    def _rows_path(self, episode: int) -> Path:
        chunk, file = lerobot.rows_file_of(episode)
        return self.path / lerobot.EPISODES.format(chunk_index=chunk, file_index=file)

    def _read_rows(self, info: Info) -> None:
        """Check that the files are as we write them, merge the episodes' statistics, keep the last file's rows."""
        index = read_index(info)
        self._rows = None
        self._total = Total.empty(self._statistics.size)
        for first in range(0, self._episodes, lerobot.ROWS_PER_FILE):
            count = min(lerobot.ROWS_PER_FILE, self._episodes - first)
            table = lerobot.read_parquet(self.path, self._rows_path(first), None).slice(0, count)
            wanted = [lerobot.file_of(k) for k in range(first, first + count)]
            found = [index.columns[f"data/{name}_index"][first : first + count] for name in ("chunk", "file")]
            if table.num_rows < count or list(zip(*found, strict=True)) != wanted:
                raise DatasetError(
                    self._rows_path(first),
                    "the files are not laid out as vla_agents does it; another program has changed the dataset",
                    "record into a new folder",
                )
            for stats, frames in self._statistics.from_table(table):
                self._total = self._total.with_episode(stats, frames)
            self._rows = table if count < lerobot.ROWS_PER_FILE else None

    def _clean(self) -> None:
        """Remove what an unfinished save left: everything of the episode after the last one that counts."""
        self._empty_temporary()
        leftovers = [path for path in self._episode_files(self._episodes) if path.exists()]
        if not leftovers:  # the videos and the data come first
            return
        path = self._rows_path(self._episodes)
        if self._rows is not None:
            atomic.write_file(self.path, path, to_parquet(self._rows), durable=self.durable)
        else:
            atomic.remove(path)
        stats = self.path / lerobot.STATS
        if self._episodes:
            atomic.write_file(self.path, stats, self._stats_json(self._total), durable=self.durable)
        else:
            atomic.remove(stats)
        for path in leftovers:
            atomic.remove(path)

    def _episode_files(self, index: int) -> list[Path]:
        chunk, file = lerobot.file_of(index)
        at = {"chunk_index": chunk, "file_index": file}
        videos = [lerobot.VIDEO.format(video_key=lerobot.IMAGES + name, **at) for name in self._settings]
        return [self.path / name for name in (*videos, lerobot.DATA.format(**at))]

    def _info_json(self, episodes: int, frames: int, tasks: int) -> bytes:
        info = {
            "codebase_version": lerobot.VERSION,
            "robot_type": self._robot_type,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": lerobot.CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": lerobot.DATA,
            "video_path": lerobot.VIDEO if self._settings else None,
        }
        return f'{json.dumps(info, indent=1)[:-2]},\n "features": {self._features_text}\n}}\n'.encode()

    def _stats_json(self, total: Total) -> bytes:
        return json.dumps(self._statistics.to_json(total)).encode()

    # ---- an episode ---------------------------------------------------------------------------------------
    def _start(self) -> None:
        self._numbers = []
        self._pixels = {name: [] for name in self._settings}
        self._growing = []
        for number, (name, settings) in enumerate(self._settings.items()):
            log = CameraLog(self._journal, number) if self._repairable else None
            if settings.small and not self._repeat:
                self._encoders[name] = VideoEncoder(settings, None, log)
                continue
            target = None
            if not settings.small:
                target = atomic.TempFile(self._video_path(name), durable=self.durable)
                self._growing.append(target)
            self._encoders[name] = EncoderThread(
                settings, target, log, repeat=self._repeat, on_error=self._fail
            )

    def use_videos(self, make: Callable[[int, VideoSettings, atomic.TempFile | None], PictureSink]) -> None:
        """Take videos that are there already in place of encoding; for an episode without steps so far.

        Args:
            make: Called with the camera's number, its settings and where the mp4 goes (None: into memory).
        """
        with ReadableErrors(self, "copying videos"):
            for number, (name, settings) in enumerate(self._settings.items()):
                self._encoders.pop(name).abandon()
                target = None
                if not settings.small:
                    target = atomic.TempFile(self._video_path(name), durable=self.durable)
                self._encoders[name] = make(number, settings, target)
            self._lateness.begin({})

    def _video_path(self, camera: str) -> Path:
        return self.path / atomic.TEMPORARY / f"{camera}.mp4"

    def _options(self) -> dict[str, Any]:
        return {"format": "lerobot", "fps": self.fps, "robot_type": self._robot_type, **self._made_with}

    def _threads(self) -> dict[str, EncoderThread]:
        return {name: e for name, e in self._encoders.items() if isinstance(e, EncoderThread)}

    def _extradata(self) -> dict[str, bytes]:
        return {name: encoder.extradata for name, encoder in self._encoders.items()}

    def _files(self) -> list[atomic.TempFile]:
        return self._growing

    def _late(self) -> dict[str, Late]:
        return {name: thread.late for name, thread in self._threads().items()}

    def _in_line(self) -> int:
        return sum(thread.waiting for thread in self._threads().values())

    def _append(self, images: dict[str, np.ndarray], numbers: Step) -> None:
        if numbers.commanded is not None and lerobot.COMMANDED not in self._columns:
            raise DatasetError(
                self.path,
                f"has no column {lerobot.COMMANDED!r}: it was begun by an older version",
                "record into a new folder",
            )
        for name, encoder in self._encoders.items():
            numbers.repeated |= encoder.add(images[name])
            self._pixels[name].append(sample_pixels(images[name]))
        self._numbers.append(numbers)

    def _finish(self, success: bool | None) -> int:
        assert self._instruction is not None
        index, length = self._episodes, self._steps
        for thread in self._threads().values():
            thread.close()
        encoded = {name: encoder.finish() for name, encoder in self._encoders.items()}
        for name, encoder in self._encoders.items():
            if encoder.frames != length:
                raise OSError(f"camera {name!r} has {encoder.frames} frames for {length} steps")
        tasks = self._tasks if self._instruction in self._tasks else [*self._tasks, self._instruction]
        episode = EpisodeRows(
            body=self.embodiment,
            steps=self._numbers,
            index=index,
            first=self._frames,
            fps=self.fps,
            task=tasks.index(self._instruction),
            instruction=self._instruction,
            success=success,
            metadata=json_text(self._metadata),
        )
        vectors = episode.vectors()
        pixels = [np.concatenate(self._pixels[name]) for name in self._settings]
        stats = self._statistics.episode(pixels, vectors)
        total = self._total.with_episode(stats, length)
        row = episode.row(self._statistics.columns(stats, length))
        rows = row if self._rows is None else _joined(self._rows, row)
        *videos, data = self._episode_files(index)
        transaction = atomic.Transaction(self.path, durable=self.durable)
        try:
            for (name, content), target in zip(encoded.items(), videos, strict=True):
                if self._settings[name].small:
                    transaction.write(target, content)
                else:
                    transaction.stage(target, self._video_path(name))
            transaction.write(data, to_parquet(episode.data(vectors, self._columns)))
            if tasks is not self._tasks:
                transaction.write(self.path / lerobot.TASKS, to_parquet(lerobot.tasks_table(tasks)))
            transaction.write(self.path / lerobot.STATS, self._stats_json(total))
            transaction.write(self._rows_path(index), to_parquet(rows))
            info = self._info_json(index + 1, self._frames + length, len(tasks))
            transaction.write(self.path / lerobot.INFO, info)
            transaction.commit()
        except BaseException:
            transaction.abandon()
            raise
        self._encoders = {}
        self._tasks, self._total = tasks, total
        self._episodes, self._frames = index + 1, self._frames + length
        self._rows = None if rows.num_rows == lerobot.ROWS_PER_FILE else rows
        return index

    def _drop(self) -> None:
        encoders, self._encoders = self._encoders, {}
        self._numbers, self._pixels = [], {}
        for encoder in encoders.values():
            encoder.abandon()


def _joined(rows: pa.Table, row: pa.Table) -> pa.Table:
    """One more row; columns that older versions did not write are null in the rows before."""
    if rows.column_names != row.column_names:
        return pa.concat_tables([rows, row], promote_options="default").combine_chunks()
    return pa.concat_tables([rows, row]).combine_chunks()
