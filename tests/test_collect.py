"""Recording: what is in a dataset, what survives an interruption, what resuming leads to."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_env import ENV_ID, make_embodiment
from rich.console import Console
from rich.text import Text

from vla_agents import progress
from vla_agents.agent import ExpertAgent
from vla_agents.collect import collect as collect_module
from vla_agents.collect.collect import CollectConfig, CollectResult, collect
from vla_agents.collect.recorder import Recorder
from vla_agents.collect.space import expected_bytes, meter
from vla_agents.config import load_config
from vla_agents.data import atomic, create_dataset, open_dataset
from vla_agents.data.episode import Step
from vla_agents.data.recording.status import RecordingStatus
from vla_agents.embodiment import Embodiment
from vla_agents.envs import make_env, make_vec
from vla_agents.envs.wrappers import ActionNoise
from vla_agents.errors import (
    ActionError,
    ConfigError,
    DatasetExistsError,
    ObservationError,
    RecordingError,
    UnknownNameError,
)
from vla_agents.eval.compare import compare
from vla_agents.eval.page import Section, write_page
from vla_agents.eval.report import EvalReport
from vla_agents.rollout import rollout


def config(out: Path, **changes: Any) -> CollectConfig:
    values: dict[str, Any] = {"env": ENV_ID, "episodes": 6, "format": "hdf5", "durable": False}
    return CollectConfig(out=out, **(values | changes))


def run(out: Path, **changes: Any) -> Any:
    return collect(config(out, **changes), console=Console(file=io.StringIO()), progress=False)


def content(path: Path) -> list[dict[str, Any]]:
    """All that is in a dataset but for the capture times."""
    reader = open_dataset(path)
    episodes = [reader.read(index) for index in range(len(reader))]
    return [
        {
            "instruction": e.instruction,
            "success": e.success,
            "seed": e.metadata["seed"],
            "images": {name: frames.tobytes() for name, frames in e.images.items()},
            "vectors": [
                None if v is None else v.tobytes()
                for v in (e.state, e.action, e.executed, e.reward, e.terminated, e.truncated)
            ],
        }
        for e in episodes
    ]


class MemoryWriter:
    """An `EpisodeWriter` that keeps everything in lists."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
        self.saved: list[tuple[str, dict[str, Any], list[Step], bool | None]] = []
        self.discarded = 0
        self._open: tuple[str, dict[str, Any], list[Step]] | None = None

    def begin(self, instruction: str, metadata: dict[str, Any] | None = None) -> None:
        assert self._open is None
        self._open = (instruction, dict(metadata or {}), [])

    def add(self, step: Step) -> None:
        step.check(self.embodiment)
        assert self._open is not None
        self._open[2].append(step)

    def save(self, success: bool | None = None) -> int:
        assert self._open is not None
        self.saved.append((*self._open, success))
        self._open = None
        return len(self.saved) - 1

    def discard(self) -> None:
        self.discarded += self._open is not None
        self._open = None

    def close(self) -> None:
        self.discard()


# ---- the recorder ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("slots", [1, 4])
def test_recorder_keeps_the_order_of_the_seeds(slots: int) -> None:
    env = make_vec(ENV_ID, slots, fail_every=3) if slots > 1 else make_env(ENV_ID, fail_every=3)
    writer = MemoryWriter(make_embodiment())
    recorder = Recorder(writer, slots=slots, metadata={"operator": "ada"})
    results = rollout(env, ExpertAgent(env), range(1, 11), [recorder])
    env.close()
    assert [metadata["seed"] for _, metadata, _, _ in writer.saved] == list(range(1, 11))
    assert [success for *_, success in writer.saved] == [seed % 3 != 0 for seed in range(1, 11)]
    assert [len(steps) for _, _, steps, _ in writer.saved] == [r.steps for r in results]
    instruction, metadata, steps, _ = writer.saved[0]
    assert metadata == {"operator": "ada", "seed": 1, "task": metadata["task"], "renderer": "none"}
    assert metadata["task"] in instruction
    assert [step.terminated for step in steps] == [False] * (len(steps) - 1) + [True]
    assert np.all(np.diff([step.time for step in steps]) > 0)
    assert (recorder.saved, recorder.ended, recorder.succeeded) == (10, 10, 7)
    assert recorder.steps == sum(r.steps for r in results)


