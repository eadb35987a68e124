"""Numbers as LeRobot stores them in parquet, and the metadata by which Hugging Face `datasets` knows their types."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def to_arrow(values: np.ndarray) -> pa.Array:
    """(T,) as plain numbers or text, (T, D) as lists of fixed length, (T, ...) as nested lists; a single one is no list."""
    if values.dtype.kind == "U":
        return pa.array(values.reshape(-1).tolist(), pa.string())
    if values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1):
        return pa.array(values.reshape(-1))
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1]
        )
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        offsets = np.arange(0, len(array) + 1, size, dtype=np.int32)
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array


def stills(contents: list[bytes], paths: list[str]) -> pa.Array:
    """Compressed pictures, with the file names they would have."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": c, "path": p} for c, p in zip(contents, paths, strict=True)], kind)


def metadata_of(features: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Schema metadata that `datasets` 3 and 4 both read (4 alone would write `List` for `Sequence`)."""
    found = {}
    for name, feature in features.items():
        dtype, shape = feature["dtype"], tuple(feature["shape"])
        value: dict[str, Any] = {"dtype": dtype, "_type": "Value"}
        if dtype == "video":
            continue
        if dtype == "image":
            value = {"_type": "Image"}
        elif len(shape) > 1:
            value = {"shape": list(shape), "dtype": dtype, "_type": f"Array{len(shape)}D"}
        elif shape != (1,):
            value = {"feature": value, "length": shape[0], "_type": "Sequence"}
        found[name] = value
    return {"huggingface": json.dumps({"info": {"features": found}})}


def png(image: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), without loss."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "png", compress_level=4)
    return sink.getvalue()


def write_table(table: pa.Table, path: Any) -> None:
    """A parquet file of one episode: one row group, snappy, no dictionary."""
    pq.write_table(
        table, path, use_dictionary=False, write_statistics=False, compression="snappy",
        row_group_size=max(1, table.num_rows),
    )  # fmt: skip
