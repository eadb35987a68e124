"""The pictures of a LeRobot dataset: video, or PNG and JPEG files inside the parquet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.guards import COPY, is_inside
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.index import Index
from vla_agents.data.lerobot.tables import episode_table
from vla_agents.data.video.decode import frames_at
from vla_agents.errors import DatasetError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


def pictures(
    index: Index, episode: int, key: str, stamps: np.ndarray, steps: np.ndarray
) -> Iterator[np.ndarray]:
    """Frames of a camera, uint8 (H, W, 3).

    Args:
        index: The dataset's episodes.
        episode: Which.
        key: The camera's feature.
        stamps: (T,) seconds within the episode.
        steps: Which frames, rising.
    """
    height, width, _ = lerobot.image_shape(index.info.features[key])
    if not index.info.is_video(key):
        return _stills(index, episode, key, (height, width), steps)
    times = index.video_start(episode, key) + stamps[steps].astype(np.float64)
    return frames_at(index.video_file(episode, key), times, index.info.fps, (height, width))


def encoded(index: Index, episode: int, key: str) -> list[bytes]:
    """The pictures of a camera as they lie in the parquet file, still compressed."""
    file, root = index.data_file(episode), index.info.path
    return [
        _content(root, file, key, episode, k, row) for k, row in enumerate(_still_rows(index, episode, key))
    ]


def decode_picture(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    """A compressed picture as uint8 (H, W, 3); its size is compared before it is unfolded.

    Raises:
        ValueError, OSError: It is no picture, or of another size.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if (image.height, image.width) != shape:
                raise ValueError(f"it is {image.height}x{image.width}, expected {shape[0]}x{shape[1]}")
            return np.asarray(image.convert("RGB"))
    except (Image.DecompressionBombError, SyntaxError, IndexError, TypeError) as error:
        raise ValueError(str(error)) from error


def _stills(
    index: Index, episode: int, key: str, shape: tuple[int, int], steps: np.ndarray
) -> Iterator[np.ndarray]:
    file, rows = index.data_file(episode), _still_rows(index, episode, key)
    for k in steps.tolist():
        content = _content(index.info.path, file, key, episode, k, rows[k])
        try:
            yield decode_picture(content, shape)
        except (ValueError, OSError) as error:
            raise DatasetError(
                file, f"{key}, episode {episode}, frame {k}: not a picture ({error})", COPY
            ) from error


def _content(root: Path, file: Path, key: str, episode: int, frame: int, row: Any) -> bytes:
    """The bytes of a picture: in the row itself, or in a file beside, whose path it gives."""
    entry = row if isinstance(row, dict) else {"bytes": row}
    content, path = entry.get("bytes"), entry.get("path")
    if isinstance(content, bytes):
        return content
    try:
        if isinstance(path, str) and path and is_inside(root, root / path):
            return (root / path).read_bytes()
        raise ValueError(f"neither bytes nor a path inside the dataset: {path!r}")
    except (ValueError, OSError) as error:
        raise DatasetError(
            file, f"{key}, episode {episode}, frame {frame}: no picture ({error})", COPY
        ) from error


def _still_rows(index: Index, episode: int, key: str) -> list[Any]:
    """The entries of one episode."""
    return episode_table(index, episode, [key]).column(0).to_pylist()
