"""The recorder: which numbers are written, pictures that stay with their rows, errors that are told at once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_examples import ACTION, ARM, STATE, assert_is_example, check_as_lerobot, make_steps, record

from vla_agents.data import Episode, Step, atomic, create_dataset, open_dataset
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.recording import journal, recorder, streaming
from vla_agents.data.recording.recorder import StepWriter
from vla_agents.data.video.encode import VideoEncoder
from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import ConfigError, DatasetError, ObservationError, RecordingError


def test_the_label_is_told_beside_the_numbers(tmp_path: Path) -> None:
    with create_dataset(tmp_path / "d", ARM) as writer:
        for k, given in enumerate(({}, {"executed": True}, {"commanded": True})):
            record(writer, k, **given)
    (file,) = (tmp_path / "d").glob("meta/episodes/*/*.parquet")
    assert pq.read_table(file)[lerobot.LABEL].to_pylist() == ["sent", "commanded", "sent"]


def test_a_dataset_of_an_older_version_can_be_continued(tmp_path: Path) -> None:
    """One without the columns that came later: it gets more episodes, and keeps its columns."""
    with create_dataset(tmp_path / "d", ARM) as writer:
        record(writer, 0)
    later = {lerobot.COMMANDED, lerobot.REPEATED}
    info_file = tmp_path / "d/meta/info.json"
    info = json.loads(info_file.read_text())
    info["features"] = {key: value for key, value in info["features"].items() if key not in later}
    info_file.write_text(json.dumps(info))
    for pattern in ("data/*/*.parquet", "meta/episodes/*/*.parquet"):
        (file,) = (tmp_path / "d").glob(pattern)
        table = pq.read_table(file)
        old = [c for c in table.column_names if c not in later | {lerobot.HAS_COMMANDED, lerobot.LABEL}]
        pq.write_table(table.select(old), file)
    with create_dataset(tmp_path / "d", ARM, resume=True) as writer:
        record(writer, 1)
        record(writer, 2, executed=True)
        with pytest.raises(DatasetError, match=r"has no column 'commanded_action'.*older version"):
            record(writer, 3, commanded=True)
    assert check_as_lerobot(tmp_path / "d") == 3
    reader = open_dataset(tmp_path / "d")
    for k in range(3):
        assert_is_example(reader.read(k), k, executed=k == 2)


@pytest.mark.parametrize("format", ["lerobot", "hdf5"])
def test_when_each_camera_took_its_picture(format: str, tmp_path: Path) -> None:
    options = {"camera_times": True} if format == "lerobot" else {}
    steps = make_steps(3, 5)
    for k, step in enumerate(steps):
        step.camera_times = {} if k == 2 else {"front": step.time - 0.01, "wrist": step.time - 0.02 * k}
    for part in (steps[:3], steps[3:]):  # the second time, the dataset itself says that it holds them
        with create_dataset(tmp_path / "d", ARM, format, resume=True, **options) as writer:
            writer.begin("look")
            for step in part:
                writer.add(step)
            writer.save()
            writer.begin("wrong")
            with pytest.raises(ObservationError, match="not finite"):
                writer.add(replace(steps[0], camera_times={"front": float("nan")}))
        options = {}
    found = [step for k in range(2) for step in open_dataset(tmp_path / "d").read(k).steps()]
    for step, expected in zip(found, steps, strict=True):
        assert step.time == expected.time
        times = expected.camera_times or dict.fromkeys(ARM.camera_names, expected.time)
        assert step.camera_times == times
    if format == "lerobot":
        assert check_as_lerobot(tmp_path / "d") == 2


# ---- encoders that are late --------------------------------------------------------------------------------
BODY = Embodiment("two", ACTION, STATE, (Camera("a", 160, 160), Camera("b", 160, 176)), 30.0)
SMALL = Embodiment("small", ACTION, STATE, (Camera("a", 64, 64), Camera("b", 48, 64)), 30.0)


def level(k: int) -> int:
    """The brightness that says which row a picture is of."""
    return 20 + 3 * k


def bright_step(k: int, body: Embodiment, **given: Any) -> Step:
    images = {c.name: np.full((c.height, c.width, 3), level(k), np.uint8) for c in body.cameras}
    state, action = np.full(body.state_dim, k, np.float32), np.full(body.action_dim, k, np.float32)
    return Step(images, state, action, time=5.0 + k / 30, **given)


def rows_shown(episode: Episode) -> dict[str, list[int]]:
    """Which row each picture is of, by its brightness."""
    assert np.array_equal(episode.action[:, 0], np.arange(len(episode)))
    return {name: [round((f.mean() - 20) / 3) for f in frames] for name, frames in episode.images.items()}


class Stalled:
    """Encoders that stand still at a picture until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        original = VideoEncoder.add

        def add(encoder: VideoEncoder, image: np.ndarray, times: int = 1) -> bool:
            if encoder.frames >= at and not self.go_on.is_set():
                self.reached.set()
                assert self.go_on.wait(60)
            return original(encoder, image, times)

        monkeypatch.setattr(VideoEncoder, "add", add)


