"""The parts below the machines: sharing, graph, keys, canonical bytes."""

import itertools

import pytest
from cohorts import Cohort, secret
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import AuthError, WireError
from atoll.privacy.secagg.canonical import digest, pack
from atoll.privacy.secagg.graph import neighbours
from atoll.privacy.secagg.keys import Pair, derive, keystream, open_sealed, seal, signed_by
from atoll.privacy.secagg.shamir import PRIME, combine, split

PARTS = st.recursive(
    st.binary(max_size=4) | st.text(max_size=4) | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


def test_shares_by_hand():
    """f(x) = s + a x with a = 5: f(1) = s + 5, f(2) = s + 10."""
    raw = (7).to_bytes(32, "big")
    shares = split(raw, 2, [1, 2], (5).to_bytes(64, "big"))
    assert [int.from_bytes(share, "big") for share in shares] == [12, 17]
    assert combine(dict(enumerate(shares, 1))) == raw


def test_field_is_prime_and_holds_every_secret():
    assert PRIME > 2**256
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11, 13))
    top = b"\xff" * 32
    shares = dict(zip((1, 2, 3), split(top, 3, (1, 2, 3), bytes(range(128))), strict=True))
    assert combine(shares) == top


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4))
def test_any_threshold_shares_open_the_secret(value, threshold, more):
    points = range(1, threshold + more + 1)
    drawn = keystream(secret("x"), 64 * (threshold - 1))
    shares = dict(zip(points, split(value, threshold, points, drawn), strict=True))
    for some in itertools.islice(itertools.combinations(points, threshold), 20):
        assert combine({x: shares[x] for x in some}) == value


def test_shares_that_do_not_fit_open_nothing_or_something_else():
    shares = split(b"s" * 32, 2, [1, 2], b"r" * 64)
    assert combine({1: shares[0], 2: (3).to_bytes(33, "big")}) != b"s" * 32
    with pytest.raises(WireError, match="do not fit"):  # 2 * 0 - 1 = PRIME - 1: above 32 bytes
        combine({1: (0).to_bytes(33, "big"), 2: (1).to_bytes(33, "big")})


@given(PARTS, PARTS)
def test_different_values_have_different_bytes(one, other):
    same = repr(one) == repr(other)
    assert (pack("label", one) == pack("label", other)) is same
    assert (digest("a", one) == digest("b", one)) is False


@pytest.mark.parametrize(("size", "degree"), [(5, 0), (5, 4), (5, 2), (40, 6), (41, 10)])
def test_graph_is_symmetric_regular_and_connected(size, degree):
    graph = neighbours(range(1, size + 1), b"seed", degree)
    wanted = degree if 0 < degree < size - 1 else size - 1
    assert {len(others) for others in graph.values()} == {wanted}
    assert all(i in graph[j] and i != j for i, others in graph.items() for j in others)
    reached = {1}
    for _ in range(size):
        reached |= {j for i in reached for j in graph[i]}
    assert reached == set(graph)


def test_graph_changes_with_its_seed():
    assert neighbours(range(30), b"one", 4) != neighbours(range(30), b"two", 4)


def test_both_ends_agree_and_each_purpose_has_its_own_key():
    one, two = Pair(secret("one")), Pair(secret("two"))
    assert one.agreed(two.public) == two.agreed(one.public) != one.agreed(one.public)
    assert len({derive(b"k", "a", 1), derive(b"k", "a", "1"), derive(b"j", "a", 1)}) == 3


def test_keystream_is_aes_256_in_counter_mode():
    """The known answer for an all-zero key and block (NIST AESAVS, appendix B)."""
    assert keystream(bytes(32), 20).hex().startswith("dc95c078a2408989ad48a21492842087")


@pytest.mark.parametrize("public", [bytes(32), b"short", (1).to_bytes(32, "little")])
def test_a_key_of_low_order_or_another_length_is_refused(public):
    with pytest.raises(AuthError, match="usable"):
        Pair(secret("k")).agreed(public)


def test_sealed_shares_open_only_where_they_belong():
    sealed = seal(secret("k"), b"share", b"1 to 2")
    assert open_sealed(secret("k"), sealed, b"1 to 2") == b"share"
    for key, text, bound in (
        (secret("j"), sealed, b"1 to 2"),
        (secret("k"), sealed[:-1] + b"\0", b"1 to 2"),
        (secret("k"), sealed, b"1 to 3"),
        (secret("k"), b"", b"1 to 2"),
    ):
        with pytest.raises(AuthError):
            open_sealed(key, text, bound)
    assert not signed_by(b"no key", b"", b"")


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 5},
        {"expiry": 99.0},
        {"degree": 2},
        {"weight_rule": "examples"},
        {"work": "another plan"},
        {"lanes": ()},
        *(
            {"occasion": {field: value}}
            for field, value in (
                ("federation", "x"),
                ("job", "x"),
                ("round", 2),
                ("attempt", 1),
                ("model", "x"),
            )
        ),
    ],
    ids=str,
)
def test_the_context_binds_everything(change):
    cohort = Cohort()
    assert cohort.terms(**change).context != cohort.terms().context
