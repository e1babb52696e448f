"""Folding updates: one aggregate whatever the order, and refusals that leave no trace."""

import math
import pickle
import tracemalloc
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation.exact import Fold
from atoll.core.errors import UpdateRefused
from atoll.core.metrics import Confusion, Count, Mean, values
from atoll.core.values import Aggregate, Update

patient = settings(deadline=None, max_examples=60)
small = st.floats(-1e6, 1e6, width=32)
weights = st.floats(0, 1e4)
updates = st.lists(
    st.builds(
        lambda v, h, w, n, loss: Update(
            {"parameters": np.array(v, np.float32), "gram": np.array(h).reshape(2, 2)},
            w,
            n,
            {"loss": Mean.of(loss, n), "rows": Count(n)},
        ),
        st.tuples(small, small, small),
        st.tuples(small, small, small, small),
        weights,
        st.integers(0, 1000),
        small,
    ),
    max_size=8,
)


def update(*vector, weight=1.0, examples=1, metrics=None):
    return Update({"parameters": np.array(vector, np.float32)}, weight, examples, metrics or {})


def folded(rows):
    fold = Fold()
    for one, scale in rows:
        fold.add(one, scale)
    return fold


def bits(fold):
    a = fold.aggregate()
    sums = {name: (v.shape, v.tobytes()) for name, v in a.sums.items()}
    return (
        sums,
        list(a.sums),
        a.weight,
        a.scaled_weight,
        a.count,
        a.examples,
        a.metrics,
        list(a.metrics),
    )


def test_a_weighted_mean_by_hand():
    fold = folded(
        [(update(0.5, 4.0, weight=3, examples=30), 1.0), (update(1.5, 0.0, examples=10), 1.0)]
    )
    a = fold.aggregate()
    assert a.sums["parameters"].tolist() == [3.0, 12.0]
    assert a.mean("parameters").tolist() == [0.75, 3.0]
    assert (a.weight, a.scaled_weight, a.count, a.examples) == (4.0, 4.0, 2, 40)


def test_a_stale_update_counts_less_in_the_sum_and_full_in_the_weight():
    a = folded([(update(1.0, weight=2), 1.0), (update(1.0, weight=2), 0.5)]).aggregate()
    assert a.sums["parameters"].tolist() == [3.0]
    assert (a.weight, a.scaled_weight) == (4.0, 3.0)
    assert a.mean("parameters").tolist() == [0.75]


@patient
@given(updates, st.randoms(use_true_random=False))
def test_any_order_split_and_merge_tree_gives_the_same_bits(many, chance):
    rows = [(one, chance.choice([1.0, 0.1, 1 / math.sqrt(2)])) for one in many]
    want = bits(folded(rows))
    chance.shuffle(rows)
    parts = [[] for _ in range(chance.randint(1, 4))]
    for row in rows:
        chance.choice(parts).append(row)
    folds = [folded(part) for part in parts]
    while len(folds) > 1:
        chance.shuffle(folds)
        folds[0].merge(folds.pop())
    assert bits(folds[0]) == want


@patient
@given(st.lists(weights, min_size=1, max_size=20))
def test_weights_add_up_without_rounding_on_the_way(many):
    a = folded([(update(1.0, weight=w), 0.3) for w in many]).aggregate()
    assert a.weight == math.fsum(many)
    assert a.scaled_weight == math.fsum(0.3 * w for w in many)


def test_shapes_and_dtypes_come_back_as_they_were_sent():
    one = Update(
        {"b": np.ones((2, 3, 1)), "a": np.array(2.5, np.float32), "c": np.zeros((0, 4))}, 2.0, 1
    )
    sums = folded([(one, 1.0), (one, 1.0)]).aggregate().sums
    assert {n: (v.shape, v.dtype.name) for n, v in sums.items()} == {
        "a": ((), "float64"),
        "b": ((2, 3, 1), "float64"),
        "c": ((0, 4), "float64"),
    }
    assert sums["a"] == 10.0
    assert (sums["b"] == 4.0).all()


def test_arrays_in_any_memory_order_count_the_same():
    grid = np.arange(6.0).reshape(2, 3)
    plain = folded([(Update({"g": grid}, 1.0, 1), 1.0)])
    turned = folded([(Update({"g": np.asfortranarray(grid)}, 1.0, 1), 1.0)])
    assert bits(plain) == bits(turned)
    assert plain.aggregate().sums["g"].tolist() == grid.tolist()


def test_an_empty_fold_has_an_empty_aggregate_and_changes_nothing_it_meets():
    assert bits(Fold()) == ({}, [], 0.0, 0.0, 0, 0, {}, [])
    fold = folded([(update(1.0), 1.0)])
    before = bits(fold)
    fold.merge(Fold())
    assert bits(fold) == before
    fresh = Fold()
    fresh.merge(fold)
    assert bits(fresh) == before


