"""Exact sums: the same bits in any order, right to the stated step, or a refusal."""

import math
import pickle
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation.exact import ExactSum, sum_of, total_of
from atoll.core.errors import UpdateRefused

STEP = {"float32": 43, "float64": 54}
"""A value is rounded to a multiple of 2 ** -STEP."""
GAP = {"float32": 31, "float64": 52}
"""The coarse limb counts 2 ** GAP steps."""

patient = settings(deadline=None, max_examples=80)
kinds = st.sampled_from(["float32", "float64"])
weights = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 64.0, 1234.5])
tricky = [0.0, -0.0, 1.0, -1.0, 0.1, 5e-324, -1e-45, 2.0**-44, 3 * 2.0**-44, -(2.0**-44), 2.0**-55]
tricky += [3 * 2.0**-55, 2.0**-13, 2.0**-3, -(2.0**-3), 1e-13, 1e-7, 255.99, 256.0, 1e6, 1e8, -1e8]
reals = st.one_of(st.sampled_from(tricky), st.floats(-1e8, 1e8), st.floats(-1e-9, 1e-9))
additions = st.lists(st.tuples(st.tuples(reals, reals, reals), weights), max_size=12)


def vectors(rows, kind):
    return [(np.array(values).astype(kind), weight) for values, weight in rows]


def exact(rows, kind, size=3):
    total = ExactSum(size, kind)
    for vector, weight in rows:
        total.add(vector, weight)
    return total


def bits(total):
    return total.bins.tobytes(), total.total().tobytes(), total.reach


def steps(value, kind):
    """The whole number of steps a float64 is rounded to, ties to even."""
    return round(Fraction(float(value)) * 2 ** STEP[kind])


def integers(total):
    high, low = total.bins.tolist()
    return [(h << GAP[total.dtype]) + part for h, part in zip(high, low, strict=True)]


@patient
@given(additions, kinds)
def test_the_sum_is_the_integer_sum_of_the_rounded_values(rows, kind):
    rows = vectors(rows, kind)
    want = [sum(steps(np.float64(v[i]) * w, kind) for v, w in rows) for i in range(3)]
    total = exact(rows, kind)
    assert integers(total) == want
    assert total.total().tolist() == [float(Fraction(n, 2 ** STEP[kind])) for n in want]


@patient
@given(additions, kinds)
def test_the_sum_is_within_half_a_step_per_value_of_fsum(rows, kind):
    rows = vectors(rows, kind)
    got = exact(rows, kind).total()
    for i in range(3):
        true = math.fsum(float(v[i]) * w for v, w in rows)
        assert abs(got[i] - true) <= len(rows) * 2.0 ** -(STEP[kind] + 1) + math.ulp(true)


@patient
@given(additions, kinds, st.randoms(use_true_random=False))
def test_any_order_split_and_merge_tree_gives_the_same_bits(rows, kind, chance):
    rows = vectors(rows, kind)
    want = bits(exact(rows, kind))
    chance.shuffle(rows)
    parts = [[] for _ in range(chance.randint(1, 5))]
    for row in rows:
        chance.choice(parts).append(row)
    sums = [exact(part, kind) for part in parts]
    while len(sums) > 1:
        chance.shuffle(sums)
        sums[0].merge(sums.pop())
    assert bits(sums[0]) == want


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_cancellation_that_breaks_a_plain_sum_leaves_the_small_value(kind):
    values = [1e11, 1e-13, -1e11, 5e-324, -0.0, 2.0**-60]
    rows = [(np.array([v], kind), 1.0) for v in values]
    plain = {float(sum(p, np.float64(0))) for p in (values, values[::-1], sorted(values))}
    orders = [rows, rows[::-1], random.Random(3).sample(rows, 6)]
    got = {exact(order, kind, 1).total()[0] for order in orders}
    assert len(plain) > 1
    assert len(got) == 1
    assert abs(got.pop() - 1e-13) <= 2.0 ** -(STEP[kind] + 1)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_tie_between_two_steps_goes_to_the_even_one(kind):
    half = 2.0 ** -(STEP[kind] + 1)
    values = np.array([1, 3, 5, -1, -3], kind) * np.array(half, kind)
    assert integers(exact([(values, 1.0)], kind, 5)) == [0, 2, 2, 0, -2]


def test_a_negative_zero_sums_to_plain_zero():
    total = exact([(np.array([-0.0], np.float32), 1.0)], "float32", 1).total()
    assert math.copysign(1.0, total[0]) == 1.0


@pytest.mark.parametrize("size", [1, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 70_001])
@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_blocks_leave_no_seam(size, factor):
    vector = np.random.default_rng(size).normal(0, 1, size).astype(np.float32)
    total = ExactSum(size)
    total.add(vector, factor)
    total.add(vector[::-1], factor)
    want = vector.astype(np.float64) * factor
    assert np.abs(total.total() - (want + want[::-1])).max() <= 2.0**-42


