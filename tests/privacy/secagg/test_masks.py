"""Masked inputs: they look like noise, and what is malformed never enters a sum."""

import numpy as np
import pytest
from cohorts import SERVER, Cohort, integers, plain_sum, secret
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from atoll.core.errors import UpdateRefused
from atoll.privacy.secagg import inprocess
from atoll.privacy.secagg.inprocess import play
from atoll.privacy.secagg.masks import (
    CHUNK,
    MaskPlan,
    RingSum,
    masked_chunks,
    pieces,
    root_of,
)
from atoll.privacy.secagg.terms import Lane

LONG = (Lane("w", 20_000),)
KEYS = [secret("key", i) for i in range(3)]


def sent(number, *, seed=0):
    """What each site sends in a round, all with the same input and the same rounding."""
    cohort = Cohort(5, LONG)
    terms = cohort.terms(occasion={"round": number})
    guests, kept = cohort.guests(terms, seed), {}
    for guest in guests.values():
        guest.values, guest.rounding = {"w": np.full(20_000, 0.25)}, None
    add = RingSum.add

    def spy(self, chunks, root):
        kept[len(kept)] = np.frombuffer(b"".join(chunks), np.uint32)
        add(self, chunks, root)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inprocess.RingSum, "add", spy)
        assert play(terms, SERVER.sign, guests).total is not None
    return list(kept.values())


def test_no_difference_of_masked_inputs_shows_anything():
    vectors = [vector for number in (1, 2, 3) for vector in sent(number)]
    looked = 0
    for i, one in enumerate(vectors):
        for other in [np.uint32(0), *vectors[:i]]:
            counts = np.bincount((one - other).view(np.uint8), minlength=256)
            assert chisquare(counts).pvalue > 1e-6
            looked += 1
    assert looked == 120


def test_reused_masks_would_be_noticed():
    again = sent(1)[0] - sent(1)[0]  # the same entropy for the same round: never in a deployment
    assert chisquare(np.bincount(again.view(np.uint8), minlength=256)).pvalue < 1e-6


def test_what_one_adds_another_subtracts():
    terms = Cohort(3, (Lane("w", CHUNK + 3), Lane("n", 5, 9.0, 64))).terms()
    x = {"w": np.linspace(-1, 1, CHUNK + 3), "n": np.arange(5.0)}
    total = RingSum(terms)
    for plan in (MaskPlan((KEYS[0],), ()), MaskPlan((KEYS[1],), (KEYS[0],))):
        chunks = list(masked_chunks(terms, plan, x, None))
        total.add(chunks, root_of(chunks))
    total.unmask(MaskPlan((KEYS[1],), ()))
    clear = list(masked_chunks(terms, MaskPlan((), ()), x, None))
    twice = RingSum(terms)
    for _ in range(2):
        twice.add(clear, root_of(clear))
    assert integers(total) == integers(twice)
    assert total.totals()["n"] == pytest.approx(2 * np.arange(5.0))


def test_masked_input_is_as_long_as_float32():
    terms = Cohort(5, (Lane("w", 100_000),)).terms()
    chunks = list(masked_chunks(terms, MaskPlan((), ()), {"w": np.zeros(100_000)}, None))
    assert sum(map(len, chunks)) == 400_000
    assert [len(c) for c in chunks] == [p.size for p in pieces(terms)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_malformed_chunks_change_nothing_in_the_sum(data):
    terms = Cohort().terms()
    cohort = Cohort()
    chunks = [
        bytes(c) for c in masked_chunks(terms, MaskPlan((), ()), cohort.values("site001"), None)
    ]
    root = root_of(chunks)
    at = data.draw(st.integers(0, len(chunks) - 1))
    way = data.draw(st.sampled_from(["flip", "cut", "grow", "drop", "again", "swap"]))
    bad = list(chunks)
    if way == "flip":
        place = data.draw(st.integers(0, len(bad[at]) - 1))
        bad[at] = bad[at][:place] + bytes([bad[at][place] ^ 1]) + bad[at][place + 1 :]
    elif way in ("cut", "grow"):
        bad[at] = bad[at][:-1] if way == "cut" else bad[at] + b"\0"
    elif way == "drop":
        del bad[at]
    elif way == "again":
        bad.append(bad[at])
    else:
        bad[0], bad[-1] = bad[-1], bad[0]
    total = RingSum(terms)
    with pytest.raises(UpdateRefused):
        total.add(bad, root)
    with pytest.raises(UpdateRefused):
        total.add(bad, root_of(bad) if way not in ("flip",) else root)
    assert total.count == 0
    assert not any(any(words) for words in integers(total).values())


@pytest.mark.parametrize(
    "change",
    [
        {"w": np.zeros(6)},
        {"w": np.zeros((7, 1))},
        {"w": np.zeros(7, complex)},
        {"w": np.array([np.nan] + [0.0] * 6)},
        {"extra": np.zeros(1)},
    ],
    ids=["short", "matrix", "complex", "nan", "unknown"],
)
def test_a_site_with_a_bad_input_drops_out_and_the_others_go_on(change):
    cohort = Cohort()
    terms = cohort.terms()
    guests = cohort.guests(terms)
    guests["site002"].values = {**guests["site002"].values, **change}
    result = play(terms, SERVER.sign, guests)
    assert guests["site002"].aborted
    assert "site002" not in result.members
    assert integers(result.total) == plain_sum(terms, guests, result.members)


def test_chunks_that_are_not_the_signed_ones_are_blamed_on_their_site():
    cohort = Cohort()
    terms = cohort.terms()
    guests = cohort.guests(terms)

    def relay(name, message):
        if name == "site004" and type(message).__name__ == "Vector":
            guests[name].chunks[0] = bytes(len(guests[name].chunks[0]))
        return message

    result = play(terms, SERVER.sign, guests, relay)
    assert list(result.blamed) == ["site004"]
    assert integers(result.total) == plain_sum(terms, guests, result.members)
    assert len(result.members) == 4


def test_a_mask_that_is_left_is_noticed():
    cohort = Cohort()
    terms = cohort.terms()
    guests = cohort.guests(terms)
    total = play(terms, SERVER.sign, guests).total
    total.totals()
    total.unmask(MaskPlan((KEYS[0],), ()))
    with pytest.raises(UpdateRefused, match="beyond 5 sites"):
        total.totals()
