"""FAST: chunks of actions as short sequences of tokens, and back.

Pertsch et al. 2025, "FAST: Efficient Action Tokenization for Vision-Language-Action Models":

    actions (B, T, D), normalised
      -> DCT-II over time, orthonormal   (B, T, D)    a smooth motion has few large coefficients, the first ones
      -> x scale, rounded                             integers; scale 10 keeps a chunk to about +-0.05 per coefficient
      -> flattened, time first           (B, T * D)   all dimensions of frequency 0, then of frequency 1, ...
      -> - min_token, chr()                           one Unicode character per coefficient
      -> byte-level BPE                               the tokens

The files are those of `physical-intelligence/fast` (`processor_config.json` and `tokenizer.json` side by side); its Python
file is neither needed nor run. Tokens are the same to the last one for every chunk whose coefficients the tokenizer knows.
The others are where this class differs, on purpose: a coefficient beyond the fitted range (or never seen in the data, for
which BPE has no token and drops the character) is moved to the nearest known one and counted, or refused; a sequence that
is no chunk raises `TokenDecodeError` instead of becoming zeros, which would be a motion too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.fft import dct, idct

from vla_agents.errors import ActionError, CheckpointError, ConfigError, TokenDecodeError
from vla_agents.policies.fast_bpe import ByteBPE, bytes_of_token, known_codes, nearest_known, train_bpe

_CODE = "processing_action_tokenizer.UniversalActionProcessor"
_FILES = ("processor_config.json", "tokenizer.json")


class FastTokenizer:
    """See the module docstring.

    Args:
        bpe: The contents of a `tokenizer.json`.
        scale: Factor between DCT coefficients and integers.
        min_token: The integer that becomes character 0.
        vocab_size: Number of tokens the BPE was asked for; it can have fewer.
        time_horizon: T the tokenizer is meant for, where one is known; `decode` takes it as default.
        action_dim: D, likewise.

    Attributes:
        clipped: Coefficients that `encode` moved to the nearest known one, since this object was made.
    """

    def __init__(
        self,
        bpe: str,
        *,
        scale: float = 10,
        min_token: int = 0,
        vocab_size: int = 1024,
        time_horizon: int | None = None,
        action_dim: int | None = None,
    ) -> None:
        self.scale = scale
        self.min_token = min_token
        self.vocab_size = vocab_size
        self.time_horizon = time_horizon
        self.action_dim = action_dim
        self.clipped = 0
        self._json = bpe
        self._bpe = ByteBPE(bpe)
        vocabulary = self._bpe.vocabulary
        self._bytes = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, number in vocabulary.items():
            self._bytes[number] = bytes_of_token(token)
        known = known_codes(vocabulary)  # bool (R + 1,)
        if not known.any():
            raise ConfigError("the BPE of this tokenizer has no token for any coefficient", "fit it anew")
        self.known_codes = known
        self._nearest = nearest_known(known)
        self._bpe.prepare(len(known))

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest scaled coefficient that the tokenizer was fitted for."""
        return self.min_token, self.min_token + len(self.known_codes) - 1

    @property
    def tokenizer_json(self) -> str:
        """The BPE as a `tokenizer.json`."""
        return self._json

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """What each token stands for: a piece of the UTF-8 text of the coefficients."""
        return self._bytes

    def token_numbers(self) -> list[tuple[float, ...]]:
        """The coefficients each token holds whole, as shares of the range: none for pieces of characters."""
        most = max(1, len(self.known_codes) - 1)
        texts = [piece.decode(errors="ignore") for piece in self._bytes]
        return [tuple(min(1.0, ord(character) / most) for character in text) for text in texts]

    # ---- actions to tokens ----------------------------------------------------------------------------------
    def encode(self, actions: np.ndarray, *, outside: Literal["clip", "refuse"] = "clip") -> list[list[int]]:
        """Tokens of B chunks.

        Args:
            actions: Normalised, (B, T, D) or (T, D), float32 or float64. The precision is kept, as the reference does.
            outside: Coefficients without a token are moved to the nearest one that has (`"clip"`, counted in
                `clipped`), or the chunk is refused.

        Raises:
            ActionError: NaN or infinity; or a coefficient outside, with `outside="refuse"`.
        """
        actions = np.asarray(actions)
        chunks = actions[None] if actions.ndim == 2 else actions
        if chunks.ndim != 3 or 0 in chunks.shape[1:]:
            raise ActionError(f"actions of shape {actions.shape} are not chunks (B, T, D)")
        if not np.isfinite(chunks).all():
            row = int(np.flatnonzero(~np.isfinite(chunks).all(axis=(1, 2)))[0])
            raise ActionError(f"chunk {row} holds NaN or infinity and has no tokens", "mend the data")
        if not len(chunks):
            return []
        codes, known = self._codes(chunks)
        if not np.array_equal(codes, known):
            if outside == "refuse":
                raise ActionError(self._describe(codes, known), "fit the tokenizer on data that covers it")
            self.clipped += int(np.count_nonzero(codes != known))
        text = known.astype("<u4").tobytes().decode("utf-32-le")
        size = chunks.shape[1] * chunks.shape[2]
        encode = self._bpe.encode
        return [encode(text[start : start + size]) for start in range(0, len(text), size)]

    def unknown_coefficients(self, chunks: np.ndarray) -> np.ndarray:
        """bool (B, frequency, D): which coefficients of chunks (B, T, D) `encode` would move."""
        codes, known = self._codes(np.asarray(chunks))
        return codes != known

    def _codes(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, T, D) -> characters as numbers (B, T, D), as they are and moved to the nearest known ones."""
        codes = np.around(dct(chunks, axis=1, norm="ortho") * self.scale) - self.min_token
        return codes, self._nearest[np.clip(codes, 0, len(self._nearest) - 1).astype(np.int64)]

    def _describe(self, codes: np.ndarray, known: np.ndarray) -> str:
        moved = codes != known
        row, frequency, dim = (int(i) for i in np.argwhere(moved)[0])
        value, (low, high) = int(codes[row, frequency, dim]) + self.min_token, self.range
        count = int(moved.any(axis=(1, 2)).sum())
        return (
            f"{count} of {len(codes)} chunks have DCT coefficients the FAST tokenizer has no token for; "
            f"first: {value} in chunk {row}, frequency {frequency}, dimension {dim}; fitted range {low} to {high}"
        )

    # ---- tokens to actions ----------------------------------------------------------------------------------
    def decode(
        self,
        tokens: Sequence[Sequence[int]],
        time_horizon: int | None = None,
        action_dim: int | None = None,
    ) -> np.ndarray:
        """Chunks of B token sequences, float64 (B, T, D).

        Args:
            tokens: B sequences.
            time_horizon: T; default: the tokenizer's own.
            action_dim: D; default: the tokenizer's own.

        Raises:
            TokenDecodeError: Naming the sequences that are no chunk, and why.
        """
        actions, problems = self._decode(tokens, time_horizon, action_dim)
        if problems:
            raise TokenDecodeError(problems, len(tokens))
        return actions

    def decode_valid(
        self,
        tokens: Sequence[Sequence[int]],
        time_horizon: int | None = None,
        action_dim: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like `decode`, but with a mask instead of an error.

        Returns:
            float64 (B, T, D), NaN where the sequence is no chunk; and bool (B,), False there.
        """
        actions, problems = self._decode(tokens, time_horizon, action_dim)
        valid = np.ones(len(actions), bool)
        valid[list(problems)] = False
        actions[~valid] = np.nan
        return actions, valid

    def _decode(
        self, tokens: Sequence[Sequence[int]], time_horizon: int | None, action_dim: int | None
    ) -> tuple[np.ndarray, dict[int, str]]:
        steps, dims = time_horizon or self.time_horizon, action_dim or self.action_dim
        if not steps or not dims:
            raise ConfigError(
                "this FAST tokenizer does not know the shape of a chunk", "give time_horizon and action_dim"
            )
        size = steps * dims
        problems: dict[int, str] = {}
        texts = [self._text(row, size, index, problems) for index, row in enumerate(tokens)]
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4").reshape(len(texts), size)
        beyond = codes >= len(self.known_codes)
        for index in np.flatnonzero(beyond.any(axis=1)):
            value, (low, high) = int(codes[index].max()) + self.min_token, self.range
            problems.setdefault(int(index), f"coefficient {value} is outside {low} to {high}")
        scaled = (codes.astype(np.int64) + self.min_token).reshape(-1, steps, dims)
        if not len(scaled):
            return np.zeros((0, steps, dims)), problems
        return idct(scaled / self.scale, axis=1, norm="ortho"), problems

    def _text(self, row: Sequence[int], size: int, index: int, problems: dict[int, str]) -> str:
        """The characters of one sequence, `size` of them; where it has none, a problem and a stand-in."""
        table = self._bytes
        try:
            text = b"".join([table[number] for number in row]).decode()
            if len(text) == size and (not row or min(row) >= 0):
                return text
            problems[index] = f"{len(text)} coefficients instead of {size}"
            if row and min(row) < 0:
                problems[index] = f"{min(row)} is not a token"
        except IndexError:
            problems[index] = f"{max(row)} is not a token, there are {len(self)}"
        except UnicodeDecodeError as error:
            problems[index] = f"no text ({error.reason})"
        return "\0" * size

    # ---- files ------------------------------------------------------------------------------------------------
    @classmethod
    def load(cls, source: str | Path) -> FastTokenizer:
        """From a folder, or a hub id such as `"physical-intelligence/fast"`. Runs no code from there."""
        folder = Path(source) if Path(source).is_dir() else _from_hub(source)
        try:
            config = json.loads((folder / _FILES[0]).read_text(encoding="utf-8"))
            return cls(
                (folder / _FILES[1]).read_text(encoding="utf-8"),
                scale=config["scale"],
                min_token=int(config["min_token"]),
                vocab_size=int(config["vocab_size"]),
                time_horizon=config.get("time_horizon"),
                action_dim=config.get("action_dim"),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                folder, f"no FAST tokenizer ({error!r})", f"the folder must hold {' and '.join(_FILES)}"
            ) from error

    def save(self, folder: str | Path) -> Path:
        """Write the flat layout that `load` and `AutoProcessor` (with the hub's code) read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # The reference's class, taken from its own repository by whoever allows remote code.
        auto_map = {"AutoProcessor": f"physical-intelligence/fast--{_CODE}"}
        processor = {
            "action_dim": self.action_dim,
            "auto_map": auto_map,
            "min_token": self.min_token,
            "processor_class": _CODE.split(".")[1],
            "scale": self.scale,
            "time_horizon": self.time_horizon,
            "vocab_size": self.vocab_size,
        }
        tokenizer = {
            "added_tokens_decoder": {},
            "auto_map": auto_map,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": {},
            "model_max_length": 10**30,
            "processor_class": processor["processor_class"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        files = {"processor_config": processor, "tokenizer_config": tokenizer, "special_tokens_map": {}}
        for name, data in files.items():
            (folder / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        (folder / "tokenizer.json").write_text(self._json, encoding="utf-8")
        return folder

    @classmethod
    def fit(
        cls, chunks: np.ndarray | Sequence[np.ndarray], scale: float = 10, vocab_size: int = 1024
    ) -> FastTokenizer:
        """Learn the BPE from chunks; the same vocabulary and tokens as the reference's `fit`.

        Args:
            chunks: (N, T, D), normalised; or N arrays (T, D) whose T may differ.
            scale: Larger keeps more detail and makes more tokens (10: mean error about 0.015 of the normalised range).
            vocab_size: Number of tokens; must exceed the range of the scaled coefficients.
        """
        pieces = [np.asarray(chunk) for chunk in chunks]
        if not pieces or any(piece.ndim != 2 or not piece.size for piece in pieces):
            raise ConfigError("a FAST tokenizer is fitted on chunks (N, T, D), N >= 1", "give more data")
        if not all(np.isfinite(piece).all() for piece in pieces):
            raise ActionError("chunks to fit a FAST tokenizer on hold NaN or infinity", "mend the data")
        rounded = [np.around(dct(piece, axis=0, norm="ortho") * scale).ravel() for piece in pieces]
        every = np.concatenate(rounded)
        low, high = int(every.min()), int(every.max())
        texts = ((row - low).astype("<u4").tobytes().decode("utf-32-le") for row in rounded)
        shapes = {piece.shape for piece in pieces}
        steps, dims = shapes.pop() if len(shapes) == 1 else (None, pieces[0].shape[1])
        return cls(
            train_bpe(texts, high - low + 1, vocab_size),
            scale=scale,
            min_token=low,
            vocab_size=vocab_size,
            time_horizon=steps,
            action_dim=dims,
        )


def _from_hub(source: str | Path) -> Path:
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(source, "no such folder", "give a folder or a hub id owner/name")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(text, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        raise CheckpointError(
            source, f"no such folder, and not to be had from the hub ({error})", "copy its files here"
        ) from error
