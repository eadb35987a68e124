"""An episode that was open when the process died: what is left of it, and `repair`, which makes an episode of it."""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_examples import ACTION, ARM, NUMBERS, STATE, check_as_lerobot, check_by_lerobot, make_steps, record

from vla_agents.cli import main
from vla_agents.data import Episode, Step, atomic, create_dataset, open_dataset
from vla_agents.data.recording import journal
from vla_agents.data.recording.repair import find, repair, usable
from vla_agents.data.recording.unfinished import FOLDER, read_unfinished
from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import DatasetError, RecordingError

HZ = 30.0
LARGE = Embodiment("large", ACTION, STATE, (Camera("a", 160, 160), Camera("b", 176, 160)), HZ)
SMALL = Embodiment("small", ACTION, STATE, (Camera("a", 64, 64), Camera("b", 48, 64)), HZ)
CASES: dict[str, tuple[str, Embodiment, dict[str, Any]]] = {
    "lerobot": ("lerobot", SMALL, {}),
    "lerobot-files": ("lerobot", LARGE, {"camera_times": True}),
    "lerobot-repeat": ("lerobot", SMALL, {"late_frames": "repeat"}),
    "lerobot-av1": ("lerobot", LARGE, {"codec": "av1"}),
    "hdf5": ("hdf5", SMALL, {}),
    "hdf5-plain": ("hdf5", LARGE, {"compression": "none"}),
}


