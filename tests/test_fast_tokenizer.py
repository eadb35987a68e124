"""The FAST tokenizer against the plain procedure it must equal, and where it must refuse."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.fft import dct, idct
from tokenizers import Tokenizer

from vla_agents.errors import ActionError, CheckpointError, ConfigError, TokenDecodeError, VlaAgentsError
from vla_agents.policies.fast_bpe import bytes_of_token
from vla_agents.policies.fast_grammar import ChunkGrammar, ChunkState
from vla_agents.policies.fast_tokenizer import FastTokenizer

STEPS, DIMS = 8, 3


def _chunks(count: int = 400, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Smooth motions and a switch, (count, 8, 3)."""
    rng = np.random.default_rng(seed)
    chunks = np.cumsum(rng.normal(0, 0.2, (count, STEPS, DIMS)), axis=1)
    chunks[..., -1] = np.where(np.arange(STEPS) < rng.integers(0, 2 * STEPS, (count, 1)), -1, 1)
    return np.clip(chunks, -1, 1).astype(dtype)


@cache
def _fitted(scale: float = 10, vocab_size: int = 512) -> FastTokenizer:
    return FastTokenizer.fit(_chunks(), scale, vocab_size)


def _plain_encode(fast: FastTokenizer, chunks: np.ndarray) -> list[list[int]]:
    bpe = Tokenizer.from_str(fast.tokenizer_json)
    rows = np.maximum(np.around(dct(chunks, axis=1, norm="ortho") * fast.scale) - fast.min_token, 0)
    return [bpe.encode("".join(map(chr, row.astype(int).ravel()))).ids for row in rows]


def _plain_decode(fast: FastTokenizer, tokens: list[list[int]]) -> np.ndarray:
    bpe = Tokenizer.from_str(fast.tokenizer_json)
    codes = [np.array(list(map(ord, bpe.decode(row, skip_special_tokens=False)))) for row in tokens]
    rows = [(row + fast.min_token).reshape(STEPS, DIMS) / fast.scale for row in codes]
    return np.stack([idct(row, axis=0, norm="ortho") for row in rows])


# ---- equal to the plain procedure ---------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("scale", "vocab_size"), [(10, 512), (40, 1024), (100, 2048)])
def test_known_chunks_get_the_tokens_of_the_plain_procedure(
    dtype: type, scale: float, vocab_size: int
) -> None:
    fast = _fitted(scale, vocab_size)
    chunks = _chunks(100, seed=1, dtype=dtype)
    chunks = chunks[~fast.unknown_coefficients(chunks).any(axis=(1, 2))]
    assert len(chunks) > 10
    tokens = fast.encode(chunks, outside="refuse")
    assert tokens == _plain_encode(fast, chunks)
    np.testing.assert_array_equal(fast.decode(tokens), _plain_decode(fast, tokens))
    assert fast.encode(chunks[0]) == tokens[:1] and fast.encode(chunks[:0]) == []


def test_tokens_of_the_published_tokenizer_bytes_and_all() -> None:
    """Every token of a vocabulary decodes to what `tokenizers` makes of it, those outside the byte spelling too."""
    fast = _fitted(100, 2048)
    bpe = Tokenizer.from_str(fast.tokenizer_json)
    for token, number in bpe.get_vocab().items():
        expected = bytes_of_token(token).decode(errors="replace")
        assert bpe.decode([number], skip_special_tokens=False) == expected, token
        assert fast.token_bytes[number] == bytes_of_token(token)


def test_golden_tokenizer_round_trip() -> None:
    fast = FastTokenizer.load(golden("fast_tokenizer"))
    inputs = golden("QwenFast", "qwen3", "inputs")
    meta = json.loads(golden("QwenFast", "qwen3", "meta.json").read_text())
    chunks = np.stack([np.load(inputs / f"ex{i}_action.npy") for i in range(2)])
    tokens = fast.encode(chunks)
    assert tokens == meta["batch.gt_fast_tokens"]
    with np.load(golden("QwenFast", "qwen3", "outputs.npz")) as stored:
        np.testing.assert_array_equal(fast.decode(tokens), stored["batch.gt_fast_roundtrip"])
    assert (fast.time_horizon, fast.action_dim, fast.scale, fast.range[0]) == (8, 7, 10, -40)


