import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.contracts import Examples
from atoll.core.errors import JobError
from atoll.core.seeds import Seed
from atoll.data.partition import (
    SCHEMES,
    add_noise,
    classes_per_client,
    client_ids,
    deal,
    dirichlet,
    iid,
    quantity,
    rotate,
    split,
    split_clients,
)


def examples(n, classes=3):
    return Examples(np.arange(n, dtype=np.float32)[:, None], np.arange(n) % classes)


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(
        [
            ("iid", {}),
            ("dirichlet", {"alpha": 0.3, "balanced": True, "min_rows": 0}),
            ("dirichlet", {"alpha": 0.3, "balanced": False, "min_rows": 0}),
            ("dirichlet", {"alpha": 1e-4, "balanced": True, "min_rows": 0}),
            ("classes", {"k": 2}),
            ("quantity", {"alpha": 0.5, "min_rows": 1}),
        ]
    ),
    n=st.integers(60, 200),
    clients=st.integers(2, 9),
    seed=st.integers(0, 2**31),
)
def test_every_row_is_dealt_exactly_once(scheme, n, clients, seed):
    name, options = scheme
    labels = np.arange(n) % 4
    rows = SCHEMES[name](labels, clients, Seed(seed), **options)
    assert len(rows) == clients
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(n))
    again = SCHEMES[name](labels, clients, Seed(seed), **options)
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))


def test_another_seed_deals_differently():
    labels = np.zeros(50)
    assert not np.array_equal(iid(labels, 2, Seed(1))[0], iid(labels, 2, Seed(2))[0])


def test_iid_sizes_differ_by_at_most_one():
    assert sorted(len(r) for r in iid(np.zeros(11), 3, Seed(1))) == [3, 4, 4]


def test_a_partition_hands_out_views_of_one_array():
    partition = deal(examples(20), iid(np.zeros(20), 3, Seed(1)))
    assert list(partition) == ["client-0000", "client-0001", "client-0002"]
    for client, own in partition.items():
        assert np.shares_memory(own.features, partition.examples.features)
        np.testing.assert_array_equal(own.features[:, 0] % 3, own.targets)
        assert partition[client].targets.tolist() == own.targets.tolist()
    assert partition.sizes.tolist() == [7, 7, 6]


@pytest.mark.parametrize(
    "name", ["client-0003", "client-1", "client-00001", "other", "client--001", ""]
)
def test_an_unknown_client_is_a_key_error(name):
    partition = deal(examples(6), iid(np.zeros(6), 3, Seed(1)))
    assert name not in partition
    with pytest.raises(KeyError):
        partition[name]


def test_ids_sort_like_numbers_beyond_ten_thousand():
    ids = client_ids(10_001)
    assert (ids[0], ids[-1]) == ("client-00000", "client-10000")
    assert list(ids) == sorted(ids)


def test_a_full_client_gets_no_more_under_the_balancing_rule():
    labels = np.repeat(np.arange(10), 100)
    for seed in range(5):
        balanced = dirichlet(labels, 5, Seed(seed), alpha=0.1, min_rows=10)
        # A client below n / N = 200 before a class of 100 can hold at most 300 after it.
        assert max(len(r) for r in balanced) < 300
        assert min(len(r) for r in balanced) >= 10


def test_without_balancing_the_proportions_are_used_as_drawn():
    labels = np.repeat(np.arange(2), 1000)
    sizes = [
        len(r)
        for s in range(20)
        for r in dirichlet(labels, 4, Seed(s), alpha=0.2, balanced=False, min_rows=0)
    ]
    assert max(sizes) > 1000


def test_a_large_alpha_gives_every_client_the_same_labels():
    labels = np.repeat(np.arange(4), 1000)
    for rows in dirichlet(labels, 4, Seed(3), alpha=1e6, balanced=False):
        np.testing.assert_allclose(np.bincount(labels[rows]), 250, atol=5)


def test_a_small_alpha_gives_clients_few_labels():
    labels = np.repeat(np.arange(10), 100)
    rows = dirichlet(labels, 10, Seed(3), alpha=0.01, balanced=False, min_rows=0)
    largest = sum(np.bincount(labels[r], minlength=10).max() for r in rows)
    assert largest > 0.9 * len(labels) / 2
    assert np.mean([len(np.unique(labels[r])) for r in rows]) < 3


def test_an_impossible_minimum_is_reported_with_the_best_draw():
    labels = np.zeros(40)
    with pytest.raises(JobError, match="smallest client had at most"):
        dirichlet(labels, 4, Seed(1), alpha=1e-3, balanced=False, min_rows=10)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_each_client_holds_exactly_k_classes(k):
    labels = np.arange(300) % 5
    rows = classes_per_client(labels, 7, Seed(2), k=k)
    assert [len(np.unique(labels[r])) for r in rows] == [k] * 7


def test_holders_are_spread_evenly_over_classes():
    labels = np.arange(1000) % 10
    rows = classes_per_client(labels, 10, Seed(5), k=2)
    held = np.array([np.isin(np.arange(10), labels[r]) for r in rows])
    assert held.sum(axis=0).tolist() == [2] * 10
    assert [len(r) for r in rows] == [100] * 10


