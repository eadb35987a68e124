"""Checks of a LeRobot dataset's files: whether every row has a frame in its video, and whether statistics fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.check.findings import Finding
from vla_agents.data.video.frames import VideoFiles

_SAME = 0.25  # periods a frame may be off, as for decoding
_MADE_AGAIN = "a copy gets statistics of its own"


def frame_times(path: Path) -> np.ndarray:
    """float64 (F,): when the frames of a video are shown, seconds, rising; nothing is decoded.

    Raises:
        OSError, ValueError: It cannot be read (PyAV's errors are both).
    """
    import av

    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        base = float(stream.time_base or 0)
        times = [
            packet.pts * base for packet in container.demux(stream) if packet.pts is not None and packet.size
        ]
    return np.sort(np.array(times, np.float64))


def frames_of_rows(camera: str, videos: VideoFiles, lengths: np.ndarray, whole: bool) -> list[Finding]:
    """Rows without a frame, episodes that share frames, and frames that belong to no row.

    Args:
        camera: Its name.
        videos: Where its episodes lie.
        lengths: int64 (E,): rows per episode.
        whole: Whether these are all episodes of the files.
    """
    found = []
    for number, path in enumerate(videos.files):
        episodes = np.flatnonzero(videos.file_of == number)
        try:
            times = frame_times(path)
        except (OSError, ValueError, IndexError) as error:
            found.append(
                Finding(
                    "video",
                    "error",
                    f"camera {camera!r}: {path.name} cannot be read ({error})",
                    int(episodes[0]),
                    count=len(episodes),
                    remedy="copy the file again, or leave its episodes out",
                    leave_out=True,
                )
            )
            continue
        taken = np.zeros(len(times), np.int64)
        for k in episodes.tolist():
            found += _rows(camera, k, times, float(videos.start[k]), int(lengths[k]), videos.fps, taken)
        extra = int((taken == 0).sum())
        if whole and extra:
            found.append(
                Finding(
                    "extra_frames",
                    "warning",
                    f"camera {camera!r}: {path.name} holds {extra} frames that belong to no row (it has {len(times)}, "
                    f"its episodes have {int(lengths[episodes].sum())} rows)",
                    int(episodes[0]) if len(episodes) == 1 else None,
                    value=extra,
                    count=extra,
                    remedy="rows were dropped, or a recording was cut off: look whether pictures and states still "
                    "belong together; a copy leaves the spare frames out",
                    leave_out=len(episodes) == 1,
                )
            )
    return found


def _rows(
    camera: str, number: int, times: np.ndarray, start: float, length: int, fps: float, taken: np.ndarray
) -> list[Finding]:
    """One episode against the frames of its video; counts in `taken` who uses each frame."""
    wanted = start + np.arange(length) / fps
    if not len(times):
        nearest, off = np.zeros(length, np.int64), np.full(length, np.inf)
    else:
        right = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
        left = right - 1
        right = np.minimum(right, len(times) - 1)
        nearest = np.where(np.abs(times[left] - wanted) <= np.abs(times[right] - wanted), left, right)
        off = np.abs(times[nearest] - wanted)
    missing = np.flatnonzero(off > _SAME / fps)
    good = nearest[off <= _SAME / fps]
    shared = int((taken[good] > 0).sum())
    taken[good] += 1
    found = []
    if len(missing):
        found.append(
            Finding(
                "missing_frames",
                "error",
                f"camera {camera!r}: {len(missing)} of {length} rows have no frame in the video",
                number,
                int(missing[0]),
                len(missing),
                len(missing),
                "the recorder dropped frames: later pictures stand beside wrong rows; leave the episode out",
                leave_out=True,
            )
        )
    if shared:
        found.append(
            Finding(
                "shared_frames",
                "error",
                f"camera {camera!r}: {shared} of its frames are also another episode's",
                number,
                value=shared,
                count=shared,
                remedy="the index points to the wrong part of the video: leave the episode out",
                leave_out=True,
            )
        )
    return found


def statistics_file(path: Path, columns: Mapping[str, np.ndarray]) -> list[Finding]:
    """`meta/stats.json` against the numbers themselves: smallest, largest, mean, standard deviation.

    Args:
        path: The dataset's folder.
        columns: Of `reader.columns()`.
    """
    file = path / "meta" / "stats.json"
    if not file.is_file():
        return []
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        entries = [(name, stored[name]) for name in columns if isinstance(stored.get(name), dict)]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return [
            Finding("statistics", "error", f"meta/stats.json cannot be read ({error})", remedy=_MADE_AGAIN)
        ]
    found = []
    for name, entry in entries:
        values = columns[name]
        if not len(values) or values.dtype.kind not in "fiub" or not np.isfinite(values).all():
            continue
        wrong = _contradictions(entry, values.astype(np.float64).reshape(len(values), -1))
        if wrong:
            found.append(
                Finding(
                    "statistics",
                    "warning",
                    f"meta/stats.json contradicts column {name}: {'; '.join(wrong)}",
                    remedy=f"whoever normalises by it gets wrong numbers: {_MADE_AGAIN}",
                )
            )
    return found


def _contradictions(entry: dict[str, Any], rows: np.ndarray) -> list[str]:
    real = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    slack = 1e-3 * (real["max"] - real["min"]) + 1e-5 * np.maximum(np.abs(rows).max(0), 1)
    wrong = []
    for key, value in real.items():
        if key not in entry:
            continue
        try:
            claimed = np.asarray(entry[key], np.float64).reshape(-1)
        except (ValueError, TypeError):
            wrong.append(f"{key} is no list of numbers")
            continue
        if claimed.shape != value.shape:
            wrong.append(f"{key} has {len(claimed)} numbers, expected {len(value)}")
            continue
        bad = np.flatnonzero(~(np.abs(claimed - value) <= slack))
        if len(bad):
            d = int(bad[0])
            wrong.append(f"{key} of dimension {d} is {claimed[d]:.4g}, really {value[d]:.4g}")
    return wrong
