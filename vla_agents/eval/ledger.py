"""The ledger of an evaluation: `episodes.jsonl`, a line for every finished episode, on disk before the next one begins.

The first line says what is evaluated (the *identity*: agent, env, protocol, versions); `kill -9` loses the episodes that
were running and nothing else. Ledgers of the same identity may be continued and merged, others refuse.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.agent import Observation
from vla_agents.errors import ConfigError
from vla_agents.rollout import EpisodeResult, Listener, StepEvent

NAME = "episodes.jsonl"
SCHEMA = "vla_agents.ledger/1"
_TOLD = ("renderer", "instruction", "task", "success")  # of `info`: they stand elsewhere


@dataclass(frozen=True)
class Entry:
    """A finished episode.

    Args:
        result: How it went.
        first: Digest of the first observation: two runs that differ here saw different scenes or another renderer.
        last: Digest of the last one: two runs that agree here took the same path.
    """

    result: EpisodeResult
    first: str = ""
    last: str = ""


class Ledger:
    """Reads and appends.

    Args:
        folder: Of the evaluation.
        identity: What is evaluated, as plain data; compared with what a ledger that is there already says.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self.identity = json.loads(json.dumps(identity, default=str))
        self.entries: list[Entry] = []
        self._size = 0  # bytes of the file that are gone on with
        self._file: Any = None

    def load(self) -> None:
        """Take over the episodes of the ledger that is there, if there is one. Nothing is written yet.

        Raises:
            ConfigError: It is the ledger of another evaluation, or damaged before its last line.
        """
        if not self.path.is_file():
            return
        identity, self.entries, self._size = read(self.path)
        differences = differ(identity, self.identity)
        if differences:
            raise ConfigError(
                f"{self.path} belongs to another evaluation: {'; '.join(differences)}",
                "give another --out, or --overwrite to start anew",
            )

    def open(self) -> None:
        """Begin to write: behind what was loaded, else anew, in the place of what is there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._size:
            with self.path.open("r+b") as file:  # a line cut short by a kill
                file.truncate(self._size)
            self._file = self.path.open("a", encoding="utf-8")
        else:
            self._file = self.path.open("w", encoding="utf-8")
            self._write({"schema": SCHEMA, **self.identity})

    def add(self, entry: Entry) -> None:
        """Append and flush to the disk."""
        self.entries.append(entry)
        self._write(to_row(entry) | {"seconds": entry.result.seconds})

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(finite(row), ensure_ascii=False, allow_nan=False, default=str) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read(path: Path) -> tuple[dict[str, Any], list[Entry], int]:
    """Identity, entries, and how many bytes of the file are whole lines.

    Raises:
        ConfigError: Not a ledger, or a line before the last one is damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror})", "`vla-agents eval` writes it"
        ) from error
    size = raw.rfind(b"\n") + 1
    lines = raw[:size].decode("utf-8", errors="replace").splitlines()
    try:
        head = json.loads(lines[0])
        schema = head.pop("schema")
    except (IndexError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: not a ledger of an evaluation", "`vla-agents eval` writes one") from error
    if schema != SCHEMA:
        raise ConfigError(f"{path}: schema {schema!r}, this version reads {SCHEMA!r}")
    entries = []
    for number, line in enumerate(lines[1:], 2):
        try:
            entries.append(from_row(json.loads(line)))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path}: line {number} is damaged ({error!r})", "start anew with --overwrite"
            ) from error
    return head, entries, size


def differ(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two identities say differently, a line each."""
    lines = []
    for key in sorted({*theirs, *ours}):
        there, here = theirs.get(key), ours.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            lines += differ(there, here, f"{prefix}{key}.")
        elif there != here:
            lines.append(f"{prefix}{key} was {there!r}, now {here!r}")
    return lines


def to_row(entry: Entry) -> dict[str, Any]:
    """An episode without its wall time; values of `info` that stand elsewhere are left out."""
    result = entry.result
    return {
        "seed": result.seed,
        "task": result.task,
        "instruction": result.instruction,
        "success": result.success,
        "error": result.error,
        "steps": result.steps,
        "reward": result.reward,
        "terminated": result.terminated,
        "truncated": result.truncated,
        "renderer": str(result.info.get("renderer", "")),
        "info": {key: value for key, value in sorted(result.info.items()) if key not in _TOLD},
        "first": entry.first,
        "last": entry.last,
    }


def from_row(row: dict[str, Any]) -> Entry:
    """The inverse of `to_row`."""
    known = {f.name for f in fields(EpisodeResult)}
    values: dict[str, Any] = {"seconds": 0.0, "error": ""} | {
        key: value for key, value in row.items() if key in known
    }
    if values["reward"] is None:  # JSON knows no NaN
        values["reward"] = math.nan
    if row.get("renderer"):
        values["info"] = values["info"] | {"renderer": row["renderer"]}
    return Entry(EpisodeResult(**values), row.get("first", ""), row.get("last", ""))


def finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class LedgerKeeper(Listener):
    """Writes every episode into a ledger as it ends."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._first: dict[int, str] = {}
        self._last: dict[int, Observation] = {}

    def on_reset(self, slot: int, seed: int, obs: Observation, info: dict[str, Any]) -> None:
        """Remember the first observation's digest."""
        self._first[slot], self._last[slot] = digest(obs), obs

    def on_step(self, slot: int, step: StepEvent) -> None:
        """Remember the newest observation."""
        self._last[slot] = step.next_obs

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """Write the line."""
        self._ledger.add(Entry(result, self._first.pop(slot), digest(self._last.pop(slot))))


def digest(obs: Observation) -> str:
    """16 hexadecimal digits of an observation's pictures, state and instruction."""
    found = hashlib.blake2b(digest_size=8)
    for name, image in sorted(obs.get("images", {}).items()):
        found.update(f"{name}{image.shape}".encode() + np.ascontiguousarray(image).tobytes())
    if obs.get("state") is not None:
        found.update(np.ascontiguousarray(obs["state"]).tobytes())
    found.update(str(obs.get("instruction", "")).encode())
    return found.hexdigest()


def fingerprint(agent: str) -> str:
    """What an agent's weights are, told from its files; "" where it is no folder."""
    folder = Path(agent)
    if not folder.is_dir():
        return ""
    found = hashlib.blake2b(digest_size=8)
    for path in _weights(folder):
        with path.open("rb") as file:
            while block := file.read(2**22):
                found.update(block)
    return found.hexdigest()


def _weights(folder: Path) -> Iterable[Path]:
    for choice in ("", "best", "last"):
        files = sorted((folder / choice).glob("*.safetensors"))
        if files:
            with contextlib.suppress(OSError):
                return [*files, *sorted((folder / choice).glob("*.yaml"))]
    return []
