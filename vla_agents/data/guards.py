"""What keeps a dataset's files from leading elsewhere, or from unfolding into more memory than there is.

A dataset may come from anybody. Its JSON, its path templates and its links are read with the checks below; the parquet,
picture and HDF5 readers check sizes before they allocate.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla_agents.errors import DatasetError

COPY = "copy the dataset again"
TAMPERED = "do not open it: it was tampered with"
MAX_JSON = 256 << 20  # bytes of a JSON file, or of one line of a .jsonl file
_SPEC = re.compile(r"(0?\d{1,2}d)?")  # of a number in a path template


def is_inside(root: Path, path: Path) -> bool:
    """Whether a path, all links followed, lies within `root`."""
    return path.resolve().is_relative_to(root.resolve())


def require_inside(root: Path, path: Path) -> Path:
    """`path`, unless a link leads out of the dataset at `root`."""
    if not is_inside(root, path):
        raise DatasetError(path, "is a link that leads out of the dataset", TAMPERED)
    return path


def read_json(root: Path, file: Path) -> Any:
    """The content of a JSON file of the dataset at `root`.

    Raises:
        FileNotFoundError: There is no such file.
        DatasetError: It is damaged, absurdly large, or a link that leads out.
    """
    try:
        require_inside(root, file)
        if file.stat().st_size > MAX_JSON:
            raise DatasetError(file, f"has {file.stat().st_size:,} bytes, more than any such file has", COPY)
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(file, f"cannot be read as JSON ({error})", COPY) from error


def read_json_lines(root: Path, file: Path, *, skip_bad: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file of the dataset at `root`, one per line; empty lines are left out.

    With `skip_bad`, so are lines that cannot be read.
    """
    number = 0
    try:
        require_inside(root, file)
        with open(file, encoding="utf-8") as lines:
            while line := lines.readline(MAX_JSON):
                number += 1
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    if skip_bad:
                        continue
                    raise
                if not isinstance(entry, dict):
                    raise DatasetError(file, f"line {number} is not a JSON object", COPY)
                yield entry
    except FileNotFoundError:
        raise DatasetError(file, "the file is missing", COPY) from None
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(file, f"line {number} cannot be read as JSON ({error})", COPY) from error


def fill_template(template: Any, values: dict[str, Any]) -> str:
    """A path template with its values; only plain fields with a width are allowed.

    Raises:
        ValueError: It is no such template.
    """
    if not isinstance(template, str):
        raise ValueError("not text")
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if name not in values:
            raise ValueError(f"unknown field {name!r}, known: {sorted(values)}")
        if conversion or not _SPEC.fullmatch(spec or ""):
            raise ValueError(f"field {name!r} has format {spec!r}")
    return template.format(**values)
