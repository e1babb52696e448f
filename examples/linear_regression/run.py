"""y = 2 x1 + 3 x2 + noise over five clients: federated training finds the coefficients.

Each client's inputs lie around its own centre and each has another number of rows; no row is handed to
anyone. Run it with ``python examples/linear_regression/run.py``.
"""

from __future__ import annotations

import numpy as np

import atoll
from atoll.models.linear import LinearTrainer

TRUTH = np.array([2.0, 3.0])


def make_clients(seed: int = 0) -> dict[str, atoll.Examples]:
    """Five clients with 60 to 140 rows; inputs of client k are centred on (k - 2, 2 - k)."""
    rng = np.random.default_rng(seed)
    clients = {}
    for k in range(5):
        x = rng.normal(loc=[k - 2, 2 - k], size=(60 + 20 * k, 2))
        y = x @ TRUTH + rng.normal(scale=0.1, size=len(x))
        clients[f"client-{k}"] = atoll.Examples(x, y)
    return clients


def main() -> dict[str, float]:
    """Train, print and return the coefficients."""
    job = atoll.Job(
        name="linear_regression",
        trainer=LinearTrainer("linear", 2),
        local=atoll.LocalWork(epochs=2, batch_size=20, optimizer=atoll.Optimizer(lr=0.01)),
        stop=atoll.Stop(rounds=30),
    )
    run = atoll.simulate(job, make_clients())
    x1, x2 = run.parameters["weight"]
    found = {"x1": float(x1), "x2": float(x2), "intercept": float(run.parameters["intercept"])}
    for name, truth in {"x1": 2.0, "x2": 3.0, "intercept": 0.0}.items():
        print(f"{name:<10} found {found[name]:7.4f}   true {truth:.0f}")
    return found


if __name__ == "__main__":
    main()
