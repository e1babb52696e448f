"""Values of a round: frozen records, read-only arrays, exact steps."""

import pickle
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from atoll.core.errors import LayoutError
from atoll.core.layout import Entry, Layout
from atoll.core.values import Aggregate, Broadcast, State, freeze, moved, renewed

LAYOUT = Layout.of(
    [Entry("fixed", (1,), trainable=False), Entry("w", (2,)), Entry("own", (1,), personal=True)]
)


def start(**slots):
    return State.start(np.array([1, 2, 3, 4], np.float32), LAYOUT, 5, **slots)


def test_a_run_starts_from_a_copy_of_the_shared_region():
    whole = np.array([1, 2, 3, 4], np.float32)
    state = State.start(whole, LAYOUT, 5, momentum=np.zeros(3))
    whole[:] = 9.0
    assert state.parameters.tolist() == [1.0, 2.0, 3.0]
    assert state.parameters[state.trained].tolist() == [2.0, 3.0]
    assert (state.round, state.population, list(state.slots)) == (0, 5, ["momentum"])


def test_the_initial_vector_must_fit_the_layout():
    with pytest.raises(LayoutError, match="initial parameters has shape"):
        State.start(np.zeros(3, np.float32), LAYOUT, 5)


def test_a_state_cannot_be_changed():
    state = start(momentum=np.zeros(3))
    after = state.next(np.zeros(3, np.float32), momentum=np.ones(3))
    for s in (state, after):
        with pytest.raises(FrozenInstanceError):
            s.round = 7
        for array in (s.parameters, s.slots["momentum"]):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1.0


def test_the_next_state_keeps_the_slots_it_does_not_name():
    state = start(first=np.zeros(2), second=np.ones(2))
    after = state.next(np.full(3, 7, np.float32), second=np.full(2, 5.0))
    assert (after.round, after.population, after.trained) == (1, 5, state.trained)
    assert after.parameters.tolist() == [7.0, 7.0, 7.0]
    assert after.slots["first"] is state.slots["first"]
    assert after.slots["second"].tolist() == [5.0, 5.0]
    assert state.round == 0
    assert state.slots["second"].tolist() == [1.0, 1.0]


def test_a_renewed_record_is_a_replaced_one():
    state = start(first=np.zeros(2))
    changes = {"round": 4, "slots": {}}
    mine, theirs = renewed(state, **changes), replace(state, **changes)
    assert type(mine) is State
    for field in fields(State):
        assert getattr(mine, field.name) is getattr(theirs, field.name)
    assert state.round == 0
    with pytest.raises(TypeError, match="rounds"):
        renewed(state, rounds=4)


def test_freezing_copies_nothing():
    array = np.zeros(2)
    assert freeze(array) is array
    assert not array.flags.writeable


def test_a_step_is_computed_in_double_and_rounded_once():
    parameters = np.array([1.0, 2.0**24], np.float32)
    after = moved(parameters, np.array([2.0**-24 + 2.0**-50, 1.0 + 2.0**-20]))
    assert after.dtype == np.float32
    assert after.tolist() == [1 + 2.0**-23, 2.0**24 + 2]
    assert parameters.tolist() == [1.0, 2.0**24]


def test_moving_doubles_stays_in_double():
    assert moved(np.array([0.1]), np.array([0.2])).tolist() == [0.1 + 0.2]


def test_the_global_average_of_the_design_is_point_996():
    """theta_g = (1, 1), sites at .8 and 1.2, weights .6 and .4, server learning rate .1."""
    sums = {"parameters": 0.6 * np.array([0.8, 0.8]) + 0.4 * np.array([1.2, 1.2])}
    mean = Aggregate(sums, 1.0, 1.0, 2, 2).mean("parameters")
    assert moved(np.ones(2), 0.1 * (mean - 1.0)).tolist() == pytest.approx(
        [0.996, 0.996], abs=1e-15
    )


def test_the_mean_divides_by_the_weight():
    aggregate = Aggregate({"a": np.array([3.0, 6.0])}, 4.0, 2.0, 2, 10)
    assert aggregate.mean("a").tolist() == [0.75, 1.5]
    assert aggregate.mean("a").dtype == np.float64
    assert aggregate.sums["a"].tolist() == [3.0, 6.0]


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(LayoutError, match="no vector 'b'"):
        Aggregate({"a": np.zeros(1)}, 1.0, 1.0, 1, 1).mean("b")
    with pytest.raises(LayoutError, match="all weights of the round are zero"):
        Aggregate({"a": np.zeros(1)}, 0.0, 0.0, 1, 1).mean("a")


def test_a_broadcast_names_its_parameters():
    vector = np.ones(2)
    assert Broadcast(3, {"parameters": vector, "control": np.zeros(2)}).parameters is vector


def test_a_state_crosses_a_process_boundary():
    state = start(momentum=np.arange(3.0))
    again = pickle.loads(pickle.dumps(state))
    assert again.parameters.tobytes() == state.parameters.tobytes()
    assert again.slots["momentum"].tolist() == [0.0, 1.0, 2.0]
    assert (again.round, again.trained, again.population) == (0, slice(1, 3), 5)
