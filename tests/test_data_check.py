"""`data check`: each defect is found where it was planted, and clean data raise no alarm."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from data_examples import SHARED

from vla_agents.cli import main
from vla_agents.data import Step, create_dataset, open_dataset
from vla_agents.data.check import Report, check_dataset, copy_without
from vla_agents.data.check.files import frame_times
from vla_agents.data.check.findings import numbers_without
from vla_agents.embodiment import Camera, Embodiment, Part

JOINTS = tuple(Part(f"joint_{k}", 1, "joint_position", -3, 3, "rad") for k in range(3))
ARM = Embodiment("arm", JOINTS, JOINTS, (Camera("front", 32, 48), Camera("wrist", 32, 48)), 20.0)
Edit = Callable[[int, list[Step]], list[Step]]
LENGTH = 40


def clean(seed: int, length: int = LENGTH) -> list[Step]:
    """A smooth motion; the state follows the action by a step, a block in the pictures follows the state."""
    rng = np.random.default_rng(seed)
    phase, speed = rng.uniform(0, 6, 3), rng.uniform(1, 2, 3)
    path = np.sin(phase + speed * 0.05 * np.arange(length + 1)[:, None] * 2).astype(np.float32)
    steps = []
    for t in range(length):
        images = {}
        for n, name in enumerate(ARM.camera_names):
            picture = np.full((32, 48, 3), 40, np.uint8)
            x = 16 + round(14 * float(path[t, n]))
            picture[8 + 4 * n : 20, x : x + 12] = (220, 60 + 90 * n, t * 3)
            images[name] = picture
        time = 100.0 + 10 * seed + 0.05 * t + float(rng.normal(0, 5e-4))
        steps.append(Step(images, path[t], path[t + 1], truncated=t == length - 1, time=time))
    return steps


def make(
    path: Path, edit: Edit | None = None, kind: str = "hdf5", words: str | None = None, n: int = 4
) -> Path:
    with create_dataset(path, ARM, kind, durable=False) as writer:
        for k in range(n):
            steps = clean(k) if edit is None else edit(k, clean(k))
            writer.begin("pick up the cup" if words is None or k != 2 else words)
            for step in steps:
                writer.add(step)
            writer.save(True)
    return path


def check(path: Path, images: str = "off") -> Report:
    return check_dataset(open_dataset(path), images=images)  # type: ignore[arg-type]


def only(report: Report, name: str, episode: int | None) -> None:
    """This finding, in this episode, and no other error or warning."""
    bad = [(f.check, f.episode) for f in report.findings if f.severity != "note"]
    assert set(bad) == {(name, episode)}, report.findings


@pytest.mark.parametrize("kind", ["hdf5", "lerobot"])
def test_clean_data_raise_no_alarm(tmp_path: Path, kind: str) -> None:
    report = check(make(tmp_path / "set", kind=kind), "all")
    assert {f.check for f in report.findings} == {"lag"} and report.findings[0].value == 1
    assert report.pictures == 4 * LENGTH * 2 and report.steps == 4 * LENGTH


def in_episode(number: int, change: Callable[[list[Step]], list[Step]]) -> Edit:
    return lambda k, steps: change(steps) if k == number else steps


def with_field(at: range, **given: object) -> Edit:
    return in_episode(
        2,
        lambda steps: [replace(s, **given) if t in at else s for t, s in enumerate(steps)],  # type: ignore[arg-type]
    )


def moved(steps: list[Step], vector: str, at: int, by: float) -> list[Step]:
    value = getattr(steps[at], vector).copy()
    value[1] += by
    return [replace(s, **{vector: value}) if t == at else s for t, s in enumerate(steps)]


DEFECTS: dict[str, tuple[Edit, int | None]] = {
    "state_jump": (in_episode(2, lambda s: moved(s, "state", 17, 1.5)), 17),
    "action_jump": (in_episode(2, lambda s: moved(s, "action", 9, -1.6)), 9),
    "action_zero": (with_field(range(LENGTH), action=np.zeros(3, np.float32)), 0),
    "action_constant": (with_field(range(LENGTH), action=np.ones(3, np.float32)), 0),
    "state_constant": (with_field(range(LENGTH), state=np.ones(3, np.float32)), 0),
    "time_order": (in_episode(2, lambda s: [replace(x, time=99.0) if t == 7 else x for t, x in enumerate(s)]), 7),
    "rate": (in_episode(2, lambda s: [replace(x, time=x.time + 0.02 * t) for t, x in enumerate(s)]), None),
    "gap": (in_episode(2, lambda s: [replace(x, time=x.time + 0.4 * (t > 20)) for t, x in enumerate(s)]), 21),
    "jitter": (in_episode(2, lambda s: [replace(x, time=x.time + 0.02 * (t % 2)) for t, x in enumerate(s)]), None),
    "camera_late": (
        lambda k, s: [
            replace(x, camera_times={"front": x.time - 0.01, "wrist": x.time - (0.5 if (k, t) == (2, 11) else 0.01)})
            for t, x in enumerate(s)
        ],
        11,
    ),
    "repeated_frame": (with_field(range(5, 9), repeated=True), 5),
    "too_short": (in_episode(2, lambda s: s[:1]), None),
    "duplicate": (lambda k, s: clean(0) if k == 2 else s, None),
    "near_duplicate": (lambda k, s: clean(0)[:36] if k == 2 else s, None),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(tmp_path: Path, name: str) -> None:
    edit, step = DEFECTS[name]
    report = check(make(tmp_path / "set", edit))
    extra = {"camera_late": "camera_order"}.get(name)  # a late picture among prompt ones goes back in time
    bad = {(f.check, f.episode) for f in report.findings if f.severity != "note"}
    assert bad - {(extra, 2)} == {(name, 2)}, report.findings
    found = next(f for f in report.findings if f.check == name)
    assert found.remedy and (step is None or found.step == step)
    if found.leave_out:
        assert found.command.endswith("--episodes 0:2,3")


def test_values_beyond_the_limits(tmp_path: Path) -> None:
    def edit(k: int, steps: list[Step]) -> list[Step]:
        return [replace(s, state=s.state * 3.2) for s in steps]  # type: ignore[operator]

    report = check(make(tmp_path / "set", edit))
    found = [f for f in report.findings if f.check == "state_limit"]
    assert found and all(abs(f.value or 0) > 3 for f in found) and "allows -3 to 3" in found[0].message
    assert {f.check for f in report.findings} <= {"state_limit", "lag"}


def test_no_alarm_for_a_gripper_that_switches_or_an_angle_that_wraps(tmp_path: Path) -> None:
    body = Embodiment(
        "arm",
        (Part("move", 3, "delta_xyz"), Part("grip", 1, "gripper_close_pm1")),
        (Part("turn", 3, "axis_angle"), Part("lie", 4, "quaternion_xyzw"), Part("roll", 3, "euler_xyz")),
        (),
    )
    with create_dataset(tmp_path / "set", body, "hdf5", durable=False) as writer:
        for k in range(3):
            rng = np.random.default_rng(k)
            writer.begin("go")
            for t in range(60):
                angle = np.pi + 0.02 * (t - 30)  # beyond pi it is written the other way round
                sign = -1.0 if angle > np.pi else 1.0
                turn = np.array([0, 0, angle if sign > 0 else angle - 2 * np.pi])
                lie = sign * np.array([0, 0, np.sin(angle / 2), np.cos(angle / 2)])
                state = np.concatenate([turn, lie, turn]).astype(np.float32)
                action = np.r_[rng.normal(0, 0.1, 3), 1.0 if t > 50 else -1.0].astype(np.float32)
                writer.add(Step({}, state, action, time=t * 0.05))
            writer.save(True)
    checks = {f.check for f in check(tmp_path / "set").findings}
    assert not any("jump" in name or "outlier" in name for name in checks), checks


def test_an_outlying_difference(tmp_path: Path) -> None:
    body = Embodiment("arm", (Part("move", 3, "delta_xyz"),), (), (), 20.0)
    with create_dataset(tmp_path / "set", body, "hdf5", durable=False) as writer:
        for k in range(4):
            rng = np.random.default_rng(k)
            writer.begin("go")
            for t in range(40):
                action = rng.normal(0, 0.1, 3).astype(np.float32)
                action[1] += 8.0 * ((k, t) == (1, 13))
                writer.add(Step({}, None, action, time=t * 0.05))
            writer.save(True)
    report = check(tmp_path / "set")
    only(report, "action_outlier", 1)
    assert report.findings[0].step == 13 and "move.1" in report.findings[0].message


def test_an_action_that_was_recorded_late(tmp_path: Path) -> None:
    def edit(k: int, steps: list[Step]) -> list[Step]:
        return [replace(s, action=steps[max(0, t - 2)].state) for t, s in enumerate(steps)]  # type: ignore[arg-type]

    def noisy(k: int, steps: list[Step]) -> list[Step]:  # a smooth sine looks alike at all shifts
        rng = np.random.default_rng(k)
        walk = np.cumsum(rng.normal(0, 0.05, (LENGTH, 3)), axis=0).astype(np.float32)
        return edit(k, [replace(s, state=walk[t]) for t, s in enumerate(steps)])

    report = check(make(tmp_path / "set", noisy))
    found = next(f for f in report.findings if f.check == "lag")
    assert found.severity == "warning" and found.value == -2


def test_words(tmp_path: Path) -> None:
    only(check(make(tmp_path / "empty", words="  ")), "no_instruction", 2)
    report = check(make(tmp_path / "alike", words="Pick up  the cup."))
    assert next(f for f in report.findings if f.check == "wording").count == 2


def test_success_that_nobody_judged(tmp_path: Path) -> None:
    with create_dataset(tmp_path / "set", ARM, "hdf5", durable=False) as writer:
        for k in range(2):
            writer.begin("go")
            for step in clean(k):
                writer.add(step)
            writer.save(None if k else True)
    found = next(f for f in check(tmp_path / "set").findings if f.check == "no_success")
    assert (found.severity, found.episode, found.step, found.count) == ("note", 1, None, 1)


@pytest.mark.parametrize("images", ["sample", "all"])
def test_pictures(tmp_path: Path, images: str) -> None:
    def freeze(steps: list[Step]) -> list[Step]:
        frozen = steps[12].images["wrist"]
        return [
            replace(s, images={**s.images, "wrist": frozen}) if 12 <= t < 30 else s
            for t, s in enumerate(steps)
        ]

    def black(steps: list[Step]) -> list[Step]:
        return [
            replace(s, images={n: p * 0 if t == 0 else p for n, p in s.images.items()})
            for t, s in enumerate(steps)
        ]

    def same(steps: list[Step]) -> list[Step]:
        return [replace(s, images=dict.fromkeys(ARM.camera_names, s.images["front"])) for s in steps]

    report = check(make(tmp_path / "frozen", in_episode(2, freeze), "lerobot"), images)
    only(report, "frozen_picture", 2)
    assert "wrist" in report.findings[0].message
    only(check(make(tmp_path / "black", in_episode(2, black)), images), "black_picture", 2)
    only(check(make(tmp_path / "same", in_episode(2, same)), images), "same_cameras", 2)


def test_nan(tmp_path: Path) -> None:
    import h5py

    path = make(tmp_path / "set")
    file = sorted(path.rglob("*.hdf5"))[2]
    with h5py.File(file, "r+") as content:
        names: list[str] = []
        content.visit(lambda name: names.append(name))
        action = content[next(n for n in names if n.split("/")[-1] == "action")]
        action[6, 1] = np.nan
    report = check(path)
    only(report, "not_finite", 2)
    assert report.findings[0].severity == "error" and report.findings[0].step == 6


def shorter(video: Path, keep: int) -> None:
    """The same video with fewer frames, stamped one after the other: what a recorder that drops frames leaves."""
    import av

    cut = video.with_suffix(".cut.mp4")
    with av.open(str(video)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream("libx264", rate=20, options={"bf": "0"})
        out.width, out.height, out.pix_fmt = stream.width, stream.height, "yuv420p"  # type: ignore[attr-defined]
        for k, frame in enumerate(source.decode(stream)):
            if k < keep:
                plain = frame.reformat(format="yuv420p")
                plain.pts, plain.time_base = k, Fraction(1, 20)
                target.mux(out.encode(plain))  # type: ignore[attr-defined]
        target.mux(out.encode(None))  # type: ignore[attr-defined]
    cut.replace(video)


def test_dropped_frames_without_decoding(tmp_path: Path) -> None:
    path = make(tmp_path / "set", kind="lerobot")
    video = sorted((path / "videos").rglob("*.mp4"))[2]
    assert len(frame_times(video)) == LENGTH
    shorter(video, LENGTH - 9)
    report = check(path)
    only(report, "missing_frames", 2)
    found = report.findings[0]
    assert found.count == 9 and found.step == LENGTH - 9 and found.severity == "error"
    video.write_bytes(video.read_bytes()[:200])
    only(check(path), "video", 2)


def test_statistics_that_contradict_the_numbers(tmp_path: Path) -> None:
    path = make(tmp_path / "set", kind="lerobot")
    file = path / "meta" / "stats.json"
    content = json.loads(file.read_text())
    content["action"]["max"][1] = 7.0
    file.write_text(json.dumps(content))
    report = check(path)
    only(report, "statistics", None)
    assert "max of dimension 1 is 7" in report.findings[0].message
    file.write_text("[")
    assert next(f for f in check(path).findings if f.check == "statistics").severity == "error"


def test_stamps_that_are_not_the_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = make(tmp_path / "set", kind="lerobot")
    file = sorted((path / "data").rglob("*.parquet"))[2]
    table = pq.read_table(file)
    stamps = table["timestamp"].to_numpy().copy()
    stamps[10:] += 0.05
    at = table.schema.get_field_index("timestamp")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(stamps)), file)
    found = {(f.check, f.episode, f.step) for f in check(path).findings if f.severity == "error"}
    assert ("timestamp", 2, 10) in found


@pytest.mark.parametrize("name", ["v20_from_v21", "v21_033_image", "v30_main_h264"])
def test_what_lerobot_wrote_raises_no_alarm(name: str) -> None:
    path = SHARED / "lerobot_datasets" / name
    if not path.exists():
        pytest.skip("../shared/lerobot_datasets is not there")
    assert not check(path, "all").findings


def test_demonstrations_of_the_tabletop_raise_no_alarm(tmp_path: Path) -> None:
    assert main(["collect", "--out", str(tmp_path / "set"), "--episodes", "6", "--no-durable"]) == 0
    found = check(tmp_path / "set", "all").findings
    assert {f.severity for f in found} == {"note"}, found
    assert {f.check for f in found} <= {"simulated", "constant_dimension"}, found


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "set", DEFECTS["time_order"][0])
    assert main(["data", "check", str(path), "--json", str(tmp_path / "found.json"), "--fix-hints"]) == 1
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "1 errors, 0 warnings, 1 notes" in text and "--to hdf5 --episodes 0:2,3" in text
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["counts"] == {"error": 1, "warning": 0, "note": 1}
    assert content["findings"][0]["check"] == "time_order" and content["findings"][0]["step"] == 7
    command = next(f.command for f in check(path).findings if f.command).split()
    assert main(command[1:]) == 0  # what it says works, and mends it
    assert main(["data", "check", command[4]]) == 0


def test_numbers_without() -> None:
    assert numbers_without([4, 6], 10) == "0:4,5,7:10" and numbers_without([0], 1) == ""
    report = Report(Path("a b"), "x", 1, 1, "off")
    assert copy_without(report, "hdf5") == ""
