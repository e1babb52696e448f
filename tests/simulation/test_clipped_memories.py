"""Clients that remember what they have sent remember what has arrived, where updates are cut short."""

import numpy as np
import pytest

import atoll
from atoll.algorithms import FedDyn, Scaffold
from atoll.job.declared import Privacy
from atoll.models.linear import LinearTrainer

METHODS = {
    "scaffold 1": (Scaffold(option=1), "control", "control"),
    "scaffold 2": (Scaffold(option=2), "control", "control"),
    "feddyn": (FedDyn(alpha=0.5), "h", "gradient"),
}
CUTS = {
    "no": (Privacy(), 1e-12),
    "l2": (Privacy(clip=1.0), 1e-12),
    "layer": (Privacy(clip=1.0, clip_by="layer"), 1e-12),
    "adaptive": (Privacy(clip=1.0, clip_by="adaptive"), 1e-12),
    "coordinates": (Privacy("quantised", bound=0.5), 1e-6),
    "both": (Privacy("quantised", clip=1.0), 1e-6),
}


def unlike():
    rng = np.random.default_rng(0)
    for i in range(6):
        x = rng.normal(size=(30, 3)) + rng.normal(size=3)
        own = np.array([1.0, 2.0, 3.0]) + 2 * rng.normal(size=3)
        yield f"site-{i}", atoll.Examples(x, x @ own + rng.normal(size=30))


CLIENTS = dict(unlike())


def run(method, privacy, rounds, *, cohort=4, **how):
    job = atoll.Job(
        trainer=LinearTrainer("linear", 3),
        algorithm=METHODS[method][0],
        local=atoll.LocalWork(steps=5, batch_size=0, optimizer=atoll.Optimizer(lr=0.03)),
        weighting=atoll.Weighting("uniform"),
        schedule=atoll.Synchronous(atoll.Cohort("uniform", cohort)),
        privacy=privacy,
        stop=atoll.Stop(rounds=rounds),
    )
    return atoll.simulate(job, CLIENTS, **how)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_server_s_vector_is_the_mean_of_the_clients_own(method, cut):
    privacy, near = CUTS[cut]
    _, slot, memory = METHODS[method]
    progress = run(method, privacy, 8).progress
    own = [kept[memory] for kept in progress.memories.values()]
    mean = np.sum(own, axis=0) / len(CLIENTS)  # who was never asked has 0
    assert np.abs(mean).max() > 0.1
    assert progress.state.slots[slot] == pytest.approx(mean, abs=near)


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_ends_in_the_optimum_however_short_its_updates_are(option):
    """With a clip of 5, which FedAvg never notices, it ended many times further from it than that."""
    found = run(f"scaffold {option}", Privacy(clip=5.0), 800).vector
    trainer = LinearTrainer("linear", 3)
    slopes = [trainer.gradient(found, rows)[0] for rows in CLIENTS.values()]
    assert np.mean(slopes, axis=0) == pytest.approx(0.0, abs=1e-9)
