"""The byte-level BPE under FAST: which bytes a token stands for, which characters have tokens at all, and training.

Character i stands for the i-th integer of the fitted range. Byte-level BPE sees its UTF-8 bytes, each written as one
printable character (byte 0 is "Ā", byte 40 is "(", ...). The reference asks for the alphabet chr(0) .. chr(range) without
that spelling: those tokens are in the vocabulary, tell how wide the range was, and are used only where both spellings
agree. Bytes that never occurred in the data have no token, and BPE drops them without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vla_agents.errors import ConfigError

MOST_CODES = 0xD800  # the code points after it are surrogates, which no text may hold
_MOST_WORDS = 1 << 16  # kept by a ByteBPE, some 20 MB


def _spell_bytes() -> dict[str, int]:
    """Printable character -> byte: printable Latin-1 stands for itself, the other bytes follow from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(b): b for b in itself} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _spell_bytes()
_SPELLING = {byte: character for character, byte in _BYTE_OF.items()}


def bytes_of_token(token: str) -> bytes:
    """What the byte-level decoder makes of one token; one that is not spelt in bytes stands for its own UTF-8."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def known_codes(vocabulary: Mapping[str, int]) -> np.ndarray:
    """bool (R + 1,): which characters 0 .. R of the fitted range come through the BPE whole."""
    count = 0
    while count < MOST_CODES and chr(count) in vocabulary:
        count += 1
    if not count:  # not trained on a raw alphabet: take every character that has tokens
        count = MOST_CODES
    have = {byte for byte, character in _SPELLING.items() if character in vocabulary}
    known = np.array([have.issuperset(chr(code).encode()) for code in range(count)])
    return known[: int(np.flatnonzero(known)[-1]) + 1] if count == MOST_CODES and known.any() else known


def nearest_known(known: np.ndarray) -> np.ndarray:
    """int64 (R + 1,): the known character nearest to each; the lower one of two."""
    places = np.flatnonzero(known)
    every = np.arange(len(known))
    after = np.clip(np.searchsorted(places, every), 0, len(places) - 1)
    before = np.maximum(after - 1, 0)
    lower = np.abs(places[before] - every) <= np.abs(places[after] - every)
    return np.where(lower, places[before], places[after])


class ByteBPE:
    """Text to tokens as the pipeline of a `tokenizer.json` does it, without its bookkeeping.

    The pipeline keeps track of where every token came from, which nobody asks here. So the text is cut into words by one
    regular expression, each word goes to the bare BPE model, and its tokens are kept: most words come again and again.

    Args:
        text: The contents of a `tokenizer.json`.
    """

    def __init__(self, text: str) -> None:
        from tokenizers import Tokenizer

        data: dict[str, Any] = json.loads(text)
        spelling = data["pre_tokenizer"] or {}
        if data["model"]["type"] != "BPE" or spelling.get("type") != "ByteLevel":
            raise ValueError("tokenizer.json is not a byte-level BPE")
        try:
            whole = Tokenizer.from_str(json.dumps(data | {"truncation": None, "padding": None}))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(str(error)) from error
        self.vocabulary: dict[str, int] = whole.get_vocab(with_added_tokens=True)
        self._whole, self._model = whole, whole.model
        self._plain = not (data["normalizer"] or data["added_tokens"] or spelling["add_prefix_space"])
        self._cut = spelling.get("use_regex", True)
        self._words: dict[str, list[int]] = {}
        self._pattern: re.Pattern[str] | None = None
        self._spelt: dict[int, str] = {}

    def prepare(self, codes: int) -> None:
        """Get ready for texts of the characters below `codes`."""
        self._spelt = {code: "".join(_SPELLING[byte] for byte in chr(code).encode()) for code in range(codes)}
        if self._plain and self._cut:
            self._pattern = _word_pattern(self._whole.pre_tokenizer, codes)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        if not self._plain:
            return self._whole.encode(text, add_special_tokens=False).ids
        known = self._words
        tokens: list[int] = []
        for word in self._pattern.findall(text) if self._pattern else (text,):
            found = known.get(word)
            if found is None:
                found = [token.id for token in self._model.tokenize(word.translate(self._spelt))]
                if len(known) >= _MOST_WORDS:
                    known.clear()
                known[word] = found
            tokens += found
        return tokens


def _word_pattern(pre_tokenizer: Any, codes: int) -> re.Pattern[str]:
    """The rule by which the pre-tokenizer cuts words (GPT-2's), its letters, digits and spaces found out by trying it."""
    letters, digits, spaces = "", "", ""
    for code in range(codes):
        character = chr(code)
        if len(pre_tokenizer.pre_tokenize_str("a" + character)) == 1:
            letters += character
        elif len(pre_tokenizer.pre_tokenize_str("1" + character)) == 1:
            digits += character
        elif len(pre_tokenizer.pre_tokenize_str("!" + character)) > 1:
            spaces += character
    a, n, s = (re.escape(characters) or "a" for characters in (letters, digits, spaces))
    return re.compile(f"'(?:[stmd]|re|ve|ll)| ?[{a}]+| ?[{n}]+| ?[^{s}{a}{n}]+|[{s}]+(?![^{s}])|[{s}]+")


def train_bpe(texts: Iterable[str], codes: int, vocab_size: int) -> str:
    """Learn a BPE as the reference does, and return its `tokenizer.json`.

    Args:
        texts: One string of characters below `codes` per chunk.
        codes: Number of integers in the range.
        vocab_size: Number of tokens to reach.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if codes - 1 > min(vocab_size, MOST_CODES - 1):
        raise ConfigError(
            f"the scaled coefficients span {codes} integers, more than the vocabulary of {vocab_size} tokens",
            "lower the scale, raise vocab_size, or normalise the actions first",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=[chr(code) for code in range(codes)],
        max_token_length=10000,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True)
