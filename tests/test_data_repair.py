"""An episode that was open when the process died: what is left of it, and `repair`, which makes an episode of it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_examples import ACTION, ARM, NUMBERS, STATE, check_as_lerobot, make_steps, record

from vla_agents.data import Episode, Step, atomic, create_dataset, journal, open_dataset
from vla_agents.data.repair import find, repair, usable
from vla_agents.data.unfinished import FOLDER, read_unfinished
from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import DatasetError, RecordingError

HZ = 30.0
LARGE = Embodiment("large", ACTION, STATE, (Camera("a", 160, 160), Camera("b", 176, 160)), HZ)
SMALL = Embodiment("small", ACTION, STATE, (Camera("a", 64, 64), Camera("b", 48, 64)), HZ)
CASES: dict[str, tuple[str, Embodiment, dict[str, Any]]] = {
    "lerobot": ("lerobot", SMALL, {}),
    "lerobot-files": ("lerobot", LARGE, {}),
    "lerobot-repeat": ("lerobot", SMALL, {"late_frames": "repeat"}),
    "lerobot-av1": ("lerobot", LARGE, {"codec": "av1"}),
    "hdf5": ("hdf5", SMALL, {}),
    "hdf5-plain": ("hdf5", LARGE, {"compression": "none"}),
}


def paced_step(body: Embodiment, seed: int, k: int) -> Step:
    """Row k of a numbered episode: a bar that moves, numbers that follow from both; `time` is real."""
    images = {}
    for number, camera in enumerate(body.cameras):
        image = np.full((camera.height, camera.width, 3), 40, np.uint8)
        at = (7 * k + 20 * number + seed) % (camera.width - 8)
        image[:, at : at + 8] = (220, 60, 30)
        images[camera.name] = image
    rng = np.random.default_rng((seed, k))
    vector = [rng.normal(size=n).astype(np.float32) for n in (body.state_dim, *(body.action_dim,) * 3)]
    return Step(
        images,
        state=vector[0],
        action=vector[1],
        executed=vector[2] if seed % 2 else None,
        commanded=None if k % 3 else vector[3],
        intervened=bool(rng.integers(2)),
        reward=float(np.float32(rng.random())),
        time=time.monotonic(),
    )


def record_paced(path: str, case: str, length: int, notes: str) -> None:
    """Record episodes of so many rows at the body's rate, for ever; note each row added, and each save that returned."""
    kind, body, options = CASES[case]
    out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    writer = create_dataset(path, body, kind, resume=True, **options)
    while True:
        seed = len(writer)  # type: ignore[arg-type]
        writer.begin(f"paced {seed}", {"seed": seed})
        started = time.monotonic()
        for k in range(length):
            step = paced_step(body, seed, k)
            writer.add(step)
            os.write(out, f"row {seed} {k} {step.time!r}\n".encode())
            time.sleep(max(0.0, started + (k + 1) / body.control_hz - time.monotonic()))
        writer.save(True)
        os.write(out, f"saved {seed}\n".encode())


def assert_is_paced(episode: Episode, seed: int, body: Embodiment, times: dict[int, float]) -> None:
    """The rows are those that were added, bit for bit, each with its own pictures."""
    steps = [paced_step(body, seed, k) for k in range(len(episode))]
    for k, step in enumerate(steps):
        step.time = times[k]
    expected = Episode.from_steps(body, f"paced {seed}", steps)
    assert episode.instruction == expected.instruction and episode.metadata["seed"] == seed
    for name in NUMBERS:
        ours, theirs = getattr(episode, name), getattr(expected, name)
        if name == "truncated" and "recovered" in episode.metadata:
            theirs = np.arange(len(episode)) == len(episode) - 1
        same = ours is None if theirs is None else ours.tobytes() == theirs.tobytes()
        assert same and (theirs is None or ours.dtype == theirs.dtype), name
    for name, frames in expected.images.items():
        for k in range(len(frames)):
            assert np.abs(episode.images[name][k].astype(int) - frames[k]).mean() < 3, (name, k)


