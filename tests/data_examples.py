"""Episodes for the tests of vla_agents.data, a recording that can be killed, and what LeRobot sees of it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.data import Episode, Step, atomic, create_dataset, open_dataset
from vla_agents.data.recording import journal
from vla_agents.embodiment import Camera, Embodiment, Part

ACTION = (
    Part("move", 3, "delta_xyz"),
    Part("turn", 3, "delta_axis_angle"),
    Part("grip", 1, "gripper_close_pm1"),
)
STATE = (Part("position", 3, "xyz"), Part("fingers", 2, "gripper_position"))
ARM = Embodiment("arm", ACTION, STATE, (Camera("front", 64, 64), Camera("wrist", 48, 64)), 20.0)
NUMBERS = ("state", "action", "reward", "terminated", "truncated", "intervened", "time")
NUMBERS += ("executed", "commanded", "repeated")
BESIDE = Path(__file__).resolve().parents[2] / "shared"  # beside the repository, else where the variable says
SHARED = BESIDE if BESIDE.exists() else Path(os.environ.get("VLA_AGENTS_SHARED", BESIDE))


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Flat coloured blocks of 5 to 7 pixels on dark grey, as the tabletop's small pictures have them."""
    colours = [(220, 30, 30), (30, 60, 220), (30, 180, 60), (230, 200, 30), (160, 40, 180)]
    image = np.full((height, width, 3), 45, np.uint8)
    for _ in range(4):
        size = rng.integers(5, 8)
        y, x = rng.integers(0, height - size), rng.integers(0, width - size)
        image[y : y + size, x : x + size] = colours[rng.integers(5)]
    return image


