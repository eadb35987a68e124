"""The files of a decode-once cache, and pictures read from them.

    cache.json          what it was made of, and the size of each file
    <camera>.bin        the pictures, one after the other: raw uint8, or JPEG
    <camera>.npy        int64 (N, 2): where each row's picture lies in it, and how many bytes it takes

Pictures are read with `pread`, not mapped: nothing but the picture itself ends up in the process's memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.episode import EpisodeReader
from vla_agents.data.video.frames import Frames
from vla_agents.errors import DatasetError

VERSION = 1
MANIFEST = "cache.json"
QUALITY = 90
_FULL_COLOUR = 128 * 128  # pixels; up to here JPEGs keep the full colour resolution, as our videos do
_DAMAGED = "delete the folder; it is made anew when it is needed"


@dataclass(frozen=True)
class CacheSettings:
    """What pictures a cache holds, and how.

    Args:
        sizes: Camera -> `(height, width)` of the cached pictures.
        format: `"raw"` or `"jpeg"`.
    """

    sizes: dict[str, tuple[int, int]]
    format: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return json.loads(json.dumps(asdict(self) | {"version": VERSION, "quality": QUALITY}))


def fingerprint(reader: EpisodeReader, frames: Mapping[str, Frames]) -> str:
    """Changes whenever a file of the dataset does: names, sizes and modification times, and the episodes' lengths.

    The first picture of each camera goes in too: a reader's options (which way up, order of colours) may change pictures
    without a change to any file.
    """
    digest = hashlib.sha256(np.ascontiguousarray(reader.lengths(), np.int64).tobytes())
    root = reader.path
    for path in [root] if root.is_file() else _files(root):
        stat = path.stat()
        digest.update(f"{path.relative_to(root)}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    for name in sorted(frames):
        digest.update(np.ascontiguousarray(frames[name][np.array(0)]).tobytes())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    """All files below a folder, in a fixed order; names that begin with a dot are not part of a dataset."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


# ---- pictures and bytes -----------------------------------------------------------------------------------
def encode(image: np.ndarray, format: str) -> bytes:
    """One uint8 (H, W, 3) picture as it is stored."""
    if format == "raw":
        return np.ascontiguousarray(image).tobytes()
    from PIL import Image

    sink = io.BytesIO()
    subsampling = 0 if image.shape[0] * image.shape[1] <= _FULL_COLOUR else 2
    Image.fromarray(image).save(sink, "JPEG", quality=QUALITY, subsampling=subsampling)
    return sink.getvalue()


class CachedFrames:
    """One camera's pictures from a cache.

    Args:
        folder: The cache.
        camera: The camera's name.
        size: `(height, width)`.
        format: `"raw"` or `"jpeg"`.
    """

    def __init__(self, folder: Path, camera: str, size: tuple[int, int], format: str) -> None:
        self._path, self._size, self._format = folder / camera_file(camera), size, format
        self._open()

    def _open(self) -> None:
        try:
            self._table = np.load(self._path.with_suffix(".npy"), allow_pickle=False)
            self._file: io.FileIO | None = open(self._path, "rb", buffering=0)  # noqa: SIM115 - kept open
        except (OSError, ValueError) as error:
            raise DatasetError(self._path, f"the cache cannot be read ({error})", _DAMAGED) from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None, "_file": None}

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)"""
        if self._file is None:
            self._open()
        return (len(self._table), *self._size, 3)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """uint8 (..., H, W, 3)."""
        if self._file is None:
            self._open()
        assert self._file is not None
        flat = np.asarray(rows, np.int64).reshape(-1)
        out = np.empty((len(flat), *self._size, 3), np.uint8)
        read = self._read_raw if self._format == "raw" else self._read_jpeg
        for k, (start, size) in enumerate(self._table[flat].tolist()):
            read(self._file.fileno(), start, size, out[k])
        return out.reshape(*np.shape(rows), *self._size, 3)

    def _read_raw(self, descriptor: int, start: int, size: int, out: np.ndarray) -> None:
        if size != out.nbytes or os.preadv(descriptor, [out.data], start) != size:
            raise self._damaged(start)

    def _read_jpeg(self, descriptor: int, start: int, size: int, out: np.ndarray) -> None:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(os.pread(descriptor, size, start)), formats=("JPEG",)) as image:
                if (image.height, image.width, image.mode) != (*out.shape[:2], "RGB"):
                    raise ValueError(f"it is {image.height}x{image.width} {image.mode}")
                out[:] = np.asarray(image)
        except (OSError, ValueError) as error:
            raise self._damaged(start) from error

    def _damaged(self, start: int) -> DatasetError:
        return DatasetError(self._path, f"the cache is damaged at byte {start:,}", _DAMAGED)


def camera_file(camera: str) -> str:
    """Name of a camera's file; names that cannot be part of a path are spelt in hexadecimal."""
    plain = camera.replace("_", "").replace("-", "").isalnum() and camera.isascii()
    return f"{camera}.bin" if plain else f"x{camera.encode().hex()}.bin"


def amount(size: float) -> str:
    """Bytes in words: `"1.2 GB"`, `"34.5 MB"`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


# ---- checks -----------------------------------------------------------------------------------------------
def read_manifest(folder: Path) -> dict[str, Any] | None:
    """`cache.json`, or None where there is no (readable) one."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None


def what_is_wrong(folder: Path, settings: CacheSettings, source: str) -> str:
    """Why a cache cannot be used, in words; empty where it can.

    Args:
        folder: The cache.
        settings: What it should hold.
        source: `fingerprint` of the dataset as it is now.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    if manifest.get("settings") != settings.to_dict():
        return "it was made with other settings"
    if manifest.get("fingerprint") != source:
        return "the dataset has changed since"
    for name, size in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is cut short or missing"
    return ""


def verify_cache(folder: str | Path) -> int:
    """Read a whole cache and compare every picture's checksum with the one taken when it was written.

    Returns:
        The number of pictures.

    Raises:
        DatasetError: The cache is incomplete, or some picture has changed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise DatasetError(folder, f"no cache there: {MANIFEST} is missing or damaged", _DAMAGED)
    count = 0
    for camera, expected in manifest["checksums"].items():
        path, found = folder / camera_file(camera), 0
        size = manifest["files"].get(path.name)
        if not path.is_file() or path.stat().st_size != size:
            raise DatasetError(path, "the cache is cut short or missing", _DAMAGED)
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                found = zlib.crc32(block, found)
        if found != expected:
            raise DatasetError(path, "the cache's checksum is not the one it was written with", _DAMAGED)
        count += len(np.load(path.with_suffix(".npy"), allow_pickle=False))
    return count
