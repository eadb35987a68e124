"""The phone device: what its server refuses, and its page in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from device_fakes import OBS, TABLETOP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_agents.collect.devices.phone import BUSY, NONSENSE, WRONG_TOKEN, PhoneDevice
from vla_agents.collect.devices.phone_hand import LATE_S, Hand
from vla_agents.collect.teleop import Event
from vla_agents.errors import ConfigError, PortBusyError

pytest.importorskip("websockets")
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

IDLE = [0, 0, 0, 0, 0, 0, -1]
STILL = {"rate": [0] * 6, "p": [0, 0, 0], "q": [0, 0, 0, 1], "grip": None, "press": []}


def said(number: int, at: float, on: bool = True, **changes) -> str:
    return json.dumps({**STILL, "n": number, "t": at * 1000, "on": on, **changes})


# ---- messages ----------------------------------------------------------------------------------------------------
def test_the_way_is_what_the_hand_moved_while_it_held():
    hand = Hand()
    hand.take(said(0, 0.0, on=False, p=[9, 9, 9]), 100.0)
    hand.take(said(1, 0.03, p=[9, 9, 9]), 100.03)  # takes hold: no way yet
    hand.take(said(2, 0.06, p=[9.01, 9, 9.02], q=[0, 0, np.sin(0.1), np.cos(0.1)]), 100.06)
    motion = hand.motion()
    assert np.allclose(motion.way, [0.01, 0, 0.02, 0, 0, 0.2]) and motion.held
    assert not hand.motion().way.any()
    hand.take(said(3, 0.09, on=False, p=[9.5, 9, 9]), 100.09)
    hand.take(said(4, 0.12, p=[12, 9, 9]), 100.12)  # moved while it did not hold
    assert not hand.motion().way.any()


def test_what_comes_late_or_out_of_order_is_dropped_and_makes_no_leap():
    hand = Hand()
    hand.take(said(0, 0.00, p=[0.00, 0, 0]), 100.00)
    hand.take(said(1, 0.03, p=[0.01, 0, 0]), 100.03)
    hand.motion()
    hand.take(said(3, 0.09, p=[0.03, 0, 0]), 100.09)
    hand.take(said(2, 0.06, p=[0.02, 0, 0]), 100.09)  # overtaken
    assert hand.dropped == 1 and np.allclose(hand.motion().way[0], 0.02)
    hand.take(said(4, 0.12, p=[0.05, 0, 0]), 100.12 + LATE_S + 0.1)  # it hung somewhere
    assert hand.dropped == 2 and not hand.motion().way.any()
    assert hand.motion().time == 100.09  # so the clutch takes it for silence
    hand.take(said(5, 0.9, p=[0.06, 0, 0]), 100.9)
    assert not hand.motion().way.any()  # starts from where it is


def test_lost_tracking_is_no_hand():
    hand = Hand()
    hand.take(said(0, 0.0), 100.0)
    hand.take(said(1, 0.03, p=[0.5, 0, 0]), 100.03)
    assert not hand.motion().way.any() and hand.dropped == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        st.text(max_size=80),
        st.fixed_dictionaries(
            {
                key: st.one_of(st.none(), st.floats(), st.lists(st.floats(), max_size=7), st.text(max_size=5))
                for key in ("n", "t", "rate", "p", "q", "grip", "press", "on")
            }
        ).map(json.dumps),
    )
)
def test_nonsense_is_refused_and_changes_nothing(message):
    hand = Hand()
    try:
        hand.take(message, 100.0)
    except (ValueError, KeyError, TypeError, OverflowError):
        assert not hand.motion().held
    motion = hand.motion()
    assert np.isfinite(motion.rate).all() and np.isfinite(motion.way).all()


# ---- the server --------------------------------------------------------------------------------------------------
@pytest.fixture
def phone(tmp_path):
    with PhoneDevice(TABLETOP, port=0, token="secret", silence=2.0) as device:
        yield device


def address(phone: PhoneDevice) -> str:
    return f"ws://127.0.0.1:{phone.page.port}/ws"


def closed_with(socket) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            socket.recv(timeout=30)
    return caught.value.rcvd.code


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_page_is_served_and_nothing_else(phone):
    base = f"http://127.0.0.1:{phone.page.port}"
    with urllib.request.urlopen(base, timeout=30) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        page = answer.read().decode()
    assert "WebSocket" in page and "secret" not in page
    for path in ("/etc/passwd", "/../phone.py", "/favicon.ico"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(base + path, timeout=30)


def test_without_the_token_nothing_moves(phone):
    for first in ('{"token": "wrong"}', '{"token": ""}', "[]", said(0, 0.0)):
        with connect(address(phone)) as socket:
            socket.send(first)
            assert closed_with(socket) == WRONG_TOKEN
    assert "no page is connected" in phone.page.trouble
    with pytest.raises(InvalidStatus, match="403"):
        connect(address(phone), origin="http://evil.example")


def test_one_hand_at_a_time_and_nonsense_ends_it(phone):
    with connect(address(phone)) as first:
        first.send('{"token": "secret"}')
        first.send(said(0, 0.0, on=False))
        until(lambda: not phone.page.trouble)
        with connect(address(phone)) as second:
            second.send('{"token": "secret"}')
            assert closed_with(second) == BUSY
        first.send('{"n": "x"}')
        assert closed_with(first) == NONSENSE
    until(lambda: phone.page.trouble != "")


def test_a_hand_leads_and_a_lost_connection_stops(phone):
    with connect(address(phone)) as socket:
        socket.send('{"token": "secret"}')
        start = time.monotonic()
        socket.send(said(0, 0.0, on=False))
        until(lambda: phone.act(OBS).tolist() == IDLE and not phone.trouble)
        socket.send(said(1, time.monotonic() - start, rate=[1, 0, 0, 0, 0, 0], press=["save"]))
        until(lambda: phone.engaged if phone.act(OBS)[0] > 0 else False)
        assert phone.events() == [Event.SAVE]
    until(lambda: phone.act(OBS).tolist() == IDLE)
    assert "open the address" in phone.trouble and "secret" not in phone.trouble
    assert phone.controls()["open"] == phone.page.url == f"http://127.0.0.1:{phone.page.port}/#secret"


def test_errors_of_the_server(phone, tmp_path):
    other = PhoneDevice(TABLETOP, port=phone.page.port)
    with pytest.raises(PortBusyError, match="port="):
        other.connect()
    with pytest.raises(ConfigError, match="insecure=true"):
        PhoneDevice(TABLETOP, host="0.0.0.0")
    with pytest.raises(ConfigError, match="PEM"):
        PhoneDevice(TABLETOP, port=0, cert=str(tmp_path / "none.pem")).connect()
    assert PhoneDevice(TABLETOP).page.token != PhoneDevice(TABLETOP).page.token


def test_with_a_certificate_it_is_https(tmp_path):
    import ssl

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=robot", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl")
    with PhoneDevice(TABLETOP, port=0, token="secret", cert=str(cert), key=str(key)) as phone:
        trust = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(
            phone.page.url.split("#")[0].replace("localhost", "127.0.0.1"), timeout=30, context=trust
        ) as answer:
            assert answer.status == 200
        with connect(f"wss://127.0.0.1:{phone.page.port}/ws", ssl=trust) as socket:
            socket.send('{"token": "secret"}')
            socket.send(said(0, 0.0, on=False))
            until(lambda: not phone.page.trouble)


# ---- the page ----------------------------------------------------------------------------------------------------
XR = Path(__file__).with_name("fake_webxr.js").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_by_touch_by_keys_and_by_a_headset(phone, tmp_path):
    browser = Browser(tmp_path / "profile")
    total = np.zeros(6)

    def lead(condition, seconds: float = 60.0) -> None:
        """Act at the env's rate until it holds; what was led is summed up, m and rad."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{total}, {phone.trouble}, {browser.text()}"
            action = phone.act(OBS)
            total[:3] += action[:3] * 0.05
            total[3:] += action[3:6] * 0.5
            time.sleep(0.02)

    try:
        browser.before_load(XR)
        browser.open(phone.page.url)
        assert browser.run("location.hash") == ""
        lead(lambda: phone.page.told == "ready")  # let go of once
        # A finger on the left pad, dragged away by 100 pixels of half a millimetre.
        x, y = browser.centre("#move")
        browser.touch("touchStart", (x, y))
        lead(lambda: phone.engaged)
        for step in range(1, 11):
            browser.touch("touchMove", (x, y - 10 * step))
        lead(lambda: total[0] > 0.049)
        assert total == pytest.approx([0.05, 0, 0, 0, 0, 0], abs=2e-3)
        lead(lambda: "leading" in browser.text())
        if folder := os.environ.get("VLA_AGENTS_SCREENSHOTS"):
            browser.screenshot(Path(folder) / "phone.png")
        browser.touch("touchEnd")
        lead(lambda: not phone.engaged)
        browser.touch("touchStart", browser.centre("#grip"))  # acts at once, however long it is pressed
        lead(lambda: phone.act(OBS)[6] == 1)
        time.sleep(0.7)  # a long press is no click
        browser.touch("touchEnd")
        browser.tap("[data-press=success]")
        lead(lambda: bool(phone.page.hand.events))
        assert phone.events() == [Event.SUCCESS]
        browser.run("document.getElementById('slow').click()")  # as a keyboard does
        assert browser.run("document.getElementById('slow').innerText") == "coarse"
        browser.tap("#slow")
        browser.wait("document.getElementById('slow').innerText === 'fine'")
        assert phone.act(OBS)[6] == 1, "pressed once"
        # A key, down and up.
        total[:] = 0
        browser.key("keyDown", "e")
        lead(lambda: total[2] > 0.01)
        browser.key("keyUp", "e")
        lead(lambda: not phone.engaged)
        # The controller of a headset: 4 cm up, and a quarter of a radian about the vertical, while squeezed.
        browser.run("document.getElementById('xr').click()")
        browser.run("xr.squeeze = true")
        lead(lambda: phone.engaged)
        total[:] = 0
        for share in np.linspace(0, 1, 12):
            half = 0.125 * share
            browser.run(
                f"xr.at = [0, {1.4 + 0.04 * share}, -0.4], xr.turn = [0, {np.sin(half)}, 0, {np.cos(half)}]"
            )
            lead(lambda: True)
        lead(lambda: total[2] > 0.038 and total[5] > 0.24)
        assert total == pytest.approx([0, 0, 0.04, 0, 0, 0.25], abs=5e-3)
        browser.run("xr.trigger = 1")
        lead(lambda: phone.act(OBS)[6] == 1)
        # The page goes to the background: let go.
        browser.run("window.dispatchEvent(new Event('blur')); xr.squeeze = false")
        lead(lambda: not phone.engaged)
    finally:
        browser.close()
    lead(lambda: bool(phone.trouble))


def test_the_page_is_told_how_the_gripper_is(phone):
    phone.follow(OBS, np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
    assert not phone.page.is_open
    assert phone.act(OBS)[6] == 1 and not phone.page.is_open


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_says_what_is_wrong(phone, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(phone.page.url.replace("#secret", "#wrong"))
        browser.wait("document.getElementById('state').innerText.includes('wrong token')")
        assert browser.run("getComputedStyle(document.body).overflow") is not None
    finally:
        browser.close()
