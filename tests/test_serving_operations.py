"""A server in operation: started, asked, reloaded, drained, killed, flooded; and what the robot does meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fake_env import BODY, FakeEnv, observation
from serving_fakes import TOKEN, Planner, Raw, until

from vla_agents.agent import load_agent
from vla_agents.errors import ConnectionLostError, FrameError, ServingError
from vla_agents.serving.arrays import WireLimits
from vla_agents.serving.codec import Encoder
from vla_agents.serving.remote import PolicyClient
from vla_agents.serving.server import serving
from vla_agents.serving.settings import ServerConfig

TESTS = Path(__file__).resolve().parent


class Served:
    """`vla-agents serve` in a process of its own."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        self.log = folder / f"log-{time.monotonic_ns()}"
        arguments = [
            sys.executable,
            str(TESTS / "serve_fake.py"),
            str(folder),
            "--log",
            "json",
            "--port",
            str(port),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*arguments, *options], stderr=log, env=os.environ | {"PYTHONPATH": path}
            )
        try:
            self.url = self.wait_for("ready")["url"]
        except BaseException:
            self.process.kill()
            raise

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait_for(self, message: str, count: int = 1) -> dict[str, Any]:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            found = [line for line in self.lines() if line["message"].startswith(message)]
            if len(found) >= count:
                return found[-1]
            assert self.process.poll() is None or message == "stopped", self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no {message!r} in {self.log.read_text()}")

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def served(folder: Path, *options: str, port: int = 0) -> Iterator[Served]:
    server = Served(folder, *options, port=port)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def test_sigterm_finishes_what_is_under_way(tmp_path):
    (tmp_path / "seconds").write_text("0.7")
    with served(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        client = PolicyClient(server.url, patience_s=0)
        client.plan([observation()])
        before = _received(server)
        future = pool.submit(client.plan, [observation()])
        until(lambda: _received(server) != before)
        server.process.send_signal(signal.SIGTERM)
        assert future.result(60).shape == (1, 6, 4)
        assert server.process.wait(60) == 0
        with pytest.raises(ServingError):
            client.plan([observation()])
        messages = [line["message"] for line in server.lines()]
        order = [m for m in messages if m in ("planned", "draining", "stopped")]
        assert order == ["planned", "draining", "planned", "stopped"]


def _received(server: Served) -> str:
    (line,) = (x for x in _metrics(server).splitlines() if x.startswith("vla_agents_received_bytes_total"))
    return line


def _metrics(server: Served) -> str:
    import urllib.request

    with urllib.request.urlopen(server.url.replace("ws", "http") + "/metrics", timeout=60) as answer:
        return answer.read().decode()


def test_logs_are_lines_of_json_with_request_ids(tmp_path):
    with served(tmp_path, "--token-file", str(_token(tmp_path))) as server:
        raw = Raw(server.url, token=TOKEN)
        raw.ask({"type": "plan", "id": "my-request-7", "observations": [observation()]})
        line = server.wait_for("planned")
        assert (
            line["request"] == "my-request-7"
            and line["batch"] == 1
            and line["infer_ms"] >= 0
            and line["session"]
        )
        with pytest.raises(ServingError):
            Raw(server.url, token="wrong-token-wrong-token")
        assert server.wait_for("refused")["reason"] == "token"
        assert TOKEN not in server.log.read_text() and "wrong-token" not in server.log.read_text()


def _token(folder: Path) -> Path:
    file = folder / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


def test_sighup_loads_anew_and_refuses_another_body(tmp_path):
    (tmp_path / "value").write_text("0.25")
    with served(tmp_path) as server, load_agent(server.url, env=FakeEnv(), execute=1) as agent:
        assert np.allclose(agent.act(observation()), 0.25)
        (tmp_path / "value").write_text("0.5")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        assert np.allclose(agent.act(observation()), 0.5) and agent.client.revision == 2
        (tmp_path / "body").write_text("33")
        server.process.send_signal(signal.SIGHUP)
        assert "33 Hz" in server.wait_for("reload refused")["message"]
        assert np.allclose(agent.act(observation()), 0.5) and agent.client.revision == 2
        assert agent.client.reconnects == 0
        assert 'vla_agents_reloads_total{outcome="refused"} 1' in _metrics(server)


def test_the_client_comes_back_after_the_server_was_killed(tmp_path):
    (tmp_path / "value").write_text("0.25")
    with served(tmp_path) as server:
        agent = load_agent(server.url, env=FakeEnv(), execute=1, patience_s=120)
        assert np.allclose(agent.act(observation()), 0.25)
        server.process.kill()
        server.process.wait()
        (tmp_path / "value").write_text("0.75")
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(agent.act, observation())
            with served(tmp_path, port=server.port):
                assert np.allclose(future.result(90), 0.75)
                assert agent.client.reconnects == 1
    with pytest.raises(ConnectionLostError):
        impatient = agent.client._line
        impatient._patience_s = 0
        agent.act(observation())
    agent.close()


def test_another_policy_after_a_restart_is_not_taken_for_the_first(tmp_path):
    with served(tmp_path) as server:
        agent = load_agent(server.url, env=FakeEnv(), execute=1, patience_s=120)
        server.process.kill()
        server.process.wait()
        (tmp_path / "body").write_text("33")
        with served(tmp_path, port=server.port), pytest.raises(ValueError, match="33 Hz"):
            agent.act(observation())
        agent.close()


@pytest.mark.slow
def test_what_cannot_be_served(tmp_path):
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    for options, word in (
        ([str(tmp_path / "nothing")], "nothing"),
        ([str(tmp_path), "--host", "0.0.0.0"], "no token is set"),
        ([str(tmp_path), "--token-file", str(tmp_path / "no")], "token file"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "vla_agents.cli", "serve", *options, "--port", "0"],
            capture_output=True, text=True, timeout=120,
            env={k: v for k, v in os.environ.items() if k != "VLA_AGENTS_TOKEN"} | {"PYTHONPATH": path},
        )  # fmt: skip
        assert (
            done.returncode == 1
            and word in done.stderr
            and "Traceback" not in done.stderr.split("vla-agents serve:")[-1]
        )


# ---- the robot --------------------------------------------------------------------------------------------
def test_the_arm_holds_while_the_server_is_away():
    """The tabletop's arm in real time, planned for in the background: no action, no movement; then it goes on."""
    from vla_agents.robots.simulated_arm import SimulatedArmEnv

    env = SimulatedArmEnv(cameras=("front",), image_size=64)
    body = env.embodiment

    class Rising(Planner):
        def plan_batch(self, observations, generators, prefixes=None, committed=0):
            self.batches.append(len(observations))
            chunk = np.zeros((self.horizon, body.action_dim), np.float32)
            chunk[:, 2] = 0.3
            return [chunk] * len(observations)

    def drive(agent: Any, obs: Any, ticks: int) -> tuple[Any, list[np.ndarray]]:
        actions = []
        for _ in range(ticks):
            action = agent.act(obs)
            actions.append(action)
            obs = env.step(action)[0]
        return obs, actions

    port = _free_port()
    try:
        obs, _ = env.reset(seed=1)
        with serving(Rising(body), ServerConfig(port=port)):
            agent = load_agent(
                f"ws://127.0.0.1:{port}", env=env, asynchronous=True, timeout_s=60, patience_s=600
            )
            agent.reset(seed=1)
            for _ in range(50):
                obs, actions = drive(agent, obs, 4)
                if any(action[2] > 0 for action in actions):
                    break
            assert any(action[2] > 0 for action in actions)
        obs, _ = drive(agent, obs, 10)  # what was planned is played to its end
        before = env.robot.observe().position.copy()
        obs, actions = drive(agent, obs, 10)
        assert not any(action[:6].any() for action in actions) and agent.report().idle > 0
        assert np.abs(env.robot.observe().position - before).max() < 0.02
        with serving(Rising(body), ServerConfig(port=port)):
            end = time.monotonic() + 100
            moved = False
            while not moved and time.monotonic() < end:
                obs, actions = drive(agent, obs, 4)
                moved = any(action[2] > 0 for action in actions)
            assert moved and agent.planner.client.reconnects >= 1
            agent.close()
    finally:
        env.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- bad company ------------------------------------------------------------------------------------------
def test_slow_and_half_open_clients_are_left():
    config = ServerConfig(port=0, hello_s=0.5, idle_s=1.0, max_clients=4)
    with serving(Planner(), config) as server:
        host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
        silent = socket.create_connection((host, port))  # never says what it wants
        halting = socket.create_connection((host, port))
        halting.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")  # never ends what it says
        mute = Raw(server.url, greet=False)  # never says hello
        idle = Raw(server.url)
        for sock in (silent, halting):
            sock.settimeout(60)
            with suppress(ConnectionError):
                while sock.recv(1000):
                    pass
        for raw, word in ((mute, "hello"), (idle, "idle")):
            with pytest.raises(ConnectionLostError, match=word):
                raw.hear()
        begun = Raw(server.url)
        begun.wire._socket.sendall(
            b"\x82\xff\x00\x00\x00\x00\x00\x10\x00\x00abcd" + b"x" * 1000
        )  # and no more of a megabyte
        with pytest.raises(ConnectionLostError):
            begun.hear()
        with PolicyClient(server.url) as client:
            assert client.plan([observation()]).shape == (1, 6, 4)


def test_a_crowd_at_the_door_is_turned_away():
    with serving(Planner(), ServerConfig(port=0, max_clients=2, hello_s=60)) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with PolicyClient(server.url) as client:
            crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            assert client.plan([observation()]).shape == (1, 6, 4)
            until(
                lambda: server.metrics.refused.value("connections") == 67
            )  # 2 clients and 32 others may stay
            until(lambda: server._open == 34)
            for sock in crowd:
                sock.close()


def test_a_message_that_is_too_large():
    with serving(Planner(), ServerConfig(port=0, limits=WireLimits(max_bytes=100_000))) as server:
        raw = Raw(server.url)
        with pytest.raises((ConnectionLostError, FrameError)):
            raw.ask({"type": "plan", "observations": [observation()], "x": bytes(300_000)})
        with PolicyClient(server.url) as client:
            assert client.plan([observation()]).shape == (1, 6, 4)


def hostile_frames(count: int, seed: int) -> Iterator[bytes]:
    """Noise, and good messages with bytes changed, cut, doubled and put together anew."""
    rng = random.Random(seed)
    obs, encode = observation(), Encoder().encode
    good = [
        encode({"type": "plan", "id": 1, "observations": [obs]}),
        encode(
            {"type": "plan", "id": 1, "observations": [obs], "prefixes": np.zeros((1, 2, 4)), "committed": 1}
        ),
        encode(
            {
                "type": "plan",
                "observations": [
                    {"images": {"front": {"__shared__": True, "offset": 0, "dtype": "|u1", "shape": [9]}}}
                ],
            }
        ),
        encode({"type": "reset", "slots": [1, 2]}),
        encode({"type": "share", "size": 5}),
        encode({"type": "hello", "protocol": 1, "embodiment": BODY.to_dict()}),
    ]
    for _ in range(count):
        kind = rng.random()
        if kind < 0.2:
            yield rng.randbytes(rng.randrange(200))
            continue
        frame = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(frame)) if rng.random() < 0.5 else rng.randrange(min(len(frame), 80))
            if kind < 0.6:
                frame[at] = rng.randrange(256)
            elif kind < 0.8:
                del frame[at : at + rng.randrange(1, 50)]
            else:
                frame[at:at] = frame[at : at + rng.randrange(1, 50)]
            if not frame:
                break
        yield bytes(frame)


