"""How opening and sampling grow with the dataset: 10,000 to 1,000,000 frames, 100 to 10,000 episodes.

    python benchmarks/data_scale.py                       # about three minutes; --plot docs/data_scale.svg draws it
    python benchmarks/data_scale.py --episodes 100 1000   # smaller

Two layouts of LeRobot v3.0, both written here without an encoder (one small video, copied): `grouped` as LeRobot
writes it, many episodes to a file, and `single`, a file per episode, as `LeRobotWriter` does. Opening and sampling
are measured in a process of their own each. CPU time is that of all threads; on a busy machine the wall clock says
little. Memory is the process's peak beyond that of one that has only imported the same modules.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data_scene import peak_mb

LENGTH, SIZE, FPS, KEY = 100, 32, 30, "observation.images.front"
GROUP = {"data": 1000, "videos": 100, "rows": 10_000}  # episodes per file
SINGLE = {"data": 1, "videos": 1, "rows": 50}
SAMPLES = 400


# ---- making it --------------------------------------------------------------------------------------------
def small_video() -> bytes:
    """One episode of moving stripes."""
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream: Any = container.add_stream(
            "libx264", rate=FPS, options={"g": "2", "bf": "0", "preset": "superfast"}
        )
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for k in range(LENGTH):
            image = np.zeros((SIZE, SIZE, 3), np.uint8)
            image[:, k % SIZE] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return sink.getvalue()


def repeated(video: bytes, times: int) -> bytes:
    """The same episode several times in one file."""
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as out:
        stream = None
        for k in range(times):
            with av.open(io.BytesIO(video)) as container:
                source = container.streams.video[0]
                stream = stream or out.add_stream_from_template(source, opaque=True)
                step = round(1 / FPS / float(source.time_base))
                for packet in container.demux(source):
                    if packet.dts is not None:
                        packet.pts, packet.dts = (n + k * LENGTH * step for n in (packet.pts, packet.dts))
                        packet.stream = stream
                        out.mux(packet)
    return sink.getvalue()


def write(path: Path, episodes: int, group: dict[str, int]) -> None:
    """A whole dataset."""
    rng = np.random.default_rng(0)
    files = {what: (np.arange(episodes) // size) for what, size in group.items()}
    video = repeated(small_video(), min(group["videos"], episodes)) if group["videos"] > 1 else small_video()
    for file in np.unique(files["videos"]):
        name = path / f"videos/{KEY}/chunk-{file // 1000:03d}/file-{file % 1000:03d}.mp4"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(video)
    block = rng.normal(size=(LENGTH, 15)).astype(np.float32)
    for file in np.unique(files["data"]):
        name = path / f"data/chunk-{file // 1000:03d}/file-{file % 1000:03d}.parquet"
        name.parent.mkdir(parents=True, exist_ok=True)
        tables = [episode_rows(k, block) for k in np.flatnonzero(files["data"] == file)]
        with pq.ParquetWriter(name, tables[0].schema, compression="snappy") as writer:
            for table in tables:
                writer.write_table(table)
    index(path, episodes, group, files)


def episode_rows(episode: int, block: np.ndarray) -> pa.Table:
    """The numbers of one episode."""
    steps = np.arange(LENGTH)
    lists = {"observation.state": block[:, :8] + episode, "action": block[:, 8:] - episode}
    return pa.table(
        {n: pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1]) for n, v in lists.items()}
        | {
            "timestamp": (steps / FPS).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(LENGTH, episode),
            "index": steps + episode * LENGTH,
            "task_index": np.full(LENGTH, episode % 7),
        }
    )


def index(path: Path, episodes: int, group: dict[str, int], files: dict[str, np.ndarray]) -> None:
    """meta/, with statistics of every episode as LeRobot has them."""
    from vla_agents.data.lerobot.layout import tasks_table
    from vla_agents.data.lerobot.summary import picture_summary, summary_of, to_columns

    rng = np.random.default_rng(1)
    features: dict[str, Any] = {
        KEY: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": [8], "names": [f"s{k}" for k in range(8)]},
        "action": {"dtype": "float32", "shape": [7], "names": [f"a{k}" for k in range(7)]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    integers = ("frame_index", "episode_index", "index", "task_index")
    features |= {n: {"dtype": "int64", "shape": [1], "names": None} for n in integers}
    summaries = {KEY: picture_summary([rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8)])}
    summaries |= {n: summary_of(rng.normal(size=(9, f["shape"][0]))) for n, f in features.items() if n != KEY}
    stats = pa.table(to_columns(summaries, LENGTH))
    for start in range(0, episodes, group["rows"]):
        rows = np.arange(start, min(start + group["rows"], episodes))
        columns: dict[str, Any] = {
            "episode_index": rows,
            "tasks": [[f"task number {k % 7}"] for k in rows],
            "length": np.full(len(rows), LENGTH),
            "dataset_from_index": rows * LENGTH,
            "dataset_to_index": (rows + 1) * LENGTH,
        }
        for what, name in (("data", "data"), ("videos", f"videos/{KEY}")):
            columns[f"{name}/chunk_index"] = files[what][rows] // 1000
            columns[f"{name}/file_index"] = files[what][rows] % 1000
        inside = rows % group["videos"] * LENGTH / FPS
        columns |= {
            f"videos/{KEY}/from_timestamp": inside,
            f"videos/{KEY}/to_timestamp": inside + LENGTH / FPS,
        }
        table = pa.concat_tables([stats] * len(rows)).combine_chunks()
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        number = start // group["rows"]
        file = path / f"meta/episodes/chunk-{number // 1000:03d}/file-{number % 1000:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
    pq.write_table(tasks_table([f"task number {k}" for k in range(7)]), path / "meta/tasks.parquet")
    info = {
        "codebase_version": "v3.0", "fps": FPS, "robot_type": "toy", "features": features, "chunks_size": 1000,
        "total_episodes": episodes, "total_frames": episodes * LENGTH, "total_tasks": 7,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }  # fmt: skip
    (path / "meta/info.json").write_text(json.dumps(info))


# ---- measuring, in a process of its own ------------------------------------------------------------------
def measure(path: Path) -> dict[str, float]:
    """Open, then take single steps at random: a frame, the state, 16 actions."""
    import av  # noqa: F401 - what is imported is no cost of the dataset

    from vla_agents.data import Pictures, WindowDataset, open_dataset
    from vla_agents.data.lerobot import reader as lerobot_reader  # noqa: F401

    before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
    reader = open_dataset(path)
    reader.lengths(), reader.instructions()
    found = {
        "open s": time.perf_counter() - wall,
        "open CPU s": time.process_time() - cpu,
        "open MB": peak_mb() - before,
    }
    windows = WindowDataset(
        reader, 16, pictures=Pictures("files")
    )  # numbers in memory, frames from the videos
    rng = np.random.default_rng(0)

    def take(chosen: np.ndarray) -> float:
        cpu = time.process_time()
        for k in chosen:
            batch = windows.get_batch([k])
            assert batch["images"]["front"].shape == (1, SIZE, SIZE, 3) and batch["action"].shape == (
                1,
                16,
                7,
            )
        return (time.process_time() - cpu) / len(chosen) * 1000

    chosen = rng.integers(0, len(windows), (2, SAMPLES))
    take(chosen[0])
    found["sample CPU ms"] = take(chosen[1])  # of many files: nearly each for the first time
    found["again CPU ms"] = take(chosen[1])  # as all further epochs
    found["all MB"] = peak_mb() - before
    return found


def plot(results: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, key, title in zip(
        axes, ("open CPU s", "all MB", "sample CPU ms"),
        ("opening, CPU s", "memory, MB", "one sample, CPU ms"), strict=True,
    ):  # fmt: skip
        for name, style in (("grouped", "o-"), ("single", "s--")):
            points = [(r["frames"], r[key]) for r in results if r["layout"] == name]
            (line,) = axis.plot(*zip(*points, strict=True), style, label=name)
            if key == "sample CPU ms":
                again = [(r["frames"], r["again CPU ms"]) for r in results if r["layout"] == name]
                label = f"{name}, seen before"
                axis.plot(*zip(*again, strict=True), ":", color=line.get_color(), marker=".", label=label)
        axis.set_xscale("log")
        axis.set_xlabel("frames")
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    axes[2].legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    results = []
    print(
        f"{'layout':<8} {'frames':>9} {'episodes':>8}  open s  CPU s     MB   sample CPU ms  again  MB after {2 * SAMPLES}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for episodes in args.episodes:
            for name, group in (("grouped", GROUP), ("single", SINGLE)):
                path = Path(folder) / f"{name}-{episodes}"
                write(path, episodes, group)
                command = [sys.executable, __file__, "--measure", str(path)]
                runs = [json.loads(subprocess.check_output(command, text=True)) for _ in range(args.repeats)]
                found = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
                results.append({"layout": name, "episodes": episodes, "frames": episodes * LENGTH, **found})
                print(
                    f"{name:<8} {episodes * LENGTH:>9,} {episodes:>8,}  {found['open s']:6.2f} {found['open CPU s']:6.2f}"
                    f" {found['open MB']:6.0f}  {found['sample CPU ms']:14.2f} {found['again CPU ms']:6.2f} "
                    f"{found['all MB']:9.0f}",
                    flush=True,
                )
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
