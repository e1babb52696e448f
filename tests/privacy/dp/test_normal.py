"""Normal draws on whole numbers: the split into boxes and a rest adds up to the density."""

import numpy as np
import pytest
from scipy import stats

from atoll.core.errors import JobError
from atoll.privacy.dp import normal
from atoll.privacy.dp.noise import SystemSource
from atoll.privacy.dp.normal import BLOCK, LARGEST, Boxes, Normals, Row, strips

WIDE, FINE = 1 << 16, 1 << 13
DEVIATIONS = [2.0**23, 2.0**23 * 1.37, 2.0**24 * (1 - 2.0**-30)]


def probability(numbers, sd):
    return stats.norm.pdf(numbers / sd) / sd


def in_boxes(s, numbers):
    """The probability that a draw is each of these numbers and comes from a box."""
    place = numbers.astype(np.int64) + s.end
    lower = s.lower.counts[place // WIDE] * s.lower.share / 65536 / WIDE
    upper = s.upper.counts[place // FINE] * s.upper.share / 65536 / FINE
    return lower + s.lower.missing * upper


@pytest.mark.parametrize("sd", DEVIATIONS)
def test_boxes_and_remainder_add_up_to_the_wanted_probability_of_each_number(sd):
    s = strips(sd)
    rng = np.random.default_rng(0)
    ends = s.first[:-1, None] + [0, 1, FINE - 2, FINE - 1]
    numbers = np.concatenate([ends.ravel(), np.rint(rng.uniform(-s.end, s.end - 1, 50_000))])
    strip = np.searchsorted(s.first[:-1], numbers, "right") - 1
    left = normal.density(numbers, sd) - s.boxes[strip]
    chance = left / s.hurdle[strip]
    assert chance.min() >= 0
    assert chance.max() <= 1
    tried = np.bincount(s.trials)[strip] / len(s.trials) / FINE
    remainder = s.lower.missing * s.upper.missing * s.tries * tried * chance
    np.testing.assert_allclose(
        in_boxes(s, numbers) + remainder, probability(numbers, sd), rtol=1e-11
    )


@pytest.mark.parametrize("sd", DEVIATIONS)
def test_the_tail_comes_as_often_as_it_should(sd):
    s = strips(sd)
    chance = (normal.density(s.first[-1:], sd) - s.boxes[-1:]) / s.hurdle[-1]
    assert 0 < chance[0] <= 1
    tried = np.bincount(s.trials)[-1] / len(s.trials)
    comes = s.lower.missing * s.upper.missing * s.tries * tried * chance[0]
    assert comes == pytest.approx(2 * stats.norm.sf(s.end / sd), rel=1e-6)


@pytest.mark.parametrize("sd", DEVIATIONS)
@pytest.mark.parametrize("row", ["lower", "upper"])
def test_entries_name_each_box_as_often_as_it_counts(sd, row):
    s = strips(sd)
    boxes = getattr(s, row)
    width = 1 << boxes.place
    assert boxes.counts.min() >= 0
    assert boxes.counts.sum() == 65536
    # Each entry as the upper part of a word, with the first and the last number of a box.
    for place in (0, width - 1):
        words = ((np.arange(65536) << boxes.place) + place).astype(np.uint32).view(np.int32)
        named = (words + boxes.shifts).astype(np.int64) + s.end
        assert (named % width == place).all()
        assert np.array_equal(
            np.bincount(named // width, minlength=len(boxes.counts)), boxes.counts
        )


def test_few_draws_need_more_than_boxes():
    for sd in DEVIATIONS:
        s = strips(sd)
        assert 0.005 < s.lower.missing < 0.02
        assert s.lower.missing * s.upper.missing < 0.002


def test_trials_succeed_as_often_as_expected():
    normals, trials = Normals(SystemSource(), DEVIATIONS[1], 1000), 200_000
    chance = 1 / normals.strips.tries
    bar = 6 * np.sqrt(trials * chance * (1 - chance))
    assert abs(len(normals.tried(trials)) - trials * chance) < bar


@pytest.mark.parametrize("sd", DEVIATIONS)
def test_the_rest_lies_where_the_lower_boxes_leave_room(sd):
    normals = Normals(SystemSource(), sd)
    s, draws = normals.strips, np.concatenate([normals.rest(10_000).copy() for _ in range(30)])
    mass = np.diff(stats.norm.cdf(np.append(np.arange(-s.end, s.end, WIDE), s.end) / s.sd))
    expected = (mass - s.lower.counts * s.lower.each) / s.lower.missing * len(draws)
    seen = np.bincount(
        draws[np.abs(draws) < s.end] // WIDE + s.end // WIDE, minlength=len(expected)
    )
    assert (np.abs(seen - expected) < 6 * np.sqrt(expected) + 6).all()
    outside = len(draws) - expected.sum()
    assert abs((np.abs(draws) > s.end).sum() - outside) < 6 * np.sqrt(outside)


NEVER = -(1 << 31)


def lone_row(most):
    """A row that takes a quarter of its draws from elsewhere, where each is NEVER."""
    boxes = strips(DEVIATIONS[0]).lower
    known = Boxes(boxes.place, boxes.counts, boxes.shifts, 0.75)
    return Row(SystemSource(), known, lambda count: np.full(count, NEVER, np.int32), most)


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_each_draw_is_of_the_rest_with_the_same_chance_and_on_its_own(count):
    row = lone_row(count)
    other = np.concatenate([row.draw(count) == NEVER for _ in range(150_000 // count)])
    n = len(other)
    assert abs(other.mean() - 0.25) < 6 * np.sqrt(0.25 * 0.75 / n)
    for lag in (1, 2, count):
        assert abs(np.corrcoef(other[lag:], other[:-lag])[0, 1]) < 6 / np.sqrt(n)
    gaps = np.bincount(np.diff(np.flatnonzero(other)), minlength=20)[1:20]
    wanted = 0.25 * 0.75 ** np.arange(19) * (other.sum() - 1)
    assert (np.abs(gaps - wanted) < 6 * np.sqrt(wanted) + 6).all()


def test_numbers_of_the_rest_are_used_once_and_in_their_order():
    given = iter(range(10_000_000))
    boxes = strips(DEVIATIONS[0]).lower
    known = Boxes(boxes.place, boxes.counts, np.full(65536, NEVER, np.int32), 0.5)
    row = Row(
        SystemSource(),
        known,
        lambda count: np.array([LARGEST + next(given) for _ in range(count)], np.int32),
        100,
    )
    row.source = Nothing(row.source)
    drawn = np.concatenate([row.draw(count).copy() for count in (100, 1, 57, 100, 3)])
    others = drawn[drawn != NEVER]
    assert others.tolist() == [LARGEST + i for i in range(len(others))]
    assert 60 < len(others) < 200


class Nothing:
    """Words of zeros; what settles the rest stays random."""

    def __init__(self, source):
        self.source = source

    def fill(self, into):
        if into.dtype == np.uint32:
            into[:] = 0
        else:
            self.source.fill(into)


def test_tail_draws_have_the_tails_distribution():
    normals = Normals(SystemSource(), 2.0**23, 1000)
    x = normals.tail(20_000)
    s = normals.strips
    assert ((x >= s.end) | (x < -s.end)).all()
    assert abs((x > 0).mean() - 0.5) < 0.03
    edge = stats.norm.sf(s.end / s.sd)
    found = stats.kstest(np.abs(x) / s.sd, lambda v: 1 - stats.norm.sf(v) / edge)
    assert found.pvalue > 1e-6


def drawn(normals, size):
    out = np.empty(size)
    for place, draws in normals.blocks(size):
        out[place] = draws
    return out


def test_draws_fill_every_place_of_a_strip():
    draws = drawn(Normals(SystemSource(), 2.0**23, BLOCK), 2 * BLOCK + 5).astype(np.int64)
    places = np.bincount((draws & (WIDE - 1)) >> 12, minlength=16)
    assert stats.chisquare(places).pvalue > 1e-6


@pytest.mark.parametrize("size", [1, 3, 50, BLOCK + 1])
def test_a_source_of_draws_can_be_asked_again_and_again(size):
    normals = Normals(SystemSource(), DEVIATIONS[1], size)
    found = [drawn(normals, size) / DEVIATIONS[1] for _ in range(20_000 // size + 2)]
    assert stats.kstest(np.concatenate(found)[:200_000], "norm").pvalue > 1e-6


@pytest.mark.parametrize("sd", [2.0**23 - 1, 2.0**24, np.nan])
def test_other_deviations_are_refused(sd):
    with pytest.raises(JobError, match="whole numbers"):
        strips(sd)