def fast(*names: str) -> list[Any]:
    """All cases; those that are not named here are slow tests."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in CASES]


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
    now = time.monotonic()
    return Step(
        images,
        state=vector[0],
        action=vector[1],
        executed=vector[2] if seed % 2 else None,
        commanded=None if k % 3 else vector[3],
        intervened=bool(rng.integers(2)),
        reward=float(np.float32(rng.random())),
        time=now,
        camera_times=dict.fromkeys(body.camera_names, now - 0.01 * (k % 3)) if k != 4 else {},
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
        step.camera_times = dict.fromkeys(step.camera_times, times[k] - 0.01 * (k % 3))
    expected = Episode.from_steps(body, f"paced {seed}", steps)
    assert episode.instruction == expected.instruction and episode.metadata["seed"] == seed
    for name in NUMBERS:
        ours, theirs = getattr(episode, name), getattr(expected, name)
        if name == "truncated" and "recovered" in episode.metadata:
            theirs = np.arange(len(episode)) == len(episode) - 1
        same = ours is None if theirs is None else ours.tobytes() == theirs.tobytes()
        assert same and (theirs is None or ours.dtype == theirs.dtype), name
    for name, moments in episode.extras.items():
        assert np.array_equal(moments, expected.extras[name]), name
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
            episode, row = int(numbers[0]), int(numbers[1])
            if not row:  # begun anew: what a try before had noted is gone
                rows[episode] = {}
            rows[episode][row] = float(numbers[2])
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
    context.set_forkserver_preload(["test_data_repair", "vla_agents.data.recording.repair", "av", "h5py"])

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
    if count in rows:
        began, noted = rows[count][0], rows[count]
        slow = max(t - began - k / HZ for k, t in noted.items())  # others use this machine too
        slow = max(slow, killed - max(noted.values()) - 1 / HZ)
        assert found or killed - began < 1.0 + slow
    for one in found:
        assert one.instruction == f"paced {count}" and one.index == count
        left = usable(one, body)
        lost = [killed - moment for k, moment in rows[count].items() if k >= left]
        assert max(lost, default=0.0) < 1.0 + slow, (lost, slow, left)
        if not left:
            with pytest.raises(DatasetError, match="no row has all its pictures"):
                repair(root, one)
            shutil.rmtree(one.folder)
            found = []
            break
        assert repair(root, one) == count
        episode = open_dataset(root).read(count)
        assert len(episode) == left and episode.success is None
        assert len(episode.extras) == 2 * (case in ("lerobot-files", "hdf5", "hdf5-plain"))
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


@pytest.mark.parametrize("case", fast("lerobot-files", "hdf5"))
def test_what_was_open_is_repaired(case: str, folder: Path, forked: Callable[..., Any]) -> None:
    rng = np.random.default_rng()
    made: list[int] = []
    while len(made) < 2 or not any(made):  # one that had just begun leaves nothing
        made.append(check_killed(folder / "d", case, kill_paced(folder / "d", case, forked, rng)))
        assert len(made) < 12


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", CASES)
def test_a_hundred_kills(case: str, folder: Path, forked: Callable[..., Any]) -> None:
    rng = np.random.default_rng()
    made = 0
    for kill in range(100):
        root = folder / f"d{kill // 10}"
        made += check_killed(root, case, kill_paced(root, case, forked, rng))
        if kill % 10 == 9 and CASES[case][0] == "lerobot":
            check_by_lerobot(root)
    assert made >= 50


# ---- one death after another -------------------------------------------------------------------------------
def leave_open(root: str, case: str, rows: int, saved: int) -> None:
    """Save some numbered examples, add rows to one more, and die when its journal has them all."""
    journal.PERIOD = 0.01
    kind, body, options = CASES[case]
    writer = create_dataset(root, body, kind, resume=True, **options)
    while len(writer) < saved:  # type: ignore[arg-type]
        record(writer, len(writer), body)  # type: ignore[arg-type]
    writer.begin("left open", {"seed": 77})
    for step in make_steps(77, rows, body):
        writer.add(step)
        while writer.status().in_line:
            time.sleep(0.001)
    while True:
        time.sleep(0.02)
        found = read_unfinished(Path(root) / atomic.TEMPORARY)
        if (
            found is not None and usable(found, body) >= rows - 16
        ):  # whole blocks only, where there are blocks
            break
    time.sleep(0.1)
    os._exit(9)


def left_open(root: Path, case: str, forked: Callable[..., Any], *, rows: int = 20, saved: int = 2) -> None:
    process = forked(leave_open, str(root), case, rows, saved)
    process.join()
    assert process.exitcode == 9


def assert_recovered(root: Path, case: str, index: int, rows: int) -> None:
    kind, body, _ = CASES[case]
    episode = open_dataset(root).read(index)
    steps = make_steps(77, rows, body)
    assert episode.instruction == "left open" and episode.metadata["seed"] == 77
    assert len(episode) == episode.metadata["recovered"]["rows"] and rows - 16 <= len(episode) <= rows
    for k, step in enumerate(episode.steps()):
        assert np.array_equal(step.action, steps[k].action) and step.time == steps[k].time
        for name, image in step.images.items():
            assert np.abs(image.astype(int) - steps[k].images[name]).mean() < 2
    if kind == "lerobot":
        assert check_as_lerobot(root) == index + 1


@pytest.mark.parametrize("case", fast("lerobot", "lerobot-files", "hdf5"))
def test_repaired_once_whatever_interrupts_it(case: str, folder: Path, forked: Callable[..., Any]) -> None:
    """Opened for recording in between, then a repair that dies at one operation of the disk after the other."""
    root = folder / "d"
    left_open(root, case, forked)
    kind, body, options = CASES[case]
    before = fingerprint(root, 2)
    with create_dataset(root, body, kind, resume=True, **options) as writer:
        assert record(writer, 2, body) == 2  # goes on, and keeps what was left open
    (found,) = find(root)
    assert found.folder.parent.name == FOLDER and found.instruction == "left open"
    deaths = 0
    while True:
        every = {"lerobot": 5, "hdf5": 1, "hdf5-plain": 1}.get(case, 12)
        process = forked(repair_until_killed, str(root), 1 + every * deaths)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        deaths += 1
        assert 3 <= len(open_dataset(root)) <= 4
    assert deaths >= 2
    assert len(open_dataset(root)) == 4 and not find(root)
    assert fingerprint(root, 2) == before
    assert_recovered(root, case, 3, 20)
    with create_dataset(root, body, kind, resume=True, **options) as writer:
        assert record(writer, 4, body) == 4


def repair_until_killed(root: str, at: int) -> None:
    """Repair all there is; die at the n-th operation on the disk."""
    operations = 0

    def hook(operation: str, where: Path) -> None:
        nonlocal operations
        operations += 1
        if operations == at:
            os._exit(9)

    atomic.hook = hook
    for found in find(root):
        repair(root, found)


def test_a_full_disk_leaves_what_can_be_repaired(
    folder: Path, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder / "d"
    left_open(root, "lerobot", forked)

    def fail(operation: str, where: Path) -> None:
        if operation == "write":
            raise OSError(28, "full")

    monkeypatch.setattr(atomic, "hook", fail)
    with pytest.raises(RecordingError, match="No space left"):
        repair(root, find(root)[0])
    monkeypatch.undo()
    assert len(open_dataset(root)) == 2
    (found,) = find(root)
    assert repair(root, found) == 2
    assert_recovered(root, "lerobot", 2, 20)


def test_an_episode_that_is_being_recorded_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PERIOD", 0.01)
    root = tmp_path / "d"
    with create_dataset(root, ARM) as writer:
        assert find(root) == []
        writer.begin("now")
        for step in make_steps(0, 4):
            writer.add(step)
        while read_unfinished(root / atomic.TEMPORARY) is None:
            time.sleep(0.01)
        with pytest.raises(DatasetError, match="is being written by process"):
            find(root)
        writer.save()
    assert find(root) == [] and len(open_dataset(root)) == 1


def test_a_dataset_with_nothing_left_is_not_touched(tmp_path: Path) -> None:
    with create_dataset(tmp_path / "d", ARM) as writer:
        record(writer, 0)
    (tmp_path / "d" / atomic.LOCK).unlink()
    before = sorted(tmp_path.rglob("*"))
    assert find(tmp_path / "d") == [] and sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_not_be_written_to(
    folder: Path, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left_open(folder / "d", "lerobot", forked, saved=0)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "denied", str(path))

    monkeypatch.setattr(atomic, "FolderLock", refuse)
    with pytest.raises(RecordingError, match="Permission denied"):
        find(folder / "d")


def test_what_was_left_open_can_be_dropped(folder: Path, forked: Callable[..., Any]) -> None:
    root = folder / "d"
    left_open(root, "lerobot", forked)
    with create_dataset(root, SMALL, resume=True, keep_unfinished=False) as writer:
        record(writer, 2, SMALL)
    assert not find(root) and not (root / FOLDER).exists()


def test_an_episode_that_was_saved_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PERIOD", 0.01)
    file = tmp_path / "d" / atomic.TEMPORARY / journal.FILE
    with create_dataset(tmp_path / "d", ARM) as writer:
        for how in (writer.save, writer.discard):
            writer.begin("short")
            writer.add(make_steps(0)[0])
            while not file.exists():
                time.sleep(0.01)
            how()
            while file.exists():  # at once, or by the thread that writes it
                time.sleep(0.01)
        record(writer, 1)
    assert not find(tmp_path / "d")


# ---- journals that are cut short or damaged ------------------------------------------------------------------
def test_a_journal_is_read_up_to_where_it_is_whole(folder: Path, forked: Callable[..., Any]) -> None:
    root = folder / "d"
    left_open(root, "lerobot", forked, rows=6, saved=0)
    left = root / atomic.TEMPORARY
    content = (left / journal.FILE).read_bytes()
    steps = make_steps(77, 6, SMALL)
    rng = np.random.default_rng(0)

    def check(damaged: bytes) -> tuple[int, int]:
        (left / journal.FILE).write_bytes(damaged)
        found = read_unfinished(left)
        if found is None:
            return 0, 0
        for step, expected in zip(found.steps, steps, strict=False):
            assert np.array_equal(step.action, expected.action) and step.time == expected.time
            assert np.array_equal(step.state, expected.state) and step.reward == expected.reward  # type: ignore[arg-type]
        return len(found.steps), usable(found, SMALL)

    assert check(content) == (6, 6)
    counts = [check(content[:size]) for size in (*range(0, len(content), 7), len(content))]
    assert counts == sorted(counts) and counts[0] == (0, 0) and {rows for rows, _ in counts} == set(range(7))
    for _ in range(300):  # a byte that is not what it was
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        rows, whole = check(bytes(damaged))
        assert rows <= 6 and whole <= rows
    for other in (b"", b"VLAJ1\n", b"not a journal", content[:6] + journal.record(journal.HEAD, b"{}")):
        assert check(other) == (0, 0)
    (left / journal.FILE).write_bytes(content + journal.record(9, b"of a later version"))
    assert find(root) == []


def test_a_damaged_video_costs_what_comes_behind_it(folder: Path, forked: Callable[..., Any]) -> None:
    root = folder / "d"
    left_open(root, "lerobot-files", forked, saved=0)
    (found,) = find(root)
    place = found.pictures[1][12]
    file = found.folder / "b.mp4"
    content = bytearray(file.read_bytes())
    content[place.offset + place.size // 2] ^= 0xFF
    file.write_bytes(content)
    assert usable(found, LARGE) == 12
    assert repair(root, found) == 0
    assert len(open_dataset(root).read(0)) == 12 and check_as_lerobot(root) == 1


# ---- the journal's own writes ------------------------------------------------------------------------------
def record_and_die(root: str, case: str, notes: str, at: int) -> None:
    """Save one example, and record another with a journal that writes all the time; die at the n-th operation."""
    journal.PERIOD, journal.SYNC = 0.002, 0.01
    operations, counting = 0, threading.Lock()

    def hook(operation: str, where: Path) -> None:  # called by every thread
        nonlocal operations
        with counting:
            operations += 1
            if operations == at:
                os._exit(9)

    kind, body, options = CASES[case]
    out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with create_dataset(root, body, kind, **options) as writer:
        for seed in range(2):
            writer.begin(f"task {seed}", {"seed": seed})
            if seed:
                atomic.hook = hook
            for step in make_steps(seed, 24, body):
                writer.add(step)
                while writer.status().in_line:
                    time.sleep(0.0005)
                time.sleep(0.001)
            writer.save()
            os.write(out, b"saved\n")


@pytest.mark.parametrize("case", fast("lerobot"))
@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_between_any_two_writes(
    case: str, few: bool, folder: Path, forked: Callable[..., Any]
) -> None:
    kind, body, _ = CASES[case]
    every = {"hdf5": 4, "hdf5-plain": 4, "lerobot": 14}.get(case, 30) if few else 1
    at, made, recovered = 1, 0, set()
    while True:
        root = folder / f"{at}"
        process = forked(record_and_die, str(root), case, f"{root}.notes", at)
        process.join()
        assert process.exitcode in (0, 9)
        saved = len(Path(f"{root}.notes").read_text().splitlines())
        count = len(open_dataset(root))
        assert 1 <= saved <= count <= 2
        for found in find(root):
            assert count == 1 and found.instruction == "task 1"
            rows = usable(found, body)
            recovered.add(rows)
            if rows:
                assert repair(root, found) == 1
                made += 1
        reader = open_dataset(root)
        for k in range(len(reader)):
            steps, episode = make_steps(k, 24, body), reader.read(k)
            assert len(episode) == 24 or "recovered" in episode.metadata
            for step, expected in zip(episode.steps(), steps, strict=False):
                assert np.array_equal(step.action, expected.action) and step.time == expected.time
                assert np.array_equal(step.state, expected.state)  # type: ignore[arg-type]
                for name, image in step.images.items():
                    assert np.abs(image.astype(int) - expected.images[name]).mean() < 2
        if kind == "lerobot":
            assert check_as_lerobot(root) == len(reader)
        shutil.rmtree(root)
        if process.exitcode == 0:
            break
        at += every
    least = 1 if few else 2  # which writes there are depends on how the threads run
    assert made >= least and len(recovered) >= least and count == 2


def test_an_open_episode_is_brought_to_the_disk_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it shall be durable, a power cut costs no more than the last seconds."""
    monkeypatch.setattr(journal, "PERIOD", 0.01)
    monkeypatch.setattr(journal, "SYNC", 0.02)
    synced: set[str] = set()
    monkeypatch.setattr(atomic, "hook", lambda what, where: what == "fsync" and synced.add(where.name))
    wanted = {journal.FILE, "a.mp4", "b.mp4"}
    for durable in (False, True):
        with create_dataset(tmp_path / f"{durable}", LARGE, durable=durable) as writer:
            writer.begin("long")
            for step in make_steps(1, 60, LARGE):
                writer.add(step)
                time.sleep(0.005)
                if wanted <= synced:
                    break
            assert (wanted <= synced) == durable


