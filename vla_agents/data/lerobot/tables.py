"""The rows of an episode as they lie in a LeRobot data file, of any column: pictures, text, nested lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.data.guards import COPY
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.index import Index
from vla_agents.errors import DatasetError

_OTHER = 1 << 16  # bytes that a row of text or the like may have


def episode_table(index: Index, episode: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of one episode, read from the row groups that hold it; storage types, no schema metadata."""
    file, first, length = (
        index.data_file(episode),
        int(index.first_rows[episode]),
        int(index.lengths[episode]),
    )
    row_bytes = sum(_row_bytes(index, key) for key in columns)
    try:
        with pa.OSFile(str(file)) as source, pq.ParquetFile(source) as opened:
            missing = [name for name in columns if name not in opened.schema_arrow.names]
            if missing:
                raise DatasetError(
                    file, f"column {missing[0]!r} is missing", f"it has {opened.schema_arrow.names}"
                )
            table = _between(opened, file, columns, episode, first, first + length, row_bytes)
            if table.num_rows != length:  # in another order than meta/episodes
                table = _between(opened, file, columns, episode, 0, None, row_bytes)
            table.validate(full=True)  # text that is none, lists that point elsewhere
    except FileNotFoundError:
        raise DatasetError(file, "the file is missing", COPY) from None
    except (*lerobot.UNREADABLE, KeyError) as error:
        raise DatasetError(file, f"cannot be read as parquet ({error})", COPY) from error
    if table.num_rows != length:
        raise DatasetError(
            file, f"episode {episode} has {table.num_rows} rows, meta/episodes says {length}", COPY
        )
    return table


def _row_bytes(index: Index, key: str) -> int:
    """The largest size that a row of a column may claim."""
    info = index.info
    if info.features[key]["dtype"] == "image":
        height, width, channels = lerobot.image_shape(info.features[key])
        return 4 * height * width * channels + _OTHER
    return 16 * info.size(key) + (0 if info.numeric_dtype(key) is not None else _OTHER)


def _between(
    opened: pq.ParquetFile,
    file: Path,
    columns: Sequence[str],
    episode: int,
    first: int,
    stop: int | None,
    row_bytes: int,
) -> pa.Table:
    """The rows of an episode in the row groups that overlap rows `first` to `stop`."""
    found: list[pa.Table] = []
    start = 0
    for group in range(opened.num_row_groups):
        end = start + opened.metadata.row_group(group).num_rows
        if end > first and (stop is None or start < stop):
            numbers = opened.read_row_group(group, columns=["episode_index"], use_threads=False).column(0)
            wanted = np.flatnonzero(numbers.to_numpy() == episode)
            if len(wanted):
                lerobot.check_sizes(opened, file, list(columns), row_bytes, [group])
                rows = opened.read_row_group(group, columns=list(columns), use_threads=False)
                found.append(rows.select(list(columns)).take(pa.array(wanted)))
        start = end
    if not found:
        return opened.schema_arrow.empty_table().select(list(columns)).replace_schema_metadata()
    return _plain(pa.concat_tables(found).combine_chunks())


def _plain(table: pa.Table) -> pa.Table:
    """Extension types replaced by what they are stored as."""
    table = table.replace_schema_metadata()
    for k, column in enumerate(table.columns):
        if isinstance(column.type, pa.BaseExtensionType):
            storage = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
            table = table.set_column(k, table.column_names[k], storage)
    return table
