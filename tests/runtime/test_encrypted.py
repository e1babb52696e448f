"""An encrypted run ends in the bits of the quantised one; clients that fail are left out by name."""

from dataclasses import replace

import pytest
import runtime_clients as rc

pytest.importorskip("tenseal")

from atoll.algorithms import FedAvg, Scaffold
from atoll.core.chain import Setting
from atoll.core.contracts import Weighting
from atoll.core.errors import JobError
from atoll.core.values import Update
from atoll.job.privacy import Privacy, with_chain
from atoll.privacy.he.contexts import PublicContext, SecretContext
from atoll.privacy.links.encrypt import Encrypt
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.encrypted import EncryptedExecutor
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.schedule import Synchronous
from atoll.runtime.serial import SerialExecutor

ROUNDS = 3


def quantised(algorithm, clients=None):
    parts = rc.parts(algorithm, clients) if clients else rc.parts(algorithm)
    made, faults = with_chain(Privacy("quantised"), parts, Synchronous(), ROUNDS)
    assert faults == []
    return made


def encrypted(algorithm, clients=None):
    parts = quantised(algorithm, clients)
    return replace(parts, chain=replace(parts.chain, links=(*parts.chain.links, Encrypt())))


def played(parts, executor):
    records = []
    loop = Loop(
        parts,
        executor,
        evaluation=Evaluation(0),
        stop=Stop(ROUNDS),
        observers=(records.append,),
    )
    return model_hash(loop.run().progress.state.parameters), records


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold()], ids=["fedavg", "scaffold"])
def test_an_encrypted_run_has_the_bits_of_the_quantised_one(algorithm):
    plain, one = quantised(algorithm), encrypted(algorithm)
    expected, records = played(plain, SerialExecutor(plain))
    executor = EncryptedExecutor(one)
    found, secret = played(one, executor)
    assert found == expected
    assert [r["train"] for r in secret] == [r["train"] for r in records]
    assert executor.sent > 10_000


def test_clients_that_fail_are_left_out_and_the_sum_is_that_of_the_others():
    clients = rc.federation(rc.SIZES, {"c1": rc.RAISES})
    plain, one = quantised(FedAvg(), clients), encrypted(FedAvg(), clients)
    expected, _ = played(plain, SerialExecutor(plain))
    found, records = played(one, EncryptedExecutor(one))
    assert found == expected
    assert all(r["missing"]["c1"].startswith("failed") for r in records)


def test_the_server_s_half_is_of_the_type_that_opens_nothing():
    executor = EncryptedExecutor(encrypted(FedAvg()))
    held = [value for value in vars(executor).values() if isinstance(value, SecretContext)]
    assert held == []
    assert isinstance(executor._public, PublicContext)


def test_a_job_that_does_not_encrypt_is_refused():
    with pytest.raises(JobError, match="does not encrypt"):
        EncryptedExecutor(quantised(FedAvg()))


def test_what_encryption_cannot_serve_is_told_at_once():
    setting = Setting(
        vectors={},
        metrics={},
        model=1,
        weighting=Weighting(),
        cohort=5000,
        forms_cohorts=False,
        additive=False,
    )
    places = [fault.place for fault in Encrypt().faults(setting)]
    assert places == ["algorithm", "rounds.mode", "privacy.aggregation"]


def test_an_update_with_another_vector_is_not_sealed():
    from atoll.runtime.encrypted import _SealingSite

    one = encrypted(FedAvg())
    executor = EncryptedExecutor(one)
    site = _SealingSite(executor._public, one.chain.find("quantise").integer_lanes(5))
    with pytest.raises(Exception, match="missing or not declared"):
        site.add(Update({"other": rc.np.zeros(1, int)}, 1.0, 0))
