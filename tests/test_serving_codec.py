"""Messages on the wire: what is read is what was written, and what is no message is refused at little cost."""

from __future__ import annotations

import gc
import io
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from vla_agents.errors import FrameError
from vla_agents.serving.arrays import DTYPES, LIMITS, WireLimits
from vla_agents.serving.codec import Decoder, Encoder, decode
from vla_agents.serving.foreign_arrays import numpy_file_map, str_map, with_numpy_files, with_pictures

GOLDEN = Path(__file__).resolve().parents[2] / "shared/golden/protocol"

arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: npst.arrays(
        np.dtype(name), npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    )
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
)
texts = st.text(max_size=20).filter(lambda key: not key.startswith("__"))
values = st.recursive(
    scalars | st.binary(max_size=30) | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(values)
@example(b"")
@example([b"a"])
@settings(deadline=None)
def test_what_is_read_is_what_was_written(value):
    assert same(value, decode(Encoder().encode(value)))


@given(
    st.recursive(
        scalars, lambda v: st.lists(v, max_size=5) | st.dictionaries(texts, v, max_size=5), max_leaves=30
    )
)
@settings(deadline=None)
def test_we_read_as_msgpack_reads(value):
    data = msgpack.packb(value)
    assert same(msgpack.unpackb(data), decode(data))


def outcome(read, data):
    """What reading gives: a value, or "refused"."""
    try:
        return read(data)
    except FrameError:
        return "refused"


@given(values, st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=30))
@settings(deadline=None)
def test_a_decoder_that_remembers_reads_as_one_that_does_not(value, changes):
    remembering, data = Decoder(), Encoder().encode([value, 70_000, 0.5, np.array([True, False]), b"bin"])
    assert same(remembering(data), decode(data))
    for at, byte in changes:
        changed = bytearray(data)
        changed[at % len(data)] = byte
        for message in (bytes(changed), data):
            assert same(outcome(remembering, message), outcome(decode, message))


def test_a_message_laid_out_like_the_last_is_read_anew():
    remembering, encode = Decoder(), Encoder().encode

    def message(number: int) -> dict:
        array = np.full((2, 3), number, np.float32)
        return {"id": 70_000 + number, "list": [{"x": array}, number / 2], "bin": bytes([number]), "on": True}

    first = remembering(encode(message(1)))
    with patch("vla_agents.serving.codec.Reader", side_effect=AssertionError("walked over")):
        second = remembering(encode(message(2)))
        assert same(second, message(2)) and same(first, message(1))
        second["list"].append("mine"), second.pop("on")
        assert same(remembering(encode(message(3))), message(3))
    for other in (
        message(3) | {"on": False},
        message(3) | {"list": []},
        {"x": np.zeros(6, "<i4")},
        {"x": np.zeros(6, "<f4")},
    ):
        assert same(remembering(encode(other)), other)


def test_what_is_checked_of_values_is_checked_in_every_message():
    flags = array_map(data=b"\0\1\0", dtype="|b1")
    remembering = Decoder()
    assert remembering(msgpack.packb(flags)).tolist() == [False, True, False]
    with pytest.raises(FrameError, match="boolean"):
        remembering(msgpack.packb(flags | {"data": b"\0\2\0"}))
    remembering = Decoder()
    remembering(msgpack.packb(array_map(data=bytes(200), dtype="|u1", shape=[200])))
    with pytest.raises(FrameError, match="not 201"):  # the number is in the same place and of the same width
        remembering(msgpack.packb(array_map(data=bytes(200), dtype="|u1", shape=[201])))


def test_of_a_message_nothing_large_is_remembered():
    remembering = Decoder(WireLimits(max_text=2**20))
    for message in (
        {"picture": np.zeros(10**6, np.uint8)},
        {"bin": bytes(10**6)},
        ["x" * 10**6],
        [70_000] * 1000,
    ):
        data = Encoder().encode(message)
        tracemalloc.start()
        read = remembering(data)
        del read, data
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 50_000
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["request", "response"])
def test_frames_of_starvla(name):
    if not GOLDEN.is_dir():
        pytest.skip("StarVLA's frames are not in this clone")
    data = (GOLDEN / f"{name}.msgpack").read_bytes()
    message = decode(data)
    if name == "request":
        (example,) = message["examples"]
        assert example["image"][0].shape == (4, 4, 3) and example["state"].shape == (1, 8)
    else:
        assert message["data"]["actions"].shape == (1, 8, 7)
    assert Encoder().encode(message) == data  # to the byte


