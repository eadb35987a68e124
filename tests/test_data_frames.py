"""Single frames at random: the ones whole episodes have, in any order, process and thread, from any kind of video."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_examples import ARM, SHARED, length_of, record

from vla_agents.data import EpisodeReader, create_dataset, open_dataset
from vla_agents.data.video import single
from vla_agents.data.video.decode import decode
from vla_agents.data.video.frames import Frames, ReaderFrames, VideoFrames, frames_of
from vla_agents.data.video.single import DecoderPool
from vla_agents.errors import DatasetError

FIXTURES = ("v30_main_h264", "v30_main_av1", "v30_main_image", "v21_033_image", "v20_from_v21")


@pytest.fixture(scope="module", params=["lerobot", "hdf5"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EpisodeReader:
    path = tmp_path_factory.mktemp("frames") / request.param
    with create_dataset(path, ARM, request.param, durable=False) as writer:
        for k in range(4):
            record(writer, k)
    return open_dataset(path)


def sources(reader: EpisodeReader) -> dict[str, Frames]:
    return frames_of(reader, reader.embodiment.camera_names, reader.columns())


def whole(reader: EpisodeReader) -> dict[str, np.ndarray]:
    """All pictures, decoded episode by episode."""
    images = [reader.read(k).images for k in range(len(reader))]
    return {name: np.concatenate([each[name] for each in images]) for name in images[0]}


def assert_same(found: dict[str, Frames], expected: dict[str, np.ndarray], seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for name, frames in expected.items():
        assert found[name].shape == frames.shape
        everything = np.arange(len(frames))
        for rows in (
            everything,
            everything[::-1],
            rng.permutation(len(frames)),
            rng.integers(0, len(frames), (5, 3)),  # repeated ones, and any shape
            rng.integers(0, len(frames), ()),
            np.zeros((0, 2), np.int64),
        ):
            assert np.array_equal(found[name][rows], frames[rows])
        for row in rng.permutation(len(frames))[:10]:
            assert np.array_equal(found[name][np.array(row)], frames[row])


def test_any_rows_equal_those_of_whole_episodes(reader: EpisodeReader) -> None:
    found = sources(reader)
    kind = VideoFrames if hasattr(reader, "videos") else ReaderFrames
    assert all(isinstance(frames, kind) for frames in found.values())
    assert_same(found, whole(reader))
    found["front"][np.array([3])][:] = 0  # a copy: augmentation may write to it
    assert found["front"][np.array([3])].any()


@pytest.mark.parametrize("name", FIXTURES)
def test_datasets_of_lerobot(name: str) -> None:
    path = SHARED / "lerobot_datasets" / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    try:
        reader = open_dataset(path)
    except DatasetError as error:
        pytest.skip(f"not read by this version: {error.problem}")
    assert_same(sources(reader), whole(reader))


def make_video(path: Path, count: int, fps: int, options: dict[str, str]) -> None:
    """Moving stripes, encoded as somebody else might."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", options
        for k in range(count):
            image = np.zeros((48, 64, 3), np.uint8)
            image[:, (3 * k) % 60 : (3 * k) % 60 + 5] = 255
            image[k % 48] = 128
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    "options",
    [
        {"bf": "3", "g": "12"},
        {"bf": "0", "g": "250"},
        {"bf": "3", "g": "2"},
        {"b-pyramid": "normal", "g": "30"},
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_reordered_frames_and_rare_key_frames(
    tmp_path: Path, options: dict[str, str], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "a.mp4", 60, 25, options)
    if plain:  # nothing is opened with FFmpeg but to see of what kind it is
        monkeypatch.setattr(
            single.VideoFile, "_read_exactly", lambda *a: pytest.fail("not read by its tables")
        )
    else:
        monkeypatch.setattr(single, "index_of", lambda path: None)
    times = np.arange(60) / 25
    expected = decode(tmp_path / "a.mp4", times, 25, (48, 64))
    pool, rng = DecoderPool(), np.random.default_rng(0)
    for rows in (np.arange(60), rng.permutation(60), *rng.integers(0, 60, (30, 3)), *np.arange(60)[:, None]):
        out = np.zeros((len(rows), 48, 64, 3), np.uint8)
        pool.read(tmp_path / "a.mp4", times[rows], 25, (48, 64), out)
        assert np.array_equal(out, expected[rows])


def test_times_between_frames_take_the_nearest_or_are_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 20, 25, {"bf": "0", "g": "2"})
    expected = decode(tmp_path / "a.mp4", np.arange(20) / 25, 25, (48, 64))
    pool, out = DecoderPool(), np.zeros((2, 48, 64, 3), np.uint8)
    pool.read(tmp_path / "a.mp4", np.array([5.1, 5.9]) / 25, 25, (48, 64), out)  # as after rounding or jitter
    assert np.array_equal(out, expected[[5, 6]])
    for bad in ([5.5], [25.0], [19.6]):
        with pytest.raises(DatasetError, match="no frame at"):
            pool.read(tmp_path / "a.mp4", np.array(bad) / 25, 25, (48, 64), out[:1])


