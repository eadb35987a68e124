"""Keys of the terminal, through a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_agents.collect.keys import OPERATOR_KEYS, KeyDecoder, can_read_keys, events_of
from vla_agents.collect.teleop import Event
from vla_agents.errors import ConfigError

PROGRAM = """
    import sys, termios, time
    from vla_agents.collect.keys import KeyReader
    before = termios.tcgetattr(0)
    with KeyReader() as keys:
        first, second = keys.inbox(), keys.inbox()
        print("ready", flush=True)
        got = []
        while "q" not in got:
            got += first.take()
            time.sleep(0.01)
        time.sleep(0.05)
        assert second.take() == got, "everybody gets every key"
        print("GOT", *got, flush=True)
    assert termios.tcgetattr(0) == before, "the terminal is as it was"
    print("restored", flush=True)
"""


class Terminal:
    """A program in the foreground of its own pseudo-terminal."""

    def __init__(self, program: str) -> None:
        self.text = ""
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(program)])

    def wait_for(self, text: str, seconds: float = 60.0) -> str:
        until = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < until, f"no {text!r} in {self.text!r}"
            try:
                self.text += os.read(self.handle, 1024).decode(errors="replace")
            except OSError:  # the program has ended
                assert text in self.text, f"no {text!r} in {self.text!r}"
        return self.text

    def press(self, data: bytes) -> None:
        os.write(self.handle, data)

    def end(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.handle)
        return os.waitstatus_to_exitcode(status)


def test_keys_arrive_one_by_one_without_echo_and_the_terminal_is_given_back():
    terminal = Terminal(PROGRAM)
    terminal.wait_for("ready")
    terminal.press(b"w\x1b[A\x1bOC\r\x7f\t ")
    terminal.press("é".encode())
    terminal.press(b"\x1b")  # the key Escape: nothing follows
    time.sleep(0.3)
    terminal.press(b"\x1b[5~q")
    text = terminal.wait_for("restored")
    assert "GOT w up right enter backspace tab space é escape pageup q" in text
    assert terminal.end() == 0


def test_ctrl_c_stays_an_interrupt_and_the_terminal_is_given_back():
    terminal = Terminal(PROGRAM)
    terminal.wait_for("ready")
    terminal.press(b"\x03")
    terminal.wait_for("KeyboardInterrupt")
    assert terminal.end() in (1, 130, -signal.SIGINT)


def test_without_a_terminal_there_is_an_error_that_helps():
    program = "from vla_agents.collect.keys import KeyReader; KeyReader().open()"
    run = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert run.returncode == 1 and "not a terminal" in run.stderr and "ssh -t" in run.stderr
    with open(os.devnull) as nothing:
        assert not can_read_keys(nothing)


def test_a_terminal_without_foreground_is_refused():
    leader, follower = pty.openpty()  # a terminal, but not that of this process
    with os.fdopen(follower) as stream:
        assert not can_read_keys(stream)
        from vla_agents.collect.keys import KeyReader

        with pytest.raises(ConfigError, match="foreground"):
            KeyReader(stream).open()
    os.close(leader)


BUSY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@BUSY
@given(st.binary(max_size=60), st.integers(1, 7))
def test_the_decoder_survives_anything_however_it_is_cut(data, size):
    decoder, keys = KeyDecoder(), []
    for start in range(0, len(data), size):
        keys += decoder.feed(data[start : start + size])
    keys += decoder.flush()
    assert all(key and key.isprintable() for key in keys)
    assert not decoder.pending


@BUSY
@given(
    st.lists(st.sampled_from(["\x1b[A", "a", "ß", "\x1b[6~", "€", "\r", "😀"]), max_size=20),
    st.integers(1, 5),
)
def test_the_decoder_does_not_depend_on_where_the_bytes_are_cut(parts, size):
    names = {"\x1b[A": "up", "\x1b[6~": "pagedown", "\r": "enter"}
    data, decoder, keys = "".join(parts).encode(), KeyDecoder(), []
    for start in range(0, len(data), size):
        keys += decoder.feed(data[start : start + size])
    assert keys == [names.get(part, part) for part in parts]


def test_every_event_has_a_key():
    assert set(events_of(OPERATOR_KEYS)) == set(Event)
    assert events_of(["w", "enter", "x", "q"]) == [Event.SAVE, Event.QUIT]