@pytest.mark.parametrize("body", [BODY, SMALL], ids=["files", "memory"])
def test_a_stalled_encoder_repeats_pictures_and_marks_the_rows(
    body: Embodiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording goes on while an encoder stands still, and every picture is in its row, or the row is marked."""
    stalled = Stalled(monkeypatch, 10)
    total = 60
    with create_dataset(tmp_path / "d", body, late_frames="repeat") as writer:
        writer.begin("late", {"seed": 1})
        for k in range(11):
            writer.add(bright_step(k, body))
        assert stalled.reached.wait(60)
        for k in range(11, 50):
            writer.add(bright_step(k, body))  # comes back although nothing is encoded
        status = writer.status()
        assert status.steps == 50 and status.in_line >= 16
        assert status.repeated > 0 and status.waited == 0
        stalled.go_on.set()
        while writer.status().in_line:
            time.sleep(0.01)
        for k in range(50, total):
            writer.add(bright_step(k, body))
            while writer.status().in_line:
                time.sleep(0.001)
        writer.save(True)
        assert writer.status().steps is None and writer.status().repeated == status.repeated
        record_bright(writer, body, 5)  # the next episode has nothing of it
    assert check_as_lerobot(tmp_path / "d") == 2
    episode, after = (open_dataset(tmp_path / "d").read(k) for k in range(2))
    assert len(episode) == total
    told = episode.metadata["recording"]
    repeated = {name: set(told["repeated_rows"][name]) for name in body.camera_names}
    assert told["repeated"] == sum(map(len, repeated.values())) == status.repeated and told["waited"] == 0
    assert set(np.flatnonzero(episode.repeated)) == set.union(*repeated.values())
    for name, shown in rows_shown(episode).items():
        expected, last = [], -1
        for k in range(total):
            last = last if k in repeated[name] else k
            expected.append(last)
        assert shown == expected, name
        assert 0 < len(repeated[name]) < 50
    assert not after.repeated.any() and after.metadata["recording"] == {"waited": 0, "repeated": 0}


def record_bright(writer: Any, body: Embodiment, length: int) -> int:
    writer.begin("bright")
    for k in range(length):
        writer.add(bright_step(k, body))
    return writer.save(True)


def test_a_stalled_encoder_holds_the_recording_and_drops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = Stalled(monkeypatch, 10)
    writer = create_dataset(tmp_path / "d", BODY)
    assert isinstance(writer, StepWriter)
    thread = threading.Thread(target=record_bright, args=(writer, BODY, 60))
    thread.start()
    assert stalled.reached.wait(60)
    steps = -1
    while steps != (writer.status().steps or 0):  # until the recording stands still as well
        steps = writer.status().steps or 0
        time.sleep(0.2)
    assert 10 < steps <= 10 + streaming.LINE + 1
    stalled.go_on.set()
    thread.join(60)
    status = writer.status()
    writer.close()
    assert (
        status.episodes == 1 and status.waited >= 1 and status.repeated == 0 and status.seconds_waited > 0.1
    )
    assert check_as_lerobot(tmp_path / "d") == 1
    episode = open_dataset(tmp_path / "d").read(0)
    assert rows_shown(episode) == {name: list(range(60)) for name in "ab"} and not episode.repeated.any()
    told = episode.metadata["recording"]
    assert told["waited"] == status.waited and told["repeated"] == 0
    assert told["seconds_waited"] == pytest.approx(status.seconds_waited, abs=1e-3)


def test_an_encoder_that_never_comes_back_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = Stalled(monkeypatch, 2)
    monkeypatch.setattr(streaming, "PATIENCE", 0.3)
    with create_dataset(tmp_path / "d", BODY) as writer:
        with pytest.raises(RecordingError, match=r"taken no picture for 0\.3 s"):
            record_bright(writer, BODY, 60)
        writer.discard()
        stalled.go_on.set()
        assert record_bright(writer, BODY, 6) == 0
    assert check_as_lerobot(tmp_path / "d") == 1
    assert rows_shown(open_dataset(tmp_path / "d").read(0)) == {name: list(range(6)) for name in "ab"}


def test_what_late_frames_may_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'wait' or 'repeat'"):
        create_dataset(tmp_path / "d", BODY, late_frames="drop")


# ---- errors of the disk, in the middle of an episode ---------------------------------------------------------
@pytest.mark.parametrize("late_frames", ["wait", "repeat"])
def test_an_error_of_the_disk_is_told_at_once(
    late_frames: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[RecordingError] = []
    with create_dataset(tmp_path / "d", BODY, late_frames=late_frames, on_error=told.append) as writer:
        record_bright(writer, BODY, 5)
        writer.begin("full")
        writer.add(bright_step(0, BODY))

        def fail(operation: str, where: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))

        monkeypatch.setattr(atomic, "hook", fail)
        raised = None
        for k in range(1, 200):
            try:
                writer.add(bright_step(k, BODY))
            except RecordingError as error:
                raised = error
                break
            time.sleep(0.01)
        assert raised is not None and raised.errno == errno.ENOSPC and "free some space" in raised.remedy
        assert told and told[0] is raised and writer.status().error is raised
        assert len(told) == 1
        with pytest.raises(RecordingError):
            writer.save()
        monkeypatch.undo()
        writer.discard()
        assert record_bright(writer, BODY, 7) == 1 and writer.status().error is None
    assert check_as_lerobot(tmp_path / "d") == 2
    for k, length in enumerate((5, 7)):
        assert rows_shown(open_dataset(tmp_path / "d").read(k)) == {n: list(range(length)) for n in "ab"}


def test_a_disk_that_hangs_does_not_hold_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `repeat`, `add` comes back although not a byte gets through; what was in line is written afterwards."""
    monkeypatch.setattr(journal, "PERIOD", 0.01)
    free, hanging = threading.Event(), threading.Event()
    with create_dataset(tmp_path / "d", BODY, late_frames="repeat") as writer:
        writer.begin("hangs")
        for k in range(4):
            writer.add(bright_step(k, BODY))

        def hang(operation: str, where: Path) -> None:
            if operation in ("write", "fsync"):
                hanging.set()
                assert free.wait(60)

        monkeypatch.setattr(atomic, "hook", hang)
        for k in range(4, 70):
            writer.add(bright_step(k, BODY))
        assert hanging.wait(60) and not free.is_set() and writer.status().steps == 70
        free.set()
        writer.save(True)
    episode = open_dataset(tmp_path / "d").read(0)
    assert len(episode) == 70 and episode.repeated.any()
    for name, shown in rows_shown(episode).items():
        repeated = set(episode.metadata["recording"]["repeated_rows"][name])
        assert [row for k, row in enumerate(shown) if k not in repeated] == sorted(set(range(70)) - repeated)


_LIMITED = """
import resource, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import fake_env
from rich.console import Console
from vla_agents.agent import ExpertAgent
from vla_agents.collect.recorder import Recorder
from vla_agents.data import create_dataset
from vla_agents.embodiment import embodiment_of
from vla_agents.envs import make_env
from vla_agents.rollout import rollout

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows too long is then an error, as on a full disk
env = make_env(fake_env.ENV_ID, image_size=160, max_steps=40)
told, ticks = [], []
writer = create_dataset(Path({out!r}), embodiment_of(env), preset="ultrafast", crf=1)
recorder = Recorder(writer, on_error=told.append)
real = recorder.on_step
def on_step(slot, step):
    ticks.append(slot)
    if len(ticks) == 25:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    if len(ticks) == 70:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    real(slot, step)
recorder.on_step = on_step
results = rollout(env, ExpertAgent(env), range(15), [recorder])
writer.close()
print(len(results), sum(r.steps for r in results), len(ticks), recorder.saved, recorder.failed, len(told))
print(told[0])
"""


def test_a_full_disk_costs_episodes_but_not_the_rollout(tmp_path: Path) -> None:
    """For some ticks of a rollout no file may grow beyond some bytes: the loop goes on, and so does the recording."""
    tests = Path(__file__).parent
    script = _LIMITED.format(paths=[str(tests), str(tests.parent)], out=str(tmp_path / "d"), limit=1000)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, *error = done.stdout.splitlines()
    results, steps, ticks, saved, failed, told = map(int, first.split())
    assert results == 15 and ticks == steps > 80
    assert failed == told >= 2 and saved == 15 - failed and saved >= 4
    assert "File too large" in error[0] and "free" in error[0]
    assert check_as_lerobot(tmp_path / "d") == saved
    reader = open_dataset(tmp_path / "d")
    seeds = [reader.read(k).metadata["seed"] for k in range(saved)]
    assert seeds[0] == 0 and seeds[-1] == 14 and seeds == sorted(seeds)
    assert sum(reader.lengths()) == sum(len(reader.read(k).images["front"]) for k in range(saved))


def test_an_interruption_between_pictures_and_row_spoils_the_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the rows of a later repair would stand beside other pictures."""
    with create_dataset(tmp_path / "set", ARM, "lerobot", durable=False) as writer:
        writer.begin("go")
        steps = make_steps(0, 3)
        writer.add(steps[0])
        with monkeypatch.context() as patch:

            def interrupted(*arguments: object) -> bytes:
                raise KeyboardInterrupt

            patch.setattr(recorder, "pack_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.add(steps[1])
        with pytest.raises(RecordingError, match="KeyboardInterrupt"):
            writer.add(steps[2])
        writer.discard()
        assert record(writer, 0) == 0
