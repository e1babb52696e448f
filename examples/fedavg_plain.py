"""FedAvg as its paper writes it (McMahan et al. 2017, Algorithm 1), in one loop and with NumPy only.

Five clients hold rows of y = 2 x1 + 3 x2 + noise, each with other inputs and another number of rows.
Nothing of Atoll is used; a test holds this loop against the library's FedAvg. Run it with
``python examples/fedavg_plain.py``.
"""

from __future__ import annotations

import numpy as np

E, B, ETA, C, ROUNDS = 2, 10, 0.05, 0.6, 40


def make_clients(seed=0):
    """Five (x, y) pairs of 20 to 100 rows; each client's inputs lie around its own centre."""
    rng = np.random.default_rng(seed)
    clients = {}
    for k in range(5):
        n_k = 20 * (k + 1)
        x = rng.normal(loc=rng.normal(size=2), size=(n_k, 2))
        clients[f"client-{k}"] = (x, x @ [2.0, 3.0] + 0.1 * rng.normal(size=n_k))
    return clients


def choose_cohorts(clients, seed=1):
    """S_t: for every round max(C * K, 1) clients at random."""
    rng = np.random.default_rng(seed)
    m = max(int(C * len(clients)), 1)
    return [sorted(rng.choice(sorted(clients), m, replace=False)) for _ in range(ROUNDS)]


def client_update(x, y, w):
    """ClientUpdate(k, w): E epochs of SGD over batches of B rows; loss is (x.w - y)^2 / 2."""
    batches = [slice(first, first + B) for first in range(0, len(y), B)]
    for _ in range(E):
        for b in batches:
            w = w - ETA * x[b].T @ (x[b] @ w - y[b]) / len(y[b])
    return w


def fedavg(clients, cohorts):
    """Server executes: the models after each round, ``(rounds + 1, 2)``."""
    w = np.zeros(2)
    history = [w]
    for s_t in cohorts:
        m_t = sum(len(clients[k][1]) for k in s_t)
        w = sum(len(clients[k][1]) / m_t * client_update(*clients[k], w) for k in s_t)
        history.append(w)
    return np.array(history)


if __name__ == "__main__":
    clients = make_clients()
    history = fedavg(clients, choose_cohorts(clients))
    for t in (0, 1, 2, 5, 10, 20, 40):
        print(f"round {t:2d}  w = {history[t].round(4)}")