def test_values_seen_through_strides_count_like_copies():
    vector = np.arange(12, dtype=np.float32)
    total = exact([(vector[::3], 2.0)], "float32", 4)
    assert total.total().tolist() == [0.0, 6.0, 12.0, 18.0]


@pytest.mark.parametrize(
    ("kind", "value"), [("float32", 254.5), ("float32", -3e5), ("float64", -0.37)]
)
def test_thousands_of_additions_stay_exact(kind, value):
    """The fine limb would run over without a carry: 5000 * 2^50.9 > 2^63."""
    vector = np.full(2, value, kind)
    total = exact([(vector, 1.0)] * 5000, kind, 2)
    assert integers(total) == [5000 * steps(vector[0], kind)] * 2


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_two_to_the_thirtieth_addends_stay_exact(kind):
    """The part below the coarse step fills up first; doubling by merging gets there quickly."""
    worst = np.array([(2 ** (GAP[kind] - 1) - 1) * 2.0 ** -STEP[kind]])
    if kind == "float32":  # 24 bits hold no such value, but a weight makes one
        vector, weight = np.ones(1, np.float32), float(worst[0])
    else:
        vector, weight = worst, 1.0
    total = exact([(vector, weight)], kind, 1)
    for _ in range(30):
        total.merge(total)
    total.add(np.array([2.0 ** -STEP[kind]], kind))
    assert integers(total) == [2**30 * (2 ** (GAP[kind] - 1) - 1) + 1]


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_up_to_the_limit_the_sum_is_exact_and_beyond_it_refused(kind, sign):
    total = ExactSum(1, kind)
    big = np.array([sign * (total.limit // 4) * (1 - 2.0**-22)], kind)
    small = np.array([sign * 2.0 ** -STEP[kind]], kind)
    rows = [(big, 1.0), (small, 1.0)] * 4
    want = 4 * (steps(big[0], kind) + sign)
    for vector, _ in rows:
        total.add(vector)
    before = bits(total)
    for refused in (big, -big):
        with pytest.raises(UpdateRefused, match="exact range"):
            total.add(refused)
    assert bits(total) == before
    assert integers(total) == [want]
    assert total.total()[0] == float(Fraction(want, 2 ** STEP[kind]))
    assert total.limit * (1 - 2.0**-21) < total.reach < total.limit


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_value_at_its_own_bound_is_added_and_the_next_one_refused(kind):
    total = ExactSum(1, kind)
    bound = total.limit // 4
    total.add(np.array([bound * (1 - 2.0**-23)], kind))
    with pytest.raises(UpdateRefused, match="beyond"):
        total.add(np.array([bound], kind))


REFUSED = {
    "nan": (np.array([0.0, np.nan]), 1.0, "1 of 2 values are not finite"),
    "infinity": (np.array([np.inf, -np.inf]), 1.0, "2 of 2 values are not finite"),
    "nan weight": (np.ones(2), math.nan, "weight nan"),
    "infinite weight": (np.zeros(2), math.inf, "weight inf"),
    "huge weight": (np.zeros(2), 1e308, "weight 1e\\+308"),
    "huge value": (np.array([1e16, 0.0]), 1.0, "value 1e\\+16 is beyond"),
    "huge product": (np.array([-1e8, 0.0]), 1e8, "value 1e\\+16 is beyond"),
    "shape": (np.ones(3), 1.0, r"shape \(3,\)"),
    "scalar shape": (np.float64(1.0).reshape(()), 1.0, r"shape \(\)"),
    "matrix": (np.ones((1, 2)), 1.0, r"shape \(1, 2\)"),
    "dtype": (np.ones(2, np.float32), 1.0, "dtype float32"),
    "integers": (np.ones(2, np.int64), 1.0, "dtype int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_vector_leaves_the_sum_unchanged(case):
    vector, factor, message = REFUSED[case]
    total = exact([(np.array([1.5, -2.5]), 1.0)], "float64", 2)
    before = bits(total)
    with pytest.raises(UpdateRefused, match=message):
        total.add(vector, factor)
    assert bits(total) == before


def test_only_floats_of_32_and_64_bits_add_up():
    with pytest.raises(UpdateRefused, match="float16"):
        ExactSum(3, "float16")


@pytest.mark.parametrize("other", [ExactSum(1), ExactSum(4), ExactSum(3, "float64")])
def test_sums_of_another_length_or_dtype_do_not_merge(other):
    total = exact([(np.ones(3, np.float32), 1.0)], "float32")
    before = bits(total)
    with pytest.raises(UpdateRefused, match="sums of"):
        total.merge(other)
    assert bits(total) == before


def test_a_merge_beyond_the_range_is_refused_and_changes_nothing():
    rows = [(np.full(3, 5e11, np.float32), 1.0)] * 3
    a, b = exact(rows, "float32"), exact(rows, "float32")
    before = bits(a), bits(b)
    with pytest.raises(UpdateRefused, match="exact range"):
        a.merge(b)
    assert (bits(a), bits(b)) == before


def test_merging_copies_so_that_neither_sum_moves_the_other():
    a, b = ExactSum(2), exact([(np.ones(2, np.float32), 1.0)], "float32", 2)
    before = bits(b)
    a.merge(b)
    a.add(np.ones(2, np.float32))
    assert bits(b) == before
    b.add(np.full(2, 7, np.float32))
    assert a.total().tolist() == [2.0, 2.0]


def test_a_sum_of_nothing_is_nothing():
    empty = exact([(np.zeros(0, np.float32), 2.0)] * 3, "float32", 0)
    empty.merge(ExactSum(0))
    assert empty.total().shape == (0,)
    assert ExactSum(2, "float64").total().tolist() == [0.0, 0.0]


def test_the_total_is_a_copy():
    total = exact([(np.ones(1), 1.0)], "float64", 1)
    total.total()[:] = 9.0
    assert total.total().tolist() == [1.0]


def test_a_sum_crosses_a_process_boundary_in_the_middle():
    total = exact([(np.full(2, 0.1, np.float32), 3.0)] * 3, "float32", 2)
    sent = pickle.loads(pickle.dumps(total))
    for each in (total, sent):
        each.add(np.ones(2, np.float32))
    assert bits(sent) == bits(total)


def test_it_takes_sixteen_bytes_per_value_however_much_is_added():
    total = exact([(np.ones(1000, np.float32), 1.0)] * 50, "float32", 1000)
    assert len(pickle.dumps(total)) < 16 * 1000 + 1000


def test_limbs_travel_apart_from_their_sum():
    total = exact([(np.full(2, 0.1, np.float32), 3.0)] * 3, "float32", 2)
    want = bits(total)
    limbs = total.detach()
    assert total.bins.shape == (2, 0)
    shell = pickle.loads(pickle.dumps(total))
    shell.attach(limbs.copy())
    assert bits(shell) == want
    shell.add(np.ones(2, np.float32))
    total.attach(limbs)
    assert bits(total) == want


small = st.one_of(st.sampled_from([v for v in tricky if abs(v) <= 256]), st.floats(-1e-9, 1e-9))
few = st.lists(st.tuples(st.tuples(small, small, small), weights), min_size=1, max_size=12)


@patient
@given(rows=st.one_of(few, additions.filter(len)), kind=kinds)
def test_vectors_that_are_all_there_add_up_to_the_same_bits(rows, kind):
    ready = vectors(rows, kind)
    whole = sum_of(3, kind)
    terms = [(vector, weight, whole.check(vector, weight)) for vector, weight in ready]
    assert total_of(terms, kind).tobytes() == exact(ready, kind).total().tobytes()


@patient
@given(rows=st.one_of(few, additions), kind=kinds, at=st.integers(0, 12), cut=st.integers(0, 12))
def test_the_form_of_a_sum_cannot_be_seen_in_it(rows, kind, at, cut):
    ready = vectors(rows, kind)
    want = bits(exact(ready, kind))
    widened, rest = ExactSum(3, kind), ExactSum(3, kind)
    for number, (vector, weight) in enumerate(ready):
        into = widened if number < cut else rest
        into.add(vector, weight)
        if number == at:
            _ = into.bins  # from here on in limbs
    widened.merge(rest)
    assert widened.total().tobytes() == want[1]
    assert bits(widened) == want


def test_a_sum_that_outgrows_its_short_form_keeps_every_step():
    step = 2.0**-43
    total = exact([(np.array([255.0, step], np.float32), 1.0)] * 3, "float32", 2)
    total.add(np.array([400.0, -step], np.float32))
    assert total.total().tolist() == [1165.0, 2 * step]


def test_memory_that_is_given_may_hold_anything():
    for first in (1.0, 1e6):  # the second one needs limbs
        limbs = np.full((2, 2), 77)
        total = ExactSum(2, "float32", limbs)
        assert total.total().tolist() == [0.0, 0.0]
        total.add(np.full(2, first, np.float32))
        assert total.total().tolist() == [first, first]
        assert np.may_share_memory(total.bins, limbs)


def test_a_short_total_keeps_every_step_up_to_its_limit():
    # 4 times 255 and a step: just below 2^53 steps, where float64 would begin to lose the last one.
    terms = [(np.array([255.0, 2.0**-43], np.float32), 1.0, 256)] * 4
    assert total_of(terms, "float32").tolist() == [1020.0, 4 * 2.0**-43]
    ends = [*terms, (np.array([255.0, 2.0**-43], np.float32), 1.0, 256)]
    assert total_of(ends, "float32").tolist() == [1275.0, 5 * 2.0**-43]


def test_integers_that_are_all_there_add_up_as_integers():
    terms = [(np.array([2**31 - 1, -5], np.int32), 2.0, 2**32)] * 2
    found = total_of(terms, "int32")
    assert found.dtype == np.int64
    assert found.tolist() == [4 * (2**31 - 1), -20]
