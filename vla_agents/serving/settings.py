"""Where a server listens, whom it lets in, and what a client may cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.serving.arrays import WireLimits

PATHS = {"/openpi": "openpi", "/starvla": "starvla", "/vla-eval": "vla-eval"}


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, whom it lets in, and what a client may cost.

    Args:
        host: Address to listen on; others than this machine's own need a token.
        port: 0 takes a free one.
        unix: Path of a Unix socket to listen on instead; only this user may connect.
        token: Clients must carry it; None: no token.
        tls_cert: Certificate chain (PEM), with it TLS is spoken.
        tls_key: Its key, where it is not in the same file.
        limits: Of one message.
        max_clients: Connected at a time.
        max_queued: Observations that may wait for the policy.
        max_batch: Observations that go through the policy together.
        batch_wait_s: How long a batch waits at most for clients that usually ask again so soon.
        idle_s: A client that says nothing for so long is sent away.
        hello_s: How long a client may take to connect and say hello.
        send_s: How long a client may take to accept an answer.
        drain_s: How long a server that stops waits for requests under way.
        root: What clients of no particular path and subprotocol speak: `"auto"`, `"openpi"`, `"starvla"`, `"vla-eval"`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    unix: Path | None = None
    token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    limits: WireLimits = field(default_factory=WireLimits)
    max_clients: int = 16
    max_queued: int = 256
    max_batch: int = 16
    batch_wait_s: float = 0.01
    idle_s: float = 600.0
    hello_s: float = 5.0
    send_s: float = 10.0
    drain_s: float = 30.0
    root: str = "auto"

    def __post_init__(self) -> None:
        for name in ("max_clients", "max_queued", "max_batch", "idle_s", "hello_s", "send_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be more than 0")
        if self.batch_wait_s < 0 or self.drain_s < 0:
            raise ConfigError(f"batch_wait_s={self.batch_wait_s}, drain_s={self.drain_s}: below 0")
        if self.root not in ("auto", *PATHS.values()):
            raise UnknownNameError("protocol", self.root, ("auto", *PATHS.values()))
