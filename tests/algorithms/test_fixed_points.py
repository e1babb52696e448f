"""Where each method ends on heterogeneous quadratics f_k = a_k/2 (w - b_k)^2, to twelve digits.

a = (1, 4, .5, 2), b = (0, 1, -2, 3), weights p = (.1, .2, .3, .4), eta = .05. The optimum of the weighted
mean is sum p a b / sum p a = 1.567567567568, that of the plain mean sum a b / sum a = 1.2.
"""

import numpy as np
import pytest

from atoll.algorithms import FedAvg, FedDyn, FedNova, FedProx, FedSGD, QFedAvg, Scaffold
from atoll.core.contracts import Weighting

ETA = 0.05
A = np.array([1.0, 4.0, 0.5, 2.0])
B = np.array([0.0, 1.0, -2.0, 3.0])
P = np.array([0.1, 0.2, 0.3, 0.4])
OPTIMUM = 1.567567567568
UNIFORM_OPTIMUM = 1.2
UNEQUAL = {"a": 1, "b": 5, "c": 10, "d": 20}
UNIFORM = Weighting("uniform")


def close(value):
    return pytest.approx(value, abs=1e-12)


@pytest.fixture
def end(h):
    """The parameter after many rounds from w = 5."""

    def run(algorithm, each, rounds=400, exact=False, cohort=None, momentum=0.0, **more):
        trainer = h.QuadraticTrainer(h.vector_layout(), exact=exact)
        local = h.sgd(ETA, each, momentum=momentum)
        s = h.Setting(algorithm, trainer, h.heterogeneous(), local, **more)
        return s.play(rounds, 5.0, cohort).parameters[0]

    return run


def weighted_mean(weights):
    return np.sum(weights * B) / np.sum(weights)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, 1.567567567568),
        (2, 1.566823614632),
        (5, 1.555226476547),
        (20, 1.383674060091),
        (100, 0.868930689238),
    ],
)
def test_fedavg_drifts_away_from_the_optimum_with_local_steps(end, steps, expected):
    assert end(FedAvg(), steps) == close(expected)
    q = 1 - (1 - ETA * A) ** steps
    assert weighted_mean(P * q) == close(expected)


def test_the_server_rate_does_not_move_the_fixed_point(end):
    assert end(FedAvg(server_lr=0.5), 20) == close(1.383674060091)


def test_fedsgd_ends_at_the_optimum(end):
    assert end(FedSGD(), 1) == close(OPTIMUM)


def test_unequal_steps_pull_fedavg_and_fednova_normalises_them(end):
    steps = np.array(list(UNEQUAL.values()))
    q = 1 - (1 - ETA * A) ** steps
    assert end(FedAvg(), 1, steps=UNEQUAL) == close(1.889773580753)
    assert weighted_mean(P * q) == close(1.889773580753)
    assert end(FedNova(), 1, steps=UNEQUAL) == close(1.178144101132)
    assert weighted_mean(P * q / steps) == close(1.178144101132)


@pytest.mark.parametrize("reference", [1.0, 7.0, 20.0])
def test_the_reference_steps_of_fednova_cancel(end, reference):
    nova = FedNova(reference_steps=reference)
    assert end(nova, 1, steps=UNEQUAL) == close(1.178144101132)


def test_fednova_with_a_proximal_term_ends_where_its_formula_says(end):
    mu, steps = 0.7, np.array(list(UNEQUAL.values()))
    # With pull to w the client contracts towards (a b + mu w) / (a + mu) by 1 - eta (a + mu) a step.
    share = (1 - (1 - ETA * (A + mu)) ** steps) * A / (A + mu)
    worth = (1 - (1 - ETA * mu) ** steps) / (ETA * mu)
    assert end(FedNova(mu=mu), 1, steps=UNEQUAL) == close(weighted_mean(P * share / worth))


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_scaffold_ends_at_the_optimum_whatever_the_local_steps(end, option, steps):
    assert end(Scaffold(option), steps) == close(OPTIMUM)


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_ends_at_the_optimum_with_unequal_steps_and_local_momentum(end, option):
    fixed = end(Scaffold(option, server_lr=0.5), 1, momentum=0.5, steps=UNEQUAL, rounds=1500)
    assert fixed == close(OPTIMUM)


def pairs(round):
    """Two of four clients, each equally often."""
    return [["a", "b"], ["c", "d"], ["a", "c"], ["b", "d"], ["a", "d"], ["b", "c"]][round % 6]


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_with_partial_cohorts_ends_at_the_uniform_optimum(end, option):
    algorithm = Scaffold(option, server_lr=0.5)
    w = end(algorithm, 10, rounds=1500, cohort=pairs, weighting=UNIFORM)
    assert w == close(UNIFORM_OPTIMUM)


@pytest.mark.parametrize(
    ("mu", "expected"), [(0.1, 0.913843230951), (1.0, 1.317919075145), (10.0, 1.552941176471)]
)
def test_fedprox_with_exact_local_minima_weights_by_p_a_over_a_plus_mu(end, mu, expected):
    assert end(FedProx(mu=mu), 1, exact=True) == close(expected)
    assert weighted_mean(P * A / (A + mu)) == close(expected)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("exact", [True, False])
def test_feddyn_ends_at_the_uniform_optimum(end, alpha, exact):
    w = end(FedDyn(alpha=alpha), 20, rounds=600, exact=exact, weighting=UNIFORM)
    assert w == close(UNIFORM_OPTIMUM)


def test_feddyn_with_partial_cohorts_ends_at_the_uniform_optimum(end):
    w = end(FedDyn(2.0), 1, rounds=1500, exact=True, cohort=pairs, weighting=UNIFORM)
    assert w == close(UNIFORM_OPTIMUM)


def test_qfedavg_with_q_0_ends_where_fedavg_ends(end):
    assert end(QFedAvg(q=0.0), 20) == close(1.383674060091)


def test_qfedavg_with_one_step_ends_at_the_minimum_of_its_objective(end):
    # sum p_k F_k^(q+1): its derivative sum p_k F_k^q a_k (w - b_k) is 0.
    w = end(QFedAvg(q=2.0), 1, rounds=250)
    loss = A / 2 * (w - B) ** 2
    assert np.sum(P * loss**2 * A * (w - B)) / np.sum(P * loss**2) == close(0.0)


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 4.0])
def test_more_q_makes_losses_more_even(h, q):
    # Losses w^2/2 (three rows) and (w-1)^2/2 (one row): 3 w^(2q+1) = (1-w)^(2q+1), so w goes from
    # 1/4, the mean, to 1/2, where both losses are equal.
    clients = {"a": h.Quadratic(1.0, 0.0, 3), "b": h.Quadratic(1.0, 1.0, 1)}
    s = h.Setting(QFedAvg(q=q), h.QuadraticTrainer(h.vector_layout()), clients, h.sgd(0.2, 1))
    assert s.play(400, 0.9).parameters[0] == close(1 / (1 + 3 ** (1 / (2 * q + 1))))
