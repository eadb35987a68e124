"""The operator at a recording: what keys do, what is shown, in and out of a real terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_env import ENV_ID, make_embodiment
from rich.console import Console
from robot_fakes import Clock, RecordingRobot

from vla_agents.agent import Agent
from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.collect.keys import KeyInbox
from vla_agents.collect.live.meters import Meters
from vla_agents.collect.live.picture import fitted, half_blocks, kitty, speaks_kitty
from vla_agents.collect.live.screen import Screen
from vla_agents.collect.live.session import COUNTDOWN, PAUSED, RECORDING, WAITING, Operated, Quit, Session
from vla_agents.collect.live.web import Page
from vla_agents.collect.recorder import Recorder
from vla_agents.collect.teleop import Device
from vla_agents.data import create_dataset, open_dataset
from vla_agents.envs import make_env
from vla_agents.errors import ConfigError
from vla_agents.robots.env import RobotEnv
from vla_agents.rollout import rollout
from vla_agents.takeover import Takeover


class Hand(Device):
    """Holds still; engaged after the takeover key."""

    name = "hand"
    acted = 0

    def __init__(self) -> None:
        self._on = True

    @property
    def engaged(self) -> bool:
        return self._on

    @engaged.setter
    def engaged(self, value: bool) -> None:
        self._on = value

    @property
    def switched(self) -> bool:
        return True

    def act(self, obs: Any) -> np.ndarray:
        self.acted += 1
        return np.zeros(make_embodiment().action_dim, np.float32)


class Player:
    """A person with a plan: keys by the number of polls; time passes with each."""

    def __init__(self, **session: Any) -> None:
        self.clock, self.keys = Clock(), KeyInbox()
        self.phases: list[str] = []
        self.plan: dict[float, str] = {}  # time since the start -> key
        self.started = self.clock()
        self.session = Session(10.0, keys=self.keys, clock=self.clock, sleep=self._sleep, **session)

    def _sleep(self, seconds: float) -> None:
        self.clock.now += max(seconds, 1e-4)
        self.phases.append(self.session.phase)
        for when in [t for t in self.plan if self.clock.now - self.started >= t]:
            self.keys.put(self.plan.pop(when), self.clock.now)


def played(tmp_path: Path, player: Player, seeds: Any, agent: Agent | None = None, **env: Any) -> Any:
    inner = make_env(ENV_ID, **{"max_steps": 1000, **env})
    operated = Operated(inner, player.session, open_ended=True)
    agent = agent or Hand()
    player.session.drives(agent)
    writer = create_dataset(tmp_path / "d", make_embodiment(), "hdf5")
    recorder = Recorder(writer)
    player.session._saved = lambda: recorder.saved
    try:
        rollout(operated, agent, seeds(recorder) if callable(seeds) else seeds, [recorder])
    finally:
        writer.close()
        inner.close()
    return open_dataset(tmp_path / "d")


# ---- keys -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("key", "success"), [("y", True), ("n", False), ("enter", False)])
def test_keys_end_and_label_an_episode(tmp_path: Path, key: str, success: bool) -> None:
    player = Player()
    player.plan = {1.05: key}
    reader = played(tmp_path, player, [7])
    assert len(reader) == 1
    episode = reader.read(0)
    assert episode.success is success and 8 <= len(episode) <= 12  # a second at 10 Hz
    assert episode.terminated is not None and bool(episode.terminated[-1]) == (key != "enter")


def test_discard_and_redo(tmp_path: Path) -> None:
    player = Player()
    player.plan = {1.0: "r", 2.0: "backspace", 3.0: "enter", 4.0: "enter"}

    def seeds(recorder: Recorder) -> Any:
        seed = 3
        while recorder.saved < 2:
            yield seed
            seed += not player.session.take_redo()

    reader = played(tmp_path, player, seeds)
    # 3 is played, then once more, thrown away; 4 and 5 are kept.
    assert [reader.read(k).metadata["seed"] for k in range(len(reader))] == [4, 5]


def test_quit_drops_the_open_episode(tmp_path: Path) -> None:
    player = Player()
    player.plan = {1.0: "enter", 2.0: "q"}
    with pytest.raises(Quit):
        played(tmp_path, player, [1, 2, 3])
    assert len(open_dataset(tmp_path / "d")) == 1


def test_a_pause_is_not_recorded_and_plans_are_dropped(tmp_path: Path) -> None:
    class Hand2(Hand):
        replans = 0

        def replan(self, mask: Any = None) -> None:
            self.replans += 1

    player, hand = Player(), Hand2()
    player.plan = {1.0: "p", 6.0: "p", 7.0: "enter"}
    reader = played(tmp_path, player, [1], hand)
    assert 17 <= len(reader.read(0)) <= 23 and hand.replans == 1
    assert PAUSED in player.phases and player.phases.count(PAUSED) > 50
    player = Player()
    player.plan = {1.0: "p", 2.0: "backspace", 3.0: "enter"}
    assert len(played(tmp_path / "b", player, [1, 2])) == 1  # it can be ended from the pause


def test_before_an_episode(tmp_path: Path) -> None:
    player = Player(reset_time=5.0, countdown=3.0, instructions=("lift it", "drop it"))
    bells: list[float] = []
    player.session.bell = lambda: bells.append(player.clock() - player.started)
    player.plan = {2.0: "enter", 6.0: "enter", 15.0: "enter"}
    reader = played(tmp_path, player, [1, 2])
    assert reader.instructions() == ["lift it", "drop it"]
    assert (
        95 < player.phases.count(WAITING) < 95 + 2 / 0.02 + 5 / 0.02
    )  # 2 s of the first wait, 5 s of the second
    assert player.phases.count(COUNTDOWN) == pytest.approx(2 * 3 / 0.02, abs=4)
    assert np.allclose(bells[:4], [2, 3, 4, 5], atol=0.1)  # three of the countdown, and it begins


def test_the_task_can_be_typed(tmp_path: Path) -> None:
    player = Player(ask=True, reset_time=-1.0)
    for number, key in enumerate(["g", "o", "space", "x", "backspace", "o", "n", "enter"]):
        player.plan[0.1 + 0.1 * number] = key
    player.plan |= {2.0: "enter", 3.0: "enter"}
    assert played(tmp_path, player, [1]).instructions() == ["go on"]


def test_the_takeover_key_and_its_label(tmp_path: Path) -> None:
    hand, env = Hand(), make_env(ENV_ID)
    player = Player(device=hand)

    class Still(Agent):
        def act(self, obs: Any) -> np.ndarray:
            return np.full(make_embodiment().action_dim, 0.01, np.float32)

    player.plan = {1.0: "tab", 2.0: "tab", 3.0: "enter"}
    reader = played(tmp_path, player, [1], Takeover(Still(), hand))
    env.close()
    intervened = reader.read(0).intervened
    assert 8 <= intervened.sum() <= 12 and not intervened[:8].any() and not intervened[-8:].any()
    assert (reader.read(0).action[intervened] == 0).all()
    assert player.session.driver == "the policy drives"


def test_on_a_robot_the_arm_holds_while_paused(tmp_path: Path) -> None:
    robot = RecordingRobot(hz=50)
    env = RobotEnv(robot, instruction="go", home=False)
    keys = KeyInbox()
    session = Session(50.0, keys=keys, reset_time=0.2)
    operated = Operated(env, session)
    obs, _ = operated.reset()
    assert session.phase == RECORDING and obs["instruction"] == "go"
    keys.put("p", 0.0)
    goal = robot.limits.home + 0.3
    session.sleep = lambda seconds: None

    import threading

    threading.Timer(0.5, lambda: keys.put("p", 0.0)).start()
    before = len(robot.wire)
    operated.step(goal.astype(np.float32))
    held = np.array([command for _, command in robot.wire[before + 8 :]])
    assert len(held) > 5 and np.ptp(held[-5:], axis=0).max() < 1e-3
    assert not robot.checker.unsafe
    operated.close()


# ---- meters, pictures, views ------------------------------------------------------------------------------
def test_meters() -> None:
    clock = Clock()
    meters = Meters(30.0, clock)
    meters.begin({"capture_times": {"state": 1.0, "front": 1.0}})
    for step in range(60):
        clock.now += 0.04
        meters.step(
            {"missed_ticks": step // 20, "capture_times": {"state": 2.0 + step, "front": 1.0 + step // 2}}
        )
    assert meters.hz == pytest.approx(25.0) and (meters.steps, meters.late) == (60, 2)
    assert meters.repeated == 31 and meters.seconds == pytest.approx(2.4)


def test_pictures_in_characters() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:20, :, 0] = 200
    assert fitted(image.shape, 40, 20) == (40, 10)
    lines = half_blocks(image, 8, 2)
    assert [line.count("▀") for line in lines] == [8, 8]
    assert "38;2;200;0;0;48;2;200;0;0" in lines[0] and "38;2;0;0;0" in lines[1]
    assert "38;5;160" in half_blocks(image, 8, 2, depth=256)[0]
    shown = kitty(np.zeros((50, 50, 3), np.uint8), 10, 5, 3)
    assert shown.count("\x1b_G") == 3 and "s=50,v=50,c=10,r=5,i=3" in shown and shown.count("m=1") == 2
    assert speaks_kitty({"KITTY_WINDOW_ID": "1"}) and not speaks_kitty({"KITTY_WINDOW_ID": "1", "TMUX": "x"})


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (20, 5), (200, 60)])
def test_the_screen_fits_its_terminal(size: tuple[int, int]) -> None:
    session = Session(20.0, device=Hand())
    session.phase, session.instruction = RECORDING, "pick up the 红 block " * 9
    session.images = {name: np.full((48, 64, 3), 99, np.uint8) for name in ("front", "wrist")}
    screen = Screen(session, title="t", total=5, saved=lambda: 2, stream=io.StringIO())
    lines = screen.lines(*size)
    assert len(lines) <= size[1]
    from rich.text import Text

    assert max(Text.from_ansi(line).cell_len for line in lines) <= size[0]
    assert "RECORDING" in lines[1] and (size[0] < 40 or "episode 3 of 5" in lines[1])
    assert size[1] < 20 or any("▀" in line for line in lines)


def test_the_page_shows_pictures_and_meters_to_this_machine_alone() -> None:
    session = Session(20.0)
    session.images, session.instruction = {"front": np.full((48, 64, 3), 99, np.uint8)}, "go"
    page = Page(session, saved=lambda: 4, meter=lambda: "7 GB free")
    assert page.server_address[0] == "127.0.0.1"
    state = json.load(urllib.request.urlopen(page.url + "state"))
    assert (state["episode"], state["task"], state["meter"]) == (5, "go", "7 GB free")
    stream = urllib.request.urlopen(page.url + "camera/0")
    head = stream.read(64)
    assert b"image/jpeg" in head
    stream.close()
    base = page.url.rsplit("/", 2)[0]
    for wrong, status in (
        (base + "/xx/state", 403),
        (page.url + "camera/7", 404),
        (page.url + "../etc", 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(wrong)
        assert error.value.code == status
    request = urllib.request.Request(page.url + "state", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 421
    page.close()


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    def run(**options: Any) -> None:
        collect(
            CollectConfig(tmp_path / "d", ENV_ID, **options),
            console=Console(file=io.StringIO()),
            progress=False,
        )

    for options, message in (
        ({"device": "expert", "workers": 2}, "needs 1"),
        ({"port": "/dev/ttyACM0"}, "belongs to a robot"),
        ({"speed": 0.5}, "belongs to a robot"),
        ({"robot": "simulated_arm"}, "what the task is"),
        ({"robot": "simulated_arm", "env_args": {"a": 1}}, "--robot-args"),
        ({"robot": "simulated_arm", "robot_args": {"nonsense": 1}, "instructions": ("x",)}, "nonsense"),
        ({"device": "expert", "view": "terminal"}, "needs a terminal"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(**options)


# ---- through a real terminal ------------------------------------------------------------------------------
class Terminal:
    """A command in a pseudo-terminal: what it shows, and keys to press."""

    def __init__(self, *args: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            [sys.executable, *args], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self.master)

    def wait_for(self, pattern: str, seconds: float = 90.0) -> None:
        """Until it has shown something since the last call."""
        until = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < until, f"{pattern!r} did not come: {self.text[-3000:]!r}"
            if not select.select([self.master], [], [], 0.2)[0]:
                continue
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # it has ended
                assert re.search(pattern, self.text), self.text[-3000:]
        self.text = ""

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_a_recording_in_a_real_terminal(tmp_path: Path) -> None:
    """The simulated arm in real time, keys pressed by a person: save, discard, Ctrl-C; then it goes on."""
    out = tmp_path / "d"
    args = ("-m", "vla_agents.cli", "collect", "--out", str(out), "--env", "vla_agents/SimulatedArm-v0", "--env-args",
            "renderer=raycast", "image_size=16", "task=lift", "camera_timeout=5.0", "--device", "expert",
            "--countdown", "0.5", "--reset-time", "-1", "--format", "hdf5")  # fmt: skip
    with Terminal(*args, "--episodes", "3") as terminal:
        for key, said in (("y", "episode 1 saved"), ("\x7f", "discarded"), ("\x03", "--resume")):  # Ctrl-C
            terminal.wait_for("PUT THE OBJECTS BACK")
            terminal.press("\r")
            terminal.wait_for(r"RECORDING.*[1-9]\d* steps")
            terminal.press(key)
            terminal.wait_for(said)
        assert terminal.process.wait(60) == 130
    assert len(open_dataset(out)) == 1
    with Terminal(*args, "--episodes", "2", "--resume") as terminal:
        terminal.wait_for("PUT THE OBJECTS BACK.*episode 2 of 2")
        terminal.press("\r")
        terminal.wait_for("RECORDING")
        terminal.press("n")
        terminal.wait_for("has 2 episodes")
        assert terminal.process.wait(60) == 0
    reader = open_dataset(out)
    assert [reader.read(k).success for k in range(2)] == [True, False]