# ---- any chunk ----------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, (2, STEPS, DIMS), elements=st.floats(-1e6, 1e6)))
def test_any_finite_chunk_is_encoded_and_decodes_to_the_nearest_known(chunks: np.ndarray) -> None:
    fast = _fitted()
    tokens = fast.encode(chunks)
    back = fast.decode(tokens)
    assert back.shape == chunks.shape and np.isfinite(back).all()
    assert fast.encode(back, outside="refuse") == tokens
    unknown = fast.unknown_coefficients(chunks)
    error = np.abs(dct(back - chunks, axis=1, norm="ortho")) * fast.scale
    assert (error[~unknown] <= 0.5 + 1e-6).all()
    assert (error[unknown] > 0.5 - 1e-3).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 511), max_size=40))
def test_any_tokens_decode_or_are_refused(tokens: list[int]) -> None:
    fast = _fitted()
    tokens = [token % len(fast) for token in tokens]
    actions, valid = fast.decode_valid([tokens])
    text = Tokenizer.from_str(fast.tokenizer_json).decode(tokens, skip_special_tokens=False)
    good = len(text) == STEPS * DIMS and all(ord(c) < len(fast.known_codes) for c in text)
    assert valid[0] == good and np.isfinite(actions).all() == good
    if good:
        np.testing.assert_array_equal(actions, fast.decode([tokens]))
    else:
        with pytest.raises(TokenDecodeError):
            fast.decode([tokens])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_tokens_that_the_grammar_allows_are_a_chunk(seed: int) -> None:
    fast = _fitted(100, 2048)  # over 128 integers: characters of two bytes
    grammar, state = ChunkGrammar(fast), ChunkState(STEPS * DIMS)
    rng, tokens = np.random.default_rng(seed), []
    while not state.complete:
        may = np.flatnonzero(grammar.allowed(state))
        tokens.append(int(rng.choice(may)))
        state = grammar.advance(state, tokens[-1])
    assert np.isfinite(fast.decode([tokens])).all()
    assert not grammar.allowed(state).any()


def test_the_grammar_allows_what_encoding_gives() -> None:
    fast = _fitted(100, 2048)
    grammar = ChunkGrammar(fast)
    for row in fast.encode(_chunks(20, seed=3)):
        state = ChunkState(STEPS * DIMS)
        for token in row:
            assert grammar.allowed(state)[token]
            state = grammar.advance(state, token)
        assert state.complete


# ---- refused ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_is_refused(bad: float) -> None:
    chunks = _chunks(3)
    chunks[1, 2, 0] = bad
    with pytest.raises(ActionError, match="chunk 1 holds NaN"):
        _fitted().encode(chunks)
    with pytest.raises(ActionError, match="NaN"):
        FastTokenizer.fit(chunks)


def test_outside_the_fitted_range_is_counted_or_refused() -> None:
    fast = FastTokenizer.fit(_chunks())
    chunks = _chunks(2, seed=1)
    fast.encode(chunks)
    before = fast.clipped
    chunks[1, :, 0] = 50
    with pytest.raises(ActionError, match=r"1 of 2 chunks.*1414 in chunk 1, frequency 0, dimension 0"):
        fast.encode(chunks, outside="refuse")
    assert fast.clipped == before
    back = fast.decode(fast.encode(chunks))
    assert fast.clipped > before
    assert back[1, :, 0].max() < 2 and back[1, :, 0].min() > 0.5  # the largest it knows, not nothing


