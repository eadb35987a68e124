"""Which FAST token may come next, so that what a model says is a chunk of exactly T * D coefficients.

A token is a piece of UTF-8 text, one character per coefficient, and may begin or end inside a character. A sequence is
a chunk when its bytes are T * D characters of the fitted range. So the state of a sequence is how many characters are left
and which bytes of an unfinished one stand at its end; a token may follow when its characters fit and its last, unfinished
one can still be completed.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

import numpy as np

from vla_agents.policies.fast_tokenizer import FastTokenizer


@dataclass(frozen=True)
class ChunkState:
    """Where a sequence stands: characters still to come, and the bytes of the one begun."""

    left: int
    begun: bytes = b""

    @property
    def complete(self) -> bool:
        """Whether the sequence is a chunk; no token may follow."""
        return self.left == 0


class ChunkGrammar:
    """The rule for one tokenizer.

    Args:
        tokenizer: Its tokens.
    """

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._pieces = tokenizer.token_bytes
        self._codes = len(tokenizer.known_codes)
        self._beginnings = {b""}
        for code in np.flatnonzero(tokenizer.known_codes):
            text = chr(code).encode()
            self._beginnings |= {text[:end] for end in range(1, len(text))}
        self._tables: dict[bytes, tuple[np.ndarray, list[bytes]]] = {}

    def allowed(self, state: ChunkState) -> np.ndarray:
        """bool (V,): the tokens that may follow."""
        needed, _ = self._table(state.begun)
        return (needed > 0) & (needed <= state.left)

    def advance(self, state: ChunkState, token: int) -> ChunkState:
        """The state after a token that may follow."""
        needed, ends = self._table(state.begun)
        begun = ends[token]
        return ChunkState(state.left - int(needed[token]) + bool(begun), begun)

    def _table(self, begun: bytes) -> tuple[np.ndarray, list[bytes]]:
        """For each token after `begun`: characters it takes up, an unfinished one included (0: it may not follow); and
        the bytes of the unfinished one."""
        if begun not in self._tables:
            found = [self._after(begun + piece) if piece else (0, b"") for piece in self._pieces]
            needed = np.array([count for count, _ in found], np.int64)
            self._tables[begun] = (needed, [end for _, end in found])
        return self._tables[begun]

    def _after(self, data: bytes) -> tuple[int, bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            text = decoder.decode(data)
        except UnicodeDecodeError:
            return 0, b""
        end = data[len(text.encode()) :]
        if end not in self._beginnings or any(ord(character) >= self._codes for character in text):
            return 0, b""
        return len(text) + bool(end), end