def test_a_disk_that_is_too_slow_for_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Recording goes on without it, and says so."""
    monkeypatch.setattr(journal, "PERIOD", 1e9)
    monkeypatch.setattr(journal, "PENDING", 2000)
    with create_dataset(tmp_path / "d", ARM) as writer:
        writer.begin("long")
        for step in make_steps(1, 30):
            writer.add(step)
        assert writer.save() == 0
        record(writer, 1)
    assert len(caplog.records) == 2 and all("the disk is too slow" in r.message for r in caplog.records)
    assert open_dataset(tmp_path / "d").lengths().tolist()[0] == 30


# ---- the command -----------------------------------------------------------------------------------------------
def test_the_command_asks_before_it_writes(
    folder: Path,
    forked: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = folder / "d"
    left_open(root, "lerobot", forked)
    before = fingerprint(root, 2)
    for answer in ("", "n\n", "what?\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert main(["data", "repair", str(root)]) == 1
        said = capsys.readouterr().out
        assert "2 episodes are saved, 1 were not finished" in said
        assert "'left open': 20 rows with all their pictures" in said and "Append it as episode 2?" in said
        assert len(open_dataset(root)) == 2 and len(find(root)) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["data", "repair", str(root)]) == 0
    assert "it is episode 2 now" in capsys.readouterr().out
    assert fingerprint(root, 2) == before
    assert_recovered(root, "lerobot", 2, 20)
    assert main(["data", "repair", str(root)]) == 0
    assert "3 episodes are saved, 0 were not finished" in capsys.readouterr().out


def test_the_command_deletes_where_told_so(folder: Path, forked: Callable[..., Any]) -> None:
    root = folder / "d"
    left_open(root, "hdf5", forked)
    assert main(["data", "repair", str(root), "--delete", "--yes"]) == 0
    assert not find(root) and len(open_dataset(root)) == 2


def test_the_command_refuses_what_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "repair", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["data", "repare"]) == 1
    assert "Did you mean 'repair'" in capsys.readouterr().err
    assert main(["data"]) == 1 and "repair" in capsys.readouterr().out


def test_a_damaged_episode_keeps_nobody_from_repairing_another(
    folder: Path, forked: Callable[..., Any]
) -> None:
    root = folder / "d"
    left_open(root, "lerobot", forked)
    damaged = root / "data/chunk-000/file-000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (found,) = find(root)
    assert repair(root, found) == 2
    reader = open_dataset(root)
    assert len(reader) == 3 and reader.read(2).metadata["recovered"]["rows"] >= 4
    with pytest.raises(DatasetError):
        reader.read(0)
    assert not find(root)
