"""The plain loop of the examples and the library give the same numbers."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll.algorithms import FedAvg
from atoll.core.contracts import Examples
from atoll.core.local import LocalWork, Optimizer

SCRIPT = Path(__file__).parents[2] / "examples" / "fedavg_plain.py"


@pytest.fixture(scope="module")
def plain():
    spec = importlib.util.spec_from_file_location("fedavg_plain", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_loop_and_the_library_agree_after_every_round(plain, h):
    clients = plain.make_clients()
    cohorts = plain.choose_cohorts(clients)
    history = plain.fedavg(clients, cohorts)
    work = LocalWork(epochs=plain.E, batch_size=plain.B, optimizer=Optimizer(lr=plain.ETA))
    trainer = h.LeastSquaresTrainer(h.vector_layout(2))
    rows = {name: Examples(x, y) for name, (x, y) in clients.items()}
    s = h.Setting(FedAvg(), trainer, rows, work)
    state, memories = s.start(), {}
    for cohort, expected in zip(cohorts, history[1:], strict=True):
        state, memories = s.round(state, memories, cohort)
        np.testing.assert_allclose(state.parameters, expected, rtol=0, atol=1e-13)


def test_the_plain_loop_recovers_the_coefficients(plain):
    clients = plain.make_clients()
    history = plain.fedavg(clients, plain.choose_cohorts(clients))
    np.testing.assert_allclose(history[-1], [2.0, 3.0], atol=0.02)


def test_the_script_prints_the_models():
    done = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[0] == "round  0  w = [0. 0.]"
    assert len(done.stdout.splitlines()) == 7