@pytest.mark.parametrize("slots", [1, 4])
def test_recorder_drops_failures_and_stops_at_the_limit(slots: int) -> None:
    env = make_vec(ENV_ID, slots, fail_every=3) if slots > 1 else make_env(ENV_ID, fail_every=3)
    writer = MemoryWriter(make_embodiment())
    recorder = Recorder(writer, only_success=True, limit=5, slots=slots)
    rollout(env, ExpertAgent(env), range(1, 11), [recorder])
    env.close()
    assert [metadata["seed"] for _, metadata, _, _ in writer.saved] == [1, 2, 4, 5, 7]
    assert all(success for *_, success in writer.saved)


@pytest.mark.parametrize("disturbed", [False, True])
def test_the_label_is_what_was_sent_unless_it_was_disturbed_on_purpose(disturbed: bool) -> None:
    class Limited(type(make_env(ENV_ID).unwrapped)):  # type: ignore[misc]
        """A body whose driver lets no value over 0.5 through."""

        def step(self, action: Any) -> Any:
            sent = np.clip(action, -0.5, 0.5)
            *rest, info = super().step(sent)
            return *rest, info | {"sent": sent}

    env: Any = ActionNoise(Limited(), std=0.4) if disturbed else Limited()
    asked: list[np.ndarray] = []

    class Noted(ExpertAgent):
        def act(self, obs: Any) -> np.ndarray:
            asked.append(super().act(obs))
            return asked[-1]

    writer = MemoryWriter(make_embodiment())
    rollout(env, Noted(env), [3], [Recorder(writer)])
    steps = writer.saved[0][2]
    assert len(steps) == len(asked) and max(np.abs(a).max() for a in asked) > 0.5
    for step, said in zip(steps, asked, strict=True):
        if disturbed:
            assert np.array_equal(step.action, said) and step.commanded is None
            assert step.executed is not None and np.abs(step.executed).max() <= 0.5
        else:
            assert np.array_equal(step.action, np.clip(said, -0.5, 0.5)) and step.executed is None
            limited = not np.array_equal(step.action, said)
            assert (step.commanded is not None) == limited
            assert not limited or np.array_equal(step.commanded, said)  # type: ignore[arg-type]
    assert disturbed or any(step.commanded is not None for step in steps)


def test_recorder_takes_the_real_times_of_observations() -> None:
    class Timed(type(make_env(ENV_ID).unwrapped)):  # type: ignore[misc]
        """Says when the observation it gives was taken."""

        def _stamped(self, info: dict[str, Any]) -> dict[str, Any]:
            times = {"state": 100.0 + self._steps, "front": 99.5 + self._steps, "wrist": float("-inf")}
            return info | {"capture_times": times}

        def reset(self, **options: Any) -> Any:
            obs, info = super().reset(**options)
            return obs, self._stamped(info)

        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, self._stamped(info)

    writer = MemoryWriter(make_embodiment())
    env = Timed()
    rollout(env, ExpertAgent(env), [1], [Recorder(writer)])
    steps = writer.saved[0][2]
    assert [step.time for step in steps] == [100.0 + k for k in range(len(steps))]
    assert [step.camera_times for step in steps] == [{"front": 99.5 + k} for k in range(len(steps))]


def test_recorder_does_not_invent_a_judgement(tmp_path: Path) -> None:
    class Unjudged(type(make_env(ENV_ID).unwrapped)):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, {"task": info["task"]}

    writer = MemoryWriter(make_embodiment())
    env = Unjudged()
    recorder = Recorder(writer)
    (result,) = rollout(env, ExpertAgent(env), [1], [recorder])
    assert writer.saved[0][3] is None and not result.judged
    assert (recorder.ended, recorder.judged, recorder.succeeded) == (1, 0, 0)
    report = EvalReport((result,))
    assert "1 of 1 episodes were judged by nobody" in report.summary()
    assert (report.overall.episodes, report.overall.unjudged, report.overall.mean_steps) == (
        0,
        1,
        result.steps,
    )
    with pytest.raises(ConfigError, match="no episode that both"):
        compare(report, report)
    write_page(tmp_path / "page.html", [Section("of nobody", report)])
    assert "nobody judged it" in (tmp_path / "page.html").read_text()


def test_the_share_of_successes_is_one_of_those_that_were_judged() -> None:
    def outcome(ended: int, judged: int, succeeded: int) -> str:
        return CollectResult(Path("d"), ended, ended, ended, judged, succeeded, 0, 0.0).outcome

    assert outcome(4, 4, 2) == "success 50.0 %"
    assert outcome(4, 2, 2) == "success 100.0 % of the 2 that were judged"
    assert outcome(4, 0, 0) == "nobody judged success"


