"""Who stays is in the sum, exactly; when too few stay, nobody learns anything."""

import itertools
import random

import pytest
from cohorts import SERVER, Cohort, integers, plain_sum, silent

from atoll.privacy.secagg.inprocess import play
from atoll.privacy.secagg.terms import Lane

NAMES = tuple(f"site{i:03d}" for i in range(1, 6))
SUBSETS = [s for k in range(6) for s in itertools.combinations(NAMES, k)]


def check(cohort, gone, terms=None):
    """Play with sites that fall silent at their steps, and hold the result against the plain sum."""
    terms = terms or cohort.terms()
    guests = cohort.guests(terms)
    result = play(terms, SERVER.sign, guests, silent(gone))
    if cohort.size - len(gone) < terms.threshold:
        assert result.total is None
        assert "threshold" in result.failure or "too few shares" in result.failure
        return None
    members = tuple(n for n in cohort.keys if gone.get(n, 9) > 2)
    assert (result.failure, result.members) == ("", members)
    assert integers(result.total) == plain_sum(terms, guests, members)
    assert not result.blamed
    return result


@pytest.mark.parametrize("step", range(5))
def test_sum_is_exact_for_every_subset_of_five_at_every_step(step):
    cohort = Cohort()
    played = [check(Cohort(), dict.fromkeys(gone, step)) for gone in SUBSETS]
    assert sum(result is not None for result in played) == 6  # nobody gone, or one of five
    assert cohort.terms().threshold == 4


@pytest.mark.parametrize("seed", range(4))
def test_sum_is_exact_for_random_dropouts_of_twenty_at_mixed_steps(seed):
    draw = random.Random(seed)
    cohort = Cohort(20)
    gone = {name: draw.randrange(5) for name in draw.sample(sorted(cohort.keys), 2 + seed * 2)}
    check(cohort, gone)


def test_sparse_graph_gives_the_same_exact_sum():
    cohort = Cohort(30, degree=12)
    draw = random.Random(1)
    gone = {name: draw.randrange(5) for name in draw.sample(sorted(cohort.keys), 4)}
    result = check(cohort, gone)
    assert result is not None
    assert {len(circle) for circle in result.server.circles.values()} == {13}


def test_sparse_neighbourhood_that_lost_too_many_ends_without_a_sum():
    cohort = Cohort(30, degree=4)
    terms = cohort.terms()
    first = play(terms, SERVER.sign, cohort.guests(terms))
    circle = first.server.circles[1]
    assert first.total is not None
    gone = {f"site{i:03d}": 4 for i in circle if i != 1}  # they hold the shares of site 1
    again = Cohort(30, degree=4)
    result = play(terms, SERVER.sign, again.guests(terms), silent(gone))
    assert result.total is None
    assert "too few shares" in result.failure


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_sum_is_exact_for_random_dropouts_of_a_hundred(seed):
    draw = random.Random(seed)
    cohort = Cohort(100)
    gone = {name: draw.randrange(5) for name in draw.sample(sorted(cohort.keys), 20)}
    check(cohort, gone)


def test_several_vectors_of_several_chunks_stay_apart():
    lanes = (Lane("model", 70_000), Lane("variate", 65_536, 3.0), Lane("loss", 3, 50.0, 64))
    check(Cohort(5, lanes), {"site002": 2})


def test_threads_change_nothing():
    terms = Cohort().terms()
    one, two = (
        play(terms, SERVER.sign, Cohort().guests(terms), silent({"site004": 2}), workers=workers)
        for workers in (1, 2)
    )
    assert integers(one.total) == integers(two.total)
    assert one.server == two.server


def test_lost_answer_is_asked_for_again_and_costs_nothing():
    cohort = Cohort()
    terms = cohort.terms()
    guests, asked = cohort.guests(terms), []

    def relay(name, message):
        if name == "site003" and type(message).__name__ in ("Roster", "Survivors", "Opening"):
            first = guests[name].hear(message, terms)  # its answer is lost; the server asks again
            assert guests[name].hear(message, terms) == first
            asked.append(first)
        return message

    result = play(terms, SERVER.sign, guests, relay)
    assert len(asked) == 3
    assert integers(result.total) == plain_sum(terms, guests, NAMES)


def test_attempt_that_ended_before_the_release_is_tried_again_with_fresh_keys():
    cohort = Cohort()
    terms = cohort.terms()
    first = play(terms, SERVER.sign, cohort.guests(terms), silent(dict.fromkeys(NAMES[:2], 3)))
    assert first.failure
    again = cohort.terms(occasion={"attempt": 1})
    guests = cohort.guests(again)
    second = play(again, SERVER.sign, guests)
    assert integers(second.total) == plain_sum(again, guests, NAMES)
    third = cohort.terms(occasion={"attempt": 2})
    assert play(third, SERVER.sign, cohort.guests(third)).total is None