def make_steps(
    seed: int,
    length: int = 6,
    body: Embodiment = ARM,
    *,
    executed: bool = False,
    commanded: bool = False,
) -> list[Step]:
    """Random steps, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [
        Step(
            images={c.name: picture(rng, c.height, c.width) for c in body.cameras},
            state=rng.normal(size=body.state_dim).astype(np.float32) if body.state_dim else None,
            action=rng.normal(size=body.action_dim).astype(np.float32),
            reward=float(np.float32(rng.random())),
            terminated=k == length - 1 and seed % 2 == 0,
            truncated=k == length - 1 and seed % 3 == 0,
            intervened=bool(rng.integers(2)),
            time=1000.0 + seed + k * 0.05 + rng.random() * 1e-3,
            executed=rng.normal(size=body.action_dim).astype(np.float32) if executed else None,
            commanded=rng.normal(size=body.action_dim).astype(np.float32) if commanded and k != 1 else None,
            repeated=commanded and k == 2,
        )
        for k in range(length)
    ]


def length_of(seed: int) -> int:
    """Steps of the numbered example."""
    return 3 + seed % 4


def success_of(seed: int) -> bool | None:
    """Success of the numbered example."""
    return (True, False, None)[seed % 3]


def record(writer: Any, seed: int, body: Embodiment = ARM, **given: bool) -> int:
    """Save one numbered example."""
    writer.begin(f"task {seed % 3}", {"seed": seed})
    for step in make_steps(seed, length_of(seed), body, **given):
        writer.add(step)
    return writer.save(success_of(seed))


def assert_is_example(episode: Episode, seed: int, body: Embodiment = ARM, **given: bool) -> None:
    """Every number of the episode is that of the numbered example, bit for bit; pictures are near."""
    expected = Episode.from_steps(body, f"task {seed % 3}", make_steps(seed, length_of(seed), body, **given))
    assert episode.embodiment == body
    assert (episode.instruction, episode.success) == (expected.instruction, success_of(seed))
    assert episode.metadata["seed"] == seed
    assert episode.label == ("commanded" if given.get("executed") else "sent")
    for name in NUMBERS:
        ours, theirs = getattr(episode, name), getattr(expected, name)
        if theirs is None:
            assert ours is None, name
        else:
            assert (
                ours.dtype == theirs.dtype
                and ours.shape == theirs.shape
                and ours.tobytes() == theirs.tobytes()
            ), name
    assert set(episode.images) == set(expected.images)
    for name, frames in expected.images.items():
        assert episode.images[name].shape == frames.shape and episode.images[name].dtype == np.uint8
        for k in range(len(frames)):  # each frame by itself: one that is shifted by a step would be far off
            assert np.abs(episode.images[name][k].astype(int) - frames[k]).mean() < 2


# ---- a recording in a process of its own, that dies ----------------------------------------------
def record_until_killed(
    path: str, kind: str, options: dict[str, Any], count: int, acknowledged: str, at: int
) -> None:
    """Record examples 0, 1, ...; note each whose save returned; die at the n-th operation on the disk (n = at).

    Continues where the dataset stands. Run in a child process, which ends with code 9 where it died.
    """
    operations, counting = 0, threading.Lock()

    def hook(operation: str, where: Path) -> None:  # called from the encoders' threads too
        nonlocal operations
        with counting:
            operations += 1
            if operations == at:
                os._exit(9)

    atomic.hook = hook
    journal.PERIOD = 1e9  # what its thread does comes at any moment, and cannot be counted
    notes = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    body = options.pop("body", ARM)
    writer = create_dataset(path, body, kind, **options)
    for seed in range(len(writer), count):
        index = record(writer, seed, body)
        os.write(notes, f"{index}\n".encode())
    writer.close()


def read_acknowledged(file: Path) -> int:
    """How many saves returned."""
    return len(file.read_text().splitlines()) if file.exists() else 0


# ---- what LeRobot sees ---------------------------------------------------------------------------
def check_as_lerobot(path: Path) -> int:
    """Look at a dataset the way LeRobot's loader does, with none of our code; returns the number of episodes.

    It takes the totals from info.json, episodes by their position in the sorted files of meta/episodes, rows by their
    position in the sorted files of data/, tasks by their position in meta/tasks.parquet.
    """
    import av

    info = json.loads((path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and isinstance(info["fps"], int)
    total = info["total_episodes"]
    assert info["splits"] == {"train": f"0:{total}"}
    if not total:
        return 0
    rows = pa.concat_tables(
        pq.read_table(f) for f in sorted((path / "meta/episodes").glob("*/*.parquet"))
    ).to_pylist()
    data = pa.concat_tables(pq.read_table(f) for f in sorted((path / "data").glob("*/*.parquet")))
    tasks = pq.read_table(path / "meta/tasks.parquet")
    pandas = json.loads(tasks.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["task"]
    task_of = dict(zip(tasks["task_index"].to_pylist(), tasks["task"].to_pylist(), strict=True))
    assert list(task_of) == list(range(len(task_of))) and len(task_of) >= info["total_tasks"]
    assert set(data.column_names) == {k for k, f in info["features"].items() if f["dtype"] != "video"}
    frames = 0
    for k, row in enumerate(rows[:total]):
        assert row["episode_index"] == k and row["dataset_from_index"] == frames
        frames += row["length"]
        assert row["dataset_to_index"] == frames
        part = data.slice(row["dataset_from_index"], row["length"])
        assert part["episode_index"].to_pylist() == [k] * row["length"]
        assert part["frame_index"].to_pylist() == list(range(row["length"]))
        assert part["index"].to_pylist() == list(range(frames - row["length"], frames))
        assert {task_of[t] for t in part["task_index"].to_pylist()} == set(row["tasks"])
        stamps = np.arange(row["length"]) / info["fps"]
        assert np.allclose(part["timestamp"].to_numpy(), stamps, atol=1e-6)
        for key, feature in info["features"].items():
            if feature["dtype"] != "video":
                continue
            at = {name: row[f"videos/{key}/{name}_index"] for name in ("chunk", "file")}
            file = info["video_path"].format(video_key=key, chunk_index=at["chunk"], file_index=at["file"])
            with av.open(str(path / file)) as container:
                stream = container.streams.video[0]
                assert abs(float(stream.average_rate) - info["fps"]) < 1e-3
                shown = [f.pts * float(f.time_base) for f in container.decode(stream)]
            assert np.allclose(shown, stamps + row[f"videos/{key}/from_timestamp"], atol=1e-4)
            assert row[f"videos/{key}/to_timestamp"] == row["length"] / info["fps"]
    assert frames == info["total_frames"]
    stats = json.loads((path / "meta/stats.json").read_text())
    for key, entry in stats.items():
        assert key in info["features"]
        assert set(entry) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
    return total


LEROBOT = os.environ.get("VLA_AGENTS_LEROBOT_PYTHON", "")


def check_by_lerobot(path: Path) -> None:
    """Every number, text and pixel is what LeRobot's own reader returns; nothing where there is no LeRobot."""
    if not LEROBOT:
        return
    told = path.with_name(path.name + ".lerobot.npz")
    script = Path(__file__).with_name("lerobot_oracle.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [LEROBOT, str(script), str(path), str(told)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reader: Any = open_dataset(path)
    episodes = [reader.read(k) for k in range(len(reader))]
    with np.load(told) as theirs:
        tasks = [task for e in episodes for task in (e.tasks or [e.instruction] * len(e))]
        assert theirs["task"].tolist() == tasks
        for name, key in reader.cameras.items():
            assert np.array_equal(np.concatenate([e.images[name] for e in episodes]), theirs[key]), key
        for key, values in reader.columns().items():
            if key in theirs and values.dtype.kind != "U":  # LeRobot's tensors are float32
                rounded = values.astype(theirs[key].dtype)
                assert np.array_equal(rounded.reshape(theirs[key].shape), theirs[key]), key
            elif key in theirs:
                assert values.tolist() == theirs[key].tolist(), key
    told.unlink()
