"""What both formats must do alike: every number comes back, nothing is overwritten, nothing half is saved."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_examples import ACTION, ARM, assert_is_example, check_as_lerobot, make_steps, record

from vla_agents.data import EpisodeReader, EpisodeWriter, create_dataset, open_dataset
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import (
    ActionError,
    ConfigError,
    DatasetError,
    DatasetExistsError,
    DatasetNotFoundError,
    EmbodimentMismatchError,
    ObservationError,
    RecordingError,
    UnknownNameError,
)

Make = Callable[..., Any]


@pytest.fixture(params=["lerobot", "hdf5"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(kind: str, tmp_path: Path) -> Make:
    def create(body: Embodiment = ARM, **options: Any) -> Any:
        options.setdefault("durable", False)
        return create_dataset(tmp_path / "set", body, kind, **options)

    return create


def test_every_number_comes_back(make: Make, tmp_path: Path, kind: str) -> None:
    with make() as writer:
        assert isinstance(writer, EpisodeWriter)
        assert [record(writer, k, executed=k == 2, commanded=k == 3) for k in range(5)] == list(range(5))
        assert len(writer) == 5
    reader = open_dataset(tmp_path / "set")
    assert isinstance(reader, EpisodeReader) and len(reader) == 5
    for k in range(5):
        assert_is_example(reader.read(k), k, executed=k == 2, commanded=k == 3)
    assert reader.lengths().tolist() == [3, 4, 5, 6, 3] and reader.lengths().dtype == np.int64
    assert reader.instructions() == [f"task {k % 3}" for k in range(5)]
    assert reader.successes() == [True, False, None, True, False]
    if kind == "lerobot":
        assert check_as_lerobot(tmp_path / "set") == 5


def test_hdf5_pictures_are_lossless(tmp_path: Path) -> None:
    for compression in ("gzip", "none"):
        path = tmp_path / compression
        with create_dataset(path, ARM, "hdf5", durable=False, compression=compression) as writer:
            writer.begin("look")
            steps = make_steps(0, 40)  # more than one block
            for step in steps:
                writer.add(step)
            writer.save()
        found = open_dataset(path).read(0)
        for name in ARM.camera_names:
            assert np.array_equal(found.images[name], np.stack([s.images[name] for s in steps]))


def test_columns_are_the_episodes_numbers(make: Make, tmp_path: Path) -> None:
    with make() as writer:
        for k in range(3):
            record(writer, k, executed=k == 1, commanded=k == 1)
    reader = open_dataset(tmp_path / "set")
    columns, episodes = reader.columns(), [reader.read(k, images=False) for k in range(3)]
    assert all(not e.images for e in episodes)
    assert np.array_equal(columns["action"], np.concatenate([e.action for e in episodes]))
    assert np.array_equal(columns["observation.state"], np.concatenate([e.state for e in episodes]))
    sent = np.concatenate([e.action if e.executed is None else e.executed for e in episodes])
    assert np.array_equal(columns["executed_action"], sent)
    asked = np.concatenate([e.action if e.commanded is None else e.commanded for e in episodes])
    assert np.array_equal(columns["commanded_action"], asked)
    assert columns["repeated_frame"].sum() == 1
    assert np.array_equal(columns["episode_index"], np.repeat(np.arange(3), reader.lengths()))
    assert np.array_equal(columns["capture_time"], np.concatenate([e.time for e in episodes]))
    done = np.concatenate([e.terminated | e.truncated for e in episodes])
    assert np.array_equal(columns["next.done"], done)


@pytest.mark.parametrize(
    "body",
    [
        Embodiment("blind", ACTION, control_hz=20.0, state=(Part("x", 1, "other"),)),
        Embodiment("stateless", (Part("a", 1, "other"),), cameras=(Camera("only", 64, 80),), control_hz=5.0),
        Embodiment("bare", (Part("a", 2, "other"),)),
    ],
    ids=lambda body: body.name,
)
def test_bodies_without_cameras_or_state(make: Make, tmp_path: Path, body: Embodiment, kind: str) -> None:
    with make(body) as writer:
        for k in range(2):
            record(writer, k, body)
    reader = open_dataset(tmp_path / "set")
    for k in range(2):
        assert_is_example(reader.read(k), k, body)
    assert len(reader.columns()["action"]) == reader.lengths().sum()
    if kind == "lerobot":
        check_as_lerobot(tmp_path / "set")


def test_an_empty_dataset_can_be_opened(make: Make, tmp_path: Path) -> None:
    make().close()
    reader = open_dataset(tmp_path / "set")
    assert len(reader) == 0 and reader.lengths().shape == (0,) and reader.instructions() == []
    assert reader.columns()["action"].shape == (0, 7)
    with pytest.raises(IndexError):
        reader.read(0)


def test_negative_index_counts_from_the_end_and_reads_are_copies(make: Make, tmp_path: Path) -> None:
    with make() as writer:
        record(writer, 0)
        record(writer, 1)
    reader = open_dataset(tmp_path / "set")
    first = reader.read(-1)
    first.action[:] = 0
    assert_is_example(reader.read(1), 1)
    with pytest.raises(IndexError, match="there are 2"):
        reader.read(2)


# ---- not overwriting, resuming -----------------------------------------------------------------------------
def test_existing_dataset_is_refused_and_resumed(make: Make, tmp_path: Path, kind: str) -> None:
    with make() as writer:
        record(writer, 0)
    with pytest.raises(DatasetExistsError, match="resume=True"):
        make()
    with make(resume=True) as writer:
        assert len(writer) == 1
        assert [record(writer, k) for k in (1, 2)] == [1, 2]
    reader = open_dataset(tmp_path / "set")
    for k in range(3):
        assert_is_example(reader.read(k), k)
    if kind == "lerobot":
        assert check_as_lerobot(tmp_path / "set") == 3


def test_resume_starts_a_dataset_where_there_is_none(make: Make, tmp_path: Path) -> None:
    with make(resume=True) as writer:
        record(writer, 0)
    assert len(open_dataset(tmp_path / "set")) == 1


def test_folder_with_other_files_is_refused_and_left_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(DatasetExistsError, match=r"thesis\.txt"):
            make(resume=resume)
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["thesis.txt"]


def test_resume_with_another_body_or_rate_is_refused(make: Make, tmp_path: Path) -> None:
    with make() as writer:
        record(writer, 0)
    other = dataclasses.replace(ARM, action=(*ACTION[:2], Part("grip", 1, "gripper_open_pm1")))
    with pytest.raises(EmbodimentMismatchError, match="gripper"):
        make(other, resume=True)
    with pytest.raises(ConfigError, match="fps"):
        make(resume=True, fps=10)
    assert len(open_dataset(tmp_path / "set")) == 1


def test_two_writers_at_once_are_refused(make: Make, tmp_path: Path) -> None:
    writer = make()
    with pytest.raises(DatasetError, match="is being written by process"):
        make(resume=True)
    record(writer, 0)
    writer.close()
    with make(resume=True) as again:
        record(again, 1)
    assert len(open_dataset(tmp_path / "set")) == 2


# ---- the life cycle ----------------------------------------------------------------------------------------
def test_calls_in_the_wrong_order(make: Make) -> None:
    writer = make()
    for call in (lambda: writer.add(make_steps(0)[0]), lambda: writer.save()):
        with pytest.raises(RecordingError, match=r"begin\(instruction\)"):
            call()
    writer.discard()  # nothing is open: nothing happens
    writer.begin("go")
    with pytest.raises(RecordingError, match="already open"):
        writer.begin("go again")
    with pytest.raises(RecordingError, match="no steps"):
        writer.save()
    writer.close()
    writer.close()
    with pytest.raises(RecordingError, match="closed"):
        writer.begin("go")


def test_discarded_and_open_episodes_leave_nothing(make: Make, tmp_path: Path) -> None:
    writer = make()
    for seed in (0, 1, 2):
        if seed == 1:
            writer.begin("not this one")
            writer.add(make_steps(9)[0])
            writer.discard()
        record(writer, seed)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    writer.begin("nor this one")
    writer.add(make_steps(9)[0])
    writer.close()
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()) == before
    reader = open_dataset(tmp_path / "set")
    assert len(reader) == 3
    assert_is_example(reader.read(1), 1)


def _with(**changes: Any) -> Any:
    return dataclasses.replace(make_steps(0)[0], **changes)


_IMAGES = make_steps(0)[0].images
_NAN_STATE = np.array([0, 0, np.nan, 0, 0], np.float32)


@pytest.mark.parametrize(
    ("step", "error", "says"),
    [
        (_with(state=_NAN_STATE), ObservationError, r"state is not finite at index \[2\]"),
        (_with(state=None), ObservationError, "state is missing"),
        (_with(action=np.full(7, np.nan)), ActionError, "not finite"),
        (_with(action=np.full(7, 1e300)), ActionError, "float32"),
        (_with(action=np.zeros(6)), ActionError, r"shape \(6,\)"),
        (_with(executed=np.full(7, np.inf)), ActionError, "executed"),
        (_with(images={"front": _IMAGES["front"]}), ObservationError, "camera 'wrist' is missing"),
        (_with(images={**_IMAGES, "front": _IMAGES["front"][:32]}), ObservationError, "camera 'front'"),
        (_with(images={**_IMAGES, "front": _IMAGES["front"] / 255}), ObservationError, "float64"),
        (_with(time=float("nan")), ObservationError, "time nan"),
        (_with(reward=float("inf")), ObservationError, "reward inf"),
    ],
)
def test_bad_steps_are_refused_and_the_episode_goes_on(
    make: Make, tmp_path: Path, step: Any, error: type[Exception], says: str
) -> None:
    steps = make_steps(0, 3)
    with make() as writer:
        writer.begin("task 0", {"seed": 0})
        writer.add(steps[0])
        with pytest.raises(error, match=says):
            writer.add(step)
        for good in steps[1:]:
            writer.add(good)
        writer.save(True)
    assert_is_example(open_dataset(tmp_path / "set").read(0), 0)


def test_buffers_of_the_caller_may_be_used_again(make: Make, tmp_path: Path) -> None:
    images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in ARM.cameras}
    state, action = np.zeros(5, np.float32), np.zeros(7, np.float32)
    with make() as writer:
        writer.begin("task 0", {"seed": 0})
        for step in make_steps(0, 3):
            for name, image in images.items():
                image[:] = step.images[name]
            state[:], action[:] = step.state, step.action
            writer.add(dataclasses.replace(step, images=images, state=state, action=action))
        writer.save(True)
    assert_is_example(open_dataset(tmp_path / "set").read(0), 0)


def test_instructions_and_metadata(make: Make, tmp_path: Path) -> None:
    told = "Leg den \u201eroten\u201c W\u00fcrfel auf \u76d8\u5b50 \U0001f916/../"
    with make(metadata={"renderer": "egl", "seed": 1}) as writer:
        with pytest.raises(ConfigError, match="can be stored"):
            writer.begin("\ud800")
        with pytest.raises(ConfigError, match="can be stored"):
            writer.begin("nul\0")
        with pytest.raises(ConfigError, match="JSON"):
            writer.begin("go", {"env": object()})
        writer.begin(told, {"seed": np.int64(7), "pose": np.arange(2.0), "path": Path("a")})
        writer.add(make_steps(0)[0])
        writer.save(np.bool_(True))
        writer.begin("")
        writer.add(make_steps(0)[0])
        writer.save()
    reader = open_dataset(tmp_path / "set")
    assert reader.instructions() == [told, ""]
    assert reader.read(0).metadata == {"renderer": "egl", "seed": 7, "pose": [0.0, 1.0], "path": "a"}
    assert reader.successes() == [True, None]


# ---- opening -----------------------------------------------------------------------------------------------
def test_missing_datasets_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"meta/info\.json.*dataset\.json"):
        open_dataset(tmp_path / "nothing")
    (tmp_path / "photo.png").touch()
    with pytest.raises(DatasetNotFoundError, match=r"holds photo\.png"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="is a file"):
        open_dataset(tmp_path / "photo.png")


def test_unknown_format_and_options(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'hdf5'"):
        create_dataset(tmp_path / "a", ARM, "hdf")
    with pytest.raises(UnknownNameError, match="h264"):
        create_dataset(tmp_path / "a", ARM, codec="h265")
    with pytest.raises(ConfigError, match="whole number"):
        create_dataset(tmp_path / "a", dataclasses.replace(ARM, control_hz=12.5))
    with pytest.raises(ConfigError, match=r"'\.\./x'"):
        create_dataset(tmp_path / "a", dataclasses.replace(ARM, cameras=(Camera("../x", 8, 8),)))
    with pytest.raises(ConfigError, match="even"):
        create_dataset(
            tmp_path / "a", dataclasses.replace(ARM, cameras=(Camera("x", 9, 8),)), pix_fmt="yuv420p"
        )
    assert not (tmp_path / "a").exists()


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = (
        "import sys, vla_agents.data, vla_agents.data.open, vla_agents.data.episode;"
        "print([m for m in ('torch', 'av', 'pyarrow', 'h5py', 'PIL') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
