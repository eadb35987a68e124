"""`vla-agents serve CKPT`."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vla_agents.agent import PolicyAgent, load_agent
from vla_agents.arguments import Options
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError
from vla_agents.robots.loop_tools import quick_switching
from vla_agents.serving.arrays import WireLimits
from vla_agents.serving.keys import Keys
from vla_agents.serving.logs import log_to_stderr
from vla_agents.serving.planning import BatchPlanner
from vla_agents.serving.security import find_token
from vla_agents.serving.server import PolicyServer
from vla_agents.serving.settings import ServerConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeConfig:
    """Serve a policy to robots, evaluations and clients of openpi, StarVLA, vla-eval and GR00T.

    On the other side: `vla-agents eval --agent ws://127.0.0.1:8000 ...`, or load_agent("ws://127.0.0.1:8000"). SIGTERM
    finishes what is under way and stops; SIGHUP loads the checkpoint anew. See docs/serving.md.
    """

    name: str
    """A checkpoint folder, a run folder, or a hub id."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need a token."""
    port: int = 8000
    """Port; 0 takes a free one."""
    unix: Path | None = None
    """Listen on a Unix socket at this path instead; only the same user may connect."""
    token_file: Path | None = None
    """A file that holds the token clients must carry (mode 600). Without it, the variable VLA_AGENTS_TOKEN counts."""
    tls_cert: Path | None = None
    """Certificate chain (PEM); with it the server speaks TLS, and clients say wss://."""
    tls_key: Path | None = None
    """Its key, where it is not in the same file."""
    protocol: Literal["auto", "openpi", "starvla", "vla-eval"] = "auto"
    """What clients that are not ours and name no path speak."""
    gr00t_port: int | None = None
    """Answer GR00T's ZeroMQ clients too, on this port."""
    keys: Options = field(default_factory=dict)
    """Where other protocols' messages hold our cameras, state and instruction: NAME=PATH, e.g. front=observation/image."""
    device: str | None = None
    """Where to put the policy; by default a GPU where there is one."""
    compile: bool = False
    """Act by compiled graphs; the server is ready when they are."""
    embodiment: Path | None = None
    """The body to serve (an embodiment.json), where the policy was trained on several or on relative actions."""
    warm_up: str = "pick up the block"
    """The instruction to warm up with."""
    max_batch: int = 16
    """Observations that go through the policy together."""
    batch_wait_ms: float = 10.0
    """How long a batch waits at most for clients that usually ask so soon; never over half the time planning takes."""
    max_clients: int = 16
    """Connected at a time."""
    max_message_mb: float = 32.0
    """Largest message, MiB."""
    idle_s: float = 600.0
    """A client that is silent for so long is sent away."""
    drain_s: float = 30.0
    """How long SIGTERM waits for requests under way."""
    log: Literal["text", "json"] = "text"
    """How to write logs, to standard error."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """info has a line per plan."""

    def server_config(self) -> ServerConfig:
        """What of it the server needs."""
        if self.batch_wait_ms < 0 or self.max_message_mb <= 0:
            raise ConfigError(
                f"batch_wait_ms={self.batch_wait_ms}, max_message_mb={self.max_message_mb}: too small"
            )
        return ServerConfig(
            host=self.host,
            port=self.port,
            unix=self.unix,
            token=find_token(self.token_file),
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            limits=WireLimits(max_bytes=int(self.max_message_mb * 2**20)),
            max_clients=self.max_clients,
            max_batch=self.max_batch,
            batch_wait_s=self.batch_wait_ms / 1000,
            idle_s=self.idle_s,
            drain_s=self.drain_s,
            root=self.protocol,
        )


def load_warm(config: ServeConfig) -> BatchPlanner:
    """The policy, after it has planned once for every size of batch there will be."""
    options: dict[str, Any] = {"device": config.device}
    if config.compile:
        options["compile"] = True
    if config.embodiment is not None:
        options["embodiment"] = Embodiment.load(config.embodiment)
    agent = load_agent(config.name, **options)
    if not isinstance(agent, PolicyAgent):
        raise ConfigError(
            f"{config.name} is not a checkpoint", "a server serves a policy, not another server"
        )
    body = agent.embodiment
    blank: dict[str, Any] = {
        "images": {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in body.cameras},
        "instruction": config.warm_up,
    }
    if body.state_dim:
        blank["state"] = np.zeros(body.state_dim, np.float32)
    sizes = [1, *(2**n for n in range(1, 12) if 2**n <= config.max_batch)] if config.compile else [1]
    for count in sizes:
        for _ in range(3 if agent.policy.device.type == "cuda" else 1):
            agent.plan_batch([blank] * count, [agent.generator(0)] * count)
    return agent


def settle() -> None:
    """Leave everything there is now out of garbage collection, which stops all threads: with torch and transformers there
    are 400,000 objects to look at, which was seen to take a second on a busy machine."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from vla_agents.serving.gr00t import Gr00tServer

    keys = Keys({name: str(path) for name, path in config.keys.items()})
    server = PolicyServer(config.server_config(), lambda: load_warm(config), keys)
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        if server.state == "ready" and not reloads:
            task = asyncio.ensure_future(reloaded())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    async def reloaded() -> None:
        if await server.reload():
            loop.call_later(1, settle)  # the batch under way lets go of the old policy

    starting = asyncio.ensure_future(server.start())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    stopping = asyncio.ensure_future(over.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    gr00t = None
    try:
        if starting.done():
            starting.result()
            settle()
            if config.gr00t_port is not None:
                gr00t = Gr00tServer(server, config.gr00t_port)
                await gr00t.start()
                log.info("listening for GR00T", extra={"url": gr00t.url})
            await stopping
        else:
            starting.cancel()
    finally:
        stopping.cancel()
        if gr00t is not None:
            await gr00t.stop()
        await server.stop()


def serve(config: ServeConfig) -> None:
    """Serve; returns when the server was told to stop. A policy that keeps the interpreter busy holds nobody up."""
    log_to_stderr(config.log, config.log_level)
    with quick_switching():
        asyncio.run(run(config))
