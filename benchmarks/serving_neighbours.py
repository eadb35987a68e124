"""What a good client's requests take beside bad ones: alone and beside them in turn, rounds interleaved.

    python benchmarks/serving_neighbours.py

The bad ones, two of each at once: say messages that are none until they are cut off, and come back; announce a message of
a gigabyte; connect and say nothing; ask and never take the answer. Each does so 20 times a second. The policy takes 20 ms.
Goal: the good client's p99 is at most twice what it is alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from serving import Process, free_port, pictures, wait_for

EACH, PAUSE_S = 2, 0.05


def connected(port: int) -> Any:
    from vla_agents.serving.transport import Wire

    wire = Wire(f"ws://127.0.0.1:{port}", subprotocol="vla-agents.v1", timeout_s=5)
    wire.receive()
    return wire


def greeted(port: int) -> Any:
    from vla_agents.serving.codec import Encoder

    wire = connected(port)
    wire.send(Encoder().encode({"type": "hello", "protocol": 1}))
    wire.receive()
    return wire


def malformed(port: int) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    wires: list[Any] = []

    def act() -> None:
        if not wires:
            wires.append(greeted(port))
        try:
            wires[0].send(rng.bytes(int(rng.integers(1, 2000))))
            wires[0].receive()
        except Exception:
            wires.pop().close()

    return act


def oversized(port: int) -> Callable[[], None]:
    def act() -> None:
        wire = greeted(port)
        wire._socket.sendall(b"\x82\xff" + (2**30).to_bytes(8, "big") + bytes(4) + bytes(2**16))
        with suppress(Exception):
            wire.receive()
        wire.close()

    return act


def half_open(port: int) -> Callable[[], None]:
    held: list[socket.socket] = []

    def act() -> None:
        held.append(socket.create_connection(("127.0.0.1", port)))
        if len(held) > 5:
            held.pop(0).close()

    return act


def slow(port: int) -> Callable[[], None]:
    from vla_agents.serving.codec import Encoder

    ping = Encoder().encode({"type": "ping", "id": "x" * 100})
    wires: list[Any] = []

    def act() -> None:
        if not wires:
            wires.append(greeted(port))
        wires[0]._socket.settimeout(0.01)
        try:
            wires[0].send(ping)
        except Exception:
            wires.pop().close()

    return act


BAD = {"malformed": malformed, "oversized": oversized, "half-open": half_open, "slow": slow}


def misbehave(name: str, port: int, on: Any) -> None:
    act = BAD[name](port)
    while True:
        on.wait()
        with suppress(Exception):
            act()
        time.sleep(PAUSE_S)


def main() -> None:
    from vla_agents.serving.remote import PolicyClient

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=40, help="per round")
    args = parser.parse_args()
    import sys

    port = free_port()
    server = Process(sys.executable, "our-server", port, 0.02)
    wait_for(port)
    front, wrist = pictures()
    good = {"images": {"front": front, "wrist": wrist}, "state": np.zeros(8), "instruction": "pick up"}
    context = multiprocessing.get_context("spawn")
    on = context.Event()
    crowd = [
        context.Process(target=misbehave, args=(name, port, on), daemon=True)
        for name in BAD
        for _ in range(EACH)
    ]
    for one in crowd:
        one.start()
    time.sleep(5)
    print(f"load {os.getloadavg()[0]:.1f}")
    for shared in (True, False):
        times: dict[bool, list[float]] = {False: [], True: []}
        with PolicyClient(f"ws://127.0.0.1:{port}", shared_memory=shared) as client:
            for _ in range(args.rounds):
                for beside in times:
                    (on.set if beside else on.clear)()
                    time.sleep(0.3)
                    for _ in range(args.requests):
                        begin = time.perf_counter()
                        client.plan([good])
                        times[beside].append(time.perf_counter() - begin)
            assert client.reconnects == 0
        alone, crowded = (1e3 * np.percentile(times[beside], [50, 99]) for beside in times)
        print(
            f"{'shared memory' if shared else 'websocket':<14} alone {alone[0]:.1f}, p99 {alone[1]:.1f} ms   "
            f"beside bad ones {crowded[0]:.1f}, p99 {crowded[1]:.1f} ms   p99 {crowded[1] / alone[1]:.2f} times"
        )
    for one in crowd:
        one.terminate()
    server.stop()


if __name__ == "__main__":
    main()
