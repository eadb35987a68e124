"""LeRobot v3.0: what LeRobot wrote is read as LeRobot reads it, and damaged files are named."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_examples import ARM, SHARED, assert_is_example, check_as_lerobot, length_of, make_steps, record

from vla_agents.data import LeRobotReader, LeRobotWriter, open_dataset
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.video.decode import decode
from vla_agents.data.video.encode import VideoEncoder, VideoSettings
from vla_agents.data.video.scheduling import ordinary_scheduling
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError, DatasetError, DatasetNotFoundError

GOLDEN = sorted((SHARED / "lerobot_datasets").glob("*.golden.npz"))


# ---- datasets that LeRobot wrote ---------------------------------------------------------------------------
@pytest.mark.skipif(not GOLDEN, reason="../shared/lerobot_datasets is not there")
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name.split(".")[0])
def test_values_and_pixels_are_those_lerobot_returns(golden: Path) -> None:
    expected = np.load(golden, allow_pickle=False)
    reader = open_dataset(golden.with_name(golden.name.removesuffix(".golden.npz")))
    assert isinstance(reader, LeRobotReader)
    columns = reader.columns()
    for name in ("observation.state", "timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert np.array_equal(columns[name], expected[name]), name
    for name in ("next.reward", "next.done", "next.success"):
        assert np.array_equal(columns[name], expected[name]), name
    assert np.array_equal(columns["action"], expected["action"][:, 2])  # the window starts two steps earlier
    assert np.array_equal(np.repeat(reader.instructions(), reader.lengths()), expected["task"])
    episodes = [reader.read(k) for k in range(len(reader))]
    assert [e.success for e in episodes] == reader.successes()
    images = {name: np.concatenate([e.images[name] for e in episodes]) for name in ("front", "wrist")}
    starts = np.repeat(np.cumsum(reader.lengths()) - reader.lengths(), reader.lengths())

    def same(image: np.ndarray, theirs: np.ndarray) -> bool:
        if theirs.dtype != np.uint8:  # 0..1
            theirs = np.round(theirs * 255).astype(np.uint8)
        return np.array_equal(image, theirs.transpose(1, 2, 0))

    for k, row in enumerate(expected["img_rows"]):
        assert same(images["wrist"][row], expected["img_wrist"][k])
        assert same(images["front"][row], expected["img_front"][k][1])
        assert same(images["front"][max(row - 2, starts[row])], expected["img_front"][k][0])


@pytest.mark.skipif(
    not (SHARED / "lerobot_datasets").exists(), reason="../shared/lerobot_datasets is not there"
)
def test_v20_and_its_av1_video() -> None:
    path = SHARED / "lerobot_datasets" / "v20_from_v21"
    reader = open_dataset(path)
    assert reader.format == "LeRobot v2.0" and reader.lengths().tolist() == [12, 9, 15]
    assert reader.instructions() == ["pick up the red cube", "open the drawer", "pick up the red cube"]
    for k in range(3):
        table = pq.read_table(path / f"data/chunk-000/episode_{k:06d}.parquet")
        episode = reader.read(k)
        assert np.array_equal(episode.action, np.array(table["action"].to_pylist(), np.float32))
        assert np.array_equal(episode.reward, table["next.reward"].to_numpy())
        assert episode.success is bool(table["next.success"].to_numpy().any())
        for camera in ("front", "wrist"):
            file = path / f"videos/chunk-000/observation.images.{camera}/episode_{k:06d}.mp4"
            assert np.array_equal(episode.images[camera], one_after_the_other(file))


def one_after_the_other(file: Path) -> np.ndarray:
    """All frames of a video as PyAV decodes it from its beginning, uint8 (T, H, W, 3)."""
    import av

    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# ---- other layouts, made here ------------------------------------------------------------------------------
def code(number: int) -> np.ndarray:
    """A picture that says its number, in black and white fields that survive any codec; uint8 (64, 64, 3)."""
    bits = np.array([number >> k & 1 for k in range(16)], np.uint8).reshape(4, 4)
    return np.repeat(np.kron(bits, np.ones((16, 16), np.uint8))[..., None] * 200 + 20, 3, axis=2)


def decode_code(image: np.ndarray) -> int:
    bits = image.reshape(4, 16, 4, 16, 3).mean(axis=(1, 3, 4)).ravel() > 120
    return int(sum(1 << k for k in range(16) if bits[k]))


LENGTHS = (7, 5, 11, 3)


def foreign(path: Path, *, images: str = "h264", tasks: bool = True, fps: int = 10) -> Path:
    """A dataset as LeRobot writes it: all episodes in one data file, and one video with key frames far apart."""
    total, key = sum(LENGTHS), "observation.images.top"
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    frame = np.concatenate([np.arange(n) for n in LENGTHS])
    columns: dict[str, Any] = {
        "observation.state": pa.FixedSizeListArray.from_arrays(
            pa.array(np.arange(2.0 * total, dtype=np.float32)), 2
        ),
        "action": pa.array(np.arange(total, dtype=np.float32)[:, None].tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array((frame / fps).astype(np.float32)),
        "frame_index": frame,
        "episode_index": episode,
        "index": np.arange(total),
        "task_index": np.where(np.arange(total) < 9, 0, 1),  # changes inside the second episode
    }
    feature: dict[str, Any] = {
        "dtype": "video",
        "shape": [64, 64, 3],
        "names": ["height", "width", "channels"],
    }
    if images == "image":
        feature = {"dtype": "image", "shape": [3, 64, 64], "names": ["channels", "height", "width"]}
        columns[key] = pa.array([{"bytes": png(code(k)), "path": f"{k}.png"} for k in range(total)])
    else:
        video = path / f"videos/{key}/chunk-000/file-000.mp4"
        video.parent.mkdir(parents=True)
        video.write_bytes(far_apart(images, [code(k) for k in range(total)], fps))
    (path / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), path / "data/chunk-000/file-000.parquet", row_group_size=9)
    ends = np.cumsum(LENGTHS)
    rows = {
        "episode_index": np.arange(len(LENGTHS)),
        "tasks": [["a"], ["b", "a"], ["b"], ["b"]],
        "length": np.array(LENGTHS),
        "data/chunk_index": [0] * len(LENGTHS),
        "data/file_index": [0] * len(LENGTHS),
        f"videos/{key}/chunk_index": [0] * len(LENGTHS),
        f"videos/{key}/file_index": [0] * len(LENGTHS),
        f"videos/{key}/from_timestamp": (ends - LENGTHS) / fps,
    }
    for first in (0, 2):  # two files
        file = path / f"meta/episodes/chunk-000/file-{first // 2:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({k: v[first : first + 2] for k, v in rows.items()}), file)
    index = "task" if tasks else "__index_level_0__"
    pq.write_table(pa.table({"task_index": [0, 1], index: ["a", "b"]}), path / "meta/tasks.parquet")
    plain = {"shape": [1], "names": None}
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["pan.pos", "lift.pos"]}},
        "action": {"dtype": "float32", "shape": [1], "names": None},
        key: feature,
        "timestamp": {"dtype": "float32", **plain},
        **{k: {"dtype": "int64", **plain} for k in ("frame_index", "episode_index", "index", "task_index")},
    }
    info = {"codebase_version": "v3.0", "fps": fps, "features": features, "robot_type": "so101"}
    info |= {"total_episodes": len(LENGTHS), "total_frames": total, "total_tasks": 2, "data_path": None}
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "png")
    return sink.getvalue()


def far_apart(codec: str, frames: list[np.ndarray], fps: int) -> bytes:
    """A video with a key frame every 12 frames and frames that refer to later ones."""
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        options = {"g": "12", "bf": "3", "preset": "fast"} if codec == "h264" else {"g": "12", "preset": "12"}
        name = {"h264": "libx264", "av1": "libsvtav1"}[codec]
        stream: Any = container.add_stream(name, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        with ordinary_scheduling():
            container.start_encoding()
        for image in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize("images", ["h264", "av1", "image"])
def test_every_frame_of_a_shared_file_is_its_own(images: str, tmp_path: Path) -> None:
    reader = open_dataset(foreign(tmp_path / "set", images=images))
    first = 0
    for k, length in enumerate(LENGTHS):
        episode = reader.read(k)
        assert [decode_code(image) for image in episode.images["top"]] == list(range(first, first + length))
        if images == "image":
            assert np.array_equal(episode.images["top"][0], code(first))
        assert np.array_equal(episode.action[:, 0], np.arange(first, first + length))
        assert np.array_equal(episode.state[:, 1], np.arange(first, first + length) * 2 + 1)
        assert np.array_equal(episode.time, np.float32(np.arange(length) / 10).astype(np.float64))
        assert episode.success is None and episode.executed is None and not episode.terminated.any()
        first += length


def test_tasks_without_a_name_and_changing_inside_an_episode(tmp_path: Path) -> None:
    reader = open_dataset(foreign(tmp_path / "set", tasks=False))
    assert reader.instructions() == ["a", "a", "b", "b"]
    assert [reader.read(k, images=False).instruction for k in range(4)] == reader.instructions()


def test_an_embodiment_is_derived_where_none_is_stored(tmp_path: Path) -> None:
    body = open_dataset(foreign(tmp_path / "set", images="image")).embodiment
    assert body == Embodiment(
        "so101",
        (Part("action", 1, "unknown"),),
        (
            Part("pan.pos", 1, "joint_position", unit="motor units"),
            Part("lift.pos", 1, "joint_position", unit="motor units"),
        ),
        (Camera("top", 64, 64),),
        10.0,
    )


def test_a_foreign_dataset_is_not_appended_to(tmp_path: Path) -> None:
    path = foreign(tmp_path / "set")
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with pytest.raises(DatasetError, match="not written by vla_agents"):
        LeRobotWriter(path, open_dataset(path).embodiment, fps=10, resume=True)
    assert all(file.read_bytes() == content for file, content in before.items())


# ---- what we write -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "set"
    with LeRobotWriter(path, ARM, durable=False, robot_type="toy") as writer:
        for k in range(3):
            record(writer, k)
    return path


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "set"))


def test_info_and_files(recorded: Path) -> None:
    info = json.loads((recorded / "meta/info.json").read_text())
    assert (info["robot_type"], info["fps"], info["total_frames"]) == ("toy", 20, 3 + 4 + 5)
    assert info["features"]["action"]["names"][:4] == ["move.0", "move.1", "move.2", "turn.0"]
    assert info["features"]["observation.state"]["shape"] == [5]
    assert not [k for k in info["features"] if k.startswith("action.")]  # LeRobot would learn to predict it
    video = info["features"]["observation.images.wrist"]
    assert video["shape"] == [48, 64, 3] and video["info"]["video.codec"] == "h264"
    files = {p.relative_to(recorded).as_posix() for p in recorded.rglob("*") if p.is_file()}
    each = [
        f"videos/observation.images.{c}/chunk-000/file-{k:03d}.mp4"
        for c in ("front", "wrist")
        for k in range(3)
    ]
    each += [f"data/chunk-000/file-{k:03d}.parquet" for k in range(3)]
    meta = [
        "info.json",
        "stats.json",
        "tasks.parquet",
        "embodiment.json",
        "episodes/chunk-000/file-000.parquet",
    ]
    assert files == {*each, *(f"meta/{name}" for name in meta), ".vla_agents.lock"}


def test_statistics_are_those_of_the_data(recorded: Path, tmp_path: Path) -> None:
    stats = json.loads((recorded / "meta/stats.json").read_text())
    reader = open_dataset(recorded)
    columns = reader.columns()
    per_episode = np.split(columns["action"], np.cumsum(reader.lengths())[:-1])
    for key in ("action", "observation.state"):
        values = columns[key].astype(np.float64)
        for name in ("min", "max", "mean", "std"):
            assert np.allclose(stats[key][name], getattr(values, name)(axis=0), atol=1e-9), (key, name)
        assert stats[key]["count"] == [12]
    for name, q, pick in (("q01", 0.01, np.min), ("q50", 0.5, np.min), ("q90", 0.9, np.max)):
        each = [np.quantile(part.astype(np.float64), q, axis=0) for part in per_episode]
        assert np.allclose(stats["action"][name], pick(each, axis=0), atol=1e-9)
    pixels = np.concatenate([reader.read(k).images["front"] for k in range(3)]) / 255
    front = stats["observation.images.front"]
    assert np.array(front["mean"]).shape == (3, 1, 1)
    assert np.allclose(np.ravel(front["mean"]), pixels.mean(axis=(0, 1, 2)), atol=0.02)
    assert np.allclose(np.ravel(front["std"]), pixels.std(axis=(0, 1, 2)), atol=0.02)
    rows = pq.read_table(recorded / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert np.allclose(rows[1]["stats/action/mean"], per_episode[1].mean(axis=0, dtype=np.float64))
    assert np.shape(rows[1]["stats/observation.images.front/q99"]) == (3, 1, 1)
    # Recorded in three sessions, it is the same.
    for k in range(3):
        with LeRobotWriter(tmp_path / "set", ARM, durable=False, resume=True) as writer:
            record(writer, k)
    again = json.loads((tmp_path / "set/meta/stats.json").read_text())
    for key, entry in stats.items():
        for name, value in entry.items():
            assert np.allclose(again[key][name], value, atol=1e-9)


def test_many_episodes_over_several_files_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot, "CHUNK", 3)
    monkeypatch.setattr(lerobot, "ROWS_PER_FILE", 2)
    body = Embodiment("bare", (Part("a", 2, "other"),))
    path = tmp_path / "set"
    for start, stop in ((0, 4), (4, 7), (7, 13)):  # at the border of a file, inside one, over several
        with LeRobotWriter(path, body, durable=False, resume=True) as writer:
            assert len(writer) == start
            for k in range(start, stop):
                record(writer, k, body)
    assert check_as_lerobot(path) == 13
    assert len(list((path / "meta/episodes").rglob("*.parquet"))) == 7
    assert sorted(p.name for p in (path / "data").iterdir()) == [f"chunk-{k:03d}" for k in range(5)]
    reader = open_dataset(path)
    for k in range(13):
        assert_is_example(reader.read(k), k, body)


def test_resume_keeps_the_codec(recorded: Path) -> None:
    with pytest.raises(ConfigError, match="h264 yuv444p"):
        LeRobotWriter(recorded, ARM, resume=True, pix_fmt="yuv420p")


def test_a_set_changed_by_another_program_is_not_appended_to(copied: Path) -> None:
    """Its files may have been grouped otherwise, and the next save would overwrite one."""
    set_column(copied / ROWS, "data/file_index", pa.array([0, 0, 0]))
    with pytest.raises(DatasetError, match="another program"):
        LeRobotWriter(copied, ARM, resume=True)


def test_av1_is_written_and_read(tmp_path: Path) -> None:
    body = Embodiment("arm", ARM.action, (), (Camera("front", 64, 64),), 10.0)
    with LeRobotWriter(tmp_path / "set", body, durable=False, codec="av1") as writer:
        writer.begin("count")
        for k, step in enumerate(make_steps(0, 9, body)):
            step.images["front"] = code(k)
            writer.add(step)
        writer.save()
    assert check_as_lerobot(tmp_path / "set") == 1
    images = open_dataset(tmp_path / "set").read(0).images["front"]
    assert [decode_code(image) for image in images] == list(range(9))


def test_reading_in_several_threads(recorded: Path) -> None:
    reader = open_dataset(recorded)
    with ThreadPoolExecutor(4) as pool:
        for k, episode in enumerate(pool.map(reader.read, [0, 1, 2] * 4)):
            assert_is_example(episode, k % 3)


def test_a_set_can_be_read_while_it_grows(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "set", ARM, durable=False) as writer:
        for k in range(3):
            record(writer, k)
            reader = open_dataset(tmp_path / "set")
            assert reader.lengths().tolist() == [length_of(n) for n in range(k + 1)]


# ---- damaged, contradicting, hostile -----------------------------------------------------------------------
def change(path: Path, **fields: Any) -> None:
    file = path / "meta/info.json"
    info = json.loads(file.read_text())
    for name, value in fields.items():
        target, *rest = name.split("__")
        if rest:
            info["features"][target.replace("_", ".")][rest[0]] = value
        else:
            info[name] = value
    file.write_text(json.dumps(info))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def set_column(file: Path, name: str, value: Any) -> None:
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index(name), name, value), file)


def nan_action(path: Path) -> None:
    values = np.zeros((4, 7), np.float32)
    values[2, 3] = np.nan
    set_column(path / DATA1, "action", pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 7))


def no_rows(path: Path) -> None:
    pq.write_table(pq.read_table(path / DATA1).slice(0, 0), path / DATA1)


def drop_row(path: Path) -> None:
    file = path / ROWS
    pq.write_table(pa.concat_tables([(t := pq.read_table(file)).slice(0, 1), t.slice(2)]), file)


def link_out(path: Path) -> None:
    outside = path.parent / "outside.parquet"
    shutil.move(path / DATA1, outside)
    (path / DATA1).symlink_to(outside)


def leave_a_camera_out(path: Path) -> None:
    body = Embodiment("arm", ARM.action, ARM.state, ARM.cameras[:1], 20.0)
    body.save(path / "meta/embodiment.json")


DATA1 = "data/chunk-000/file-001.parquet"
ROWS = "meta/episodes/chunk-000/file-000.parquet"
VIDEO1 = "videos/observation.images.front/chunk-000/file-001.mp4"
LIST7 = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(28, np.float32)), 7)
Damage = Callable[[Path], Any]
OPENING: dict[str, tuple[Damage, str]] = {
    "info cut": (lambda p: cut(p / "meta/info.json"), r"info\.json: cannot be read as JSON"),
    "info a list": (lambda p: (p / "meta/info.json").write_text("[]"), r"info\.json: is not a JSON object"),
    "version": (lambda p: change(p, codebase_version="v9.0"), r"codebase_version is 'v9\.0'"),
    "fps": (lambda p: change(p, fps=0), "field 'fps' is 0"),
    "fps text": (lambda p: change(p, fps="20"), "field 'fps' is '20'"),
    "totals": (lambda p: change(p, total_episodes=2), "total_frames is 12, meta/episodes adds up to 7"),
    "too few rows": (lambda p: change(p, total_episodes=4), "has 3 rows.*total_episodes = 4"),
    "frames": (lambda p: change(p, total_frames=13), "total_frames is 13.*adds up to 12"),
    "no features": (lambda p: change(p, features=None), "field 'features'"),
    "bad shape": (lambda p: change(p, action__shape=["7"]), "feature 'action' has no valid dtype and shape"),
    "no action": (lambda p: change(p, features={}), "feature 'timestamp' is missing"),
    "other action": (
        lambda p: change(p, action__shape=[6]),
        r"embodiment\.json: action values: 7 here, 6 in",
    ),
    "other camera": (leave_a_camera_out, r"embodiment\.json: cameras"),
    "embodiment cut": (
        lambda p: cut(p / "meta/embodiment.json"),
        r"embodiment\.json: cannot be read as JSON",
    ),
    "rows cut": (lambda p: cut(p / ROWS), r"file-000\.parquet: cannot be read as parquet"),
    "rows gone": (lambda p: shutil.rmtree(p / "meta/episodes"), "counts 3 episodes"),
    "row missing": (drop_row, "has 2 rows"),
    "tasks cut": (lambda p: cut(p / "meta/tasks.parquet"), r"tasks\.parquet: cannot be read as parquet"),
    "tasks gone": (lambda p: (p / "meta/tasks.parquet").unlink(), r"tasks\.parquet: the file is missing"),
    "length 0": (lambda p: set_column(p / ROWS, "length", pa.array([3, 0, 9])), "episode 1 has length 0"),
    "order": (lambda p: set_column(p / ROWS, "episode_index", pa.array([0, 2, 1])), "does not count 0, 1, 2"),
}
READING: dict[str, tuple[Damage, str]] = {
    "data cut": (lambda p: cut(p / DATA1), r"data/chunk-000/file-001\.parquet: cannot be read as parquet"),
    "data gone": (lambda p: (p / DATA1).unlink(), r"file-001\.parquet: the file is missing"),
    "video cut": (lambda p: cut(p / VIDEO1), r"file-001\.mp4: the video cannot be decoded"),
    "video gone": (lambda p: (p / VIDEO1).unlink(), r"file-001\.mp4: the video is missing"),
    "not a video": (
        lambda p: (p / VIDEO1).write_text("hello"),
        r"file-001\.mp4: the video cannot be decoded",
    ),
    "shorter video": (
        lambda p: shutil.copy(p / VIDEO1.replace("1.", "0."), p / VIDEO1),
        "no frame at 0.150 s",
    ),
    "other camera": (
        lambda p: shutil.copy(p / VIDEO1.replace("front", "wrist"), p / VIDEO1),
        "pictures are 48x64",
    ),
    "other data": (lambda p: shutil.copy(p / DATA1.replace("1.", "0."), p / DATA1), "episode 1 has 0 rows"),
    "no rows": (no_rows, "episode 1 has 0 rows, meta/episodes says 4"),
    "nan": (nan_action, "action is not finite in episode 1, frame 2"),
    "other shape": (
        lambda p: set_column(p / DATA1, "observation.state", LIST7),
        "'observation.state' has 28 values",
    ),
    "nulls": (
        lambda p: set_column(p / DATA1, "task_index", pa.nulls(4, pa.int64())),
        "'task_index' holds nulls",
    ),
    "text": (lambda p: set_column(p / DATA1, "next.reward", pa.array(list("abcd"))), "does not hold numbers"),
    "no such task": (lambda p: set_column(p / DATA1, "task_index", pa.array([7] * 4)), "task_index 7"),
    "dots": (
        lambda p: change(p, data_path="../{chunk_index}-{file_index}.parquet"),
        "'data_path'.*leads out",
    ),
    "absolute": (lambda p: change(p, video_path="/etc/{video_key}{chunk_index}{file_index}"), "leads out"),
    "template": (lambda p: change(p, data_path="data/{user}.parquet"), "is not a path template"),
    "attribute": (lambda p: change(p, data_path="{chunk_index.__class__}"), "is not a path template"),
    "link": (link_out, "leads out of the dataset"),
}


@pytest.mark.parametrize("name", OPENING)
def test_damage_that_shows_on_opening(name: str, copied: Path) -> None:
    damage, says = OPENING[name]
    damage(copied)
    with pytest.raises(DatasetError, match=says) as caught:
        open_dataset(copied)
    assert caught.value.remedy and caught.value.path.is_relative_to(copied)


@pytest.mark.parametrize("name", READING)
def test_damage_to_one_episode_leaves_the_others_readable(name: str, copied: Path) -> None:
    damage, says = READING[name]
    damage(copied)
    reader = open_dataset(copied)
    with pytest.raises(DatasetError, match=says) as caught:
        reader.read(1)
    assert caught.value.remedy and caught.value.path.is_relative_to(copied)
    if name not in ("dots", "absolute", "template", "attribute"):  # those are of the whole dataset
        assert_is_example(reader.read(0), 0)
        assert_is_example(reader.read(2), 2)


def test_missing_info_says_what_is_missing(copied: Path) -> None:
    (copied / "meta/info.json").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"meta/info\.json is missing"):
        LeRobotReader(copied)


def test_a_picture_that_is_none_and_a_bomb(tmp_path: Path) -> None:
    path = foreign(tmp_path / "set", images="image")
    file = path / "data/chunk-000/file-000.parquet"
    for content, says in (
        (b"none", "frame 0: not a picture"),
        (png(np.zeros((999, 999, 3), np.uint8)), "999x999"),
    ):
        rows = pq.read_table(file).column("observation.images.top").to_pylist()
        rows[0]["bytes"] = content
        set_column(file, "observation.images.top", pa.array(rows))
        with pytest.raises(DatasetError, match=says):
            open_dataset(path).read(0)
    assert len(open_dataset(path).read(1)) == 5


# ---- video -------------------------------------------------------------------------------------------------
def test_small_pictures_keep_their_colours(recorded: Path) -> None:
    """By default the colour of a block of 5 pixels is kept; with 4:2:0 it is not, whatever the quality."""

    def error(**options: Any) -> tuple[float, float]:
        steps = make_steps(5, 8)
        frames = np.stack([s.images["front"] for s in steps])
        encoder = VideoEncoder(VideoSettings(64, 64, 20, **options))
        for image in frames:
            encoder.add(image)
        path = recorded.parent / "one.mp4"
        path.write_bytes(encoder.finish())
        found = decode(path, np.arange(8) / 20, 20, (64, 64))
        off = np.abs(found.astype(int) - frames)
        return float(off.mean()), float(off[np.ptp(frames, axis=-1) > 20].mean())

    whole, blocks = error()
    assert whole < 1 and blocks < 4
    assert error(pix_fmt="yuv420p", crf=12)[1] > 3 * blocks
