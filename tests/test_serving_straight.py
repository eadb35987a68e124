"""Answers that the planning thread writes to a client's socket itself."""

from __future__ import annotations

import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fake_env import observation
from serving_fakes import Planner, Raw, until
from websockets.protocol import State
from websockets.sync.client import connect

from vla_agents.errors import FrameError
from vla_agents.serving import messages
from vla_agents.serving.codec import Encoder, decode
from vla_agents.serving.messages import SUBPROTOCOL
from vla_agents.serving.remote import PolicyClient
from vla_agents.serving.server import serving
from vla_agents.serving.session import Session
from vla_agents.serving.straight import MOST, Straight

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def connection(sock: socket.socket, *, tls: object = None, waiting: int = 0):
    """What `Straight` sees of a connection."""
    transport = SimpleNamespace(
        get_extra_info={"socket": sock, "ssl_object": tls}.get, get_write_buffer_size=lambda: waiting
    )
    return SimpleNamespace(transport=transport, state=State.OPEN)


def pair() -> tuple[socket.socket, socket.socket]:
    """A server's end, which does not block, and a client's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(10)
    return ours, theirs


def test_answers_to_plans_are_not_the_loops(monkeypatch):
    with serving(Planner()) as server, PolicyClient(server.url, shared_memory=False) as client:
        monkeypatch.setattr(Session, "send", lambda *args: pytest.fail("the loop sent it"))
        for number in range(3):
            assert client.plan([observation()], seeds=[number]).shape == (1, 6, 4)
        monkeypatch.undo()
        client.ping()
        before = server.metrics.sent.value()
        client.plan([observation()])
        until(lambda: server.metrics.sent.value() > before)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 30_000])
def test_a_message_is_a_frame_as_websockets_reads_it(size):
    from websockets.client import ClientProtocol
    from websockets.uri import parse_uri

    ours, theirs = pair()
    data = np.random.default_rng(size).bytes(size)
    assert Straight(connection(ours)).send(data)
    reader = ClientProtocol(parse_uri("ws://x"), state=State.OPEN)
    reader.receive_data(theirs.recv(2**16))
    (frame,) = reader.events_received()
    assert bytes(frame.data) == data and frame.fin


def test_what_is_not_sure_to_go_through_whole_is_the_loops():
    ours, theirs = pair()
    assert not Straight(connection(ours, tls=object())).send(b"x")
    assert not Straight(connection(ours, waiting=1)).send(b"x")
    assert not Straight(connection(ours)).send(bytes(MOST + 1))
    closing = connection(ours)
    closing.state = State.CLOSING
    assert not Straight(closing).send(b"x")
    straight = Straight(connection(ours))
    assert straight.send(b"x") and not straight.send(b"x")  # the first is not taken yet
    assert theirs.recv(100) == b"\x82\x01x"
    assert straight.send(b"y") and theirs.recv(100) == b"\x82\x01y"
    straight.close()
    assert not straight.send(b"x")
    ours.close()
    assert theirs.recv(100) == b""


def test_a_client_that_reads_late_gets_every_answer_whole_and_in_order():
    with serving(Planner(horizon=1500)) as server:
        raw = Raw(server.url)
        plan = {"type": "plan", "observations": [observation()]}

        def ask() -> None:
            for number in range(300):  # their answers are 7 MB
                raw.say(plan | {"id": number})

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        for number in range(300):
            answer = raw.hear()
            assert answer["id"] == number and answer["chunks"].shape == (1, 1500, 4)
        asking.join()
        raw.close()


def test_pings_come_between_answers_and_not_within():
    encode = Encoder().encode
    with (
        serving(Planner()) as server,
        connect(server.url, subprotocols=[SUBPROTOCOL], compression=None) as client,
    ):
        client.recv()
        client.send(encode({"type": "hello", "protocol": 1}))
        client.recv()
        for number in range(200):
            pong = client.ping()
            client.send(encode({"type": "plan", "id": number, "observations": [observation()]}))
            client.ping()
            assert decode(client.recv(timeout=30))["id"] == number
            assert pong.wait(30)


def test_an_answer_that_cannot_be_written_ends_no_thread(monkeypatch):
    with serving(Planner()) as server, PolicyClient(server.url, shared_memory=False) as client:
        monkeypatch.setattr(messages, "chunks_message", lambda *args: {"x": object()})
        with pytest.raises(FrameError, match="cannot be sent"):
            client.plan([observation()])
        monkeypatch.undo()
        assert client.plan([observation()]).shape == (1, 6, 4)