@pytest.mark.parametrize("slots", [1, 3])
def test_an_aborted_episode_is_dropped(slots: int) -> None:
    class Impatient(ExpertAgent):
        left = 14

        def act(self, obs: Any) -> np.ndarray:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().act(obs)

    env = make_vec(ENV_ID, slots) if slots > 1 else make_env(ENV_ID)
    writer = MemoryWriter(make_embodiment())
    with pytest.raises(KeyboardInterrupt):
        rollout(env, Impatient(env), range(100), [Recorder(writer, slots=slots)])
    saved = [metadata["seed"] for _, metadata, _, _ in writer.saved]
    assert saved == list(range(len(saved))) and saved, "no gap, so that one can go on after the last seed"
    writer.begin("the writer is free again")


# ---- collect ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("format", ["hdf5", "lerobot"])
def test_collect_records_what_the_expert_does(tmp_path: Path, format: str) -> None:
    result = run(tmp_path / "d", format=format, env_args={"task": "red"}, seed=20)
    assert (result.episodes, result.recorded, result.ended, result.success) == (6, 6, 6, 1.0)
    reader = open_dataset(tmp_path / "d")
    assert len(reader) == 6 and reader.embodiment == make_embodiment()
    assert reader.instructions() == ["fly to the red target"] * 6
    assert result.steps == reader.lengths().sum()
    episode = reader.read(2)
    assert episode.success is True
    assert episode.metadata["seed"] == 22
    assert episode.metadata["renderer"] == "none"
    assert episode.metadata["collect"]["env"] == ENV_ID
    assert episode.metadata["collect"]["env_args"] == {"task": "red"}
    assert {"python", "numpy", "vla-agents"} <= episode.metadata["versions"].keys()
    env = make_env(ENV_ID, task="red")
    obs, _ = env.reset(seed=22)
    assert episode.state is not None
    for state, action in zip(episode.state, episode.action, strict=True):
        np.testing.assert_allclose(state, obs["state"], atol=1e-6)
        np.testing.assert_allclose(action, env.unwrapped.expert_action(), atol=1e-6)  # type: ignore[attr-defined]
        obs, *_ = env.step(action)
    assert load_config(CollectConfig, tmp_path / "d" / "run.yaml") == config(
        tmp_path / "d", format=format, env_args={"task": "red"}, seed=20
    )


def test_noise_is_in_what_was_executed_and_not_in_the_label(tmp_path: Path) -> None:
    run(tmp_path / "d", noise=0.2, noise_dims=2)
    episode = open_dataset(tmp_path / "d").read(0)
    assert episode.executed is not None and episode.state is not None
    away = np.abs(episode.executed - episode.action)
    assert away[:, :2].max() > 0.05 and away[:, 2:].max() == 0
    moved = np.diff(episode.state, axis=0)
    np.testing.assert_allclose(moved, 0.1 * episode.executed[:-1, :3], atol=1e-6)


def test_failures_are_kept_for_all_but_the_expert(tmp_path: Path) -> None:
    options: dict[str, Any] = {"env_args": {"fail_every": 2, "max_steps": 12}}
    result = run(tmp_path / "expert", **options)
    assert result.episodes == 6 and result.ended == 12 and result.succeeded == 6
    assert [e["seed"] for e in content(tmp_path / "expert")] == [1, 3, 5, 7, 9, 11]
    run(tmp_path / "random", agent="random", **options)
    assert [e["seed"] for e in content(tmp_path / "random")] == [0, 1, 2, 3, 4, 5]
    run(tmp_path / "all", only_success=False, **options)
    assert [e["success"] for e in content(tmp_path / "all")] == [False, True] * 3


@pytest.mark.parametrize("agent", ["expert", "random"])
def test_resuming_leads_to_the_same_dataset(tmp_path: Path, agent: str) -> None:
    options: dict[str, Any] = {"agent": agent, "noise": 0.1, "env_args": {"fail_every": 4, "max_steps": 15}}
    run(tmp_path / "whole", episodes=8, **options)
    run(tmp_path / "parts", episodes=3, resume=True, **options)
    result = run(tmp_path / "parts", episodes=8, resume=True, **options)
    assert (result.episodes, result.recorded) == (8, 5)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    again = run(tmp_path / "parts", episodes=8, resume=True, **options)
    assert (again.episodes, again.recorded, again.ended) == (8, 0, 0)


