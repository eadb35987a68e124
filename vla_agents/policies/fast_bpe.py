"""The byte-level BPE under FAST: which bytes a token stands for, which characters have tokens at all, and training.

Character i stands for the i-th integer of the fitted range. Byte-level BPE sees its UTF-8 bytes, each written as one
printable character (byte 0 is "Ā", byte 40 is "(", ...). The reference asks for the alphabet chr(0) .. chr(range) without
that spelling: those tokens are in the vocabulary, tell how wide the range was, and are used only where both spellings
agree. Bytes that never occurred in the data have no token, and BPE drops them without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vla_agents.errors import ConfigError

MOST_CODES = 0xD800  # the code points after it are surrogates, which no text may hold


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

    The pipeline of `tokenizers` keeps track of where every token came from, which nobody asks here. `tiktoken` does not,
    and is handed the same vocabulary where it provably gives the same tokens (`_ranks`); elsewhere the pipeline is used.

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
            self._whole = Tokenizer.from_str(json.dumps(data | {"truncation": None, "padding": None}))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(str(error)) from error
        self.vocabulary: dict[str, int] = self._whole.get_vocab(with_added_tokens=True)
        plain = not (data["normalizer"] or data["added_tokens"] or spelling["add_prefix_space"])
        self._ranks = _ranks(data["model"], self._whole.model) if plain else {}
        self._cut = spelling.get("use_regex", True)
        self._quick: Any = None

    @property
    def is_quick(self) -> bool:
        """Whether `tiktoken` does the work."""
        return self._quick is not None

    def prepare(self, codes: int) -> None:
        """Get ready for texts of the characters below `codes`."""
        from tiktoken import Encoding

        if self._ranks:
            pattern = _word_pattern(self._whole.pre_tokenizer, codes) if self._cut else r"(?s:.+)"
            self._quick = Encoding("fast", pat_str=pattern, mergeable_ranks=self._ranks, special_tokens={})

    def encode(self, text: str) -> list[int]:
        """The tokens of a text of known characters."""
        if self._quick is None:
            return list(self._whole.encode(text, add_special_tokens=False).ids)
        tokens: list[int] = self._quick.encode_ordinary(text)
        return tokens


def _ranks(model: dict[str, Any], bpe: Any) -> dict[bytes, int]:
    """Bytes -> token for `tiktoken`, empty where it might give other tokens.

    `tokenizers` joins a pair of tokens that is in the list of merges, the earliest one first; `tiktoken` joins any pair
    whose bytes are a token, the smallest number first. They do the same if every token c comes from one merge, later merges
    make larger numbers, and the text of c alone becomes c: where two neighbours have the bytes of c, nothing was joined
    across their ends, so what happened between these is what happens to the text of c alone. That ends with the merge that
    makes c, so the neighbours are its pair.
    """
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk")
    if any(model.get(name) for name in (*options, "byte_fallback", "ignore_merges")):
        return {}
    vocabulary: dict[str, int] = model["vocab"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made = ["".join(pair) for pair in pairs]
    numbers = [vocabulary.get(token, -1) for token in made]
    own = zip(made, numbers, strict=True)
    if numbers != sorted(set(numbers)) or any([t.id for t in bpe.tokenize(c)] != [n] for c, n in own):
        return {}
    single = {bytes([byte]): vocabulary[spelt] for byte, spelt in _SPELLING.items() if spelt in vocabulary}
    return single | {bytes_of_token(token): number for token, number in zip(made, numbers, strict=True)}


def _word_pattern(pre_tokenizer: Any, codes: int) -> str:
    """The rule by which the pre-tokenizer cuts words (GPT-2's), its letters, digits and spaces found out by trying it."""
    letters, digits, spaces = [], [], []
    for code in range(codes):
        character = chr(code)
        if len(pre_tokenizer.pre_tokenize_str("a" + character)) == 1:
            letters.append(code)
        elif len(pre_tokenizer.pre_tokenize_str("1" + character)) == 1:
            digits.append(code)
        elif len(pre_tokenizer.pre_tokenize_str("!" + character)) > 1:
            spaces.append(code)
    a, n, s = (_character_class(members) for members in (letters, digits, spaces))
    return f"'(?:[stmd]|re|ve|ll)| ?[{a}]+| ?[{n}]+| ?[^{s}{a}{n}]+|[{s}]+(?![^{s}])|[{s}]+"


def _character_class(codes: list[int]) -> str:
    """The inside of [...] for some characters; for none, one that no text holds."""
    return "".join(rf"\x{{{code:x}}}" for code in codes) or r"\x{10FFFF}"


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
