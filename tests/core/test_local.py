"""The local rule: one affine correction, on single vectors and on stacks of them."""

import numpy as np
import pytest

from atoll.core.local import LocalRule, LocalWork


def corrected(rule, gradient, weights, anchor=None, shift=None):
    gradient = np.array(gradient)
    rule.correct(gradient, np.array(weights), anchor, shift)
    return gradient.tolist()


def test_the_correction_by_hand():
    """g + mu (w - anchor) + shift, at mu = .5."""
    rule = LocalRule(0.5, np.array([1.0, 1.0]), np.array([10.0, 20.0]))
    assert corrected(rule, [1.0, 2.0], [3.0, 0.0], rule.anchor, rule.shift) == [12.0, 21.5]


def test_a_rule_without_terms_changes_no_bit():
    rule = LocalRule()
    assert rule.trivial
    gradient = np.array([-0.0, 5e-324, np.nan])
    before = gradient.tobytes()
    rule.correct(gradient, np.full(3, np.inf), None, None)
    assert gradient.tobytes() == before


@pytest.mark.parametrize(
    "rule", [LocalRule(mu=0.1, anchor=np.zeros(1)), LocalRule(shift=np.zeros(1))]
)
def test_a_rule_with_a_term_is_not_trivial(rule):
    assert not rule.trivial


def test_a_stack_of_clients_is_corrected_like_each_of_them():
    rng = np.random.default_rng(0)
    gradients, weights, shifts = rng.normal(size=(3, 4, 5))
    anchor, rule = rng.normal(size=5), LocalRule(mu=0.3)
    stack = gradients.copy()
    rule.correct(stack, weights, anchor, shifts)
    for k in range(4):
        assert stack[k].tolist() == corrected(rule, gradients[k], weights[k], anchor, shifts[k])


def test_each_work_has_its_own_optimiser_settings():
    assert LocalWork() == LocalWork()
    assert LocalWork().optimizer.name == "sgd"
