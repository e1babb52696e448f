"""Encrypted aggregation: sums are right, errors within their bound, and a server cannot read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tenseal")

from atoll.core.errors import AuthError, JobError, QuorumError, UpdateRefused, WireError
from atoll.privacy.he.contexts import PublicContext, SecretContext, new_key
from atoll.privacy.he.opening import Opening, SharedKey
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.sealed import Sealed, SealedSum, seal

SIXTEEN = Parameters(16)
RAW = new_key(SIXTEEN)
SECRET = SecretContext(SIXTEEN, RAW)
PUBLIC = SECRET.public()
KEY = SharedKey(SECRET)


def opened(total, bound=1.0):
    return KEY.joined(total, [KEY.part(total)], bound)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 4), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_the_opened_sum_is_the_sum_within_the_stated_error(length, sites, bound, seed):
    rows = np.random.default_rng(seed).uniform(-bound, bound, (sites, length))
    total = SealedSum.of(PUBLIC, [seal(PUBLIC, row, bound) for row in rows])
    worst = np.abs(opened(total, bound) - rows.sum(axis=0)).max()
    assert worst <= SIXTEEN.error * bound


def test_the_stated_error_is_no_more_than_twenty_times_the_measured_one():
    rows = np.random.default_rng(0).uniform(-1, 1, (16, 4096))
    total = SealedSum.of(PUBLIC, [seal(PUBLIC, row) for row in rows])
    worst = np.abs(opened(total) - rows.sum(axis=0)).max()
    assert SIXTEEN.error / 20 < worst <= SIXTEEN.error


@pytest.mark.parametrize("scale_bits", [24, 32])
def test_a_smaller_scale_gives_smaller_ciphertexts_and_keeps_its_own_bound(scale_bits):
    small = Parameters(16, scale_bits)
    key = SharedKey(secret := SecretContext(small, new_key(small)))
    rows = np.random.default_rng(1).uniform(-1, 1, (3, 2048))
    total = SealedSum.of(public := secret.public(), [seal(public, row) for row in rows])
    worst = np.abs(key.joined(total, [key.part(total)]) - rows.sum(axis=0)).max()
    assert worst <= small.error
    assert seal(public, rows[0]).size < seal(PUBLIC, rows[0]).size


def test_sums_at_the_very_ends_of_the_range_do_not_wrap_around():
    ends = np.array([1.0, -1.0] * 1024)
    total = SealedSum.of(PUBLIC, [seal(PUBLIC, ends)] * 16)
    np.testing.assert_allclose(opened(total), 16 * ends, atol=4 * SIXTEEN.error)


def test_a_server_half_cannot_hold_a_secret_key():
    with pytest.raises(AuthError, match="secret key where a public"):
        PublicContext(SIXTEEN, RAW)
    with pytest.raises(AuthError, match="opens nothing"):
        SecretContext(SIXTEEN, PUBLIC.raw)
    assert not PUBLIC.handle().has_secret_key()
    assert not issubclass(SecretContext, PublicContext)
    assert not issubclass(PublicContext, SecretContext)


def test_the_server_half_cannot_open_what_it_added():
    import tenseal

    total = SealedSum.of(PUBLIC, [seal(PUBLIC, np.ones(3))])
    with pytest.raises(ValueError, match="secret"):
        tenseal.ckks_vector_from(PUBLIC.handle(), total.pieces[0]).decrypt()


def test_another_key_does_not_open():
    other = SharedKey(SecretContext(SIXTEEN, new_key(SIXTEEN)))
    total = SealedSum.of(PUBLIC, [seal(PUBLIC, np.full(100, 0.5))])
    with pytest.raises(UpdateRefused, match="beyond the range"):
        other.joined(total, [other.part(total)])


def test_a_shared_key_reads_a_single_update_and_says_so():
    alone = seal(PUBLIC, np.array([0.25, -0.5]))  # what a site sees if the server lets it
    np.testing.assert_allclose(opened(alone), [0.25, -0.5], atol=SIXTEEN.error)
    assert "server and any one site together read every update" in KEY.label
    opening: Opening = KEY
    assert opening.needed == 1


def test_keys_and_ciphertexts_differ_every_time():
    assert new_key(SIXTEEN) != RAW
    assert seal(PUBLIC, np.zeros(4)).pieces != seal(PUBLIC, np.zeros(4)).pieces
    assert "secret" not in repr(SECRET).lower().replace("secretcontext", "")


def test_what_does_not_add_up_is_refused_and_leaves_the_sum_as_it_was():
    total = SealedSum(PUBLIC)
    total.add(seal(PUBLIC, np.array([0.5, 0.5])))
    good = seal(PUBLIC, np.ones(2))
    for bad in (
        seal(PUBLIC, np.ones(3)),
        Sealed(2, (b"garbage",)),
        Sealed(2, ()),
        Sealed(2, good.pieces * 2),
        Sealed(0, ()),
    ):
        with pytest.raises(UpdateRefused):
            total.add(bad)
    assert total.count == 1
    np.testing.assert_allclose(opened(total.sealed()), [0.5, 0.5], atol=SIXTEEN.error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_never_encrypted(value):
    with pytest.raises(UpdateRefused, match="1 of 2 values are not finite"):
        seal(PUBLIC, np.array([0.0, value]))


def test_more_sites_than_the_key_was_made_for_are_refused():
    two = Parameters(2)
    public = SecretContext(two, new_key(two)).public()
    total, one = SealedSum(public), seal(public, np.ones(1))
    total.add(one)
    total.add(one)
    with pytest.raises(UpdateRefused, match="more than the 2"):
        total.add(one)


def test_openings_that_are_none_are_refused():
    total = SealedSum.of(PUBLIC, [seal(PUBLIC, np.ones(2))])
    with pytest.raises(QuorumError):
        KEY.joined(total, [])
    with pytest.raises(UpdateRefused, match="3 bytes"):
        KEY.joined(total, [b"abc"])
    with pytest.raises(WireError, match="no key"):
        PublicContext(SIXTEEN, b"garbage")
    with pytest.raises(WireError, match="nothing"):
        SealedSum(PUBLIC).sealed()


def test_parameters_that_are_not_secure_or_overflow_are_refused():
    assert Parameters(100).modulus_bits * 2 <= 109
    with pytest.raises(JobError, match="more than 109"):
        Parameters(100, 50)
    with pytest.raises(JobError, match="ring degree 2048"):
        Parameters(4, 30, 2048)
    with pytest.raises(JobError):
        Parameters(0)
    assert Parameters.for_error(16, 1e-5).scale_bits < Parameters.for_error(16, 1e-6).scale_bits
    with pytest.raises(JobError, match="off by"):
        Parameters.for_error(16, 1e-15)