def test_what_is_no_chunk_is_named() -> None:
    fast = _fitted(100, 2048)
    good = fast.encode(_chunks(2, seed=1))
    half = next(i for i, piece in enumerate(fast.token_bytes) if piece in (b"\xc2", b"\xc3"))
    beyond = next(
        (i for i, t in enumerate(fast.token_bytes) if t and t.decode(errors="ignore") > "\u0250"), None
    )
    rows = [good[0], [], good[1] + good[1], [half, *good[1]], [len(fast)], [-1, *good[1]]]
    with pytest.raises(TokenDecodeError, match="5 of 6 token sequences") as caught:
        fast.decode(rows)
    assert list(caught.value.problems) == [1, 2, 3, 4, 5]
    assert "48 coefficients instead of 24" in caught.value.problems[2]
    assert "no text" in caught.value.problems[3]
    assert "is not a token" in caught.value.problems[4] and "-1 is not" in caught.value.problems[5]
    actions, valid = fast.decode_valid(rows)
    assert valid.tolist() == [True] + [False] * 5 and np.isnan(actions[1:]).all()
    assert isinstance(caught.value, ActionError) and isinstance(caught.value, VlaAgentsError)
    if beyond is not None:
        assert not fast.decode_valid([[beyond] * 24])[1][0]
    with pytest.raises(TokenDecodeError, match="24 coefficients instead of 20"):
        fast.decode(good, 5, 4)
    assert fast.decode([]).shape == (0, 8, 3)


def test_shapes_are_checked() -> None:
    with pytest.raises(ActionError, match="not chunks"):
        _fitted().encode(np.zeros(3))
    with pytest.raises(ActionError, match="not chunks"):
        _fitted().encode(np.zeros((2, 0, 3)))
    loose = FastTokenizer(_fitted().tokenizer_json, min_token=_fitted().min_token)
    with pytest.raises(ConfigError, match="time_horizon and action_dim"):
        loose.decode([[1]])


# ---- fitting ------------------------------------------------------------------------------------------------------
def test_fit_takes_chunks_of_several_lengths_and_states_the_error_of_its_scale() -> None:
    pieces = [chunk[: 4 + i % 3] for i, chunk in enumerate(_chunks())]
    fast = FastTokenizer.fit(pieces)
    assert fast.time_horizon is None and fast.action_dim == DIMS
    mine = np.stack(pieces[::3])  # those of length 4
    assert np.abs(fast.decode(fast.encode(mine), 4, DIMS) - mine).mean() < 0.03
    fine = _fitted(100, 2048)
    chunks = _chunks()
    assert np.abs(fine.decode(fine.encode(chunks)) - chunks).mean() < 0.003


def test_fit_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="N >= 1"):
        FastTokenizer.fit(np.zeros((0, 4, 2)))
    with pytest.raises(ConfigError, match="normalise the actions"):
        FastTokenizer.fit(_chunks() * 1000)
    with pytest.raises(ConfigError, match="normalise the actions"):
        FastTokenizer.fit(_chunks() * 1e6, vocab_size=10**9)


def test_constant_data_fits() -> None:
    fast = FastTokenizer.fit(np.zeros((5, 4, 2)))
    assert np.array_equal(fast.decode(fast.encode(np.zeros((2, 4, 2)))), np.zeros((2, 4, 2)))


# ---- files --------------------------------------------------------------------------------------------------------
def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    fast = _fitted()
    folder = fast.save(tmp_path / "fast")
    assert {file.name for file in folder.iterdir()} == {
        "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    }  # fmt: skip
    loaded = FastTokenizer.load(folder)
    chunks = _chunks(20, seed=2)
    assert loaded.encode(chunks) == fast.encode(chunks)
    np.testing.assert_array_equal(loaded.decode(fast.encode(chunks)), fast.decode(fast.encode(chunks)))
    assert loaded.range == fast.range and np.array_equal(loaded.known_codes, fast.known_codes)
    again = loaded.save(tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_transformers_reads_the_saved_bpe(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = _fitted().save(tmp_path)
    (folder / "processor_config.json").unlink()  # it names code that is not here
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["auto_map"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    stock = AutoTokenizer.from_pretrained(folder)
    text = "".join(map(chr, np.flatnonzero(_fitted().known_codes)))
    assert stock(text)["input_ids"] == Tokenizer.from_str(_fitted().tokenizer_json).encode(text).ids


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        FastTokenizer.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="hub"):
        FastTokenizer.load("nobody/nothing-here")
    folder = _fitted().save(tmp_path / "fast")
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="scale"):
        FastTokenizer.load(folder)
    folder = _fitted().save(tmp_path / "fast")
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:-50])
    with pytest.raises(CheckpointError, match="no FAST tokenizer"):
        FastTokenizer.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        FastTokenizer.load(folder)


