"""The lower bound from one run: the paper's formula by hand, and its coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from atoll.core.errors import DataError
from atoll.privacy.audit.one_run import audit, lower_bound, p_value


def slow_p_value(m, r, v, epsilon, delta):
    """Theorem 5.2 as it stands, over all i up to m, with SciPy's binomial."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))

    def f(k):
        return binom.sf(k - 1, r, q)

    worst = max((f(v - i) - f(v)) / i for i in range(1, m + 1))
    return min(1.0, f(v) + 2 * m * delta * worst)


@given(
    st.integers(1, 60).flatmap(
        lambda m: st.tuples(st.just(m), st.integers(0, m)).flatmap(
            lambda mr: st.tuples(st.just(mr[0]), st.just(mr[1]), st.integers(0, mr[1]))
        )
    ),
    st.floats(0, 8),
    st.sampled_from([0.0, 1e-5, 1e-2]),
)
def test_p_value_is_the_paper_s(numbers, epsilon, delta):
    found = p_value(*numbers, epsilon, delta)
    assert found == pytest.approx(slow_p_value(*numbers, epsilon, delta), rel=1e-9, abs=1e-12)


def test_all_guesses_right_refute_what_the_closed_form_says():
    # all r of r right: q^r = .05, so epsilon = log(q / (1 - q))
    q = 0.05 ** (1 / 100)
    assert lower_bound(1000, 100, 100, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


def test_guessing_proves_nothing():
    assert lower_bound(1000, 200, 100, 1e-5) == 0.0


def test_bound_grows_with_right_guesses_and_shrinks_with_delta():
    bounds = [lower_bound(1000, 100, v, 0.0) for v in (60, 80, 100)]
    assert bounds == sorted(bounds)
    assert lower_bound(1000, 100, 100, 1e-4) < bounds[-1]


def test_perfect_scores_prove_more_than_four():
    included = np.random.default_rng(0).random(1000) < 0.5
    found = audit(included + 0.0, included)
    # half of a thousand are guessed each way; a few of the larger half fall on the wrong side
    assert found.epsilon > 4
    assert found.canaries == 1000


def test_bound_holds_for_a_mechanism_whose_epsilon_is_known():
    # Randomised response on each canary's bit is exactly epsilon-DP and the hardest case.
    epsilon, misses = 1.0, 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        included = draw.random(400) < 0.5
        told = included ^ (draw.random(400) > 1 / (1 + math.exp(-epsilon)))
        misses += audit(told + 0.01 * draw.random(400), included).epsilon > epsilon
    assert misses <= 20  # 95 % confidence: 10 expected at most, and a wide margin


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(DataError):
        p_value(10, 11, 3, 1.0, 0.0)
    with pytest.raises(DataError):
        audit(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(DataError):
        audit(np.zeros(0), np.zeros(0, bool))
