"""What a LeRobot dataset cannot hold of another dataset."""

from __future__ import annotations

import json

from vla_agents.data.convert.targets import LOSSLESS, TargetOptions, rate_of, root_of
from vla_agents.data.episode import EpisodeReader
from vla_agents.data.lerobot.reader import LeRobotReader
from vla_agents.data.lerobot.schema import held_metadata, passes, settings_of
from vla_agents.errors import DatasetError


def losses_of(source: EpisodeReader, options: TargetOptions, version: str) -> list[str]:
    """A line each; empty where nothing is lost."""
    reader = root_of(source)
    lines = []
    if passes([reader]) and isinstance(reader, LeRobotReader):
        if options.video_quality not in (None, LOSSLESS) and reader.cameras:
            lines.append(_video(source, options))
        if version != reader.info.version and version != "v3.0":
            lines.append(f"statistics: quantiles of each episode ({version} has none)")
        return [*lines, *_rate(source, options)]
    copied = isinstance(reader, LeRobotReader) and options.video_quality is None
    if source.embodiment.cameras and options.video_quality != LOSSLESS and not copied:
        lines.append(_video(source, options))
    lines += _rate(source, options)
    for k in range(len(source)):
        try:
            episode = source.read(k, images=False)
        except DatasetError:
            continue
        kept = held_metadata(episode.metadata)
        for key, value in episode.metadata.items():
            if key not in kept:
                lines.append(
                    f"metadata {key!r}: {len(json.dumps(value, default=str)):,} bytes in each episode"
                )
            elif isinstance(value, dict):
                large = [name for name in value if name not in kept[key]]
                if large:
                    lines.append(
                        f"metadata {key!r}: {', '.join(large)}, too large for the index of a dataset"
                    )
        break
    lines += getattr(reader, "reduced", [])
    return lines


def _rate(source: EpisodeReader, options: TargetOptions) -> list[str]:
    rate, reader = rate_of(source), root_of(source)
    if options.fps is None or options.fps == rate:
        return []
    timed = not isinstance(reader, LeRobotReader) or "capture_time" in reader.info.features
    kept = "; the real times are kept in capture_time" if timed else ""
    return [f"rate: {rate:g} Hz is called {options.fps:g}{kept}"]


def _video(source: EpisodeReader, options: TargetOptions) -> str:
    cameras = source.embodiment.cameras
    used = sorted({settings_of(options, c.height, c.width, round(rate_of(source))).crf for c in cameras})
    crf = " or ".join(map(str, used))
    return f'pictures: {options.codec} video with crf {crf} is near the original, not equal ("lossless" keeps them)'
