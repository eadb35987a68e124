"""What recording costs while a robot moves: cameras at full size and rate, beside two other ways to do the same.

    python benchmarks/recording.py --rounds 3                                   # three cameras 480 x 640 at 30 Hz, 5 s
    python benchmarks/recording.py --rounds 3 --lerobot-python /path/to/python  # beside LeRobot's own streaming

Recorders, one episode each in turn, round after round, so that all of them meet the same machine:

- `ours`: `create_dataset(...)`, its defaults.
- `ours crf 30`: the same with LeRobot's quality.
- `lerobot superfast`: `LeRobotDataset` with `streaming_encoding=True`, h264, preset superfast: its best setting. It runs
  in the Python given by --lerobot-python, with LeRobot's other defaults (crf 30).
- `pil-swscale superfast`: without that, the plain way, written here: a thread per camera, a queue, for each frame a PIL
  picture, a PyAV frame of it, swscale, encoder, mp4; crf 30. It writes no numbers and no metadata.

CPU time is that of the process over the episode and its save, less what the loop itself needs (measured with no recorder
at all). On a machine that others use, it is the figure to look at; rates and times of saves say something on an idle one
only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from recorders import RECORDERS, Scene

MB = 1024 * 1024


# ---- one recorder in a process of its own, an episode at a time -----------------------------------------------
def serve(args: argparse.Namespace) -> None:
    """Record an episode for each line of the input, and answer with its figures."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    scenes = [Scene(args.height, args.width, k) for k in range(args.cameras)]
    pool = [{f"cam{k}": scene.frame(t) for k, scene in enumerate(scenes)} for t in range(40)]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        recorder = RECORDERS[args.serve](Path(folder), args)
        episode(recorder, pool, args, 10)  # libraries are loaded, threads have run
        size = _size(Path(folder))
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            before = _rss()
            with _Peak() as peak:
                found = episode(recorder, pool, args, round(args.seconds * args.hz))
            found["memory_MB"] = (peak.value - before) / MB
            found["disk_MB"] = (_size(Path(folder)) - size) / 1e6
            size = _size(Path(folder))
            print(json.dumps(found), file=answers, flush=True)
        recorder.close()


def episode(
    recorder: Any, pool: list[dict[str, np.ndarray]], args: argparse.Namespace, ticks: int
) -> dict[str, float]:
    """Record so many ticks at the rate of the loop."""
    vector = np.zeros(7, np.float32)
    late, longest = 0, 0.0
    cpu, started = _cpu(), time.perf_counter()
    for k in range(ticks):
        begun = time.perf_counter()
        recorder.add(pool[k % len(pool)], vector)
        longest = max(longest, time.perf_counter() - begun)
        left = started + (k + 1) / args.hz - time.perf_counter()
        late += left < 0
        time.sleep(max(0.0, left))
    ended, dropped = time.perf_counter(), recorder.dropped
    recorder.save()
    return {
        "rate_Hz": ticks / (ended - started),
        "late_ticks": late,
        "longest_add_ms": longest * 1e3,
        "save_s": time.perf_counter() - ended,
        "cpu_s": _cpu() - cpu,
        "dropped": dropped,
    }


def _cpu() -> float:
    """Seconds of this process and of those it waited for."""
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class _Peak:
    """The largest resident size of the process while it is open."""

    def __enter__(self) -> _Peak:
        self.value, self._stop = _rss(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.value = max(self.value, _rss())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- all of them in turn -----------------------------------------------------------------------------------------
@contextlib.contextmanager
def server(name: str, args: argparse.Namespace, python: str) -> Iterator[Callable[[], dict[str, float]]]:
    """A process with one recorder; calling it records an episode."""
    sizes = [
        f"--{key}={getattr(args, key)}" for key in ("cameras", "height", "width", "hz", "seconds", "folder")
    ]
    command = [python, __file__, "--serve", name, *sizes]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    complaints: list[str] = []
    threading.Thread(target=complaints.extend, args=(process.stderr,), daemon=True).start()
    if process.stdout.readline() != "ready\n":
        process.wait()
        raise SystemExit(f"{name}: did not start\n{''.join(complaints[-15:])}")

    def record() -> dict[str, float]:
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name}: died\n{''.join(complaints[-15:])}")
        return json.loads(line)

    try:
        yield record
    finally:
        process.stdin.close()
        process.wait()


def compare(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    names = [
        "loop alone",
        "ours",
        "ours crf 30",
        "lerobot superfast" if args.lerobot_python else "pil-swscale superfast",
    ]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        record = {}
        for name in names:
            python = args.lerobot_python if name.startswith("lerobot") else sys.executable
            record[name] = stack.enter_context(server(name, args, python))
        for turn in range(args.rounds):
            for name in names:
                found[name].append(record[name]())
                print(
                    f"round {turn + 1}, {name}: {json.dumps({k: round(v, 3) for k, v in found[name][-1].items()})}"
                )
    return found


def show(found: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    def middle(name: str, key: str) -> float:
        return statistics.median(one[key] for one in found[name])

    size = f"{args.cameras} cameras {args.height} x {args.width}"
    title = f"{size}, {args.hz:g} Hz, {args.seconds:g} s; median of {args.rounds}"
    table = Table(
        "recorder",
        "CPU s",
        "rate Hz",
        "worst",
        "save s",
        "worst",
        "late, lost",
        "memory MB",
        "disk MB",
        title=title,
    )
    for name in found:
        cpu = middle(name, "cpu_s") - (middle("loop alone", "cpu_s") if name != "loop alone" else 0.0)
        table.add_row(
            name,
            f"{cpu:.2f}",
            f"{middle(name, 'rate_Hz'):.2f}",
            f"{min(one['rate_Hz'] for one in found[name]):.2f}",
            f"{middle(name, 'save_s'):.3f}",
            f"{max(one['save_s'] for one in found[name]):.3f}",
            f"{sum(one['dropped'] for one in found[name]):.0f}",
            f"{max(one['memory_MB'] for one in found[name]):.0f}",
            f"{middle(name, 'disk_MB'):.1f}",
        )
    console = Console(width=130)
    console.print(table)
    loop, other = middle("loop alone", "cpu_s"), list(found)[-1]
    for name in ("ours", "ours crf 30"):
        ratio = (middle(name, "cpu_s") - loop) / (middle(other, "cpu_s") - loop)
        console.print(f"CPU of {name} to {other}: {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--hz", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        default=None,
        help="where to record to; by default a temporary folder",
    )
    parser.add_argument("--lerobot-python", default="", help="a Python in which `import lerobot` works")
    parser.add_argument("--json", default="", help="also write all figures to this file")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    args.folder = args.folder or tempfile.mkdtemp()
    found = compare(args)
    show(found, args)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))
    with contextlib.suppress(OSError):
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
