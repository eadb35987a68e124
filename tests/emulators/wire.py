"""A line that is only lists: what was sent, and what will be answered."""

from __future__ import annotations


class Wire:
    """A line that keeps what is sent and answers from a list."""

    path, baud = "wire", 1_000_000

    def __init__(self, answers: list[bytes] = ()) -> None:
        self.sent, self.answers = [], list(answers)

    def set_baud(self, baud: int) -> None:
        self.baud = baud

    def write(self, data: bytes) -> None:
        self.sent.append(bytes(data))

    def read(self, count: int, deadline: float) -> bytes:
        return self.answers.pop(0) if self.answers else b""

    def drain(self) -> int:
        return 0

    def close(self) -> None:
        pass
