"""Integers that were encrypted come back as they were, at the very ends of their lanes."""

import numpy as np
import pytest

pytest.importorskip("tenseal")

from atoll.core.errors import UpdateRefused
from atoll.privacy.he.contexts import SecretContext, new_key
from atoll.privacy.he.opening import SharedKey
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.sealed import SealedSum, seal
from atoll.privacy.he.whole import digits_of, packed, unpacked
from atoll.privacy.secagg.terms import Lane


def lanes_for(sites):
    """As a quantised job has them: as wide as the ring allows for so many sites."""
    return tuple(
        Lane(name, length, float(Lane("", 1, bits=bits).levels(sites)), bits, 1.0, "refuse")
        for name, length, bits in (("delta", 3000, 32), ("weight", 1, 64), ("rows", 5, 64))
    )


@pytest.mark.parametrize("sites", [2, 3, 16, 100, 1000])
def test_encrypted_sums_of_extreme_integers_are_exact(sites):
    parameters = Parameters.exact(sites)
    public = (secret := SecretContext(parameters, new_key(parameters))).public()
    lanes, draw, present = lanes_for(sites), np.random.default_rng(sites), min(sites, 6)
    inputs = []
    for _ in range(present):
        values = {}
        for lane in lanes:
            top = int(lane.bound)
            values[lane.name] = draw.integers(-top, top, lane.length, endpoint=True)
            values[lane.name][0] = draw.choice([top, -top])
        inputs.append(values)
    key = SharedKey(secret)
    total = SealedSum.of(public, [seal(public, packed(lanes, v, parameters)) for v in inputs])
    found = unpacked(lanes, key.joined(total, [key.part(total)]), parameters, present)
    for lane in lanes:
        exact = [sum(int(v[lane.name][i]) for v in inputs) for i in range(lane.length)]
        assert found[lane.name].tolist() == exact


def test_one_digit_is_enough_for_a_model_up_to_a_hundred_sites():
    for sites, digits in ((2, 1), (16, 1), (100, 1), (1000, 2)):
        model, weight, _ = lanes_for(sites)
        assert digits_of(model, Parameters.exact(sites)) == digits
        assert digits_of(weight, Parameters.exact(sites)) in (2, 3)


def test_slots_that_are_no_sum_of_integers_are_refused():
    parameters, lane = Parameters.exact(4), Lane("x", 2, 100.0, 32, 1.0)
    slots = packed([lane], {"x": np.array([5, -7])}, parameters)
    assert unpacked([lane], slots, parameters, 1)["x"].tolist() == [5, -7]
    with pytest.raises(UpdateRefused, match="off a whole number"):
        unpacked([lane], slots + 0.5 / 2**parameters.digit_bits, parameters, 1)
    with pytest.raises(UpdateRefused, match="beyond 1 sites"):
        unpacked([lane], slots * 20, parameters, 1)
    with pytest.raises(UpdateRefused, match="holds 101"):
        packed([lane], {"x": np.array([0, 101])}, parameters)
    with pytest.raises(UpdateRefused, match="3 values"):
        packed([lane], {"x": np.arange(3)}, parameters)


@pytest.mark.parametrize("sites", [3, 5, 6, 7])
def test_a_sum_in_which_everybody_is_at_the_very_end_is_in_range(sites):
    """Five times the bound of a lane of 64 bits is no number that a float64 holds."""
    parameters = Parameters.exact(sites)
    public = (secret := SecretContext(parameters, new_key(parameters))).public()
    lanes, key = lanes_for(sites), SharedKey(secret)
    ends = {lane.name: np.full(lane.length, round(lane.bound), np.int64) for lane in lanes}
    total = SealedSum.of(public, [seal(public, packed(lanes, ends, parameters))] * sites)
    found = unpacked(lanes, key.joined(total, [key.part(total)]), parameters, sites)
    assert all((found[name] == sites * value).all() for name, value in ends.items())
