"""The numbers of a LeRobot dataset, episode by episode, read from no more of a file than holds them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.data.guards import COPY
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.index import Index
from vla_agents.errors import DatasetError

_CACHE_BYTES = 128 << 20
_FOOTERS = 64  # files whose footers are kept
Rows = dict[str, np.ndarray]


class Columns:
    """Numbers by episode; may be used from several threads.

    Args:
        index: The dataset's episodes.
        names: Which features; those that hold numbers.
        cached: Whether what was read last is kept.
    """

    def __init__(self, index: Index, names: Sequence[str], *, cached: bool = True) -> None:
        self._index, self._info = index, index.info
        self._types = {name: _type(index, name) for name in names}
        self._most_bytes = _CACHE_BYTES if cached else 0
        self._row_bytes = sum(8 * self._info.size(name) + 16 for name in names) + 64
        self._footers: OrderedDict[Path, tuple[pq.FileMetaData, np.ndarray]] = OrderedDict()
        self._parts: OrderedDict[tuple[Path, int, int], Rows] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        empty = {"_footers": OrderedDict(), "_parts": OrderedDict(), "_bytes": 0, "_lock": None}
        return self.__dict__ | empty

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def rows(self, episode: int) -> Rows:
        """Feature -> (T,) where its shape is (1,), else (T, *shape); views that must not be written to."""
        file, length = self._index.data_file(episode), int(self._index.lengths[episode])
        if length < 1:
            raise DatasetError(
                self._index.where, f"episode {episode} has length 0, or is missing", "leave that episode out"
            )
        first = int(self._index.first_rows[episode])
        start, part = self._part(file, first, first + length, self._most_rows(episode))
        at = slice(first - start, first - start + length)
        if not _is(part["episode_index"][at], episode, length):  # a file in another order, or damaged
            _, part = self._part(file, 0, None, self._most_rows(episode))
            found = np.flatnonzero(part["episode_index"] == episode)
            if len(found) != length or found[-1] - found[0] + 1 != length:
                raise DatasetError(
                    file, f"episode {episode} has {len(found)} rows, meta/episodes says {length}", COPY
                )
            at = slice(int(found[0]), int(found[-1]) + 1)
        return {name: values[at] for name, values in part.items()}

    def all(self, names: Sequence[str]) -> Rows:
        """All episodes, one after the other; each file is read once, and not kept."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        wanted = list(dict.fromkeys([*names, "episode_index"]))
        whole: tuple[Path, Rows] | None = None
        for episode, length in enumerate(self._index.lengths.tolist()):
            file, first = self._index.data_file(episode), int(self._index.first_rows[episode])
            if whole is None or whole[0] != file:
                whole = file, self._read(file, None, self._most_rows(episode), wanted)
            rows = {name: values[first : first + length] for name, values in whole[1].items()}
            if not _is(rows["episode_index"], episode, length):
                rows = self.rows(episode)
            for name in names:
                found[name].append(rows[name])
        return {
            name: np.concatenate(blocks)
            if blocks
            else np.zeros((0, *self._types[name][1]), self._types[name][0])
            for name, blocks in found.items()
        }

    # ---- inside -------------------------------------------------------------------------------------------
    def _most_rows(self, episode: int) -> int:
        """A file may hold more than its episodes, but not absurdly more."""
        return 10 * self._index.rows_in_file_of(episode) + 1_000_000

    def _part(self, file: Path, start: int, stop: int | None, most: int) -> tuple[int, Rows]:
        """The row groups that hold rows `start` to `stop`, and the number of their first row."""
        ends = self._footer(file)[1]
        total = int(ends[-1]) if len(ends) else 0
        first = int(np.searchsorted(ends, min(start, max(total - 1, 0)), side="right"))
        last = int(np.searchsorted(ends, min(total if stop is None else stop, total), side="left"))
        key = file, first, last
        with self._lock:
            if key in self._parts:
                self._parts.move_to_end(key)
                return (int(ends[first - 1]) if first else 0), self._parts[key]
        groups = range(first, min(last, len(ends) - 1) + 1)
        part = self._read(file, groups, most)
        with self._lock:
            if key not in self._parts:
                self._parts[key] = part
                self._bytes += _nbytes(part)
            while self._bytes > self._most_bytes and len(self._parts) > bool(self._most_bytes):
                self._bytes -= _nbytes(self._parts.popitem(last=False)[1])
        return (int(ends[first - 1]) if first else 0), part

    def _footer(self, file: Path) -> tuple[pq.FileMetaData, np.ndarray]:
        with self._lock:
            if file in self._footers:
                self._footers.move_to_end(file)
                return self._footers[file]
        with _opened(file) as opened:
            found = opened.metadata
        ends = np.cumsum([found.row_group(k).num_rows for k in range(found.num_row_groups)], dtype=np.int64)
        with self._lock:
            self._footers[file] = found, ends
            while len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        return found, ends

    def _read(self, file: Path, groups: range | None, most: int, names: Sequence[str] | None = None) -> Rows:
        """Some columns of some row groups; by default all of them."""
        chosen_names = list(self._types) if names is None else list(names)
        metadata = None if groups is None else self._footer(file)[0]
        with _opened(file, metadata) as opened:
            chosen = range(opened.metadata.num_row_groups) if groups is None else groups
            rows = sum(opened.metadata.row_group(k).num_rows for k in chosen)
            if rows > most:
                raise DatasetError(file, f"claims {rows:,} rows, far more than meta/episodes says", COPY)
            missing = [name for name in chosen_names if name not in opened.schema_arrow.names]
            if missing:
                raise DatasetError(
                    file, f"column {missing[0]!r} is missing", f"it has {opened.schema_arrow.names}"
                )
            lerobot.check_sizes(opened, file, chosen_names, self._row_bytes, chosen)
            table = opened.read_row_groups(list(chosen), columns=chosen_names, use_threads=False)
            table.validate(full=True)  # lists that point elsewhere
        return {name: self._to_numpy(file, name, table) for name in chosen_names}

    def _to_numpy(self, file: Path, name: str, table: pa.Table) -> np.ndarray:
        dtype, shape = self._types[name]
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # some versions of pyarrow return an empty one as it is
            column = pa.array([], column.type)
        nulls = column.null_count
        while isinstance(column.type, pa.BaseExtensionType) or _nested(column.type):
            column = column.storage if isinstance(column.type, pa.BaseExtensionType) else column.flatten()
            nulls += column.null_count
        if nulls:
            raise DatasetError(file, f"column {name!r} holds nulls", "mend or leave out those rows")
        size = self._info.size(name)
        if len(column) != table.num_rows * size:
            raise DatasetError(
                file,
                f"column {name!r} has {len(column)} values in {table.num_rows} rows, not {size} in each",
                "meta/info.json is of another dataset",
            )
        try:
            stored = column.to_numpy(zero_copy_only=False)
            numbers = stored.astype(dtype, copy=False)
        except (TypeError, ValueError) as error:
            raise DatasetError(file, f"column {name!r} does not hold numbers ({error})", "mend it") from error
        declared = self._info.numeric_dtype(name)
        if declared is not None and not _fits(stored, declared):
            raise DatasetError(
                file,
                f"column {name!r} holds {stored.dtype}, meta/info.json says {declared}, which changes its values",
                "meta/info.json is of another dataset",
            )
        return numbers.reshape(-1, *shape)


