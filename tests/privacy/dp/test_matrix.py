import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import StateError
from atoll.privacy.dp.accounting import epsilon
from atoll.privacy.dp.events import Gaussian, MatrixGaussian
from atoll.privacy.dp.matrix import coefficients, dense, error, memory, sensitivity, start, step


class Counted:
    """A source whose normals are known: the tests put ``rows`` in the place of :func:`gaussian`."""

    def __init__(self, rows):
        self.rows = iter(rows)


@pytest.fixture
def streamed(monkeypatch):
    """streamed(spec, w): the noises of all rounds when the independent ones are the rows of w."""
    import atoll.privacy.dp.matrix as module

    monkeypatch.setattr(module, "gaussian", lambda source, size, sd: sd * next(source.rows))

    def run(spec, w, bound=1.0):
        source, state, out = Counted(w), start(spec, w.shape[1]), []
        for _ in range(spec.rounds):
            made, state = step(source, spec, state, bound)
            out.append(made)
        return np.array(out), state

    return run


SPECS = [
    *(MatrixGaussian("banded", 2.0, rounds=13, bands=b) for b in (1, 2, 5, 13)),
    *(MatrixGaussian("tree", 2.0, rounds=t) for t in (1, 2, 7, 8, 13)),
    MatrixGaussian("blt", 2.0, rounds=13, decays=(0.9, 0.3), scales=(0.2, 0.5)),
    MatrixGaussian("blt", 2.0, rounds=1, decays=(0.9,), scales=(0.2,)),
]


