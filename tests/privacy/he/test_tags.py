"""Tags of encrypted sums: they fit the sum of exactly those ciphertexts, and nothing else a server can make."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tenseal")

from atoll.core.errors import UpdateRefused
from atoll.privacy.he.contexts import SecretContext, new_key
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.sealed import Sealed, SealedSum, loaded, seal
from atoll.privacy.he.tags import TAG, Tags, _coefficients

FOUR = Parameters.exact(4)
RAW = new_key(FOUR)
SECRET = SecretContext(FOUR, RAW)
PUBLIC = SECRET.public()
TAGS = Tags(PUBLIC, RAW, b"round 1")
Q = TAGS._q


def sealed(number, length=3000):
    return seal(PUBLIC, np.random.default_rng(number).uniform(-1, 1, length))


LETTERS = [sealed(number) for number in range(3)]
ENTRIES = [(number + 1, letter.root) for number, letter in enumerate(LETTERS)]
TAGGED = [TAGS.tag(entry, letter) for entry, letter in zip(ENTRIES, LETTERS, strict=True)]
TOTAL = SealedSum.of(PUBLIC, LETTERS)


def refused(entries, tags, total, opener=TAGS):
    with pytest.raises(UpdateRefused, match="not the sum of these"):
        opener.check(entries, tags, total)


def test_the_sum_of_the_tagged_ciphertexts_passes_with_either_half_of_the_key():
    TAGS.check(ENTRIES, TAGGED, TOTAL)
    Tags(SECRET, RAW, b"round 1").check(ENTRIES, TAGGED, TOTAL)


def test_a_single_site_s_ciphertext_does_not_pass_for_a_sum():
    refused(ENTRIES, TAGGED, LETTERS[0])


def test_it_passes_for_itself_alone_so_that_a_site_must_look_at_how_many_are_in_a_sum():
    TAGS.check(ENTRIES[:1], TAGGED[:1], LETTERS[0])


@pytest.mark.parametrize(
    ("inside", "told"),
    [((0, 1), (0, 1, 2)), ((0, 1, 2), (0, 1)), ((0, 1), (0, 2)), ((0, 0, 1), (0, 1))],
)
def test_another_set_of_sites_than_is_told_does_not_pass(inside, told):
    total = SealedSum.of(PUBLIC, [LETTERS[i] for i in inside])
    refused([ENTRIES[i] for i in told], [TAGGED[i] for i in told], total)


def test_what_a_server_encrypts_itself_does_not_pass_beside_a_site_s_own():
    """With the public key it can make any update; with one site's true one the sum would give that away."""
    made = [LETTERS[0], sealed(7), sealed(8)]
    refused(ENTRIES, TAGGED, SealedSum.of(PUBLIC, made))
    entries = [ENTRIES[0], (2, made[1].root), (3, made[2].root)]
    refused(entries, TAGGED, SealedSum.of(PUBLIC, made))


def test_tags_of_another_round_or_under_another_secret_mean_nothing():
    refused(ENTRIES, TAGGED, TOTAL, Tags(SECRET, RAW, b"round 2"))
    refused(ENTRIES, TAGGED, TOTAL, Tags(SECRET, new_key(FOUR), b"round 1"))


def test_a_changed_tag_does_not_pass():
    refused(ENTRIES, [TAGGED[0], TAGGED[1], bytes(TAG)], TOTAL)
    refused(ENTRIES, TAGGED[:2], TOTAL)
    with pytest.raises(UpdateRefused, match="a tag of 3 bytes"):
        TAGS.check(ENTRIES, [b"abc"] * 3, TOTAL)


def test_the_product_is_the_one_that_long_arithmetic_gives():
    (piece,) = loaded(PUBLIC, sealed(5, 10))
    coefficients = _coefficients(piece)
    assert coefficients.max() < Q
    rows = TAGS._rows(0, coefficients.size).reshape(-1, 2)
    plain = [
        sum(int(c) * int(r) for c, r in zip(coefficients, rows[:, j], strict=True)) % Q
        for j in range(2)
    ]
    assert [number % Q for number in TAGS._of_piece(0, coefficients)] == plain


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.integers(2, 4), st.integers(1, 5000))
def test_tags_of_any_sum_pass(seed, sites, length):
    letters = [sealed(100 * seed + i, length) for i in range(sites)]
    entries = [(i, letter.root) for i, letter in enumerate(letters, 1)]
    tags = [TAGS.tag(entry, letter) for entry, letter in zip(entries, letters, strict=True)]
    TAGS.check(entries, tags, SealedSum.of(PUBLIC, letters))


def test_tags_of_the_same_ciphertext_from_two_sites_look_unrelated():
    one, other = (TAGS.tag((index, LETTERS[0].root), LETTERS[0]) for index in (1, 2))
    assert one != other


def test_a_ciphertext_of_another_scale_is_refused_before_it_is_opened():
    """Its scale travels with it; a tiny one would show the noise, and the noise shows the key."""
    import tenseal

    vector = tenseal.ckks_vector(PUBLIC.handle(), [0.5] * FOUR.slots, scale=2.0**20)
    with pytest.raises(UpdateRefused, match="another shape or scale"):
        list(loaded(SECRET, Sealed(FOUR.slots, (vector.serialize(),))))
