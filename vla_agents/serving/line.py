"""A line to a server that is dialled again when it breaks: at once, then after longer and longer waits."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from vla_agents.errors import ConfigError, ConnectionLostError, ServerBusyError
from vla_agents.serving.security import find_token
from vla_agents.serving.transport import Wire

log = logging.getLogger(__name__)
T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0


class Line:
    """Asks, and asks again.

    Args:
        url: See `transport.Wire`.
        greet: What to say and hear first on every new connection.
        subprotocol: To ask for.
        token: To carry; None: that of `token_file`, else of the environment (`security.find_token`).
        token_file: Holds the token.
        ca_file: See `transport.Wire`.
        timeout_s: For connecting and for each answer.
        patience_s: How long to try again, from the first failure on; 0: not at all.
    """

    def __init__(
        self,
        url: str,
        greet: Callable[[Wire], None],
        *,
        subprotocol: str | None = None,
        token: str | None = None,
        token_file: str | None = None,
        ca_file: str | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 30.0,
    ) -> None:
        if timeout_s <= 0 or patience_s < 0:
            raise ConfigError(
                f"timeout_s={timeout_s}, patience_s={patience_s}: must be more than 0, at least 0"
            )
        self.url = url
        self._greet, self._patience_s = greet, patience_s
        self._options = {
            "token": find_token(token_file) if token is None else token,
            "subprotocol": subprotocol,
            "ca_file": ca_file,
            "timeout_s": timeout_s,
        }
        self._wire: Wire | None = None
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self.reconnects = -1

    def call(self, exchange: Callable[[Wire], T]) -> T:
        """What `exchange` returns, on a connection that holds.

        Raises:
            ConnectionLostError: The server could not be reached for `patience_s`.
            VlaAgentsError: What it answered.
        """
        with self._lock:
            begin, wait = time.monotonic(), FIRST_WAIT_S
            while True:
                try:
                    return exchange(self._connected())
                except (ConnectionLostError, ServerBusyError) as error:
                    self._drop()
                    spent = time.monotonic() - begin
                    if self._closed.is_set() or spent + wait > self._patience_s:
                        raise
                    log.warning("%s; trying again in about %.1f s", error.problem, wait)
                    self._closed.wait(wait * random.uniform(0.5, 1.0))
                    wait = min(2 * wait, LONGEST_WAIT_S)
                except (
                    BaseException
                ):  # Ctrl-C between question and answer: the answer must not be taken for the next one's
                    if self._wire is not None and self._wire.is_waiting:
                        self._drop()
                    raise

    def _connected(self) -> Wire:
        if self._closed.is_set():
            raise ConnectionLostError("this agent was closed", "load a new one")
        if self._wire is None:
            wire = Wire(self.url, **self._options)  # type: ignore[arg-type]
            try:
                self._greet(wire)
            except BaseException:
                wire.close()
                raise
            self._wire = wire
            self.reconnects += 1
        return self._wire

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def close(self) -> None:
        """Hang up; a call under way in another thread fails."""
        self._closed.set()
        wire = self._wire
        if wire is not None and not self._lock.acquire(timeout=0.05):
            wire.abort()
            self._lock.acquire()
        elif wire is None:
            return
        try:
            self._drop()
        finally:
            self._lock.release()