def named(spec):
    return f"{spec.mechanism} {spec.rounds} {spec.bands} {len(spec.decays)}"


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_the_two_factors_give_the_sums(spec):
    left, right = dense(spec)
    np.testing.assert_allclose(left @ right, np.tri(spec.rounds), atol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_noise_round_by_round_is_the_dense_form(spec, streamed):
    w = np.random.default_rng(0).normal(size=(spec.rounds, 3))
    made, state = streamed(spec, w, bound=0.5)
    left, _ = dense(spec)
    np.testing.assert_allclose(np.cumsum(made, axis=0), left @ (2.0 * 0.5 * w), atol=1e-10)
    assert state.round == spec.rounds


def test_a_run_keeps_a_vector_for_each_band_but_one_each_level_or_each_buffer():
    buffered = MatrixGaussian("blt", 1.0, 256, decays=(0.9, 0.3), scales=(0.2, 0.5))
    plans = [MatrixGaussian("banded", 1.0, 256, 16), MatrixGaussian("tree", 1.0, 256), buffered]
    assert [memory(spec) for spec in plans] == [15, 9, 2]
    assert [start(spec, 5).kept.shape for spec in plans] == [(15, 5), (9, 5), (2, 5)]


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
def test_no_more_rounds_than_were_accounted_for(mechanism, streamed):
    spec = MatrixGaussian(mechanism, 1.0, rounds=3, bands=2)
    _, state = streamed(spec, np.ones((3, 1)))
    with pytest.raises(StateError, match="3 planned"):
        step(None, spec, state, 1.0)


def worst(spec):
    """The largest sensitivity over all patterns, from the dense matrix."""
    _, c = dense(spec)
    gram = c.T @ c
    found = 0.0
    for k in range(1, spec.participations + 1):
        for pattern in itertools.combinations(range(spec.rounds), k):
            if all(b - a >= spec.separation for a, b in itertools.pairwise(pattern)):
                found = max(found, math.sqrt(gram[np.ix_(pattern, pattern)].sum()))
    return found


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_banded_sensitivity_is_that_of_the_worst_pattern(rounds, bands, k, separation):
    spec = MatrixGaussian("banded", 1.0, rounds, min(bands, rounds), k, separation)
    assert sensitivity(spec) == pytest.approx(worst(spec))


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_sensitivity_of_buffers_is_that_of_the_worst_pattern(rounds, k, separation, decay):
    pairs = {"decays": (decay, 0.5), "scales": (0.4, 0.6)}
    spec = MatrixGaussian("blt", 1.0, rounds, 1, k, separation, **pairs)
    assert sensitivity(spec) == pytest.approx(worst(spec))


@pytest.mark.parametrize(
    ("rounds", "k", "separation", "bands", "squared", "noise"),
    [
        # jax-privacy 2.0.0: toeplitz.minsep_sensitivity_squared and per_query_error (mean) of the first
        # coefficients of optimal_max_error_strategy_coefs.
        (256, 1, 256, 256, 2.8310499318613527, 2.668782331185351),
        (256, 4, 64, 64, 9.55539243318174, 5.598973207874126),
        (256, 4, 64, 256, 17.480719120185864, 6.631610895750972),
        (256, 16, 16, 8, 27.494068145751953, 19.63902375510673),
        (100, 10, 10, 10, 17.91343941586092, 9.610999308158835),
        (50, 3, 7, 20, 9.63796652423106, 4.739004382442516),
    ],
)
def test_banded_sensitivity_and_error_are_those_of_jax_privacy(
    rounds, k, separation, bands, squared, noise
):
    spec = MatrixGaussian("banded", 1.0, rounds, bands, k, separation)
    assert sensitivity(spec) ** 2 == pytest.approx(squared, rel=1e-12)
    assert error(spec) == pytest.approx(noise, rel=1e-9)


@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_tree_sensitivity_bounds_every_pattern(rounds, k, separation):
    spec = MatrixGaussian("tree", 1.0, rounds, 1, k, separation)
    found = worst(spec)
    assert found <= sensitivity(spec) + 1e-12 <= 1.6 * found
    if k == 1:
        assert sensitivity(spec) == pytest.approx(found)


def test_one_participation_in_a_tree_of_eight_rounds_is_in_four_nodes():
    assert sensitivity(MatrixGaussian("tree", 1.0, 8)) == 2.0


def test_participations_far_apart_do_not_meet():
    once = sensitivity(MatrixGaussian("banded", 1.0, 100, 8))
    apart = sensitivity(MatrixGaussian("banded", 1.0, 100, 8, participations=4, separation=8))
    near = sensitivity(MatrixGaussian("banded", 1.0, 100, 8, participations=4, separation=2))
    assert apart == pytest.approx(2 * once)
    assert near > apart


def test_coefficients_square_to_the_sums():
    spec = MatrixGaussian("banded", 1.0, 40, 40)
    c = coefficients(spec)
    np.testing.assert_allclose(np.convolve(c, c)[:40], 1.0, rtol=1e-12)


def test_a_run_costs_one_gaussian_release():
    spec = MatrixGaussian("banded", 6.0, 64, 16)
    assert epsilon([spec], 1e-5) == pytest.approx(
        epsilon([Gaussian(6.0 / sensitivity(spec))], 1e-5)
    )
    assert epsilon([MatrixGaussian("banded", 6.0, 64, 1, 64)], 1e-5) == pytest.approx(
        epsilon([Gaussian(6.0, count=64)], 1e-5)
    )


def test_correlated_noise_leaves_less_in_the_sums():
    alone = error(MatrixGaussian("banded", 1.0, 256, 1))
    tree = error(MatrixGaussian("tree", 1.0, 256))
    banded = error(MatrixGaussian("banded", 1.0, 256, 256))
    assert alone == pytest.approx(math.sqrt(257 / 2))
    assert banded < tree < alone
    assert banded < alone / 3


def test_a_mechanism_with_real_noise_has_the_variance_it_says(replayed):
    spec = MatrixGaussian("tree", 1.5, rounds=4)
    source, state = replayed(), start(spec, 40_000)
    total = np.zeros(40_000)
    for t in range(1, 5):
        made, state = step(source, spec, state, 2.0)
        total += made
        nodes = bin(t).count("1")
        assert total.std() == pytest.approx(3.0 * math.sqrt(nodes), rel=0.02)


def test_the_square_root_with_all_bands_reaches_landaus_constant():
    # The sum of (binom(2j, j) / 4^j)^2 for j < T, near (ln T + gamma + ln 16) / pi (Watson 1930), is both what
    # a unit changes and what noise the last sum has: Henzinger, Upadhyay, Upadhyay, SODA 2023.
    rounds = 256
    landau = (math.log(rounds) + np.euler_gamma + math.log(16)) / math.pi
    spec = MatrixGaussian("banded", 1.0, rounds, rounds)
    left, _ = dense(spec)
    assert sensitivity(spec) ** 2 == pytest.approx(landau, abs=5e-4)
    assert (left**2).sum(axis=1).max() == pytest.approx(landau, abs=5e-4)