def test_another_kind_of_bpe_is_encoded_by_its_own_pipeline() -> None:
    """What the fast path does not cover (here a leading space) goes through `tokenizers` as it is."""
    data = json.loads(_fitted().tokenizer_json)
    data["pre_tokenizer"]["use_regex"] = False
    whole = FastTokenizer(json.dumps(data), min_token=_fitted().min_token, time_horizon=8, action_dim=3)
    chunks = _chunks(10, seed=4)
    chunks = whole.decode(whole.encode(chunks))
    assert whole.encode(chunks) == _plain_encode(whole, chunks)
    data["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(ValueError, match="byte-level"):
        FastTokenizer(json.dumps(data))


# ---- the quick way to the same tokens -----------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_text_gets_the_tokens_of_the_pipeline(data: st.DataObject) -> None:
    """White space, apostrophes and digits too, where words are cut in special ways; characters of two bytes."""
    fast = _fitted(100, 2048)
    known = [chr(code) for code in np.flatnonzero(fast.known_codes)]
    special = [c for c in known if c.isspace() or c.isdigit() or c in "'strevml!"]
    text = data.draw(st.text(st.sampled_from(known) | st.sampled_from(special), max_size=60))
    assert fast._bpe.is_quick
    assert fast._bpe.encode(text) == Tokenizer.from_str(fast.tokenizer_json).encode(text).ids


def _respelt(fast: FastTokenizer, change: Callable[[dict[str, Any]], None]) -> FastTokenizer:
    data = json.loads(fast.tokenizer_json)
    change(data)
    return FastTokenizer(
        json.dumps(data), scale=fast.scale, min_token=fast.min_token, time_horizon=STEPS, action_dim=DIMS
    )


def _last_merge_first(data: dict[str, Any]) -> None:
    data["model"]["merges"].insert(0, data["model"]["merges"].pop())


def _second_way(data: dict[str, Any]) -> None:
    """A token that two merges make."""
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in data["model"]["merges"]]
    a, b = next(
        pair for pair in merges if len(pair[0]) > 1 and pair[0][1:] + pair[1] in data["model"]["vocab"]
    )
    data["model"]["merges"].append([a[0], a[1:] + b])


def _no_words(data: dict[str, Any]) -> None:
    data["pre_tokenizer"]["use_regex"] = False


def _added_token(data: dict[str, Any]) -> None:
    token = {
        "content": "a",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
    }
    data["added_tokens"] = [{"id": data["model"]["vocab"]["a"]} | token]


@pytest.mark.parametrize(
    ("change", "quick"),
    [(_last_merge_first, False), (_second_way, False), (_added_token, False), (_no_words, True)],
)
def test_tokenizers_of_another_make_keep_their_tokens(
    change: Callable[[dict[str, Any]], None], quick: bool
) -> None:
    fast = _respelt(_fitted(100, 2048), change)
    chunks = _chunks(60, seed=4)
    chunks = chunks[~fast.unknown_coefficients(chunks).any(axis=(1, 2))]
    assert fast._bpe.is_quick == quick and len(chunks) > 10
    assert fast.encode(chunks) == _plain_encode(fast, chunks)


def test_a_tokenizer_travels_to_worker_processes() -> None:
    fast = pickle.loads(pickle.dumps(_fitted()))
    assert fast._bpe.is_quick and fast.encode(_chunks(5)) == _fitted().encode(_chunks(5))
