"""The shorter way of clients on the same machine: requests that no event loop sees."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_env import observation
from serving_fakes import Planner, Raw, until
from test_serving_operations import hostile_frames

from vla_agents.errors import ConnectionLostError, FrameError, ObservationError, RemotePolicyError
from vla_agents.serving.batching import Batcher
from vla_agents.serving.codec import Encoder, decode
from vla_agents.serving.doorbell_client import MOST, Ringer
from vla_agents.serving.remote import PolicyClient
from vla_agents.serving.server import serving
from vla_agents.serving.settings import ServerConfig
from vla_agents.serving.transport import Wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def rung(url: str) -> tuple[Raw, Ringer]:
    """A connection and its door, for whatever a test wants to say there."""
    raw = Raw(url)
    return raw, Ringer(raw.ask({"type": "share", "size": 2**16})["doorbell"], 60)


def test_plans_go_through_the_door_alone(monkeypatch):
    planner = Planner()
    with serving(planner) as server, PolicyClient(server.url) as client:
        first = client.plan([observation()], seeds=[7])
        monkeypatch.setattr(Wire, "send", lambda *args: pytest.fail("the websocket was used"))
        assert np.array_equal(client.plan([observation()], seeds=[7]), first)
        chunks = client.plan([observation()] * 3, prefixes=np.full((3, 2, 4), 0.5), committed=1)
        assert (chunks[:, :2] == 0.5).all() and planner.committed[-1] == 1
        assert server.metrics.requests.value("vla-agents", "done") == 3
        monkeypatch.undo()


def test_every_message_has_its_own_pictures_and_state():
    with serving(Planner()) as server, PolicyClient(server.url) as client:
        for number in range(1, 20):
            obs = observation()
            obs["images"] = {name: np.full_like(image, number) for name, image in obs["images"].items()}
            (chunk,) = client.plan([obs | {"state": np.full_like(obs["state"], number / 4)}])
            assert (chunk[:, 0] == number / 4).all() and (chunk[:, 2] == number).all()


def test_booleans_are_not_shared():
    with serving(Planner()) as server:
        _, ringer = rung(server.url)
        flags = {"__shared__": True, "offset": 64, "dtype": "|b1", "shape": [3]}
        obs = observation() | {"images": {}, "state": flags}
        answer = decode(ringer.ask(Encoder().encode({"type": "plan", "observations": [obs]})))
        assert answer["code"] == "bad_message" and "boolean" in answer["message"]


def test_the_same_answers_as_through_the_websocket():
    with (
        serving(Planner()) as server,
        PolicyClient(server.url) as near,
        PolicyClient(server.url, shared_memory=False) as far,
    ):
        for seed in range(5):
            given = [observation()], [0], [seed]
            assert np.array_equal(near.plan(*given), far.plan(*given))
        assert near._ringer is not None and far._ringer is None


def test_what_is_wrong_is_told_by_type():
    with serving(Planner()) as server, PolicyClient(server.url) as client:
        client.plan([observation()])
        with pytest.raises(ObservationError, match="not finite"):
            client.plan([observation() | {"state": np.full_like(observation()["state"], np.nan)}])
        with pytest.raises(RemotePolicyError) as failed:
            client.plan([observation() | {"instruction": "explode"}])
        assert "home" not in str(failed.value)
        assert client.plan([observation()]).shape == (1, 6, 4) and client.reconnects == 0
        assert server.metrics.refused.value("observation") == 1


@pytest.mark.parametrize(
    "message", [{"type": "ping"}, {"type": "reset"}, 5, [], {"type": "plan"}, b"\xc1", bytes(MOST + 1)]
)
def test_only_plans_go_through(message):
    with serving(Planner()) as server:
        raw, ringer = rung(server.url)
        data = message if isinstance(message, bytes) else Encoder().encode(message)
        answer = decode(ringer.ask(data))
        assert answer["type"] == "error" and answer["code"] == "bad_message"
        assert raw.ask({"type": "ping"})["type"] == "done"


def test_who_brings_nothing_but_noise_is_cut_off_and_others_are_served():
    with serving(Planner()) as server, PolicyClient(server.url) as client:
        client.plan([observation()])
        refused = cut = 0
        raw, ringer = rung(server.url)
        for frame in hostile_frames(2000, 3):
            try:
                refused += decode(ringer.ask(frame or b"\0"))["type"] == "error"
            except ConnectionLostError:
                cut += 1
                with pytest.raises((ConnectionLostError, FrameError)):
                    raw.wire.receive()
                ringer.close()
                raw, ringer = rung(server.url)
                client.plan([observation()])
        assert refused > 500 and cut > 20 and client.reconnects == 0


def test_nothing_is_left_of_clients_that_went():
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    with serving(Planner()) as server:
        with PolicyClient(server.url) as client:
            client.plan([observation()])
        until(lambda: not server.batcher._incoming._doors)
        before = count()
        for _ in range(10):
            with PolicyClient(server.url) as client:
                client.plan([observation()])
            raw = Raw(server.url)
            raw.ask({"type": "share", "size": 2**16})  # and never comes
            raw.close()
        until(lambda: not server.batcher._incoming._doors and not server._talking)
        until(lambda: count() <= before + 1)


def test_clients_at_two_doors_are_planned_for_together():
    planner = Planner(seconds=0.02)
    with (
        serving(planner) as server,
        PolicyClient(server.url) as one,
        PolicyClient(server.url) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        for _ in range(15):
            list(pool.map(lambda client: client.plan([observation()]), (one, two)))
    assert 2 in planner.batches


def test_waits_that_are_too_short_to_be_kept_are_none(monkeypatch):
    monkeypatch.setattr(Batcher, "_expects_somebody", lambda self, end: True)
    waits = []
    with serving(Planner()) as server, PolicyClient(server.url) as client:
        for _ in range(50):
            client.plan([observation()])
            waits.append(client.timing["queue_ms"])
    assert np.median(waits) < 0.7, waits  # the system's poll waits for a millisecond at least


def test_a_large_answer_goes_through_the_websocket():
    with serving(Planner(horizon=5000)) as server, PolicyClient(server.url) as client:
        for _ in range(2):
            assert client.plan([observation()]).shape == (1, 5000, 4)
        raw, ringer = rung(server.url)
        images = observation()["images"]
        plan = {"type": "plan", "observations": [observation() | {"images": images}]}
        answer = decode(ringer.ask(Encoder().encode(plan)))
        assert answer["code"] == "bad_message" and "websocket" in answer["remedy"]
        raw.close()


def test_what_is_under_way_is_answered_before_the_server_stops():
    planner = Planner()
    with ThreadPoolExecutor(1) as pool, serving(planner, ServerConfig(port=0, drain_s=30)) as server:
        client = PolicyClient(server.url, patience_s=0)
        client.plan([observation()])
        planner.gate = threading.Event()
        planner.entered.clear()
        asked = pool.submit(client.plan, [observation()])
        assert planner.entered.wait(30)
        assert server.batcher.planning == 1
        threading.Timer(0.3, planner.gate.set).start()
        threading.Timer(0.1, setattr, (server, "state", "draining")).start()
        assert asked.result(30).shape == (1, 6, 4)
        with pytest.raises(Exception, match="draining"):
            client.plan([observation()])
        client.close()


def test_closing_the_client_ends_a_plan_under_way():
    planner = Planner()
    with ThreadPoolExecutor(1) as pool, serving(planner) as server:
        client = PolicyClient(server.url)
        client.plan([observation()])
        planner.gate = threading.Event()
        planner.entered.clear()
        asked = pool.submit(client.plan, [observation()])
        assert planner.entered.wait(30)
        client.close()
        with pytest.raises(ConnectionLostError):
            asked.result(10)
        planner.gate.set()
