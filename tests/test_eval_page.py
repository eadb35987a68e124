"""The page and the videos: complete, self-contained, and showing what happened."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from fake_env import ENV_ID
from PIL import Image

from vla_agents.agent import ExpertAgent
from vla_agents.envs import make_env, make_vec
from vla_agents.errors import ConfigError
from vla_agents.eval import page as page_module
from vla_agents.eval import video as video_module
from vla_agents.eval.charts import _short, histogram, lines, success_bars
from vla_agents.eval.evaluate import evaluate
from vla_agents.eval.page import Section, read_metrics, write_page
from vla_agents.eval.report import EvalReport
from vla_agents.eval.video import VideoRecorder, caption_frame, tile, write_gif, write_video
from vla_agents.rollout import EpisodeResult, StepEvent


def frames_of(source: Path | io.BytesIO) -> list[np.ndarray]:
    with av.open(str(source) if isinstance(source, Path) else source) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def recorded(folder: Path, count: int, episodes: int = 12, num_envs: int = 3, **options: Any) -> Any:
    env = make_vec(ENV_ID, num_envs, **options) if num_envs > 1 else make_env(ENV_ID, **options)
    recorder = VideoRecorder(folder, count, control_hz=10)
    report = evaluate(env, ExpertAgent(env), range(1, episodes + 1), listeners=[recorder], progress=False)
    env.close()
    return report, recorder.finish()


# ---- videos ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "outcomes"), [(2, "FS"), (5, "FFFSS"), (8, "FFFFSSSS"), (50, "FFFF" + 8 * "S")]
)
def test_videos_show_failures_first_but_not_only(tmp_path: Path, count: int, outcomes: str) -> None:
    report, clips = recorded(tmp_path, count, fail_every=3, max_steps=15)
    assert "".join("S" if clip.success else "F" for clip in clips) == outcomes
    assert sorted(tmp_path.iterdir()) == sorted(clip.path for clip in clips), "no video too many is left"
    truth = {r.seed: r for r in report.episodes}
    for clip in clips:
        assert (clip.success, clip.steps) == (truth[clip.seed].success, truth[clip.seed].steps)
        assert clip.instruction == truth[clip.seed].instruction


def test_a_video_shows_every_step_and_the_outcome(tmp_path: Path) -> None:
    report, clips = recorded(tmp_path, 1, episodes=1, num_envs=1)
    frames = frames_of(clips[0].path)
    steps = report.episodes[0].steps
    fps = max(4.0, steps / 3)
    assert len(frames) == steps + 1 + round(fps), "one per observation, and a second of the outcome"
    assert frames[0].shape[1] == 2 * 256 + 4, "two cameras of 16 pixels, 16 times enlarged, side by side"
    red, green, blue = frames[-1][1, 100].astype(int)
    assert green > red + 60 and green > blue, "a green frame at the end"
    assert frames[0][1, 100].max() < 60, "and none at the beginning"
    assert frames[0][262:280].max() > 150, "the instruction is written underneath"


def test_a_video_begins_with_the_reset_and_ends_with_what_came_of_it(tmp_path: Path) -> None:
    def seen(grey: int) -> dict[str, Any]:
        return {"images": {"front": np.full((16, 16, 3), grey, np.uint8)}, "instruction": "x"}

    recorder = VideoRecorder(tmp_path, 1)
    recorder.on_reset(0, 7, seen(30), {})
    for step in range(3):
        ended = step == 2
        event = StepEvent(seen(30 + 60 * step), np.zeros(4), 0.0, ended, False, {}, 0.0, seen(90 + 60 * step))
        recorder.on_step(0, event)
    recorder.on_end(0, EpisodeResult(7, "", "x", True, 3, 0.0, True, False, 1.0))
    shown = [int(frame[100, 100, 0]) for frame in frames_of(recorder.finish()[0].path)]
    assert shown[:4] == pytest.approx([30, 90, 150, 210], abs=4) and set(shown[4:]) <= set(range(206, 215))


def test_long_episodes_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "MEMORY", 10 * 2 * 16 * 16 * 3)  # ten steps
    held = []
    add = video_module._Take.add

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        add(self, *args, **kwargs)
        held.append(len(self.frames))
        assert self.steps == sorted(self.steps) and len(self.steps) == len(self.frames)

    monkeypatch.setattr(video_module._Take, "add", watched)
    _, clips = recorded(tmp_path, 1, episodes=1, num_envs=1, fail_every=1, max_steps=75)
    assert max(held) <= 11 and held[-1] >= 6
    assert 6 <= len(frames_of(clips[0].path)) - round(10 * held[-1] / 76) <= 11


def test_envs_without_cameras_have_no_videos(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path / "v", 2)
    recorder.on_reset(0, 1, {"state": np.zeros(3), "instruction": "x"}, {})
    assert recorder.finish() == [] and not (tmp_path / "v").exists()


def test_tile_enlarges_without_smoothing() -> None:
    small, large = np.zeros((8, 8, 3), np.uint8), np.full((20, 10, 3), 255, np.uint8)
    small[0, 0] = 200
    picture = tile({"a": small, "b": large}, height=20)
    assert picture.shape == (20, 16 + 4 + 10, 3)
    assert (picture[:2, :2] == 200).all() and not picture[2:16, :16].any()
    assert (picture[:, 20:] == 255).all()
    with pytest.raises(ConfigError, match="camera"):
        tile({})


@pytest.mark.parametrize("text", ["", "short", "put the very red block " * 9, "Ünïcode 請 🤖"])
def test_captions_fit(text: str) -> None:
    picture = caption_frame(np.zeros((33, 101, 3), np.uint8), text, "step 1/2", True)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert picture.shape[0] > 33 and picture[:33, :101].any()


def test_mp4_keeps_size_rate_and_colours(tmp_path: Path) -> None:
    frames = [np.full((31, 45, 3), (200, 40 * k, 30), np.uint8) for k in range(5)]
    write_video(tmp_path / "new" / "a.mp4", frames, 7.5)
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 7.5
    found = frames_of(tmp_path / "new" / "a.mp4")
    assert len(found) == 5 and found[0].shape == (32, 46, 3)
    for want, got in zip(frames, found, strict=True):
        assert np.abs(want[5, 5].astype(int) - got[5, 5]).max() < 12
    with pytest.raises(ConfigError, match="at least one frame"):
        write_video(tmp_path / "b.mp4", [], 10)


def test_gif(tmp_path: Path) -> None:
    frames = [np.full((20, 30, 3), (250 - 40 * k, 10, 40 * k), np.uint8) for k in range(6)]
    write_gif(tmp_path / "a.gif", frames, 10)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"], image.info["loop"]) == (
            6,
            (30, 20),
            100,
            0,
        )  # type: ignore[attr-defined]
        image.seek(5)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frames[5]).max() < 24
    with pytest.raises(ConfigError, match="at least one frame"):
        write_gif(tmp_path / "b.gif", [], 10)


# ---- plots -----------------------------------------------------------------------------------------------
def svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_bars_have_the_length_of_the_rate() -> None:
    root = svg(success_bars([("a < b", 3, 4, 0.3, 0.95), ("none", 0, 0, 0.0, 1.0)]))
    track = float(root.findall(".//rect[@class='track']")[0].get("width", ""))
    widths = [float(bar.get("width", "")) for bar in root.findall(".//rect[@class='ok']")]
    assert widths == pytest.approx([0.75 * track, 0.0], abs=0.06)
    assert "a < b: 75.0 % (3/4), 95 % interval 30.0 - 95.0 %" in [t.text for t in root.iter("title")]


def test_long_labels_keep_what_tells_them_apart() -> None:
    names = ["pick_up_the_milk_and_place_it_in_the_basket", "pick_up_the_ketchup_and_place_it_in_the_basket"]
    shown = [
        t.text
        for t in svg(success_bars([(n, 1, 1, 0.2, 1.0) for n in names])).findall(".//text[@class='label']")
    ]
    assert shown[::2] == ["milk", "ketchup"]
    alone = svg(success_bars([(names[0], 1, 1, 0.2, 1.0)])).find(".//text[@class='label']")
    assert alone is not None and alone.text == "pick_up_the_milk_an…"
    same = svg(success_bars([(names[0], 1, 1, 0.2, 1.0)] * 2))
    assert len(same.findall(".//rect[@class='ok']")) == 2
    assert _short(["put_the_red_block_on_it", "put_the_ring_on_it"], 8) == ["red_blo…", "ring"], "whole words"


def test_histogram_counts() -> None:
    root = svg(histogram([5, 5, 6, 30], [30, 30, 31]))
    titles = [t.text for t in root.iter("title")]
    counts = [tuple(map(int, re.findall(r"(\d+) succeeded, (\d+) failed", t or "")[0])) for t in titles]
    assert np.sum(counts, axis=0).tolist() == [4, 3]
    assert histogram([], []) == ""
    svg(histogram([7.0], []))


def test_lines_leave_out_what_cannot_be_drawn() -> None:
    points = [(0, 1.0), (1, float("nan")), (2, 0.1), (3, 0.0), (4, float("inf"))]
    path = svg(lines({"loss": points}, logarithmic=True)).find(".//path[@class='line']")
    assert path is not None and len((path.get("d") or "").split("L")) == 2
    assert lines({"loss": [(0, float("nan"))]}) == "" and lines({}) == ""
    svg(lines({"flat": [(0, 2.0), (1, 2.0)], "one": [(0, 2.0)]}))
    long = svg(lines({"x": [(k, float(k)) for k in range(10_000)]})).find(".//path[@class='line']")
    assert long is not None and 100 < len((long.get("d") or "").split("L")) <= 300


# ---- the page --------------------------------------------------------------------------------------------
class Checker(HTMLParser):
    """Every tag closed, and no resource from elsewhere."""

    EMPTY = frozenset({"meta", "br", "img", "rect", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "poster")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.EMPTY

    def handle_data(self, data: str) -> None:
        self.text += data


def check(path: Path) -> Checker:
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert not re.search(r"(?:https?:)?//(?!\s)[a-z]", re.sub(r"base64,[^\"]*", "", text)), (
        "nothing from elsewhere"
    )
    assert "$" not in re.sub(r"base64,[^\"]*", "", text), "every placeholder is filled"
    return checker


def test_page_compares_reports_and_embeds_videos(tmp_path: Path) -> None:
    good, clips = recorded(tmp_path / "videos", 2, fail_every=5, max_steps=15)
    worse, _ = recorded(tmp_path / "none", 0, fail_every=2, max_steps=15)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        "".join(json.dumps({"step": k, "loss": 1 / (k + 1), "success": k / 9}) + "\n" for k in range(10))
    )
    sections = [Section("trained <i>", good, "A note & more.", clips), Section("swapped", worse)]
    write_page(tmp_path / "new" / "page.html", sections, title="Demo", intro="Intro.", metrics=metrics)
    checker = check(tmp_path / "new" / "page.html")
    for expected in (
        "Demo",
        "Intro.",
        "trained <i>",
        "A note & more.",
        "83.3 %",
        "50.0 %",
        "Loss (log scale)",
    ):
        assert expected in checker.text
    assert "Success during training" in checker.text and "red" in checker.text
    assert len(checker.sources) == 2
    data = base64.b64decode(checker.sources[0].removeprefix("data:video/mp4;base64,"))
    assert data == clips[0].path.read_bytes() and frames_of(io.BytesIO(data))


def test_many_videos_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, clips = recorded(tmp_path / "my videos", 2)
    monkeypatch.setattr(page_module, "EMBED", 1000)
    write_page(tmp_path / "page.html", [Section("a", report, clips=clips)])
    sources = check(tmp_path / "page.html").sources
    assert all((tmp_path / source).read_bytes() for source in sources) and len(sources) == 2


def test_page_of_nothing(tmp_path: Path) -> None:
    write_page(
        tmp_path / "page.html", [Section("a", EvalReport((), partial=True))], metrics=tmp_path / "none"
    )
    assert "Interrupted" in check(tmp_path / "page.html").text
    write_page(tmp_path / "page.html", [])


def test_metrics_with_a_line_cut_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2.0, "note": "x", "good": true}\n\n{"loss": 1}\n[1]\n'
        '{"step": 2, "loss": 1.5}\n{"st'
    )
    assert read_metrics(path) == {"loss": [(1.0, 2.0), (2.0, 1.5)]}
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "line 3 is not an entry with a step, it is left out",
        "line 4 is not an entry with a step, it is left out",
        "line 6 is not an entry with a step, it is left out",
    ]