def read_notes(file: Path) -> tuple[int, dict[int, dict[int, float]]]:
    """How many saves returned, and the time of each row by episode."""
    saved, rows = 0, {}
    for line in file.read_text().splitlines() if file.exists() else ():
        word, *numbers = line.split()
        if word == "saved":
            saved = int(numbers[0]) + 1
        else:
            rows.setdefault(int(numbers[0]), {})[int(numbers[1])] = float(numbers[2])
    return saved, rows


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where possible."""
    memory = Path("/dev/shm")
    found = memory / f"{os.getpid()}-{tmp_path.name}" if os.access(memory, os.W_OK) else tmp_path / "m"
    found.mkdir()
    yield found
    shutil.rmtree(found)


@pytest.fixture(scope="module")
def forked() -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_data_repair", "vla_agents.data.repair", "av", "h5py"])

    def start(function: Callable[..., None], *arguments: Any) -> Any:
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    yield start


def fingerprint(root: Path, episodes: int) -> dict[str, str]:
    """The files of the first episodes, as they are on disk."""
    found = {}
    for path in sorted(root.rglob("*")):
        hidden = path.name == "dataset.json" or any(
            part.startswith(".") for part in path.relative_to(root).parts
        )
        number = path.stem.rsplit("-", 1)[-1].rsplit("_", 1)[-1]
        if path.is_file() and not hidden and "meta" not in path.parts and int(number) < episodes:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def kill_paced(root: Path, case: str, forked: Callable[..., Any], rng: np.random.Generator) -> float:
    """Record for a while, and kill; returns when that was."""
    process = forked(record_paced, str(root), case, 45, f"{root}.notes")
    _, before = read_notes(Path(f"{root}.notes"))
    while read_notes(Path(f"{root}.notes"))[1] == before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0.1, 2.0))
    process.kill()
    killed = time.monotonic()
    process.join()
    return killed


def check_killed(root: Path, case: str, killed: float) -> int:
    """All that was saved is there; what was open is made whole, but for less than the last second. 1 if something was."""
    kind, body, _ = CASES[case]
    saved, rows = read_notes(Path(f"{root}.notes"))
    reader = open_dataset(root)
    count = len(reader)
    assert saved <= count <= saved + 1
    before = fingerprint(root, count)
    found = find(root)
    assert len(found) <= 1
    # An episode that had lasted a second when the process died is not lost.
    open_since = killed - rows[count][0] if count in rows else 0.0
    if open_since > 1.0:
        assert found, open_since
    for one in found:
        assert one.instruction == f"paced {count}" and one.index == count
        left = usable(one, body)
        lost = [moment for k, moment in rows[count].items() if k >= left]
        assert all(killed - moment < 1.0 for moment in lost)
        if not left:
            with pytest.raises(DatasetError, match="no row has all its pictures"):
                repair(root, one)
            shutil.rmtree(one.folder)
            found = []
            break
        assert repair(root, one) == count
        episode = open_dataset(root).read(count)
        assert len(episode) == left and episode.success is None
        assert episode.metadata["recovered"]["rows"] == left
        assert_is_paced(episode, count, body, rows[count])
        with open(f"{root}.notes", "a") as notes:
            notes.write(f"saved {count}\n")
    assert not find(root) and not (root / FOLDER).exists()
    after = fingerprint(root, count)
    assert after == before
    reader = open_dataset(root)
    for k in range(len(reader)):
        assert_is_paced(reader.read(k), k, body, rows[k])
    if kind == "lerobot":
        assert check_as_lerobot(root) == len(reader)
    return len(found)


@pytest.mark.parametrize("case", ["lerobot", "lerobot-files", "hdf5"])
def test_what_was_open_is_repaired(case: str, folder: Path, forked: Callable[..., Any]) -> None:
    rng = np.random.default_rng()
    made = [check_killed(folder / "d", case, kill_paced(folder / "d", case, forked, rng)) for _ in range(3)]
    assert sum(made) >= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_a_hundred_kills(case: str, folder: Path, forked: Callable[..., Any]) -> None:
    rng = np.random.default_rng()
    made = 0
    for kill in range(100):
        root = folder / f"d{kill // 10}"
        made += check_killed(root, case, kill_paced(root, case, forked, rng))
    assert made >= 50
