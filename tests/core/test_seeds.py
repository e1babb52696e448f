"""Seeds: a stream depends on its path alone, and is the same everywhere."""

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.seeds import Seed

names = st.one_of(
    st.integers(-(10**20), 10**20), st.text(max_size=6), st.sampled_from("is/0123456789")
)
paths = st.lists(names, max_size=4)


def walk(root, path):
    seed = Seed(root)
    for name in path:
        seed = seed / name
    return seed


def test_known_answers():
    seed = Seed(7) / "cohort" / 3
    assert seed.digest().hex() == "5b76f1e00e7dc346589f3ec789997e094c0736a011d8499abfc1de9fadb8838e"
    assert seed.integer() == 5558827362677359526
    raw = seed.generator().bit_generator.random_raw(3).tolist()
    assert raw == [17524010923405767970, 1398301895187296957, 11384528651522744761]
    assert seed.generator().random(2).tolist() == [0.9499785356908121, 0.07580209762763324]
    assert [Seed(r).integer() for r in (0, -1, 2**70)] == [
        2901400131813542481,
        8021279876428345509,
        4204706745798886968,
    ]


def test_the_stream_is_that_of_a_philox_keyed_by_the_digest():
    seed = Seed(11) / "a"
    keyed = np.random.Philox(key=int.from_bytes(seed.digest()[:16], "little"))
    ours = seed.generator()
    assert ours.random(5).tolist() == np.random.Generator(keyed).random(5).tolist()
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.permutation(9).tolist() == ours.permutation(9).tolist()


def test_the_digest_is_a_hash_of_length_prefixed_names():
    text = (
        b"atoll seed 1"
        + b"\x01\0\0\0"
        + b"7"
        + b"\x03\0\0\0"
        + b"s\xc3\xa4"
        + b"\x02\0\0\0"
        + b"i3"
    )
    assert (Seed(7) / "ä" / 3).digest() == hashlib.sha256(text).digest()


@settings(deadline=None, max_examples=100)
@given(st.integers(), st.integers(), paths, paths)
def test_two_paths_share_a_digest_only_if_they_are_the_same(root, other, path, second):
    a, b = walk(root, path), walk(other, second)
    assert (a.digest() == b.digest()) == (root == other and path == second)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (["a", "b"], ["ab"]),
        (["a/b"], ["a", "b"]),
        (["", "a"], ["a", ""]),
        ([""], []),
        ([3], ["3"]),
        ([3], ["i3"]),
        (["s3"], ["3"]),
        ([-3], ["-3"]),
        (["a\0"], ["a"]),
        (["é"], ["e\u0301"]),
    ],
)
def test_tricky_names_do_not_collide(one, two):
    assert walk(1, one).digest() != walk(1, two).digest()


def test_ten_thousand_clients_have_ten_thousand_streams():
    seeds = [Seed(0) / "round" / r / "client" / c for r in range(100) for c in range(100)]
    assert len({s.digest()[:16] for s in seeds}) == len({s.integer() for s in seeds}) == 10_000


def test_a_stream_does_not_depend_on_what_was_drawn_before_or_elsewhere():
    parent = Seed(5) / "a"
    fresh = (parent / 1).generator().random(3).tolist()
    parent.generator().random(100)
    (parent / 0).generator().random(100)
    child = parent / 1
    child.generator().random(7)
    assert child.generator().random(3).tolist() == fresh


def test_a_name_from_numpy_is_the_same_name():
    assert Seed(1) / np.int64(3) == Seed(1) / 3
    assert Seed(1) / np.str_("a") == Seed(1) / "a"
    assert (Seed(np.int64(1)) / 3).digest() == (Seed(1) / 3).digest()


@pytest.mark.parametrize("name", [0.5, None, b"a", ("a",)])
def test_only_text_and_whole_numbers_are_names(name):
    with pytest.raises(TypeError):
        Seed(1) / name


def test_names_read_from_odd_file_names_work():
    names = [
        raw.decode("utf-8", "surrogateescape") for raw in (b"site-\xff", b"site-\xfe", b"site-?")
    ]
    assert len({(Seed(1) / name).digest() for name in names}) == 3


def test_a_seed_crosses_a_process_boundary():
    seed = Seed(3) / "x" / 1
    assert pickle.loads(pickle.dumps(seed)) == seed


def test_integers_fit_sixty_three_bits_and_use_them():
    drawn = [(Seed(2) / i).integer() for i in range(1000)]
    assert min(drawn) >= 0
    assert 2**62 < max(drawn) < 2**63
    assert len({n % 2 for n in drawn}) == 2


def test_first_draws_of_neighbours_are_uniform_and_unrelated():
    """Chi-squared with 19 degrees of freedom stays below 43.8 but once in a thousand."""
    first = np.array([(Seed(11) / "client" / i).generator().random() for i in range(4000)])
    counts = np.histogram(first, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 3.3 / np.sqrt(4000)
    parents = np.array([(Seed(i)).generator().random() for i in range(4000)])
    assert abs(np.corrcoef(first, parents)[0, 1]) < 3.3 / np.sqrt(4000)


def test_names_below_a_seed_need_no_seed_of_their_own():
    seed, names = Seed(5) / "task", ("a", 3, np.int64(3), "3")
    below = seed.at(*names)
    assert below == seed / "a" / 3 / 3 / "3"
    assert seed.digest(*names) == below.digest()
    wanted = below.generator().permutation(50).tolist()
    assert seed.permutation(50, *names).tolist() == wanted == below.permutation(50).tolist()
    with pytest.raises(TypeError):
        seed.permutation(50, 0.5)


def test_orders_are_those_of_a_fresh_generator_in_any_thread():
    seeds = [Seed(5) / "epoch" / i for i in range(40)]
    wanted = [seed.generator().permutation(3 * i).tolist() for i, seed in enumerate(seeds)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda i: seeds[i].permutation(3 * i).tolist(), range(40))
    assert list(found) == wanted
