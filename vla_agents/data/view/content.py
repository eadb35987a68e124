"""What the page shows of a dataset: JSON-able summaries, numbers of an episode, pictures as JPEG."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from vla_agents.data.check import Finding, Report, check_dataset
from vla_agents.data.check.numbers import label, parts_of
from vla_agents.data.episode import CAMERA_TIME, EpisodeReader
from vla_agents.errors import VlaAgentsError

BLOCK = 16  # pictures decoded at a time: a video is entered at a key frame anyway
_CACHE_BYTES = 96 << 20
_PAGE = 500  # rows of the list at most
_QUALITY = 88
_SMALL = 256  # pixels


class Content:
    """A dataset as the page asks for it; may be used from several threads.

    Args:
        reader: The dataset.
        check: Look for defects meanwhile, in a thread of its own (`close` stops it).
    """

    def __init__(self, reader: EpisodeReader, *, check: bool = True) -> None:
        self.reader = reader
        self.lengths = reader.lengths()
        self.instructions = reader.instructions()
        self._successes: list[bool | None] | None = None
        self._report: Report | None = None
        self._checked = (0, len(reader))
        self._problem = ""
        self._by_episode: dict[int, list[Finding]] = {}
        self._blocks: OrderedDict[tuple[int, int, int], list[bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._decoding: dict[int, threading.Lock] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if check:
            self._thread = threading.Thread(target=self._check, name="data-check", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the check."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def wait(self) -> None:
        """Until the check is done."""
        if self._thread is not None:
            self._thread.join()

    def summary(self) -> dict[str, Any]:
        """What the dataset is."""
        body = self.reader.embodiment
        names = {
            vector: [label(part, d) for part, _ in parts_of(body, vector) for d in range(part.size)]  # type: ignore[arg-type]
            for vector in ("state", "action")
        }
        return {
            "name": self.reader.path.name,
            "format": self.reader.format,
            "embodiment": body.name,
            "fps": float(getattr(self.reader, "fps", body.control_hz)),
            "episodes": len(self.reader),
            "steps": int(self.lengths.sum()),
            "cameras": [{"name": c.name, "height": c.height, "width": c.width} for c in body.cameras],
            "names": names,
            "notes": list(self.reader.notes),
        }

    def rows(self, first: int, count: int, words: str = "", only: str = "") -> dict[str, Any]:
        """Some rows of the list of episodes.

        Args:
            first: The first, among those that match.
            count: How many at most.
            words: Only episodes whose instruction holds them, or of this number.
            only: `"found"`, `"yes"`, `"no"` or `"unknown"` (success).
        """
        chosen = self._matching(words.strip().lower(), only)
        successes = self.successes()
        rows = [
            {
                "episode": k,
                "length": int(self.lengths[k]),
                "instruction": self.instructions[k],
                "success": successes[k],
                "found": [f.severity for f in self._by_episode.get(k, ())],
            }
            for k in chosen[max(first, 0) : max(first, 0) + min(max(count, 0), _PAGE)]
        ]
        return {"total": len(chosen), "first": max(first, 0), "rows": rows}

    def findings(self) -> dict[str, Any]:
        """How far the check is, and what it says of the whole dataset."""
        report = self._report
        counts = {} if report is None else report.to_json()["counts"]
        general = [] if report is None else [f for f in report.findings if f.episode is None]
        return {
            "done": report is not None or self._thread is None,
            "progress": list(self._checked),
            "problem": self._problem,
            "counts": counts,
            "general": [_finding(f) for f in general],
        }

    def episode(self, index: int) -> dict[str, Any]:
        """The numbers of one episode; lists of T numbers, or of D such lists."""
        episode = self.reader.read(index, images=False)
        found = {
            "episode": index,
            "length": len(episode),
            "instruction": episode.instruction,
            "success": episode.success,
            "time": _plain(episode.time - episode.time[0]),
            "state": None if episode.state is None else _plain(episode.state.T),
            "action": _plain(episode.action.T),
            "label": episode.label,
            "other": None,
            "intervened": np.flatnonzero(episode.intervened).tolist(),
            "repeated": np.flatnonzero(episode.repeated).tolist(),
            "reward": _plain(episode.reward),
            "cameras": {
                name.removeprefix(CAMERA_TIME): _plain(values - episode.time[0])
                for name, values in episode.extras.items()
                if name.startswith(CAMERA_TIME) and values.ndim == 1
            },
            "findings": [_finding(f) for f in self._by_episode.get(index, ())],
        }
        other = episode.commanded if episode.executed is None else episode.executed
        if other is not None:
            found["other"] = {
                "name": "commanded" if episode.executed is None else "executed",
                "values": _plain(other.T),
            }
        if episode.tasks is not None:
            changes = [0, *(t for t in range(1, len(episode)) if episode.tasks[t] != episode.tasks[t - 1])]
            found["tasks"] = [{"step": t, "text": episode.tasks[t]} for t in changes]
        return found

    def picture(self, index: int, camera: int, step: int) -> bytes:
        """A JPEG. Raises `IndexError` where there is none such."""
        return self.block(index, camera, step // BLOCK)[step % BLOCK]

    def block(self, index: int, camera: int, number: int) -> list[bytes]:
        """The JPEGs of `BLOCK` steps, from step `number * BLOCK` on. Raises `IndexError` where there are none such."""
        cameras = self.reader.embodiment.camera_names
        if not (0 <= index < len(self.reader) and 0 <= camera < len(cameras)):
            raise IndexError(f"no camera {camera} in episode {index}")
        if not 0 <= number * BLOCK < self.lengths[index]:
            raise IndexError(f"episode {index} has {self.lengths[index]} steps")
        key = index, camera, number
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
                return block
            decoding = self._decoding.setdefault(camera, threading.Lock())
        with decoding:  # one at a time for each camera: requests come in bunches, for the same block
            with self._lock:
                block = self._blocks.get(key)
            if block is None:
                block = self._decoded(index, cameras[camera], number * BLOCK)
                self._keep(key, block)
        return block

    # ---- inside -------------------------------------------------------------------------------------------
    def successes(self) -> list[bool | None]:
        """Of all episodes; read once."""
        if self._successes is None:
            self._successes = self.reader.successes()
        return self._successes

    def _matching(self, words: str, only: str) -> list[int]:
        chosen = list(range(len(self.reader)))
        if words:
            number = words.lstrip("#")
            chosen = [k for k in chosen if words in self.instructions[k].lower() or number == str(k)]
        if only == "found":
            chosen = [k for k in chosen if any(f.severity != "note" for f in self._by_episode.get(k, ()))]
        elif only in ("yes", "no", "unknown"):
            wanted = {"yes": True, "no": False, "unknown": None}[only]
            successes = self.successes()
            chosen = [k for k in chosen if successes[k] is wanted]
        return chosen

    def _check(self) -> None:
        def tick(done: int, total: int) -> None:
            self._checked = done, total
            if self._stop.is_set():
                raise _Stopped

        try:
            report = check_dataset(self.reader, images="off", tick=tick)
        except _Stopped:
            return
        except (VlaAgentsError, OSError, ValueError) as error:
            self._problem = str(error)
            report = Report(self.reader.path, self.reader.format, len(self.reader), 0, "off")
        for finding in report.findings:
            if finding.episode is not None:
                self._by_episode.setdefault(finding.episode, []).append(finding)
        self._report = report

    def _decoded(self, index: int, camera: str, first: int) -> list[bytes]:
        steps = np.arange(first, min(first + BLOCK, int(self.lengths[index])))
        return [jpeg(picture) for picture in self.reader.frames(index, camera, steps)]

    def _keep(self, key: tuple[int, int, int], block: list[bytes]) -> None:
        with self._lock:
            self._blocks[key] = block
            self._bytes += sum(map(len, block))
            while self._bytes > _CACHE_BYTES and len(self._blocks) > 1:
                self._bytes -= sum(map(len, self._blocks.popitem(last=False)[1]))


class _Stopped(Exception):
    pass


def jpeg(picture: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as a JPEG."""
    from PIL import Image

    out = io.BytesIO()
    small = max(picture.shape[:2]) <= _SMALL  # every pixel's colour counts
    Image.fromarray(picture).save(out, "JPEG", quality=_QUALITY, subsampling=0 if small else 2)
    return out.getvalue()


def _finding(finding: Finding) -> dict[str, Any]:
    names = ("check", "severity", "message", "episode", "step", "count", "remedy", "command")
    return {name: getattr(finding, name) for name in names}


def _plain(values: np.ndarray) -> Any:
    """Lists of numbers of six digits; what is not finite becomes None, which JSON has."""
    if values.ndim > 1:
        return [_plain(row) for row in values]
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]
