"""Layouts: regions are slices, views are views, tensors come out as they went in."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import LayoutError
from atoll.core.layout import Entry, Layout

MIXED = Layout.of(
    [
        Entry("head.weight", (2, 2)),
        Entry("bn.mean", (2,), trainable=False),
        Entry("body", (3,), "float16", aliases=("tied",)),
        Entry("head.count", (), "int64", trainable=False),
    ],
    personal=["head.*"],
)


def test_entries_are_sorted_into_the_four_regions():
    assert [e.name for e in MIXED.entries] == ["bn.mean", "body", "head.weight", "head.count"]
    assert [e.region for e in MIXED.entries] == [0, 1, 2, 3]
    assert MIXED.offsets == (0, 2, 5, 9, 10)
    assert MIXED.size == 10
    assert MIXED.shared == slice(0, 5)
    assert MIXED.shared_trainable == slice(2, 5)
    assert MIXED.trainable == slice(2, 9)
    assert MIXED.personal == slice(5, 10)


entries = st.lists(
    st.builds(
        lambda shape, trainable, personal: ("", tuple(shape), "float32", trainable, personal),
        st.lists(st.integers(0, 3), max_size=3),
        st.booleans(),
        st.booleans(),
    ),
    max_size=8,
).map(lambda rows: [Entry(f"e{i}", *row[1:]) for i, row in enumerate(rows)])


@settings(deadline=None)
@given(entries)
def test_each_slice_holds_exactly_the_entries_of_its_region(given_entries):
    layout = Layout.of(given_entries)
    sources = {e.name: i + 1 for i, e in enumerate(given_entries)}
    vector = np.zeros(layout.size, np.float32)
    for name, view in layout.views(vector).items():
        view[...] = sources[name]

    def inside(region, wanted):
        want = [sources[e.name] for e in given_entries for _ in range(e.size) if wanted(e)]
        assert sorted(vector[region].tolist()) == sorted(want)

    inside(layout.shared, lambda e: not e.personal)
    inside(layout.personal, lambda e: e.personal)
    inside(layout.trainable, lambda e: e.trainable)
    inside(layout.shared_trainable, lambda e: e.trainable and not e.personal)


@settings(deadline=None)
@given(entries)
def test_inside_a_region_the_models_own_order_stays(given_entries):
    layout = Layout.of(given_entries)
    for region in range(4):
        assert [e for e in layout.entries if e.region == region] == [
            e for e in given_entries if e.region == region
        ]


def test_a_model_without_entries_has_empty_regions():
    empty = Layout.of([])
    assert (empty.size, empty.shared, empty.personal) == (0, slice(0, 0), slice(0, 0))
    assert empty.pack({}).shape == (0,)


def test_views_share_memory_with_the_vector_and_have_the_entries_shapes():
    vector = np.arange(10, dtype=np.float32)
    views = MIXED.views(vector)
    assert all(np.shares_memory(v, vector) for v in views.values())
    assert views["head.weight"].tolist() == [[5.0, 6.0], [7.0, 8.0]]
    assert views["head.count"].shape == ()
    views["head.weight"][1, 0] = -1.0
    views["head.count"][...] = 42.0
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, 8, 42]


def test_unpacked_tensors_are_copies_unless_only_those_of_other_dtypes_need_be():
    vector = np.arange(10, dtype=np.float32)
    copies, seen = MIXED.unpack(vector), MIXED.unpack(vector, copy=False)
    assert {name: value.tolist() for name, value in copies.items()} == {
        name: value.tolist() for name, value in seen.items()
    }
    assert not any(np.shares_memory(value, vector) for value in copies.values())
    shared = [name for name, value in seen.items() if np.shares_memory(value, vector)]
    assert sorted(shared) == ["bn.mean", "head.weight"]


def test_views_of_a_read_only_vector_are_read_only():
    vector = np.zeros(10, np.float32)
    vector.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        MIXED.views(vector)["body"][0] = 1.0


@pytest.mark.parametrize(
    "vector",
    [np.zeros(9, np.float32), np.zeros((10, 1), np.float32), np.zeros(10), np.zeros(10, int)],
)
def test_a_vector_of_another_size_or_dtype_is_refused(vector):
    for use in (MIXED.check, MIXED.views, MIXED.unpack):
        with pytest.raises(LayoutError, match=r"the layout says \(10,\) float32"):
            use(vector)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float16", [1.5, -0.0, 65504.0, 6e-8]),
        ("float32", [1.5, -0.0, 3.4e38, 1e-45]),
        ("int8", [-128, 127, 0, 5]),
        ("uint8", [0, 255, 7, 1]),
        ("int32", [2**24, -(2**24), 2**30, 3]),
        ("int64", [2**24, -(2**62), 2**40, -1]),
        ("uint64", [2**63, 2**24, 0, 1]),
        ("bool", [True, False, True, True]),
    ],
)
@pytest.mark.parametrize("vector_dtype", ["float32", "float64"])
def test_what_is_packed_comes_out_bit_for_bit(dtype, values, vector_dtype):
    layout = Layout.of([Entry("x", (2, 2), dtype)], dtype=vector_dtype)
    tensor = np.array(values, dtype).reshape(2, 2)
    vector = layout.pack({"x": tensor})
    assert vector.dtype == vector_dtype
    back = layout.unpack(vector)["x"]
    assert (back.dtype, back.shape, back.tobytes()) == (tensor.dtype, (2, 2), tensor.tobytes())


def test_doubles_come_out_bit_for_bit_of_a_double_vector():
    layout = Layout.of([Entry("x", (4,), "float64")], dtype="float64")
    tensor = np.array([0.1, 1e300, -0.0, 5e-324])
    assert layout.unpack(layout.pack({"x": tensor}))["x"].tobytes() == tensor.tobytes()


@pytest.mark.parametrize(
    "value",
    [
        np.array([0.1]),
        np.array([1e39]),
        np.array([2**24 + 1]),
        np.array([2**63 - 1]),
        np.array([2**64 - 1], np.uint64),
        np.array([1j]),
        np.array(["1"]),
        np.array([None]),
    ],
)
def test_a_value_the_vector_cannot_hold_is_refused(value):
    with pytest.raises(LayoutError, match=r"'x' .* has values that float32 cannot hold"):
        Layout.of([Entry("x", (1,))]).pack({"x": value})


def test_non_finite_values_pass_through():
    tensor = np.array([np.nan, np.inf, -np.inf])
    layout = Layout.of([Entry("x", (3,), "float64")])
    assert layout.unpack(layout.pack({"x": tensor}))["x"].tobytes() == tensor.tobytes()


def test_averaged_counters_are_rounded_on_the_way_out():
    layout = Layout.of([Entry("n", (3,), "int64"), Entry("on", (2,), "bool")])
    out = layout.unpack(np.array([2.4, 2.6, -0.6, 0.4, 0.6], np.float32))
    assert out["n"].tolist() == [2, 3, -1]
    assert out["on"].tolist() == [False, True]


def test_numpy_has_no_bfloat16_so_its_entries_keep_the_vectors_dtype():
    layout = Layout.of([Entry("x", (1,), "bfloat16")])
    assert layout.unpack(np.array([1.5], np.float32))["x"].dtype == np.float32


def test_unpacked_tensors_do_not_share_memory_with_the_vector():
    vector = np.zeros(10, np.float32)
    assert not any(np.shares_memory(v, vector) for v in MIXED.unpack(vector).values())


def test_tied_weights_come_out_under_every_name_as_one_tensor():
    vector = np.arange(10, dtype=np.float32)
    out = MIXED.unpack(vector)
    assert set(out) == {"bn.mean", "body", "tied", "head.weight", "head.count"}
    assert out["tied"] is out["body"]
    assert MIXED.pack(out).tolist() == vector.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("body"), "entry 'body' is missing"),
        (lambda t: t.update(body=np.zeros(4)), r"entry 'body' has shape \(4,\), not \(3,\)"),
        (lambda t: t.update(boddy=np.zeros(3)), "no entry 'boddy'\n.*did you mean 'body'"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    tensors = MIXED.unpack(np.zeros(10, np.float32))
    change(tensors)
    with pytest.raises(LayoutError, match=message):
        MIXED.pack(tensors)


def test_personal_patterns_match_names_and_aliases():
    tied = [Entry("in", (1,), aliases=("out.weight",)), Entry("out.bias", (1,)), Entry("mid", (1,))]
    layout = Layout.of(tied, personal=["out.*"])
    assert {e.name for e in layout.entries if e.personal} == {"in", "out.bias"}
    marked = Layout.of([Entry("a", (1,), personal=True), Entry("b", (1,))], personal=["b"])
    assert marked.shared == slice(0, 0)


def test_patterns_respect_case():
    with pytest.raises(LayoutError, match=r"did you mean 'head\.weight'"):
        Layout.of([Entry("head.weight", (1,))], personal=["Head.weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout.of([Entry("a", (1,)), Entry("a", (2,))]), "twice: a"),
        (lambda: Layout.of([Entry("a", (1,), aliases=("b",)), Entry("b", (2,))]), "twice: b"),
        (lambda: Layout.of([Entry("a", (1,), aliases=("a",))]), "twice: a"),
        (
            lambda: Layout.of([Entry("a", (1,))], dtype="float16"),
            "float32 or float64, not 'float16'",
        ),
        (lambda: Layout.of([Entry("a", (1,))], personal=["x*"]), r"pattern 'x\*' matches no entry"),
        (lambda: Layout.of([Entry("a", (-1,))]), "not whole numbers >= 0"),
        (lambda: Layout.of([Entry("a", (1,), "flaot32")]), "did you mean 'float32'"),
        (
            lambda: Layout((Entry("a", (1,)), Entry("b", (1,), trainable=False))),
            "not sorted by region",
        ),
        (lambda: Layout.from_json("{"), "not a layout"),
        (lambda: Layout.from_json("[]"), "not a layout"),
        (lambda: Layout.from_json('{"dtype":"float32","entries":[["a"]]}'), "not a layout"),
        (lambda: Layout.from_json('{"entries":[]}'), "not a layout"),
        (
            lambda: Layout.from_json(MIXED.to_json().replace("[2,2]", "[2,2.5]")),
            "not whole numbers",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_refused(make, message):
    with pytest.raises(LayoutError, match=message):
        make()


def test_the_canonical_form_is_stable():
    text = MIXED.to_json()
    assert text.startswith(
        '{"dtype":"float32","entries":[["bn.mean",[2],"float32",false,false,[]],'
    )
    assert json.loads(text)["entries"][3] == ["head.count", [], "int64", False, True, []]
    assert MIXED.digest() == "94715278174692819e082eb993df88f5ea9d1d5812c540b01df3b94bf8db4350"
    assert MIXED.digest() == hashlib.sha256(text.encode()).hexdigest()


@settings(deadline=None)
@given(entries, st.sampled_from(["float32", "float64"]))
def test_the_canonical_form_reads_back_to_an_equal_layout(given_entries, dtype):
    layout = Layout.of(given_entries, dtype=dtype)
    again = Layout.from_json(layout.to_json())
    assert again == layout
    assert hash(again) == hash(layout)
    assert again.to_json() == layout.to_json()


def test_any_difference_changes_the_digest():
    base = Entry("a", (2,))
    others = [
        Entry("b", (2,)),
        Entry("a", (2, 1)),
        Entry("a", (2,), "float16"),
        Entry("a", (2,), trainable=False),
        Entry("a", (2,), personal=True),
        Entry("a", (2,), aliases=("b",)),
    ]
    layouts = [Layout.of([e]) for e in (base, *others)] + [Layout.of([base], dtype="float64")]
    assert len({layout.digest() for layout in layouts}) == len(layouts)


def test_a_layout_crosses_a_process_boundary():
    again = pickle.loads(pickle.dumps(MIXED))
    assert again == MIXED
    assert again.shared == MIXED.shared


def test_a_counter_of_shape_nothing_comes_back_as_an_array_of_its_own_dtype() -> None:
    layout = Layout.of([Entry("batches", (), "int64", trainable=False)])
    counter = layout.unpack(np.array([3.0], np.float32))["batches"]
    assert isinstance(counter, np.ndarray)
    assert (counter.shape, counter.dtype, int(counter)) == ((), np.int64, 3)