@pytest.mark.parametrize(
    ("scheme", "clients", "options", "message"),
    [
        ("iid", 10, {}, "9 rows cannot give 10 clients 1 each"),
        ("iid", 0, {}, "0 clients"),
        ("classes", 2, {"k": 4}, "k = 4 classes per client, but the data have 3"),
        ("classes", 2, {"k": 1}, "2 clients with 1 classes each cannot hold 3 classes"),
        ("classes", 12, {"k": 1}, "has 3 rows for 4 clients"),
        ("quantity", 3, {"min_rows": 4}, "cannot give 3 clients 4 each"),
        ("quantity", 3, {"alpha": 0.0}, "alpha = 0 must be a positive number"),
        ("dirichlet", 3, {"alpha": -1.0, "min_rows": 1}, "alpha = -1 must be a positive number"),
    ],
)
def test_impossible_partitions_are_refused(scheme, clients, options, message):
    with pytest.raises(JobError, match=message):
        SCHEMES[scheme](np.arange(9) % 3, clients, Seed(0), **options)


def test_quantity_skew_keeps_the_minimum_and_varies_sizes():
    sizes = [len(r) for r in quantity(np.zeros(1000), 10, Seed(4), alpha=0.5, min_rows=20)]
    assert sum(sizes) == 1000
    assert min(sizes) >= 20
    assert max(sizes) > 2 * 100


def test_noise_grows_with_the_client_number():
    n = 4000
    zero = Examples(np.zeros((n, 10), np.float32), np.zeros(n))
    partition = deal(zero, iid(zero.targets, 4, Seed(1)))
    noisy = add_noise(partition, 0.8, Seed(2))
    spread = [float(own.features.std()) for own in noisy.values()]
    np.testing.assert_allclose(spread, [0.2, 0.4, 0.6, 0.8], rtol=0.05)
    assert partition.examples.features.max() == 0
    assert noisy.examples.features.dtype == np.float32


def test_clients_see_turned_images():
    image = np.array([[1, 2], [3, 4]], np.float32)
    data = Examples(np.tile(image, (4, 1, 1, 1)), np.zeros(4))
    turned = rotate(deal(data, iid(data.targets, 4, Seed(1))))
    assert [own.features[0, 0].tolist() for own in turned.values()] == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
    ]


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3)])
def test_only_square_images_are_turned(shape):
    data = Examples(np.zeros(shape), np.zeros(4))
    with pytest.raises(JobError, match="square images"):
        rotate(deal(data, iid(data.targets, 2, Seed(1))))


@settings(deadline=None)
@given(n=st.integers(0, 60), fraction=st.floats(0, 0.99), stratify=st.booleans())
def test_a_split_keeps_every_row_once_and_one_to_train_on(n, fraction, stratify):
    train, test = split(examples(n), fraction, Seed(1), stratify=stratify)
    rows = np.concatenate([train.features, test.features])[:, 0]
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))
    assert len(test) == min(int(n * fraction + 0.5), max(n - 1, 0))


def test_a_stratified_split_takes_the_share_of_each_class():
    data = Examples(np.zeros((100, 1)), np.repeat([0, 1], [90, 10]))
    for seed in range(5):
        _, test = split(data, 0.2, Seed(seed), stratify=True)
        assert np.bincount(test.targets).tolist() == [18, 2]


@pytest.mark.parametrize(
    "targets", [np.array([0.5, 1.5, np.nan, 2.0]), np.zeros((4, 2))], ids=["numbers", "several"]
)
def test_a_stratified_split_of_rows_without_a_class_each_is_refused(targets):
    with pytest.raises(JobError, match="no class each"):
        split(Examples(np.zeros((4, 1)), targets), 0.5, Seed(1), stratify=True)


def test_a_fraction_outside_the_unit_interval_is_refused():
    with pytest.raises(JobError, match=r"1 is not in \[0, 1\)"):
        split(examples(4), 1.0, Seed(1))


def test_every_client_is_split_by_its_own_stream():
    partition = deal(examples(40), iid(np.zeros(40), 4, Seed(1)))
    train, test = split_clients(partition, 0.2, Seed(2))
    assert list(train) == list(test) == list(partition)
    assert (train.sizes.tolist(), test.sizes.tolist()) == ([8] * 4, [2] * 4)
    for client, own in partition.items():
        both = np.concatenate([train[client].features, test[client].features])
        np.testing.assert_array_equal(np.sort(both[:, 0]), np.sort(own.features[:, 0]))


def test_a_client_gets_the_same_view_again_and_its_rows_travel_once():
    dealt = deal(examples(40), [np.arange(10 * i, 10 * i + 10) for i in range(4)])
    before = len(pickle.dumps(dealt))
    assert all(dealt[c] is dealt[c] and dealt.size_of(c) == 10 for c in dealt)
    assert len(pickle.dumps(dealt)) < before + 300
    with pytest.raises(KeyError):
        dealt["nobody"]