def test_updates_without_vectors_still_bring_weight_and_metrics():
    a = folded([(Update({}, 2.0, 5, {"rows": Count(5)}), 0.5)] * 2).aggregate()
    assert (a.sums, a.weight, a.scaled_weight, a.examples) == ({}, 4.0, 2.0, 10)
    assert values(a.metrics) == {"rows": 10.0}


def test_weight_zero_adds_nothing_but_is_counted():
    a = folded([(update(5.0, weight=0.0), 1.0), (update(1.0), 1.0)]).aggregate()
    assert a.mean("parameters").tolist() == [1.0]
    assert a.count == 2


def test_numpy_numbers_are_as_good_as_pythons():
    plain = folded([(update(1.0, weight=0.5, examples=3), 0.25)])
    given = folded([(update(1.0, weight=np.float32(0.5), examples=np.int64(3)), np.float32(0.25))])
    assert bits(given) == bits(plain)
    assert type(given.aggregate().examples) is int


def wide(vector):
    return Update({"parameters": vector}, 1.0, 1)


REFUSED = {
    "nan": (update(math.nan, 1.0), 1.0, "'parameters': 1 of 2 values are not finite"),
    "infinity": (update(math.inf, -math.inf), 1.0, "2 of 2"),
    "too large": (update(1e30, 0.0), 1.0, "'parameters': value 1e\\+30 is beyond"),
    "too large with its weight": (update(1e9, 0.0, weight=1e9), 1.0, "value 1e\\+18 is beyond"),
    "negative weight": (update(1.0, 1.0, weight=-1.0), 1.0, "weight -1.0"),
    "nan weight": (update(1.0, 1.0, weight=math.nan), 1.0, "weight nan"),
    "infinite weight": (update(1.0, 1.0, weight=math.inf), 1.0, "weight inf"),
    "negative scale": (update(1.0, 1.0), -0.5, "scale -0.5"),
    "nan scale": (update(1.0, 1.0), math.nan, "scale nan"),
    "scaled weight overflows": (update(1.0, 1.0, weight=1e200), 1e200, "scaled weight inf"),
    "other length": (update(1.0), 1.0, r"vectors parameters \(1,\), not parameters \(2,\)"),
    "other shape": (wide(np.ones((2, 1), np.float32)), 1.0, r"\(2, 1\)"),
    "other dtype": (wide(np.ones(2)), 1.0, "'parameters': .*float64"),
    "half": (wide(np.ones(2, np.float16)), 1.0, "'parameters': .*float16"),
    "other name": (Update({"gradient": np.ones(2, np.float32)}, 1.0, 1), 1.0, "gradient"),
    "no vectors": (Update({}, 1.0, 1), 1.0, "vectors none"),
    "other metric": (update(1.0, 1.0, metrics={"m": Count(1)}), 1.0, "metrics.*Count"),
    "other classes": (
        update(1.0, 1.0, metrics={"c": Confusion(((1,),))}),
        1.0,
        "metrics.*1 classes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_update_leaves_the_fold_unchanged(case):
    bad, scale, message = REFUSED[case]
    metrics = {"m": Mean.of(1.0, 2), "c": Confusion(((1, 2), (3, 4)))}
    fold = folded([(update(1.0, 2.0, weight=3.0, metrics=metrics), 1.0)])
    before = bits(fold)
    with pytest.raises(UpdateRefused, match=message):
        fold.add(bad, scale)
    assert bits(fold) == before


def test_a_fault_in_the_last_vector_keeps_the_first_ones_out():
    def pair(last):
        return Update({"a": np.ones(2), "b": np.full(2, last)}, 1.0, 1)

    fold = folded([(pair(1.0), 1.0)])
    before = bits(fold)
    with pytest.raises(UpdateRefused, match="'b'"):
        fold.add(pair(math.nan))
    assert bits(fold) == before
    fresh = Fold()
    with pytest.raises(UpdateRefused, match="'b'"):
        fresh.add(pair(math.inf))
    assert bits(fresh) == bits(Fold())


def test_what_would_leave_the_exact_range_is_refused():
    fold = Fold()
    for _ in range(4):
        fold.add(update(5e11))
    before = bits(fold)
    with pytest.raises(UpdateRefused, match="'parameters': the sum leaves the exact range"):
        fold.add(update(5e11))
    with pytest.raises(UpdateRefused, match="exact range"):
        fold.merge(folded([(update(-5e11), 1.0)]))
    assert bits(fold) == before


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (update(1.0), "vectors"),
        (wide(np.ones((1, 2), np.float32)), "vectors"),
        (wide(np.ones(2)), "'parameters' is float64"),
        (Update({"other": np.ones(2, np.float32)}, 1.0, 1), "vectors other"),
        (update(1.0, 1.0, metrics={"m": Count(1)}), "metrics"),
    ],
)
def test_folds_that_do_not_fit_do_not_merge(theirs, message):
    fold = folded([(update(1.0, 2.0, metrics={"m": Mean.of(1.0, 1)}), 1.0)])
    other = folded([(theirs, 1.0)])
    before = bits(fold), bits(other)
    with pytest.raises(UpdateRefused, match=message):
        fold.merge(other)
    assert (bits(fold), bits(other)) == before


