"""Arrays as other projects write them: vla-eval's (with pictures as PNG or JPEG) and GR00T's (numpy files)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from vla_agents.errors import FrameError
from vla_agents.serving.arrays import WireLimits, array_of, check_dtype, check_shape, checked, make_array, raw

MAX_PIXELS = 4096 * 4096
_MAX_HEADER = 4096  # bytes of a numpy file's


# ---- vla-eval ---------------------------------------------------------------------------------------------
def with_pictures(found: dict[str, Any], limits: WireLimits) -> np.ndarray | None:
    """The array that a map of vla-eval's stands for, or None; for `codec.decode`."""
    if "__image__" not in found:
        return array_of(found, limits)
    data, shape = found.get("data"), found.get("shape")
    if not isinstance(data, memoryview):
        raise FrameError("a picture whose data is no bin")
    if found.get("format") == "raw":
        return make_array(data, found.get("dtype"), shape, limits)
    if found.get("format") not in ("png", "jpeg"):
        raise FrameError("a picture that is neither raw, png nor jpeg")
    axes, _ = check_shape(shape, np.dtype(np.uint8), limits)
    return _read_picture(data, axes, str(found["format"]).upper())


def _read_picture(data: memoryview, shape: tuple[int, ...], kind: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
            if shape[:2] != (picture.height, picture.width) or picture.height * picture.width > MAX_PIXELS:
                raise FrameError("a picture of another size than it says")
            array = np.array(picture)
    except FrameError:
        raise
    except Exception:  # whatever a decoder says to bytes that are no picture
        raise FrameError(f"a picture that is no {kind}") from None
    if array.shape != shape or array.dtype != np.uint8:
        raise FrameError("a picture of another shape than it says")
    return array


def str_map(value: Any) -> Any:
    """What msgpack cannot write itself, as vla-eval reads it."""
    if isinstance(value, np.ndarray):
        array = checked(value)
        return {"__ndarray__": True, "data": raw(array), "dtype": array.dtype.str, "shape": list(array.shape)}
    if isinstance(value, np.generic):
        return value.item()
    raise FrameError(f"a {type(value).__name__} cannot be sent")


# ---- GR00T ------------------------------------------------------------------------------------------------
def with_numpy_files(found: dict[str, Any], limits: WireLimits) -> np.ndarray | None:
    """The array that a map of GR00T's stands for, or None; for `codec.decode`."""
    if "__ndarray_class__" not in found:
        return array_of(found, limits)
    data = found.get("as_npy")
    if not isinstance(data, memoryview):
        raise FrameError("an array whose file is no bin")
    stream = io.BytesIO(data[: _MAX_HEADER + 12])
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, in_fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception:  # whatever numpy says to bytes that are no header
        raise FrameError("an array whose file has no header of numpy's") from None
    kind = check_dtype(dtype.str)
    axes, _ = check_shape(list(shape), kind, limits)
    body = data[stream.tell() :]
    if in_fortran:
        return make_array(body, kind.str, list(axes[::-1]), limits).T
    return make_array(body, kind.str, list(axes), limits)


def numpy_file_map(value: Any) -> Any:
    """What msgpack cannot write itself, as GR00T reads it."""
    if isinstance(value, np.ndarray):
        file = io.BytesIO()
        np.save(file, checked(value), allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}
    if isinstance(value, np.generic):
        return value.item()
    raise FrameError(f"a {type(value).__name__} cannot be sent")
