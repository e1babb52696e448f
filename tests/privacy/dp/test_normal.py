"""Normal draws on whole numbers: the split into boxes and a rest adds up to the density."""

import numpy as np
import pytest
from scipy import stats

from atoll.core.errors import JobError
from atoll.privacy.dp import normal
from atoll.privacy.dp.noise import SystemSource
from atoll.privacy.dp.normal import BLOCK, LARGEST, Normals, strips

WIDTH = 1 << 16
DEVIATIONS = [2.0**24, 2.0**24 * 1.37, 2.0**25 * (1 - 2.0**-30)]


def probability(numbers, sd):
    return stats.norm.pdf(numbers / sd) / sd


def left_over(s):
    """The probabilities of the rest and, of all draws, of the remainder."""
    rest = 1 - s.lower.counts.sum() / 65536
    return rest, rest * (1 - s.upper.counts.sum() / 65536)


@pytest.mark.parametrize("sd", DEVIATIONS)
def test_boxes_and_remainder_add_up_to_the_wanted_probability_of_each_number(sd):
    s = strips(sd)
    rng = np.random.default_rng(0)
    ends = s.first[:-1, None] + [0, 1, WIDTH - 2, WIDTH - 1]
    numbers = np.concatenate([ends.ravel(), np.rint(rng.uniform(-s.end, s.end - 1, 50_000))])
    strip = np.searchsorted(s.first[:-1], numbers, "right") - 1
    rest, remainder = left_over(s)
    named = (s.lower.counts + rest * s.upper.counts)[strip] / 65536 / WIDTH
    left = normal.density(numbers, sd) - s.boxes[strip]
    chance = left / s.hurdle[strip]
    assert chance.min() >= 0
    assert chance.max() <= 1
    tried = np.bincount(s.trials)[strip] / len(s.trials) / WIDTH
    np.testing.assert_allclose(
        named + remainder * s.tries * tried * chance, probability(numbers, sd), rtol=1e-11
    )


@pytest.mark.parametrize("sd", DEVIATIONS)
def test_the_tail_comes_as_often_as_it_should(sd):
    s = strips(sd)
    chance = (normal.density(s.first[-1:], sd) - s.boxes[-1:]) / s.hurdle[-1]
    assert 0 < chance[0] <= 1
    comes = left_over(s)[1] * s.tries * np.bincount(s.trials)[-1] / len(s.trials) * chance[0]
    assert comes == pytest.approx(2 * stats.norm.sf(s.end / sd), rel=1e-6)


@pytest.mark.parametrize("sd", DEVIATIONS)
@pytest.mark.parametrize("row", ["lower", "upper"])
def test_entries_name_each_box_as_often_as_it_counts(sd, row):
    s = strips(sd)
    boxes = getattr(s, row)
    # Each entry as the upper half of a word, with the first and the last number of a box.
    for place in (0, WIDTH - 1):
        words = ((np.arange(65536) << 16) + place).astype(np.uint32).view(np.int32)
        draws = words + boxes.shifts
        named = draws[draws < LARGEST].astype(np.int64) + s.end
        assert (named % WIDTH == place).all()
        assert np.array_equal(
            np.bincount(named // WIDTH, minlength=len(boxes.counts)), boxes.counts
        )
    assert (draws >= LARGEST).mean() == pytest.approx(boxes.missing)


def test_few_draws_need_more_than_boxes():
    for sd in DEVIATIONS:
        rest, remainder = left_over(strips(sd))
        assert 0.01 < rest < 0.03
        assert remainder < 0.002


def test_trials_succeed_as_often_as_expected():
    normals, trials = Normals(SystemSource(), DEVIATIONS[1], 1000), 200_000
    chance = 1 / normals.strips.tries
    bar = 6 * np.sqrt(trials * chance * (1 - chance))
    assert abs(len(normals._tried(trials)) - trials * chance) < bar


def test_the_rest_lies_where_the_lower_boxes_leave_room():
    normals = Normals(SystemSource(), DEVIATIONS[0])
    s, draws = normals.strips, np.concatenate([normals._rest(BLOCK) for _ in range(2)])
    mass = np.diff(stats.norm.cdf(np.append(s.first[:-1], s.end) / s.sd)) - s.lower.counts / 65536
    expected = mass / left_over(s)[0] * len(draws)
    seen = np.bincount(draws[np.abs(draws) < s.end] // WIDTH + s.end // WIDTH, minlength=len(mass))
    assert (np.abs(seen - expected) < 6 * np.sqrt(expected) + 6).all()
    outside = len(draws) - expected.sum()
    assert abs((np.abs(draws) > s.end).sum() - outside) < 6 * np.sqrt(outside)


def test_tail_draws_have_the_tails_distribution():
    normals = Normals(SystemSource(), 2.0**24, 1000)
    x = normals._tail(20_000)
    s = normals.strips
    assert ((x >= s.end) | (x < -s.end)).all()
    assert abs((x > 0).mean() - 0.5) < 0.03
    edge = stats.norm.sf(s.end / s.sd)
    found = stats.kstest(np.abs(x) / s.sd, lambda v: 1 - stats.norm.sf(v) / edge)
    assert found.pvalue > 1e-6


def test_draws_fill_every_place_of_a_strip():
    draws = np.empty(BLOCK, np.int32)
    Normals(SystemSource(), 2.0**24, BLOCK).fill(draws)
    places = np.bincount((draws & (WIDTH - 1)) >> 12, minlength=16)
    assert stats.chisquare(places).pvalue > 1e-6


@pytest.mark.parametrize("size", [1, 3, 50, BLOCK])
def test_a_source_of_draws_can_be_asked_again_and_again(size):
    normals, draws = Normals(SystemSource(), DEVIATIONS[1], size), np.empty(size, np.int32)
    found = []
    for _ in range(20_000 // size + 2):
        normals.fill(draws)
        found.append(draws / DEVIATIONS[1])
    assert stats.kstest(np.concatenate(found)[:200_000], "norm").pvalue > 1e-6


@pytest.mark.parametrize("sd", [2.0**24 - 1, 2.0**25, np.nan])
def test_other_deviations_are_refused(sd):
    with pytest.raises(JobError, match="whole numbers"):
        strips(sd)
