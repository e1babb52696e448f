"""Alone, federated and pooled: each is the run one would have made by hand."""

import numpy as np
import runtime_clients as rc

from atoll.algorithms import FedAvg, Scaffold
from atoll.core.contracts import Examples
from atoll.core.metrics import values
from atoll.runtime.client import evaluate_client
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.serial import SerialExecutor
from atoll.simulation.compare import compare, pooled

ROUNDS = 3


def by_hand(client, rows, held_out):
    """A federation of one, evaluated on ``held_out`` with its own personal entries."""
    parts = rc.parts(FedAvg(), {client: rows}, held_out=False)
    loop = Loop(parts, SerialExecutor(parts), evaluation=Evaluation(0), stop=Stop(ROUNDS))
    end = loop.run().progress
    layout = parts.trainer.layout
    whole = np.concatenate([end.state.parameters, end.memories[client]["personal"]])
    assert whole.shape == (layout.size,)
    return values(parts.trainer.evaluate(whole, held_out))


def test_every_column_is_the_run_one_would_make_by_hand():
    parts = rc.parts(Scaffold())
    federated = {c: {"loss": float(i), "auc": 0.5} for i, c in enumerate(parts.held_out)}
    together = pooled(parts.clients)
    found = compare(parts, ROUNDS, federated, together)
    assert found["metric"] == "auc"
    assert found["failed"] == {}
    assert list(found["sites"]) == list(parts.held_out)
    for site in ("c0", "c4"):
        rows, test = parts.clients[site], parts.held_out[site]
        assert found["sites"][site] == {
            "alone": by_hand(site, rows, test),
            "federated": federated[site],
            "pooled": by_hand("pooled", together, test),
        }


def test_a_model_that_cannot_be_trained_leaves_a_gap_and_its_reason():
    parts = rc.parts(FedAvg(), rc.federation(rc.SIZES, {"c2": rc.WILD}), scale=np.nan)
    federated = {c: {"loss": 1.0} for c in parts.held_out}
    found = compare(parts, ROUNDS, federated, None)
    assert found["metric"] == "loss"
    assert list(found["failed"]) == ["c2"]
    assert "could commit" in found["failed"]["c2"]
    assert found["sites"]["c2"] == {"alone": None, "federated": {"loss": 1.0}, "pooled": None}
    assert found["sites"]["c1"]["alone"] is not None


def test_rows_are_pooled_when_they_are_alike():
    clients = rc.federation({"a": 3, "b": 2})
    whole = pooled(clients)
    assert whole.features.tobytes() == b"".join(e.features.tobytes() for e in clients.values())
    assert len(whole) == 5
    assert pooled({**clients, "c": Examples(np.zeros((1, 9)), np.zeros(1))}) is None
    assert pooled({**clients, "c": [1, 2]}) is None


def test_evaluation_of_a_client_without_memory_uses_its_initial_personal_part():
    parts = rc.parts(FedAvg())
    start = parts.trainer.initial(parts.seed / "initial")
    shared = start[parts.trainer.layout.shared]
    ours = values(evaluate_client(parts, shared, "c0", {}))
    assert ours == values(parts.trainer.evaluate(start, parts.held_out["c0"]))