@contextmanager
def _opened(file: Path, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """A parquet file; every error names it."""
    try:
        with pa.OSFile(str(file)) as source, pq.ParquetFile(source, metadata=metadata) as opened:
            yield opened
    except FileNotFoundError:
        raise DatasetError(file, "the file is missing", COPY) from None
    except lerobot.UNREADABLE as error:
        raise DatasetError(file, f"cannot be read as parquet ({error})", _DAMAGED) from error


_DAMAGED = "it is damaged, or the recording was killed before it was complete: copy it again"


def _type(index: Index, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    """What a feature becomes: scalars have no dimension of their own, vectors of state and action always have one."""
    info = index.info
    if index.info.is_scalar(name):
        return np.dtype(lerobot.SCALARS[name]), ()
    vector = name in (*info.state_keys, *info.action_keys, lerobot.EXECUTED, lerobot.COMMANDED)
    shape = tuple(info.features[name]["shape"])
    dtype = np.dtype(np.float32) if vector else info.numeric_dtype(name)
    assert dtype is not None, name
    return dtype, shape if vector or shape != (1,) else ()


def _fits(values: np.ndarray, dtype: np.dtype) -> bool:
    """Whether numbers are the same in the type that the dataset says they have; fractions may be rounded."""
    if dtype.kind == "f" or np.can_cast(values.dtype, dtype):
        return True
    with np.errstate(invalid="ignore"):
        return bool((values.astype(dtype) == values).all())


def _nested(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is(column: np.ndarray, episode: int, length: int) -> bool:
    return len(column) == length and bool((column == episode).all())


def _nbytes(part: Rows) -> int:
    return sum(values.nbytes for values in part.values())
