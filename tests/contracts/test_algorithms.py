"""Every algorithm passes the same tests; a new one adds a line to CASES."""

from __future__ import annotations

import importlib.util
import io
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll.aggregation.exact import Fold
from atoll.algorithms import (
    ALGORITHMS,
    FedAdagrad,
    FedAdam,
    FedAsync,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedProx,
    FedSGD,
    FedYogi,
    QFedAvg,
    Scaffold,
)
from atoll.core.contracts import Weighting
from atoll.core.errors import LayoutError
from atoll.core.layout import Entry, Layout
from atoll.core.local import LocalWork, Optimizer
from atoll.core.values import State


def _harness():
    path = Path(__file__).parents[1] / "algorithms" / "conftest.py"
    spec = importlib.util.spec_from_file_location("atoll_test_rounds", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


H = _harness()

CASES = {
    "fedsgd": [FedSGD(server_lr=0.7)],
    "fedavg": [FedAvg(), FedAvg(server_lr=0.3)],
    "fedavgm": [FedAvgM(momentum=0.6), FedAvgM(momentum=0.6, nesterov=True)],
    "fedadagrad": [FedAdagrad(beta1=0.5)],
    "fedadam": [FedAdam(), FedAdam(bias_correction="t", initial_v=0.0)],
    "fedyogi": [FedYogi(), FedYogi(bias_correction="t+1", initial_v=0.0)],
    "fedprox": [FedProx(mu=0.5)],
    "scaffold": [Scaffold(option=1), Scaffold(option=2, server_lr=0.8)],
    "fednova": [FedNova(), FedNova(mu=0.3, reference_steps=2.5)],
    "feddyn": [FedDyn(alpha=0.4)],
    "qfedavg": [QFedAvg(q=2.0), QFedAvg(q=0.5)],
    "fedasync": [FedAsync(), FedAsync(decay="hinge", rho=0.2)],
    "fedbuff": [FedBuff(server_lr=0.9)],
}
BIG = 2.0**60
DEGENERATE = {
    "fedavgm": FedAvgM(momentum=0.0),
    "fedavgm-nesterov": FedAvgM(momentum=0.0, nesterov=True),
    # With these v never moves and sqrt(v) + tau is exactly 1, or exactly the server's rate.
    "fedadam": FedAdam(server_lr=1.0, beta1=0.0, beta2=1.0, tau=0.5, initial_v=0.25),
    "fedyogi": FedYogi(server_lr=1.0, beta1=0.0, beta2=1.0, tau=0.5, initial_v=0.25),
    "fedadagrad": FedAdagrad(server_lr=BIG, initial_v=BIG**2),
    "fedprox": FedProx(mu=0.0),
    "fednova": FedNova(reference_steps=3.0),
    "qfedavg": QFedAvg(q=0.0),
    "fedbuff": FedBuff(),
}

algorithms = pytest.mark.parametrize(
    "algorithm", [a for row in CASES.values() for a in row], ids=repr
)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

ROWS = {"a": 3, "b": 7, "c": 1, "d": 4}


def layout_of(dtype: str) -> Layout:
    """BatchNorm-like statistics, a frozen entry, a shared body and a personal head."""
    entries = [
        Entry("stats", (1,), trainable=False),
        Entry("frozen", (2,), trainable=False),
        Entry("body", (3,)),
        Entry("head", (2,)),
    ]
    return Layout.of(entries, personal=["head"], dtype=dtype)


def setting(algorithm, dtype="float64", rows=None, **more):
    rng = np.random.default_rng(5)
    clients = {
        name: H.Quadratic(rng.uniform(0.5, 2.0, 5), rng.normal(size=5), n)
        for name, n in (rows or ROWS).items()
    }
    weighting = Weighting("uniform" if isinstance(algorithm, FedDyn) else "examples")
    options = {"local": H.sgd(0.1, 3), "weighting": weighting, **more}
    trainer = H.QuadraticTrainer(layout_of(dtype), noise=0.1)
    return H.Setting(algorithm, trainer, clients, **options)


START = (0.0, 0.1, -0.3, 0.7, -0.4, 0.2, 0.0, 0.0)


def same_bits(one, other) -> bool:
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def same_vectors(one, other) -> bool:
    return one.keys() == other.keys() and all(same_bits(one[k], other[k]) for k in one)


def same_state(one: State, other: State) -> bool:
    numbers = (one.round, one.trained, one.population) == (
        other.round,
        other.trained,
        other.population,
    )
    slots = same_vectors(one.slots, other.slots)
    return numbers and slots and same_bits(one.parameters, other.parameters)


def same_memories(one, other) -> bool:
    return one.keys() == other.keys() and all(same_vectors(one[k], other[k]) for k in one)


def middle(s, rounds=2):
    """A state and memories with every slot in use."""
    state, memories = s.start(START), {}
    for _ in range(rounds):
        state, memories = s.round(state, memories)
    return state, memories


def through_arrays(vectors):
    """Written to bytes and read again."""
    file = io.BytesIO()
    np.savez(file, **vectors)
    file.seek(0)
    with np.load(file) as read:
        return {name: read[name] for name in read.files}


def test_every_algorithm_has_a_case():
    assert set(CASES) == set(ALGORITHMS)
    for name, row in CASES.items():
        assert {type(a) for a in row} == {ALGORITHMS[name]}


def test_every_algorithm_can_be_made_without_options():
    for name, make in ALGORITHMS.items():
        assert make() == make(), name


@dtypes
@algorithms
def test_same_input_gives_same_bits_and_leaves_the_input_alone(algorithm, dtype):
    s = setting(algorithm, dtype)
    state, memories = middle(s)
    for memory in memories.values():
        for vector in memory.values():
            vector.flags.writeable = False
    before = {n: v.copy() for n, v in {**state.slots, "parameters": state.parameters}.items()}
    runs = []
    for _ in range(2):
        sent, kept = s.updates(state, memories, s.clients)
        runs.append((sent, kept, s.step(state, sent)))
    (sent, kept, after), (sent2, kept2, after2) = runs
    assert all(same_vectors(sent[k].vectors, sent2[k].vectors) for k in sent)
    assert same_memories(kept, kept2)
    assert same_state(after, after2)
    assert same_vectors(before, {**state.slots, "parameters": state.parameters})
    assert not any(v.flags.writeable for v in (after.parameters, *after.slots.values()))
    assert after.round == state.round + 1
    assert not same_bits(after.parameters, state.parameters)


@dtypes
@algorithms
def test_model_and_parameter_sized_vectors_keep_the_layouts_dtype(algorithm, dtype):
    s = setting(algorithm, dtype)
    state, memories = middle(s)
    sent, _ = s.updates(state, memories, s.clients)
    d = layout_of(dtype).shared.stop
    own = [v for memory in memories.values() for v in memory.values()]
    vectors = [v for u in sent.values() for v in u.vectors.values()]
    broadcast = [*algorithm.broadcast(state).vectors.values()]
    sized = [v for v in (*state.slots.values(), *vectors, *broadcast, *own) if v.size > 1]
    assert state.parameters.shape == (d,)
    assert {v.dtype.name for v in sized} | {state.parameters.dtype.name} == {dtype}


@algorithms
def test_any_order_and_grouping_of_updates_gives_the_same_bits(algorithm):
    s = setting(algorithm, scales={"b": 0.5, "d": 0.25})
    state, memories = middle(s)
    sent, _ = s.updates(state, memories, s.clients)
    expected = s.step(state, sent)
    for order in itertools.permutations(sent):
        assert same_state(s.step(state, {name: sent[name] for name in order}), expected)
    left, right = Fold(), Fold()
    for name in "db":
        left.add(sent[name], s.scales[name])
    for name in "ca":
        right.add(sent[name])
    right.merge(left)
    assert same_state(algorithm.server(state, right.aggregate()), expected)


@dtypes
@algorithms
def test_a_run_written_down_in_the_middle_continues_to_the_same_bits(algorithm, dtype):
    s = setting(algorithm, dtype)
    state, memories = middle(s)
    stored = through_arrays({"parameters": state.parameters, **state.slots})
    copy = State(
        state.round, stored.pop("parameters"), state.trained, state.population, slots=stored
    )
    copies = {client: through_arrays(memory) for client, memory in memories.items()}
    for _ in range(3):
        state, memories = s.round(state, memories)
        copy, copies = s.round(copy, copies)
    assert same_state(state, copy)
    assert same_memories(memories, copies)


@dtypes
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_settings_are_fedavg_bit_for_bit(name, dtype):
    plain, other = setting(FedAvg(), dtype), setting(DEGENERATE[name], dtype)
    fedavg, memories = plain.start(START), {}
    state, kept = other.start(START), {}
    for _ in range(4):
        fedavg, memories = plain.round(fedavg, memories)
        state, kept = other.round(state, kept)
        assert same_bits(state.parameters, fedavg.parameters)
    assert same_memories(kept, memories)


@dtypes
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_settings_are_fedavg_bit_for_bit_under_odd_weights(name, dtype):
    given = Weighting("given", {"a": 0.1, "b": 1 / 3, "c": 0.7, "d": 1e-3})
    plain = setting(FedAvg(), dtype, weighting=given)
    other = setting(DEGENERATE[name], dtype, weighting=given)
    fedavg, _ = plain.round(plain.start(START))
    state, _ = other.round(other.start(START))
    assert same_bits(state.parameters, fedavg.parameters)


@dtypes
@pytest.mark.parametrize("option", [1, 2])
def test_the_first_round_of_scaffold_is_fedavg_bit_for_bit(option, dtype):
    plain, other = setting(FedAvg(), dtype), setting(Scaffold(option), dtype)
    assert same_bits(
        other.round(other.start(START))[0].parameters, plain.round(plain.start(START))[0].parameters
    )


@algorithms
def test_statistics_are_averaged_and_frozen_entries_stay(algorithm):
    s = setting(algorithm)
    state = s.start(START)
    after, _ = s.round(state)
    weights = {k: s.weighting.of(k, len(c)) for k, c in s.clients.items()}
    mean = sum(weights[k] * np.mean(c.b) for k, c in s.clients.items()) / sum(weights.values())
    expected = {FedSGD: 0.0, FedAsync: 0.6 * mean}.get(type(algorithm), mean)
    assert after.parameters[0] == pytest.approx(expected, abs=1e-14)
    assert after.parameters[1:3] == pytest.approx(START[1:3], abs=1e-16)
    for slot in after.slots.values():
        assert slot.size == 1 or not slot[:3].any()


@algorithms
def test_personal_entries_are_trained_kept_and_never_sent(algorithm):
    s = setting(algorithm)
    state, memories = middle(s)
    sent, kept = s.updates(state, memories, s.clients)
    head = layout_of("float64").personal
    assert all(v.size in (1, head.start) for u in sent.values() for v in u.vectors.values())
    for name, data in s.clients.items():
        before, after = memories[name]["personal"], kept[name]["personal"]
        assert np.linalg.norm(after - data.b[3:]) < np.linalg.norm(before - data.b[3:]) + 0.2
        assert after.shape == (2,)
        assert not same_bits(before, after)


@algorithms
def test_a_client_of_weight_zero_changes_nothing(algorithm):
    if isinstance(algorithm, FedDyn):
        pytest.skip("FedDyn refuses unequal weights")
    s = setting(algorithm, rows={**ROWS, "e": 0})
    state = s.start(START)
    with_e, _ = s.round(state, {}, "abcde")
    without_e, _ = s.round(state, {}, "abcd")
    assert same_bits(with_e.parameters, without_e.parameters)


@algorithms
def test_a_round_without_any_weight_is_refused(algorithm):
    s = setting(algorithm, rows={"a": 0, "b": 0}, weighting=Weighting())
    with pytest.raises(LayoutError, match="weights of the round are zero"):
        s.round(s.start(START))


@algorithms
def test_partial_cohorts_touch_only_their_own_memory(algorithm):
    s = setting(algorithm)
    state, memories = middle(s)
    after, kept = s.round(state, memories, "bd")
    assert np.isfinite(after.parameters).all()
    assert same_memories({k: kept[k] for k in "ac"}, {k: memories[k] for k in "ac"})
    assert not same_memories({k: kept[k] for k in "bd"}, {k: memories[k] for k in "bd"})


@algorithms
def test_a_client_that_took_no_step_sends_no_change(algorithm):
    if isinstance(algorithm, FedSGD):
        pytest.skip("FedSGD always takes its one step")
    none = LocalWork(
        epochs=0.1, batch_size=0, optimizer=Optimizer(lr=0.1)
    )  # less than one whole pass
    s = setting(algorithm, local=none)
    state = s.start(START)
    after, kept = s.round(state)
    assert after.parameters == pytest.approx(state.parameters, abs=1e-15)
    assert all(np.isfinite(v).all() for memory in kept.values() for v in memory.values())


@algorithms
def test_staleness_is_one_when_fresh_and_never_grows(algorithm):
    factors = [algorithm.staleness(tau) for tau in range(20)]
    assert factors[0] == 1.0
    assert all(0 < b <= a for a, b in itertools.pairwise(factors))


@algorithms
def test_correction_is_asked_for_exactly_when_a_rule_is_used(algorithm):
    s = setting(algorithm)
    state, memories = middle(s)
    rules = []

    class Watching(H.QuadraticTrainer):
        def fit(self, *args, rule, **more):
            rules.append(rule)
            return super().fit(*args, rule=rule, **more)

    watched = H.Setting(algorithm, Watching(s.trainer.layout), s.clients, s.local, s.weighting)
    watched.updates(state, memories, s.clients)
    assert any(not rule.trivial for rule in rules) == algorithm.needs_correction


@algorithms
def test_the_default_job_has_no_faults_but_those_the_method_names(algorithm):
    faults = algorithm.faults(Weighting("uniform"), H.sgd(0.1, 1))
    assert list(faults) == []
