"""What a malicious client sends is refused, and the model is that of a run without it."""

import pytest

from atoll.algorithms import FedAvg, FedNova, Scaffold
from atoll.privacy.audit.hostile import MALFORMED, POISON
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.serial import SerialExecutor
from benchmarks.privacy.clients import BAD, parts_of, played, refusals


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold()], ids=["fedavg", "scaffold"])
def test_malformed_updates_are_refused_and_leave_no_bit_behind(name, algorithm):
    rounds, refused, same = refusals(parts_of(algorithm), MALFORMED[name])
    assert (refused, same) == (rounds, True)
    assert rounds == 4


@pytest.mark.parametrize("name", ["scaled", "scaled_flip"])
def test_a_limit_on_norms_stops_an_update_sent_a_hundred_times_over(name):
    free = refusals(parts_of(FedAvg()), POISON[name])
    limited = refusals(parts_of(FedAvg(), max_norm=1.0), POISON[name])
    assert free[1:] == (0, False)
    assert limited[1:] == (4, True)


def test_a_limit_on_norms_does_not_see_a_sign_flip():
    assert refusals(parts_of(FedAvg(), max_norm=1.0), POISON["sign_flip"])[1:] == (0, False)


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold(), FedNova()])
def test_the_server_s_gate_changes_no_bit_of_an_honest_run(algorithm):
    parts = parts_of(algorithm)
    gated, _ = played(parts, {})
    plain = Loop(parts, SerialExecutor(parts), evaluation=Evaluation(0), stop=Stop(4)).run()
    assert model_hash(gated.progress.state.parameters) == model_hash(
        plain.progress.state.parameters
    )


def test_the_reason_names_the_value():
    _, records = played(parts_of(FedAvg()), {BAD: MALFORMED["weight_large"]}, rounds=1)
    assert "weight 35001.0 where 35.0" in records[0]["missing"][BAD]


def test_a_serial_run_keeps_to_the_limit_as_well():
    parts = parts_of(FedAvg(), max_norm=1e-9)
    records = []
    loop = Loop(
        parts,
        SerialExecutor(parts),
        evaluation=Evaluation(0),
        stop=Stop(1, max_aborts=2),
        observers=(records.append,),
    )
    with pytest.raises(Exception, match="allowed are 1e-09"):
        loop.run()