def test_arrays_are_views_and_cannot_be_written_to():
    data = Encoder().encode({"picture": np.arange(300_000, dtype=np.uint8)})
    tracemalloc.start()
    array = decode(data)["picture"]
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 50_000 and not array.flags.writeable
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.array(["a"]), np.zeros(2, "c8"), np.zeros(2, "i4,i4"), object()]
)
def test_what_cannot_be_sent(value):
    with pytest.raises(FrameError, match="cannot be sent"):
        Encoder().encode({"x": value})


def test_big_endian_and_strided_arrays_are_put_right():
    for array in (
        np.arange(6, dtype=">f4"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10)[::3],
    ):
        assert np.array_equal(decode(Encoder().encode(array)), array)


def array_map(**changes):
    return {"__ndarray__": True, "data": bytes(12), "dtype": "<f4", "shape": [3]} | changes


REFUSED = {
    "object array": array_map(dtype="|O"),
    "void": array_map(dtype="|V12"),
    "structure": array_map(dtype="<f4,<f4,<f4"),
    "text": array_map(dtype="<U3"),
    "complex": array_map(dtype="<c8", shape=[1]),
    "big-endian": array_map(dtype=">f4"),
    "dates": array_map(dtype="<M8[s]"),
    "long dtype": array_map(dtype="f4" * 10_000),
    "dtype that is a list": array_map(dtype=["<f4"]),
    "no dtype": {"__ndarray__": True, "data": b"", "shape": [0]},
    "short": array_map(shape=[4]),
    "long": array_map(shape=[2]),
    "negative": array_map(shape=[-3]),
    "negative twice": array_map(shape=[-3, -1]),
    "float axis": array_map(shape=[3.0]),
    "bool axis": array_map(data=b"\0\0\0\0", shape=[True]),
    "shape that is a number": array_map(shape=3),
    "absurd": array_map(shape=[2**62, 2**62]),
    "absurd behind a zero": array_map(data=b"", shape=[0, 2**62]),
    "overflow": array_map(data=b"", shape=[2**32, 2**32]),
    "many axes": array_map(data=b"\0\0\0\0", shape=[1] * 33),
    "data that is text": array_map(data="x" * 12),
    "data that is a list": array_map(data=[0] * 12),
    "boolean of 2": array_map(data=b"\2", dtype="|b1", shape=[1]),
    "scalar of text": {"__npgeneric__": True, "data": "x", "dtype": "<f4"},
    "scalar object": {"__npgeneric__": True, "data": 1, "dtype": "|O"},
    "scalar of no type": {"__npgeneric__": True, "data": 300, "dtype": "<q9"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_refused(name):
    with pytest.raises(FrameError) as refusal:
        decode(msgpack.packb({"x": REFUSED[name]}))
    assert len(str(refusal.value)) < 400 and "Traceback" not in str(refusal.value)


BOMBS = {
    "empty": b"",
    "half a number": b"\xcb\0\0",
    "half a string": b"\xdb\xff\xff\xff\xff",
    "half a bin": b"\xc6\xff\xff\xff\xff\0",
    "two messages": b"\x80\x80",
    "reserved": b"\xc1",
    "extension": msgpack.packb(msgpack.ExtType(5, b"x" * 100)),
    "timestamp": b"\xd6\xff\0\0\0\0",
    "list of 4 billion": b"\xdd\xff\xff\xff\xff",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "million empty lists": b"\xdd\x00\x10\x00\x00" + b"\x90" * 2**20,
    "million empty maps in lists": (b"\xdc\x10\x00" + b"\x80" * 4096) * 256,
    "deep": b"\x91" * 1000 + b"\xc0",
    "deep maps": b"\x81\xa1a" * 1000 + b"\xc0",
    "key twice": b"\x82\xa1a\x01\xa1a\x02",
    "key twice, str and bin": b"\x82\xa1a\x01\xc4\x01a\x02",
    "key that is a number": b"\x81\x01\x01",
    "key that is a map": b"\x81\x80\x01",
    "key that is long": msgpack.packb({"k" * 300: 1}),
    "key that is not UTF-8": b"\x81\xa1\xff\x01",
    "text that is not UTF-8": b"\xa2\xc3\x28",
    "text of a megabyte": msgpack.packb("x" * 2**20),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bytes_that_are_refused_cost_little(name):
    tracemalloc.start()
    with pytest.raises(FrameError):
        decode(BOMBS[name])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20


def test_limits_are_said():
    small = WireLimits(max_bytes=100, max_items=10, max_depth=2, max_text=5)
    for value, word in (
        (b"x" * 198, "200 bytes"), ([0] * 20, "more than 10"), ([[[1]]], "deeper than 2"), ("longer", "6 bytes"),
    ):  # fmt: skip
        with pytest.raises(FrameError, match=word):
            decode(msgpack.packb(value), small)


@given(st.binary(max_size=400))
@settings(max_examples=2000, deadline=None)
def test_any_bytes_are_a_value_or_a_frame_error(data):
    for read_array in (None, with_pictures, with_numpy_files):
        with suppress(FrameError):
            decode(data, LIMITS, read_array)


# ---- other projects' arrays -------------------------------------------------------------------------------
def picture(fmt: str, size: tuple[int, int] = (20, 30)) -> tuple[np.ndarray, bytes]:
    array = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, fmt)
    return array, file.getvalue()


def test_pictures_of_vla_eval():
    array, data = picture("PNG")
    message = {"__image__": True, "format": "png", "data": data, "shape": [20, 30, 3]}
    assert np.array_equal(decode(msgpack.packb(message), read_array=with_pictures), array)
    for wrong in (
        {"shape": [2000, 3000, 3]}, {"shape": [20, 30, 4]}, {"shape": [20, 30]}, {"data": data[:50]}, {"data": "text"},
        {"format": "gif"}, {"format": "jpeg"}, {"shape": [2**40, 1, 3]}, {"format": "raw", "dtype": "|O"},
    ):  # fmt: skip
        with pytest.raises(FrameError):
            decode(msgpack.packb(message | wrong), read_array=with_pictures)
    assert np.array_equal(decode(Encoder(str_map).encode(array), read_array=with_pictures), array)


def test_a_picture_that_unpacks_to_gigabytes_is_not_unpacked():
    file = io.BytesIO()
    Image.new("L", (30_000, 30_000)).save(file, "PNG")
    message = {"__image__": True, "format": "png", "data": file.getvalue(), "shape": [30_000, 30_000]}
    with pytest.raises(FrameError):
        decode(msgpack.packb(message), WireLimits(max_bytes=2**31), with_pictures)


def numpy_file(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_files_of_gr00t():
    for array in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 3)),
        np.float32(2),
    ):
        found = decode(Encoder(numpy_file_map).encode(np.asarray(array)), read_array=with_numpy_files)
        assert np.array_equal(found, array)
        raw = msgpack.packb({"__ndarray_class__": True, "as_npy": numpy_file(array)})
        assert np.array_equal(decode(raw, read_array=with_numpy_files), array)


