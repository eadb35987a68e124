"""Where each frame's packet lies in an mp4 and when it is shown, read from the tables at its end, without FFmpeg.

Opening a file with FFmpeg costs more than decoding a small frame, and training takes single frames from many files at
random. The tables of a file (ISO/IEC 14496-12) take about 30 bytes per frame; with them a frame costs one read of the file
and the decoding. Only plain files are read this way: one edit at most, no fragments. `index_of` returns None for all
others, and whatever is doubtful; then FFmpeg has the last word.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_HEAD = 1 << 16  # bytes read at once; many files of one episode are smaller
_MOST_TABLES = 1 << 26  # bytes of tables of a file
_ENTRY = 78  # bytes of a picture's sample entry before the boxes in it
_RATE_ONE = 1 << 16


@dataclass(frozen=True)
class Mp4Index:
    """The packets of a video in the order of the file, which is that of decoding.

    Args:
        kind: How it is encoded; files with the same bytes here can share a decoder.
        base: Seconds per tick of `pts`.
        pts: int64 (N,): when each frame is shown.
        offset: int64 (N,): where its packet begins.
        size: int32 (N,): its bytes.
        keys: int64 (K,): the packets that need no earlier one.
        order: int32 (N,): packets by the time they are shown; None where that is the order of the file.
        shown: float64 (N,): those times, seconds.
        stamp: Size and time of change of the file, as `stamp_of`.
    """

    kind: bytes
    base: float
    pts: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    keys: np.ndarray
    order: np.ndarray | None
    shown: np.ndarray
    stamp: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory, about."""
        arrays = (self.pts, self.offset, self.size, self.keys, self.shown)
        extra = 0 if self.order is None else self.order.nbytes
        return sum(array.nbytes + 112 for array in arrays) + extra + 400


def stamp_of(descriptor: int) -> tuple[int, int]:
    """What changes when a file is written anew."""
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns


def index_of(path: Path) -> Mp4Index | None:
    """The packets of an mp4's first video; None where it is not as plain as that, cut short, or no mp4."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        stamp = stamp_of(descriptor)
        movie = _movie(descriptor, stamp[0])
        return None if movie is None else _index(movie, stamp)
    except (OSError, ValueError, LookupError, struct.error, OverflowError):
        return None
    finally:
        os.close(descriptor)


# ---- boxes ------------------------------------------------------------------------------------------------
def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The boxes in some bytes: name, content."""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        elif size == 0:
            size = len(data) - at
        if size < head or at + size > len(data):
            raise ValueError("a box that is longer than what it is in")
        yield bytes(name), data[at + head : at + size]
        at += size


def _first(data: memoryview, *names: bytes) -> memoryview:
    """The content of the first box of that name, of the next within it, ..."""
    for wanted in names:
        found = next((content for name, content in _boxes(data) if name == wanted), None)
        if found is None:
            raise ValueError(f"no box {wanted!r}")
        data = found
    return data


def _movie(descriptor: int, total: int) -> memoryview | None:
    """The content of the box `moov`."""
    head = os.pread(descriptor, _HEAD, 0)
    at = 0
    while at + 8 <= total:
        start = head[at : at + 16] if at + 16 <= len(head) else os.pread(descriptor, 16, at)
        size, name = struct.unpack_from(">I4s", start)
        skip = 8
        if size == 1:
            (size,), skip = struct.unpack_from(">Q", start, 8), 16
        elif size == 0:
            size = total - at
        if size < skip or at + size > total or (not at and name != b"ftyp"):
            return None
        if name == b"moov":
            if size > _MOST_TABLES:
                return None
            inside = at + size <= len(head)
            data = head[at : at + size] if inside else os.pread(descriptor, size, at)
            return memoryview(data)[skip:] if len(data) == size else None
        if name == b"moof":
            return None
        at += size
    return None