def again(url: str) -> Raw:
    """A new connection, as soon as there is room for one."""
    end = time.monotonic() + 60
    while True:
        try:
            return Raw(url)
        except ServingError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def flood(url: str, frames: Iterator[bytes]) -> int:
    """Says them all, several at a time, and anew where the server has enough of it; how many were answered."""
    raw, answered, said = again(url), 0, 0
    for frame in frames:
        try:
            raw.say(frame)
            said += 1
            if said % 10 == 0:
                for _ in range(10):
                    raw.hear()
                    answered += 1
        except (ConnectionLostError, FrameError):
            raw.close()
            raw, said = again(url), 0
    raw.close()
    return answered


def flood_from_a_process(url: str, count: int, seed: int) -> int:
    """As `flood`, telling how far it is (`pytest -s`)."""

    def told() -> Iterator[bytes]:
        for said, frame in enumerate(hostile_frames(count, seed), 1):
            if said % 10_000 == 0:
                print(f"seed {seed}: {said} of {count} frames", flush=True)
            yield frame

    return flood(url, told())


MANY = pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])


@pytest.mark.parametrize("count", [pytest.param(20_000, marks=pytest.mark.slow), MANY])
def test_hostile_frames_hurt_nobody(tmp_path, count):
    with served(tmp_path, "--max-clients", "12") as server:
        process = psutil.Process(server.process.pid)
        url = server.url
        with PolicyClient(url) as client:
            client.plan([observation()])
            flood(url, hostile_frames(1000, 0))
            before = process.memory_info().rss
            done = threading.Event()
            served_on: list[float] = []

            def ask() -> None:
                while not done.is_set():
                    begin = time.monotonic()
                    assert np.allclose(client.plan([observation()]), 0)
                    served_on.append(time.monotonic() - begin)

            spawn = multiprocessing.get_context("spawn")
            with ThreadPoolExecutor(1) as one, ProcessPoolExecutor(4, mp_context=spawn) as pool:
                asking = one.submit(ask)
                floods = [pool.submit(flood_from_a_process, url, count // 4, seed) for seed in range(4)]
                try:
                    answered = sum(future.result(3600) for future in floods)
                finally:
                    done.set()
                asking.result(60)
            assert server.process.poll() is None and client.reconnects == 0
            assert answered > count / 20 and len(served_on) > 10
            grown = process.memory_info().rss - before
            half, most = (1e3 * np.percentile(served_on, share) for share in (50, 99))
            print(f"{grown / 2**20:.1f} MiB more, {answered} of the flood's answers read")
            print(f"{len(served_on)} to the good client, median {half:.1f} ms, 99 % {most:.1f} ms")
            assert grown < 100 * 2**20