def test_few_decoders_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "index_of", lambda path: None)  # as with files that are not plain
    for k in range(5):
        make_video(tmp_path / f"{k}.mp4", 4 + k, 25, {"bf": "0", "g": "2"})
    pool, out = DecoderPool(kept=2), np.zeros((1, 48, 64, 3), np.uint8)
    for k in (0, 1, 2, 3, 4, 0, 3, 3):
        pool.read(tmp_path / f"{k}.mp4", np.array([3 / 25]), 25, (48, 64), out)
        assert len(pool._idle) <= 2
    assert [key[0].name for key in pool._idle] == ["0.mp4", "3.mp4"]
    held = pool._idle[next(iter(pool._idle))]
    pool.close()
    assert not pool._idle and held._container is None


def test_damaged_and_missing_videos(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 40, 25, {"bf": "0", "g": "2"})
    pool, out = DecoderPool(), np.zeros((1, 48, 64, 3), np.uint8)
    with pytest.raises(DatasetError, match=r"b\.mp4: the video is missing"):
        pool.read(tmp_path / "b.mp4", np.zeros(1), 25, (48, 64), out)
    with pytest.raises(DatasetError, match=r"48x64, meta/info\.json says 48x48"):
        pool.read(tmp_path / "a.mp4", np.zeros(1), 25, (48, 48), np.zeros((1, 48, 48, 3), np.uint8))
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"cut\.mp4: the video cannot be decoded"):
        pool.read(tmp_path / "cut.mp4", np.zeros(1), 25, (48, 64), out)
    pool.read(tmp_path / "a.mp4", np.zeros(1), 25, (48, 64), out)  # the others stay usable
    assert out.any()


def test_several_threads(reader: EpisodeReader) -> None:
    found, expected = sources(reader), whole(reader)
    total = sum(length_of(k) for k in range(4))

    def check(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, total, 6)
        return all(np.array_equal(found[name][rows], frames[rows]) for name, frames in expected.items())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(check, range(40)))


def _check_there(found: dict[str, Frames], expected: dict[str, np.ndarray], out: object) -> None:
    """Run in another process."""
    try:
        for seed in range(3):
            assert_same(found, expected, seed)
        out.put("same")  # type: ignore[attr-defined]
    except BaseException as error:
        out.put(repr(error))  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(reader: EpisodeReader, method: str) -> None:
    """Files that are open here, as after a first batch, must not be read on there: the position is shared."""
    found, expected = sources(reader), whole(reader)
    assert_same(found, expected)
    context = multiprocessing.get_context(method)
    out = context.Queue()
    children = [context.Process(target=_check_there, args=(found, expected, out)) for _ in range(2)]
    for child in children:
        child.start()
    assert_same(found, expected, 1)
    for child in children:
        assert out.get(timeout=120) == "same"
        child.join(60)
    assert_same(found, expected, 2)


def test_a_reader_can_be_sent_to_another_process(reader: EpisodeReader) -> None:
    again = pickle.loads(pickle.dumps(reader))
    assert again.read(2).action.tobytes() == reader.read(2).action.tobytes()
    assert len(pickle.dumps(reader)) < 40_000  # without what it holds in memory