def test_collect_says_what_the_dataset_holds(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=60)
    for episodes in (4, 6):
        collect(
            config(tmp_path / "[d]", episodes=episodes, resume=True, seed=1, env_args={"fail_every": 2}),
            console=console,
            progress=False,
        )
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[0].startswith(f"{tmp_path / '[d]'} has 4 episodes: 4 recorded now")
    assert said[1].startswith(f"{tmp_path / '[d]'} has 6 episodes: 2 recorded now") and said[1].endswith(
        "success 50.0 %"
    )


def test_a_disk_that_may_not_suffice_is_told_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(free: float, **changes: Any) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        console = Console(file=io.StringIO(), width=60)
        collect(config(tmp_path / f"{free}{changes}", **changes), console=console, progress=False)
        return console.file.getvalue()  # type: ignore[attr-defined]

    assert "Only" not in said(2e9)
    assert "Only 0.40 GB are free" in said(0.4e9)
    # 2 cameras of 16 x 16, lossless, 40 steps at most: about 70 kB an episode
    assert 4e5 < expected_bytes(make_embodiment(), "hdf5", 6, 40) < 6e5
    assert expected_bytes(make_embodiment(640), "lerobot", 50, 900) == pytest.approx(3.7e9, rel=0.1)


def test_the_meters_of_the_operator() -> None:
    fine = RecordingStatus(3, 20, 0, 0, 0.0, 0, int(61.2e9), None)
    assert meter(fine) == "61.2 GB free"
    late = replace(fine, free=int(0.3e9), waited=4, seconds_waited=0.26, repeated=12)
    plain = Text.from_markup(meter(late)).plain
    assert plain == "0.3 GB free, waited 4x, 0.3 s, 12 pictures repeated"
    assert Text.from_markup(meter(replace(fine, error=RecordingError("full")))).plain.endswith("error")


@pytest.mark.parametrize("width", [80, 140])
def test_the_bar_shows_episodes_steps_and_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(progress, "_REFRESH", 0.0)
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    collect(config(tmp_path / "d"), console=console)
    lines = [x for x in re.split(r"[\r\n]", console.file.getvalue()) if "GB free" in x]  # type: ignore[attr-defined]
    last = Text.from_ansi(lines[-1]).plain
    assert "6/6" in last and "episodes/s" in last and "success 100.0 %" in last and len(last) <= width
    assert ("steps/s" in last) == (width > 100)


@pytest.mark.parametrize("format", ["lerobot", "hdf5"])
def test_on_a_robot_a_full_disk_ends_the_recording_after_the_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """The operator is told at once, the arm finishes what it does, and earlier episodes are intact."""
    ticks: list[int] = []
    env_class = type(make_env(ENV_ID).unwrapped)
    real_step = env_class.step

    def step(self: Any, action: Any) -> Any:
        ticks.append(self._seed)
        return real_step(self, action)

    monkeypatch.setattr(env_class, "step", step)
    monkeypatch.setattr(collect_module, "RobotEnv", env_class)
    console = Console(file=io.StringIO(), width=200)
    real_write = atomic.TempFile.write

    def full(self: Any, data: bytes) -> int:
        if len(ticks) > 25:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(self, data)

    monkeypatch.setattr(atomic.TempFile, "write", full)
    with pytest.raises(RecordingError, match="No space left"):
        collect(config(tmp_path / "d", format=format, episodes=30), console=console, progress=False)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("This episode is not recorded") == 1 and "No space left" in said
    monkeypatch.undo()
    reader = open_dataset(tmp_path / "d")
    saved = len(reader)
    assert 1 <= saved == ticks[-1]  # the episode that was lost was played to its end, and none after it
    lengths = [ticks.count(seed) for seed in range(saved)]
    assert reader.lengths().tolist() == lengths
    if format == "lerobot":
        assert "capture_time.front" in reader.read(0).extras


def test_several_processes_record_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"noise": 0.1, "env_args": {"fail_every": 3, "max_steps": 25}}
    run(tmp_path / "one", **options)
    run(tmp_path / "two", workers=2, **options)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "d")
    with pytest.raises(ConfigError, match=r"noise: there 0\.0, now 0\.3"):
        run(tmp_path / "d", resume=True, noise=0.3, episodes=9)
    with pytest.raises(DatasetExistsError):
        run(tmp_path / "d")
    foreign = create_dataset(tmp_path / "foreign", make_embodiment(), "hdf5")
    env = make_env(ENV_ID)
    rollout(env, ExpertAgent(env), [1], [Recorder(foreign)])
    foreign.close()
    with pytest.raises(ConfigError, match="not recorded by `collect`"):
        run(tmp_path / "foreign", resume=True)
    assert len(open_dataset(tmp_path / "d")) == 6