def test_files_that_are_refused():
    header = b"\x93NUMPY\x01\x00"
    absurd = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }\n"
    for data in (
        numpy_file(np.array([object()])), numpy_file(np.array(["a"])), numpy_file(np.zeros(3))[:-1], b"", b"\x93NUMPY",
        header + struct.pack("<H", len(absurd)) + absurd, header + b"\xff\xff" + b"(" * 9000,
        numpy_file(np.zeros(3)) + b"\0",
    ):  # fmt: skip
        with pytest.raises(FrameError):
            decode(msgpack.packb({"__ndarray_class__": True, "as_npy": data}), read_array=with_numpy_files)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 125, 126, 65_535, 65_536, 300_001])
def test_a_frame_is_masked_as_websockets_reads_it(size):
    from websockets.protocol import SERVER
    from websockets.server import ServerProtocol

    from vla_agents.serving.transport import _MaskedFrame

    data = np.random.default_rng(size).bytes(size)
    frames = _MaskedFrame()
    frames.write(bytes(1000))
    reader = ServerProtocol(state=1)  # open
    assert reader.side is SERVER
    reader.receive_data(bytes(frames.write(data)))
    (frame,) = reader.events_received()
    assert bytes(frame.data) == data and frame.fin


def test_a_view_is_the_message_and_must_be_released():
    encoder, message = Encoder(), {"x": np.arange(100_000)}
    with encoder.view(message) as data:
        assert bytes(data) == Encoder().encode(message)
        with pytest.raises(BufferError):
            encoder.encode(message)
    assert encoder.encode({"a": 1}) == Encoder().encode({"a": 1})
