"""Frames: what is written is read back to the bit, and whatever is not such a frame is refused."""

import hashlib
import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atoll.core.errors import StorageError, UpdateRefused, WireError
from atoll.wire.frames import (
    DTYPES,
    HEADER_LIMIT,
    Allowed,
    Blob,
    FrameError,
    check_finite,
    decode,
    encode,
    open_frame,
    pieces,
    read_header,
    write_frame,
)

ANY = Allowed(most_arrays=100, most_bytes=1 << 20)
MAGIC = b"ATOLL\0\1\n"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(texts, plain, max_size=3)
arrays = st.dictionaries(
    texts,
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda dtype: hnp.arrays(
            dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
        )
    ),
    max_size=4,
)


def same(a, b):
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def by_hand(header, payload=b"", pad=True):
    """A frame with any header one likes."""
    text = (
        header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    )
    if pad:
        text += b" " * (-(16 + len(text)) % 64)
    return MAGIC + struct.pack("<Q", len(text)) + text + payload


def slot(name="x", dtype="float32", shape=(4,), offset=0):
    return {"name": name, "dtype": dtype, "shape": list(shape), "offset": offset}


@settings(deadline=None)
@given(bodies, arrays)
def test_what_is_written_is_read_back_to_the_bit(body, given):
    raw = encode(body, given)
    found, back = decode(raw, ANY)
    assert found == body
    assert same(back, given)
    assert encode(found, back) == raw
    assert b"".join(bytes(piece) for piece in pieces(body, given)) == raw


def test_a_frame_by_hand_is_what_the_writer_gives():
    values = np.array([1.0, 2.0], np.float32)
    text = (
        b'{"body":{"a":1},"arrays":[{"name":"x","dtype":"float32","shape":[2],"offset":0},'
        b'{"name":"y","dtype":"uint8","shape":[],"offset":64}]}'
    )
    text += b" " * (192 - 16 - len(text))
    expected = MAGIC + (176).to_bytes(8, "little") + text + values.tobytes() + bytes(56) + b"\x07"
    assert encode({"a": 1}, {"x": values, "y": np.array(7, np.uint8)}) == expected


def test_arrays_are_read_only_views_aligned_to_64_bytes():
    raw = bytearray(encode({}, {"x": np.ones(3, np.float32), "y": np.arange(5)}))
    _, found = decode(memoryview(raw), ANY)
    base = np.frombuffer(raw, np.uint8).ctypes.data
    for array in found.values():
        assert (array.ctypes.data - base) % 64 == 0
        assert not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_strided_and_big_endian_arrays_arrive_as_their_values():
    given = {"s": np.arange(12.0).reshape(3, 4)[:, ::2], "b": np.arange(3, dtype=">i4")}
    _, found = decode(encode({}, given), ANY)
    assert np.array_equal(found["s"], given["s"])
    assert found["b"].tolist() == [0, 1, 2]
    assert found["b"].dtype == np.int32


@pytest.mark.parametrize("dtype", ["float16", "complex64", "object", "int8", "U3", "M8[s]"])
def test_a_dtype_that_does_not_travel_is_refused_by_name(dtype):
    with pytest.raises(FrameError, match=r"array .x. is .*does not travel"):
        encode({}, {"x": np.zeros(2, dtype)})


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": b"1"}, {"x": {1, 2}}, {"x": "\ud800"}])
def test_a_body_that_is_not_plain_json_is_refused(body):
    with pytest.raises(FrameError, match="not plain JSON"):
        encode(body)


def test_a_header_over_one_mebibyte_is_neither_written_nor_read():
    with pytest.raises(FrameError, match="header has"):
        encode({"x": "a" * HEADER_LIMIT})
    raw = MAGIC + struct.pack("<Q", HEADER_LIMIT + 48) + b" " * (HEADER_LIMIT + 48)
    with pytest.raises(FrameError, match="at most 1048576"):
        decode(raw, ANY)


