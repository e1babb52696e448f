"""Options out of range and jobs a method cannot serve are refused, all faults at once."""

from dataclasses import FrozenInstanceError
from math import inf, nan

import pytest

from atoll.algorithms import (
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
from atoll.core.errors import JobError
from atoll.core.local import LocalWork, Optimizer, Schedule

EXAMPLES, UNIFORM = Weighting(), Weighting("uniform")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (FedSGD, {"server_lr": 0}),
        (FedAvg, {"server_lr": -1.0}),
        (FedAvg, {"server_lr": nan}),
        (FedAvg, {"server_lr": inf}),
        (FedAvg, {"server_lr": "1"}),
        (FedAvg, {"server_lr": True}),
        (FedAvg, {"server_lr": None}),
        (FedAvgM, {"momentum": 1.0}),
        (FedAvgM, {"nesterov": 1}),
        (FedAdagrad, {"tau": 0.0}),
        (FedAdagrad, {"initial_v": -1e-9}),
        (FedAdam, {"beta1": 1.0}),
        (FedAdam, {"beta2": 1.01}),
        (FedAdam, {"bias_correction": True}),
        (FedYogi, {"bias_correction": "t+2"}),
        (FedYogi, {"beta2": 1.0, "bias_correction": "t"}),
        (FedProx, {"mu": -0.1}),
        (Scaffold, {"option": 3}),
        (Scaffold, {"option": True}),
        (FedNova, {"reference_steps": 0}),
        (FedDyn, {"alpha": 0.0}),
        (QFedAvg, {"q": -1}),
        (FedAsync, {"alpha": 1.5}),
        (FedAsync, {"decay": "exponential"}),
        (FedBuff, {"exponent": -0.5}),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(make, options):
    with pytest.raises(JobError) as caught:
        make(**options)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].place.removeprefix("algorithm.") in options
    assert make.__name__ in caught.value.message


def test_all_faults_are_told_together_with_value_and_range():
    with pytest.raises(JobError) as caught:
        FedAdam(server_lr=-1, beta1=2, beta2=1.0, bias_correction="t")
    text = str(caught.value)
    assert len(caught.value.faults) == 3
    assert "algorithm.server_lr: -1 is not in (0, inf)" in text
    assert "algorithm.beta1: 2 is not in [0, 1)" in text
    assert "needs beta2 < 1" in text


def test_a_misspelt_word_gets_a_suggestion():
    with pytest.raises(JobError, match="did you mean 'polynomial'"):
        FedAsync(decay="polinomial")


def test_bounds_that_belong_to_the_range_are_accepted():
    assert FedProx(mu=0).mu == 0
    assert FedAdam(beta1=0, beta2=1, initial_v=0).initial_v == 0
    assert FedAsync(alpha=1).alpha == 1


def test_options_are_frozen():
    with pytest.raises(FrozenInstanceError):
        FedAvg().server_lr = 2.0


def test_feddyn_wants_equal_weights():
    assert FedDyn().faults(UNIFORM, LocalWork()) == []
    assert FedDyn().faults(Weighting("given", {"a": 2.0, "b": 2.0}), LocalWork()) == []
    assert "'examples'" in FedDyn().faults(EXAMPLES, LocalWork())[0]
    assert len(FedDyn().faults(Weighting("given", {"a": 2.0, "b": 1.0}), LocalWork())) == 1


def test_fednova_knows_the_worth_of_sgd_at_one_rate_only():
    by_round = LocalWork(schedule=Schedule("step", unit="round"))
    bad = LocalWork(optimizer=Optimizer("adam"), schedule=Schedule("cosine", unit="epoch"))
    assert FedNova().faults(EXAMPLES, by_round) == []
    found = FedNova().faults(EXAMPLES, bad)
    assert len(found) == 2
    assert "'adam'" in found[0]
    assert "epoch" in found[1]


def test_scaffold_option_2_wants_sgd():
    adam = LocalWork(optimizer=Optimizer("adam"))
    assert Scaffold(option=1).faults(EXAMPLES, adam) == []
    assert "'adam'" in Scaffold(option=2).faults(EXAMPLES, adam)[0]


def test_qfedavg_wants_a_rate_to_divide_by():
    """All clients failed with a division by zero."""
    still = LocalWork(optimizer=Optimizer(lr=0.0))
    assert "lr is 0" in QFedAvg().faults(EXAMPLES, still)[0]
    assert not QFedAvg().faults(EXAMPLES, LocalWork())


def test_fedsgd_names_every_setting_it_would_ignore():
    local = LocalWork(
        epochs=3,
        optimizer=Optimizer("adam", momentum=0.9, weight_decay=0.1),
        schedule=Schedule("step"),
        clip_norm=1.0,
    )
    found = " ".join(FedSGD().faults(EXAMPLES, local))
    for word in ("'adam'", "momentum 0.9", "decay 0.1", "epochs = 3", "step schedule", "clip_norm"):
        assert word in found
    assert FedSGD().faults(EXAMPLES, LocalWork()) == []
    assert len(FedSGD().faults(EXAMPLES, LocalWork(steps=5))) == 1
