"""Clients described, not listed."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import population_clients as pc

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, JobError
from atoll.core.seeds import Seed
from atoll.data.partition import deal
from atoll.data.population import ClientIds, LazyClients, ids_of, known_rows, resampled, rows_of

HUGE = 10_000_000


def never(index, seed):
    raise AssertionError("a client was made")


def labelled(n=300, classes=3):
    return Examples(np.arange(n, dtype=float)[:, None], np.arange(n) % classes)


@given(st.integers(1, 30_000), st.data())
def test_ids_and_numbers_are_each_others_inverse(count, data):
    ids = ClientIds(count)
    i = data.draw(st.integers(0, count - 1))
    assert ids.index(ids[i]) == i
    assert ids[i] in ids
    assert ids[i - count] == ids[i]
    assert i == 0 or ids[i - 1] < ids[i]


def test_ids_behave_like_the_list_of_them():
    ids, listed = ClientIds(12), [f"client-{i:04d}" for i in range(12)]
    assert list(ids) == listed
    assert list(ids[2:9:3]) == listed[2:9:3]
    assert ids[-1] == listed[-1]
    assert len(ids) == 12
    with pytest.raises(IndexError):
        ids[12]


@pytest.mark.parametrize(
    "name", ["client-12", "client-0012", "client-00000", "client--001", "client-", "x", 3, None]
)
def test_what_is_not_spelt_like_an_id_is_none(name):
    ids = ClientIds(12)
    assert name not in ids
    with pytest.raises(ValueError, match="not a client"):
        ids.index(name)


def test_index_honours_its_bounds():
    assert ClientIds(12).index("client-0005", 5, 6) == 5
    with pytest.raises(ValueError, match="client-0005"):
        ClientIds(12).index("client-0005", 6)


def test_nobody_is_made_by_looking():
    people = LazyClients(HUGE, never, rows=20)
    assert len(people) == HUGE
    assert people.ids[-1] == next(reversed(people.ids)) == "client-9999999"
    assert next(iter(people)) == "client-0000000"
    assert "client-0000041" in people
    assert "client-41" not in people
    assert ids_of(people) is not None
    assert rows_of(people, "client-0000041") == known_rows(people, "client-0000041") == 20
    assert known_rows(LazyClients(HUGE, never), "client-0000041") is None
    copy.deepcopy(people)


def test_a_client_depends_on_its_number_and_the_seed_only():
    people = LazyClients(HUGE, pc.small, Seed(4), pc.rows)
    again = LazyClients(100, pc.small, Seed(4))
    first, other = people["client-0000041"], again["client-0041"]
    assert np.array_equal(first.features, other.features)
    assert len(first) == rows_of(people, "client-0000041") == rows_of(again, "client-0041") == 4
    assert not np.array_equal(first.features, people["client-0000045"].features)
    elsewhere = LazyClients(100, pc.small, Seed(5))["client-0041"]
    assert not np.array_equal(first.features, elsewhere.features)


def test_an_unknown_client_is_a_key_error():
    people = LazyClients(10, pc.small)
    for name in ("client-0010", "client-1", "anna"):
        with pytest.raises(KeyError):
            people[name]
        with pytest.raises(KeyError):
            people.size_of(name)
        assert people.get(name) is None


def test_rows_that_are_not_as_announced_are_named():
    with pytest.raises(DataError, match="client-0001: 4 rows were made, but 3 were announced"):
        LazyClients(10, pc.small, rows=3)["client-0001"]


def test_impossible_populations_are_refused():
    for wrong in ({"count": 0}, {"count": 3, "rows": 0}):
        with pytest.raises(JobError, match="at least one"):
            LazyClients(make=pc.small, **wrong)


def test_a_sample_names_different_clients_in_order():
    people = LazyClients(HUGE, pc.small)
    drawn = people.sample(50, Seed(1))
    assert len(drawn) == 50
    assert list(drawn) == sorted(drawn) != list(people.sample(50, Seed(2)))
    for client, data in drawn.items():
        assert data.features[0, 0] == people.ids.index(client)


def test_a_fingerprint_knows_every_part_of_the_description():
    base = labelled()
    people = resampled(base, 1000, 20, Seed(1))
    changed = [
        resampled(base, 1001, 20, Seed(1)),
        resampled(base, 1000, 21, Seed(1)),
        resampled(base, 1000, 20, Seed(2)),
        resampled(base, 1000, 20, Seed(1), alpha=0.5),
        resampled(Examples(base.features + 1, base.targets), 1000, 20, Seed(1)),
        LazyClients(1000, pc.small, Seed(1)),
        LazyClients(1000, functools.partial(pc.small), Seed(1), rows=pc.rows),
    ]
    prints = [p.fingerprint() for p in changed]
    assert people.fingerprint() == resampled(base, 1000, 20, Seed(1)).fingerprint()
    assert people.fingerprint() not in prints
    assert len(set(prints[:-1])) == len(prints) - 1
    assert prints[-1] == prints[-2]  # neither a partial nor announced sizes change what is made


def test_resampled_rows_are_rows_of_the_source_with_their_targets():
    base = labelled()
    for alpha in (None, 0.3):
        one = resampled(base, HUGE, 40, Seed(3), alpha=alpha)["client-0000007"]
        assert one.features.shape == (40, 1)
        assert np.array_equal(one.features[:, 0] % 3, one.targets)


def test_a_small_alpha_skews_labels_and_none_does_not():
    base = labelled()

    def commonest(alpha):
        people = resampled(base, 200, 60, Seed(3), alpha=alpha)
        return np.mean([np.bincount(people.at(i).targets).max() / 60 for i in range(200)])

    assert commonest(0.05) > 0.85
    assert commonest(None) < 0.5
    assert commonest(1e6) < 0.5


def test_all_labels_together_keep_their_shares():
    people = resampled(labelled(), 400, 30, Seed(3), alpha=1.0)
    counts = sum(np.bincount(people.at(i).targets, minlength=3) for i in range(400))
    assert np.allclose(counts / counts.sum(), 1 / 3, atol=0.06)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rows": 0}, "0 rows"),
        ({"alpha": 0.0}, "positive"),
        ({"alpha": float("nan")}, "positive"),
        ({"examples": Examples(np.zeros((3, 1)), np.zeros(3)), "alpha": 1.0}, "classes"),
        ({"examples": Examples(np.zeros((0, 1)), np.zeros(0))}, "out of 0"),
    ],
)
def test_impossible_resampling_is_refused(settings, match):
    given = {"examples": labelled(), "clients": 5, "rows": 4, "seed": Seed(0), **settings}
    with pytest.raises(JobError, match=match):
        resampled(**given)


def test_partitions_and_dicts_answer_the_same_questions():
    dealt = deal(labelled(10), [np.arange(4), np.arange(4, 10)])
    plain = dict(dealt)
    assert list(ids_of(dealt)) == list(ids_of(plain))
    assert [rows_of(dealt, c) for c in dealt] == [rows_of(plain, c) for c in plain] == [4, 6]
    assert [known_rows(plain, c) for c in plain] == [4, 6]
    with pytest.raises(KeyError):
        dealt.size_of("client-2")


@pytest.mark.parametrize(
    "odd", [{"count": 2.5}, {"count": "3"}, {"make": 5}, {"rows": "many"}, {"rows": 2.5}]
)
def test_a_population_of_another_kind_is_refused_where_it_is_described(odd):
    with pytest.raises(JobError):
        LazyClients(**{"count": 3, "make": never, **odd})
