"""The client's side of the shorter way to a server on the same machine; see `doorbell`."""

from __future__ import annotations

import socket

from vla_agents.errors import ConnectionLostError

MOST = 2**16  # bytes of a packet, in either direction


class Ringer:
    """The client's side.

    Args:
        name: The door's, of the server's `shared` message.
        timeout_s: For an answer.

    Raises:
        OSError: It cannot be reached.
    """

    def __init__(self, name: str, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect("\0" + name)
        except BaseException:
            self._socket.close()
            raise

    def ask(self, data: bytes | memoryview) -> bytes:
        """The answer to a packet.

        Raises:
            ConnectionLostError: There is none.
        """
        try:
            self._socket.sendall(data)
            answer = self._socket.recv(MOST + 1)
        except TimeoutError:
            raise ConnectionLostError("the server: no answer in time") from None
        except OSError as error:
            raise ConnectionLostError(f"the server: {error.strerror or error}") from None
        if not answer:
            raise ConnectionLostError("the server closed the connection")
        return answer

    def close(self) -> None:
        """Go away."""
        self._socket.close()
