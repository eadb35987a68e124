"""What a dataset is, in words and numbers, without decoding a picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.convert.targets import rate_of, root_of
from vla_agents.data.episode import EpisodeReader
from vla_agents.data.lerobot.reader import LeRobotReader
from vla_agents.embodiment import Part


def describe(reader: EpisodeReader) -> dict[str, Any]:
    """Plain data, in the order in which it reads well.

    Keys: `path`, `format`, `episodes`, `steps`, `length` (least, median, most), `rate_hz`, `seconds`, `bytes`,
    `instructions` (text -> episodes), `success` (yes, no, nobody judged), `cameras`, `state`, `action`, `extras`,
    `notes`, `skipped`.
    """
    lengths = reader.lengths()
    frames, rate = int(lengths.sum()), rate_of(reader)
    successes = Counter(reader.successes())
    body = reader.embodiment
    return {
        "path": str(reader.path),
        "format": reader.format,
        "embodiment": body.name,
        "episodes": len(reader),
        "steps": frames,
        "length": [int(lengths.min()), int(np.median(lengths)), int(lengths.max())] if len(lengths) else [],
        "rate_hz": rate,
        "seconds": round(frames / rate, 3),
        "bytes": size_of(reader.path),
        "instructions": dict(Counter(reader.instructions()).most_common()),
        "success": {"yes": successes[True], "no": successes[False], "nobody judged": successes[None]},
        "cameras": {
            c.name: f"{c.height}x{c.width} {c.orientation}{_coding(reader, c.name)}" for c in body.cameras
        },
        "state": [_part(part) for part in body.state],
        "action": [_part(part) for part in body.action],
        "extras": _extras(reader),
        "notes": list(reader.notes),
        "skipped": {str(name): str(error.problem) for name, error in getattr(reader, "skipped", {}).items()},
    }


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def _part(part: Part) -> str:
    unit = f", {part.unit}" if part.unit else ""
    return f"{part.name} [{part.size}] {part.kind}{unit}"


def _coding(reader: EpisodeReader, camera: str) -> str:
    root = root_of(reader)
    if not isinstance(root, LeRobotReader):
        return ""
    feature = root.info.features[root.camera_key(camera)]
    info = feature.get("info") or {}
    return f", {info.get('video.codec', 'video')}" if feature["dtype"] == "video" else ", pictures in parquet"


def _extras(reader: EpisodeReader) -> dict[str, str]:
    if not len(reader):
        return {}
    return {
        name: "text" if values.dtype.kind == "U" else f"{values.dtype} {list(values.shape[1:]) or [1]}"
        for name, values in reader.read(0, images=False).extras.items()
    }