def test_a_merge_that_fails_at_the_last_vector_leaves_the_first_ones_alone():
    def pair(a, b):
        return Update({"a": np.array([a]), "b": np.array([b])}, 1.0, 1)

    fold, other = folded([(pair(1.0, 5e14), 1.0)] * 3), folded([(pair(1.0, 5e14), 1.0)] * 3)
    before = bits(fold), bits(other)
    with pytest.raises(UpdateRefused, match="exact range"):
        fold.merge(other)
    assert (bits(fold), bits(other)) == before


def test_the_aggregate_lists_names_in_one_order():
    def one(*names):
        return Update({n: np.ones(1) for n in names}, 1.0, 1, {n: Count(1) for n in names})

    a = folded([(one("b", "a"), 1.0), (one("a", "b"), 1.0)]).aggregate()
    assert list(a.sums) == list(a.metrics) == ["a", "b"]


def test_merging_into_an_empty_fold_copies():
    worker, total = folded([(update(1.0), 1.0)]), Fold()
    total.merge(worker)
    before = bits(worker)
    total.add(update(10.0))
    assert bits(worker) == before
    worker.add(update(100.0))
    assert total.aggregate().sums["parameters"].tolist() == [11.0]


def test_an_aggregate_does_not_change_when_folding_goes_on():
    fold = folded([(update(1.0, metrics={"rows": Count(1)}), 1.0)])
    a = fold.aggregate()
    fold.add(update(1.0, metrics={"rows": Count(1)}))
    assert a.sums["parameters"].tolist() == [1.0]
    assert values(a.metrics) == {"rows": 1.0}


def test_the_update_itself_is_left_as_it_was():
    one = update(1.0, 2.0, weight=3.0)
    one.vectors["parameters"].flags.writeable = False
    fold = folded([(one, 1.0)] * 2)
    assert one.vectors["parameters"].tolist() == [1.0, 2.0]
    assert fold.aggregate().sums["parameters"].tolist() == [6.0, 12.0]


def test_a_fold_crosses_a_process_boundary():
    fold = folded([(update(0.1, weight=Fraction(1, 3), metrics={"m": Mean.of(0.1, 3)}), 1.0)])
    assert bits(pickle.loads(pickle.dumps(fold))) == bits(fold)


def test_memory_grows_with_the_model_and_not_with_the_clients():
    model = np.ones(100_000, np.float32)

    def peak(clients):
        tracemalloc.start()
        fold = Fold()
        for _ in range(clients):
            fold.add(Update({"parameters": model}, 1.0, 1))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(40) < 1.1 * peak(2) < 1.1 * 6 * model.nbytes


def test_whether_a_value_is_too_large_does_not_depend_on_the_others():
    """Ten updates share 2^41 for float32: 2e11 each may come, in any order, and 3e11 never."""
    for rows in ([2e11] * 9 + [3e11], [3e11] + [2e11] * 9):
        fold, refused = Fold(10), []
        for value in rows:
            try:
                fold.add(update(value))
            except UpdateRefused as error:
                refused.append((value, error.message))
        assert [value for value, _ in refused] == [3e11]
        assert "'parameters': a value of 3e+11 is beyond its share 2.2e+11" in refused[0][1]
        assert fold.aggregate().count == 9


@pytest.mark.parametrize("wrong", [{"weight": math.nan}, {"scaled_weight": -1.0}])
def test_a_group_that_is_refused_leaves_no_trace(wrong):
    fold = Fold(2)
    group = Aggregate({"parameters": np.ones(2, np.float32)}, 3.0, 2.0, 4, 9, {"rows": Count(9)})
    fold.add_sum(group)
    with pytest.raises(UpdateRefused, match="weight"):
        fold.add_sum(replace(group, **wrong))
    found = fold.aggregate()
    assert found.sums["parameters"].tolist() == [1.0, 1.0]
    assert (found.weight, found.scaled_weight, found.count, found.examples) == (3.0, 2.0, 4, 9)
    assert values(found.metrics) == {"rows": 9.0}
