"""An HDF5 file from anybody, opened so that nothing in it leads elsewhere or unfolds into more than there is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.data.guards import COPY, TAMPERED
from vla_agents.errors import DatasetError

if TYPE_CHECKING:
    import h5py

DAMAGED = "the file is cut short or damaged: copy it again, or delete it if it is the last one"
_NO_COMPRESSION = {2, 3}  # shuffle, checksum
_PLENTY = 1 << 24  # bytes that need no further questions
_RATIO = 2000  # gzip does not reach more than about 1030
_MOST_CHUNK = 1 << 30
_MOST_TEXT = 1 << 26


class Hdf5File:
    """A file open for reading; whatever is wrong with it is a `DatasetError` that names it. A context manager.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        self._h5py = h5py
        try:
            self._file = h5py.File(path, "r")
        except FileNotFoundError:
            raise DatasetError(path, "the file is missing", COPY) from None
        except (OSError, RuntimeError, ValueError) as error:
            raise DatasetError(path, f"cannot be read as HDF5 ({error})", DAMAGED) from error

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def has(self, name: str) -> bool:
        """Whether there is such a dataset or group."""
        try:
            return name in self._file
        except (KeyError, RuntimeError, OSError, ValueError):
            return False

    def names(self, group: str = "/") -> list[str]:
        """What a group holds; empty where there is no such group."""
        if group != "/" and not self.has(group):
            return []
        found = self._node(group)
        with self._damage(f"group {group!r}"):
            return [str(name) for name in found] if isinstance(found, self._h5py.Group) else []

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a dataset."""
        return self.dataset(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The type of a dataset."""
        return self.dataset(name).dtype

    def is_group(self, name: str) -> bool:
        """Whether there is a group of that name."""
        return self.has(name) and isinstance(self._node(name), self._h5py.Group)

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A dataset of known type and shape."""
        dataset = self.dataset(name)
        if dataset.shape != shape or dataset.dtype != dtype:
            raise DatasetError(
                self.path,
                f"{name!r} is {dataset.dtype} {dataset.shape}, expected {np.dtype(dtype)} {shape}",
                "the file is of another dataset, or was changed",
            )
        return self.values(name)

    def numbers(self, name: str, length: int, size: int | None = None) -> np.ndarray:
        """float32 (T, size), whatever type of number it is stored as; `size` None takes any."""
        dataset = self.dataset(name)
        wide = dataset.shape[1] if len(dataset.shape) == 2 else 1 if len(dataset.shape) == 1 else -1
        if (
            dataset.dtype.kind not in "biuf"
            or dataset.shape[:1] != (length,)
            or wide not in (size or wide, size)
        ):
            raise DatasetError(
                self.path,
                f"{name!r} is {dataset.dtype} {dataset.shape}, expected numbers of shape "
                f"({length}, {size or 'any'})",
                "the file is of another dataset, or was changed",
            )
        with np.errstate(over="ignore"):
            return self.values(name).astype(np.float32).reshape(length, -1)

    def values(self, name: str, where: Any = ()) -> np.ndarray:
        """The content of a dataset, or of some of its rows."""
        dataset = self.dataset(name)
        with self._damage(f"{name!r}"):
            return dataset[where]

    def text_or_numbers(self, name: str) -> np.ndarray:
        """The content of a dataset; text, however it is stored, as str."""
        if self._h5py.check_string_dtype(self.dtype(name)) is None:
            return self.values(name)
        found = np.asarray(self.values(name), object)
        return np.array([as_text(value) for value in found.reshape(-1)], str).reshape(found.shape)

    def text(self, name: str) -> str:
        """A scalar dataset (or an array of one) of text."""
        if math.prod(self.dataset(name).shape) != 1:
            raise DatasetError(self.path, f"{name!r} has shape {self.shape(name)}, expected one text", COPY)
        value = np.asarray(self.values(name), dtype=object).reshape(-1)[0]
        return as_text(value)

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Whatever the HDF5 library says of a damaged file."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
            raise DatasetError(self.path, f"{what} cannot be read ({error})", DAMAGED) from error

    def attribute(self, name: str, at: str = "/", *, optional: bool = False) -> Any:
        """An attribute of a group or dataset; None where there is none and `optional`."""
        node = self._node(at)
        with self._damage(f"attribute {name!r}"):
            found = node.attrs.get_id(name) if name in node.attrs else None
            size = 0 if found is None else math.prod(found.shape) * found.dtype.itemsize
            if found is not None and size <= _MOST_TEXT:
                value = node.attrs[name]
                return as_text(value) if isinstance(value, bytes | str) else value
        if size > _MOST_TEXT:
            raise DatasetError(self.path, f"attribute {name!r} claims {size:,} bytes", TAMPERED)
        if not optional:
            raise DatasetError(self.path, f"has no attribute {name!r}", DAMAGED)
        return None

    def attributes(self, at: str = "/") -> dict[str, Any]:
        """All attributes that JSON can hold: text, numbers, small arrays."""
        found = {}
        for name in self.attribute_names(at):
            value = self.attribute(name, at)
            if (
                isinstance(value, np.ndarray | np.generic)
                and value.dtype.kind in "biuf"
                and value.size <= 4096
            ):
                found[name] = value.tolist()
            elif isinstance(value, str):
                found[name] = value
        return found

    def attribute_names(self, at: str = "/") -> list[str]:
        """The names of a group's attributes."""
        node = self._node(at)
        with self._damage(f"attributes of {at!r}"):
            return [str(name) for name in node.attrs]

    def is_virtual(self, name: str) -> bool:
        """Whether a dataset is a view of others."""
        return bool(getattr(self._node(name), "is_virtual", False))

    def json(self, name: str, at: str = "/", *, optional: bool = False) -> Any:
        """An attribute of JSON."""
        value = self.attribute(name, at, optional=optional)
        if value is None:
            return None
        try:
            return json.loads(value)
        except (ValueError, TypeError, RecursionError) as error:
            raise DatasetError(self.path, f"attribute {name!r} is not JSON ({error})", DAMAGED) from error

    def dataset(self, name: str) -> h5py.Dataset:
        """A dataset that lies in this file, and is not larger than what is stored of it can be."""
        found = self._node(name)
        with self._damage(f"{name!r}"):
            known = isinstance(found, self._h5py.Dataset) and found.shape is not None
            outside = known and (found.is_virtual or bool(found.external))
            sizes = None if outside or not known else _sizes(found)
        if not known:
            raise DatasetError(self.path, f"has no dataset {name!r}, but a group or nothing", DAMAGED)
        if sizes is None:
            raise DatasetError(self.path, f"{name!r} leads out of the file", TAMPERED)
        self._check_size(name, *sizes)
        return found

    # ---- inside -------------------------------------------------------------------------------------------
    def _node(self, name: str) -> Any:
        """A group or dataset that is reached through hard links alone."""
        if name == "/":
            return self._file
        parts = name.strip("/").split("/")
        inside, found = True, None
        try:
            links = [self._file.get("/".join(parts[: k + 1]), getlink=True) for k in range(len(parts))]
            inside = all(link is None or isinstance(link, self._h5py.HardLink) for link in links)
            if inside:
                found = self._file[name]
        except (KeyError, OSError, AttributeError, RuntimeError, ValueError) as error:
            raise DatasetError(self.path, f"has no dataset {name!r} ({error})", DAMAGED) from error
        if not inside:
            raise DatasetError(self.path, f"{name!r} leads out of the file", TAMPERED)
        return found

    def _check_size(self, name: str, size: int, chunk: int, stored: int, filters: list[int]) -> None:
        missing = [number for number in filters if not self._h5py.h5z.filter_avail(number)]
        if missing:
            raise DatasetError(
                self.path, f"{name!r} is compressed by filter {missing[0]}, which is not installed",
                "pip install hdf5plugin and import it first, or write the file with gzip",
            )  # fmt: skip
        compressing = [number for number in filters if number not in _NO_COMPRESSION]
        most = max(_PLENTY, _RATIO * stored)
        if (
            len(compressing) > 1
            or max(size, chunk) > most
            or chunk > max(_PLENTY, min(4 * size, _MOST_CHUNK))
        ):
            raise DatasetError(
                self.path,
                f"{name!r} claims {size:,} bytes in chunks of {chunk:,}, of which {stored:,} are stored "
                f"through {len(compressing)} compressing filters",
                TAMPERED,
            )


def _sizes(dataset: h5py.Dataset) -> tuple[int, int, int, list[int]]:
    """Bytes that a dataset claims, bytes of a chunk, bytes stored, and its filters."""
    item = dataset.dtype.itemsize
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(k)[0] for k in range(plan.get_nfilters())]
    chunk = math.prod(dataset.chunks or (0,)) * item
    return math.prod(dataset.shape) * item, chunk, dataset.id.get_storage_size(), filters


def as_text(value: Any) -> str:
    """Text however HDF5 hands it over."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def common_length(file: Hdf5File, names: Sequence[str]) -> int:
    """The number of rows that these datasets share; at least one."""
    lengths = {name: file.shape(name)[0] if file.shape(name) else 0 for name in names}
    if len(set(lengths.values())) != 1:
        raise DatasetError(file.path, f"datasets differ in length: {lengths}", "leave this episode out")
    length = next(iter(lengths.values()))
    if length < 1:
        raise DatasetError(file.path, f"has no steps in {names[0]!r}", "delete it if it is the last one")
    return length