def test_an_expert_that_never_succeeds_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="50 episodes in a row failed, up to seed 49"):
        run(tmp_path / "d", env_args={"fail_every": 1, "max_steps": 3})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"episodes": 0}, ConfigError, "episodes"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"noise": -0.1}, ConfigError, "noise"),
        ({"workers": 0}, ConfigError, "workers"),
        ({"max_steps": 0}, ConfigError, "max_steps"),
        ({"env_args": {"tsak": "red"}}, ConfigError, "Did you mean 'task'"),
        ({"env_args": {"task": "rad"}}, UnknownNameError, "Did you mean 'red'"),
        ({"env": "vla_agents/Tabeltop-v0"}, UnknownNameError, "Tabletop"),
        ({"agent": "exprt"}, UnknownNameError, "Did you mean 'expert'"),
        ({"format": "zarr"}, UnknownNameError, "zarr"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        run(tmp_path / "d", **changes)


def test_nothing_that_is_not_finite_is_recorded(tmp_path: Path) -> None:
    writer = create_dataset(tmp_path / "d", make_embodiment(), "hdf5")
    env = make_env(ENV_ID)

    class Broken(ExpertAgent):
        def act(self, obs: Any) -> np.ndarray:
            return super().act(obs) * np.float32("nan")

    with pytest.raises(ActionError, match="not finite"):
        rollout(env, Broken(env), [1], [Recorder(writer)])
    broken = type("Sick", (type(env.unwrapped),), {"_observe": _with_nan})()
    with pytest.raises(ObservationError, match=r"state is not finite at index \[1\]"):
        rollout(broken, ExpertAgent(broken), [1], [Recorder(writer)])
    writer.close()
    assert len(open_dataset(tmp_path / "d")) == 0


def _with_nan(self: Any) -> dict[str, Any]:
    from fake_env import FakeEnv

    obs = FakeEnv._observe(self)
    obs["state"][1] = np.nan
    return obs


@pytest.mark.parametrize("format", ["hdf5", "lerobot"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_full_disk_is_a_recording_error_and_costs_one_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, after: int
) -> None:
    run(tmp_path / "d", format=format, episodes=2)
    real, left = os.fsync, [after]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordingError, match="No space left on device") as caught:
        run(tmp_path / "d", format=format, episodes=4, resume=True, durable=True)
    assert "free" in caught.value.remedy
    monkeypatch.setattr(os, "fsync", real)
    assert len(open_dataset(tmp_path / "d")) >= 2
    run(tmp_path / "d", format=format, episodes=4, resume=True)
    run(tmp_path / "whole", format=format, episodes=4)
    assert content(tmp_path / "d") == content(tmp_path / "whole")


_SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import fake_env, time
step = fake_env.FakeEnv.step
fake_env.FakeEnv.step = lambda self, action: (time.sleep(0.01), step(self, action))[1]
from pathlib import Path
from vla_agents.collect.collect import CollectConfig, collect
if __name__ == "__main__":
    collect(CollectConfig(Path({out!r}), fake_env.ENV_ID, episodes=1000, format="hdf5", workers={workers}))
"""


@pytest.mark.parametrize(("how", "workers"), [("SIGINT", 1), ("SIGINT", 2), ("SIGKILL", 1)])
def test_an_interrupted_recording_can_go_on(tmp_path: Path, how: str, workers: int) -> None:
    script, out = tmp_path / "record.py", tmp_path / "d"
    script.write_text(_SCRIPT.format(tests=str(Path(__file__).parent), out=str(out), workers=workers))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and _episodes_in(out) < 3:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, getattr(signal, how))  # a terminal's Ctrl-C reaches the workers as well
    text = process.communicate(timeout=60)[0]
    saved = len(open_dataset(out))
    assert saved >= 3
    if how == "SIGINT":
        line = " ".join(text.split())
        assert f"Stopped: {saved} of 1000 episodes are saved" in line and "--resume" in line
        assert "Process SpawnProcess" not in text, "workers leave Ctrl-C to the main process"
    run(out, episodes=saved + 2, resume=True)
    run(tmp_path / "whole", episodes=saved + 2)
    assert content(out) == content(tmp_path / "whole")


def _episodes_in(path: Path) -> int:
    try:
        return len(open_dataset(path))
    except Exception:  # not there yet, or half made
        return 0