# ---- tables -----------------------------------------------------------------------------------------------
def _index(movie: memoryview, stamp: tuple[int, int]) -> Mp4Index | None:
    tracks = []
    for name, content in _boxes(movie):
        if name == b"mvex":  # fragments
            return None
        if name == b"trak" and bytes(_first(content, b"mdia", b"hdlr")[8:12]) == b"vide":
            tracks.append(content)
    if not tracks:
        return None
    track = tracks[0]
    scale = _time_scale(_first(track, b"mdia", b"mdhd"))
    tables = dict(_boxes(_first(track, b"mdia", b"minf", b"stbl")))
    kind = _kind(tables[b"stsd"]) if b"stsd" in tables else None
    if kind is None or not {b"stts", b"stsc", b"stsz"} <= set(tables) or scale <= 0:
        return None
    sizes = _sizes(tables[b"stsz"])
    count = len(sizes)
    times = np.cumsum(_runs(tables[b"stts"], count)) if count else np.zeros(0, np.int64)
    decoded = np.concatenate([[0], times[:-1]]) if count else times
    pts = decoded + (_runs(tables[b"ctts"], count, signed=True) if b"ctts" in tables else 0)
    offsets = _offsets(tables, sizes)
    begin = _begin(track)
    if not count or begin is None or (offsets < 0).any() or (offsets + sizes > stamp[0]).any():
        return None
    pts = pts - begin
    keys = _table(tables[b"stss"], 4)[:, 0] - 1 if b"stss" in tables else np.arange(count)
    if pts.min() < 0 or not len(keys) or keys[0] != 0 or keys[-1] >= count or (np.diff(keys) <= 0).any():
        return None
    rising = bool((np.diff(pts) > 0).all())
    order = None if rising else np.argsort(pts, kind="stable").astype(np.int32)
    shown = (pts if order is None else pts[order]) / scale
    return Mp4Index(
        kind, 1 / scale, pts, offsets, sizes.astype(np.int32), keys.astype(np.int64), order, shown, stamp
    )


def _time_scale(header: memoryview) -> int:
    return struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)[0]


def _kind(descriptions: memoryview) -> bytes | None:
    """The sample entry without its bit rate, which differs from file to file; None where there are several."""
    (count,) = struct.unpack_from(">I", descriptions, 4)
    if count != 1:
        return None
    ((name, entry),) = _boxes(descriptions[8:])
    kept = [key + bytes(content) for key, content in _boxes(entry[_ENTRY:]) if key != b"btrt"]
    return name + bytes(entry[:_ENTRY]) + b"".join(kept)


def _table(box: memoryview, row: int) -> np.ndarray:
    """int64 (N, row / 4): a table with the number of its rows before it."""
    (count,) = struct.unpack_from(">I", box, 4)
    if 8 + count * row > len(box):
        raise ValueError("a table that is longer than its box")
    return np.frombuffer(box, ">u4", count * row // 4, 8).reshape(count, row // 4).astype(np.int64)


def _runs(box: memoryview, count: int, *, signed: bool = False) -> np.ndarray:
    """int64 (count,): a table of (how often, value), written out."""
    table = _table(box, 8)
    if table[:, 0].sum() != count:
        raise ValueError("a table of another number of frames")
    values = table[:, 1]
    if signed:
        values = np.where(values >= 1 << 31, values - (1 << 32), values)
    return np.repeat(values, table[:, 0])


def _sizes(box: memoryview) -> np.ndarray:
    """int64 (N,): bytes of each packet."""
    same, count = struct.unpack_from(">II", box, 4)
    if same or 12 + 4 * count > len(box):  # no video has packets of one size
        raise ValueError("a table of sizes that is none")
    return np.frombuffer(box, ">u4", count, 12).astype(np.int64)


def _offsets(tables: dict[bytes, memoryview], sizes: np.ndarray) -> np.ndarray:
    """int64 (N,): where each packet begins: packets lie in chunks, one after the other."""
    if b"co64" in tables:
        (count,) = struct.unpack_from(">I", tables[b"co64"], 4)
        chunks = np.frombuffer(tables[b"co64"], ">u8", count, 8).astype(np.int64)
    else:
        chunks = _table(tables[b"stco"], 4)[:, 0]
    runs = _table(tables[b"stsc"], 12)  # first chunk (from 1), packets in each, description
    first = runs[:, 0] - 1
    if not len(runs) or first[0] != 0 or (np.diff(first) <= 0).any() or first[-1] >= len(chunks):
        raise ValueError("a table of chunks that is none")
    per_chunk = np.repeat(runs[:, 1], np.diff(np.append(first, len(chunks))))
    if (per_chunk < 1).any() or per_chunk.sum() != len(sizes):
        raise ValueError("chunks of another number of packets")
    ends = np.cumsum(sizes)
    begins = ends - sizes  # as if all lay in one piece
    first_of_chunk = np.cumsum(per_chunk) - per_chunk
    return begins + np.repeat(chunks - begins[first_of_chunk], per_chunk)


def _begin(track: memoryview) -> int | None:
    """The time within the track at which it is shown from; None where pieces of it are left out."""
    edits = next((content for name, content in _boxes(track) if name == b"edts"), None)
    if edits is None:
        return 0
    box = _first(edits, b"elst")
    version, (count,) = box[0], struct.unpack_from(">I", box, 4)
    if count != 1:
        return None
    _, begin, rate = struct.unpack_from(">QqI" if version == 1 else ">IiI", box, 8)
    return begin if rate == _RATE_ONE and begin >= 0 else None