LIES = {
    "offset in a gap": by_hand({"body": {}, "arrays": [slot(offset=64)]}, bytes(80)),
    "negative offset": by_hand({"body": {}, "arrays": [slot(offset=-64)]}, bytes(16)),
    "offset beyond": by_hand({"body": {}, "arrays": [slot(offset=1 << 60)]}, bytes(16)),
    "offset is a float": by_hand({"body": {}, "arrays": [slot(offset=0.0)]}, bytes(16)),
    "overlap": by_hand({"body": {}, "arrays": [slot(), slot("y", offset=0)]}, bytes(16)),
    "twice one name": by_hand({"body": {}, "arrays": [slot(), slot(offset=64)]}, bytes(80)),
    "shape too large": by_hand({"body": {}, "arrays": [slot(shape=(5,))]}, bytes(16)),
    "shape too small": by_hand({"body": {}, "arrays": [slot(shape=(3,))]}, bytes(16)),
    "shape of 10 GB": by_hand({"body": {}, "arrays": [slot(shape=(2_500_000_000,))]}, bytes(16)),
    "shape overflows": by_hand({"body": {}, "arrays": [slot(shape=(2**32, 2**32, 0))]}),
    "shape of huge numbers": by_hand({"body": {}, "arrays": [slot(shape=(10**300,))]}, bytes(16)),
    "negative shape": by_hand({"body": {}, "arrays": [slot(shape=(-1,))]}, bytes(16)),
    "shape of booleans": by_hand({"body": {}, "arrays": [slot(shape=(True,))]}, bytes(4)),
    "too many axes": by_hand({"body": {}, "arrays": [slot(shape=(1,) * 9)]}, bytes(4)),
    "unknown dtype": by_hand({"body": {}, "arrays": [slot(dtype="object")]}, bytes(32)),
    "numpy's letters": by_hand({"body": {}, "arrays": [slot(dtype="<f4")]}, bytes(16)),
    "name is no text": by_hand({"body": {}, "arrays": [slot(name=3)]}, bytes(16)),
    "further key": by_hand({"body": {}, "arrays": [slot() | {"type": "os.system"}]}, bytes(16)),
    "array is a list": by_hand({"body": {}, "arrays": [["x", "float32", [4], 0]]}, bytes(16)),
    "trailing bytes": encode({}, {"x": np.ones(4, np.float32)}) + b"\0",
    "trailing bytes without arrays": encode({}) + b"\0",
    "cut short": encode({}, {"x": np.ones(4, np.float32)})[:-1],
    "cut in the header": encode({}, {"x": np.ones(4, np.float32)})[:70],
    "gap with content": by_hand(
        {"body": {}, "arrays": [slot(shape=(1,)), slot("y", offset=64)]}, b"\0\0\0\0\1" + bytes(75)
    ),
    "a truth value of 2": by_hand(
        {"body": {}, "arrays": [slot(dtype="bool", shape=(2,))]}, b"\1\2"
    ),
    "body is a list": by_hand({"body": [], "arrays": []}),
    "no arrays": by_hand({"body": {}}),
    "no table": by_hand(b"[]"),
    "further part": by_hand({"body": {}, "arrays": [], "code": 1}),
    "blanks": by_hand(b'{"body": {},"arrays":[]}'),
    "leading blank": by_hand(b' {"body":{},"arrays":[]}'),
    "padding of a whole line": by_hand(b'{"body":{},"arrays":[]}' + b" " * 64),
    "key twice": by_hand(b'{"body":{"a":1,"a":2},"arrays":[]}'),
    "not a number": by_hand(b'{"body":{"a":NaN},"arrays":[]}'),
    "infinite": by_hand(b'{"body":{"a":1e999},"arrays":[]}'),
    "half a letter": by_hand(b'{"body":{"a":"\\ud800"},"arrays":[]}'),
    "not UTF-8": by_hand(b'{"body":{"a":"\xff"},"arrays":[]}'),
    "a number of 5000 digits": by_hand(b'{"body":{"a":' + b"1" * 5000 + b'},"arrays":[]}'),
    "100,000 brackets": by_hand(b'{"body":{"a":' + b"[" * 100_000),
    "100,000 closed brackets": by_hand(
        b'{"body":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b'},"arrays":[]}'
    ),
    "not aligned": by_hand({"body": {}, "arrays": []}, pad=False),
    "another magic": b"ATOLL\0\2\n" + encode({})[8:],
    "header longer than the rest": MAGIC + struct.pack("<Q", 112) + b"{}",
    "header of 2^64": MAGIC + b"\xff" * 8 + bytes(64),
    "nothing": b"",
    "a zip file": b"PK\3\4" + bytes(60),
}


@pytest.mark.parametrize("raw", LIES.values(), ids=LIES)
def test_a_frame_that_lies_is_refused(raw):
    tracemalloc.start()
    with pytest.raises(FrameError):
        decode(raw, Allowed(most_arrays=100, most_bytes=1 << 60))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (1 << 20) + 64 * len(raw)


@pytest.mark.parametrize(
    ("allowed", "told"),
    [
        (Allowed(), "at most 0 are allowed"),
        (Allowed(most_arrays=1, most_bytes=15), "take 16 bytes: at most 15"),
        (Allowed(names=["y"], most_arrays=1, most_bytes=16), "'x' is not expected"),
        (Allowed(shape=(5,), most_arrays=1, most_bytes=16), r"shape \(4,\), not \(5,\)"),
        (Allowed(dtypes=["float64"], most_arrays=1, most_bytes=16), "float32, not float64"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(allowed, told):
    raw = encode({}, {"x": np.ones(4, np.float32)})
    with pytest.raises(FrameError, match=told):
        decode(raw, allowed)


def test_a_header_is_read_and_judged_before_its_payload_is_there():
    raw = encode({"a": 1}, {"x": np.ones(4, np.float32)})
    header = read_header(raw[:-16], ANY)
    assert (header.body, header.start, header.size) == ({"a": 1}, len(raw) - 16, len(raw))
    with pytest.raises(FrameError, match="at most 8"):
        read_header(raw[:-16], Allowed(most_arrays=1, most_bytes=8))


SEEDS = [
    encode(
        {"task": "r.train.1.a", "n": [1, 2.5]}, {"x": np.ones(4, np.float32), "b": np.array([True])}
    ),
    encode({"a": {"b": {"c": "d"}}}),
]


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(
            st.sampled_from(["flip", "cut", "insert", "copy", "number"]),
            st.integers(0),
            st.integers(0),
        ),
        min_size=1,
        max_size=5,
    ),
)
@example(SEEDS[0], [("flip", 8, 3)])
def test_mutated_frames_are_read_or_refused_and_nothing_else(raw, steps):
    data = bytearray(raw)
    for what, where, value in steps:
        at = where % (len(data) + 1)
        if what == "flip" and at < len(data):
            data[at] ^= 1 << value % 8
        elif what == "cut":
            del data[at : at + value % 70]
        elif what == "insert":
            data[at:at] = bytes([value % 256]) * (value % 65)
        elif what == "copy":
            data[at:at] = data[: value % 100]
        elif what == "number":
            digits = [i for i, c in enumerate(data) if chr(c).isdigit()]
            if digits:
                data[digits[where % len(digits)]] = ord(str(value % 10))
    for reader in (decode, read_header):
        tracemalloc.start()
        try:
            reader(bytes(data), ANY)
        except FrameError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 100_000


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    for raw in (noise, MAGIC + noise, by_hand(noise)):
        with pytest.raises(WireError):
            decode(raw, ANY)


def test_a_file_is_mapped_and_equals_what_was_written(tmp_path):
    values = np.arange(100_000, dtype=np.float32)
    blob = write_frame(tmp_path / "deep" / "f.frame", {"a": 1}, {"x": values})
    raw = (tmp_path / "deep" / "f.frame").read_bytes()
    assert raw == encode({"a": 1}, {"x": values})
    assert blob == Blob(hashlib.sha256(raw).hexdigest(), len(raw)) == Blob.of(raw)
    body, found = open_frame(tmp_path / "deep" / "f.frame", ANY)
    assert body == {"a": 1}
    assert np.array_equal(found["x"], values)
    assert not found["x"].flags.writeable
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["f.frame"]


def test_a_frame_that_cannot_be_written_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "f.frame"
    write_frame(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(FrameError):
        write_frame(path, {"a": float("inf")})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot be written"):
        write_frame(path / "below", {})


def test_files_that_are_no_frames_are_refused(tmp_path):
    for name, raw in (("empty", b""), ("short", b"ATOLL"), ("other", b"x" * 1000)):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(FrameError):
            open_frame(tmp_path / name, ANY)
    with pytest.raises(StorageError, match="cannot be read"):
        open_frame(tmp_path / "missing", ANY)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 65_535, 65_536, 199_999])
def test_values_that_are_not_finite_are_refused_with_their_place(bad, at):
    values = np.zeros(200_000, np.float32)
    check_finite({"x": values, "counts": np.arange(3)})
    values[at] = bad
    with pytest.raises(UpdateRefused, match=f"array 'x' holds {bad} at {at}:"):
        check_finite({"x": values.reshape(2, -1)})


def test_the_search_for_values_that_are_not_finite_takes_no_copy():
    values = np.zeros(4_000_000, np.float32)
    tracemalloc.start()
    check_finite({"x": values})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
