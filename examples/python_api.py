"""The Python API, cell by cell: run it whole, or open it as a notebook (VS Code, Spyder, Jupytext).

``python examples/python_api.py [FOLDER]`` writes one run's report to FOLDER, by default ``runs/python_api``.
"""

# %% [markdown]
# # One federation, several algorithms
# `atoll.load_job` reads a job file; its data loader gives us the four hospitals of the heart example,
# checked, split and preprocessed. Any mapping from client id to `atoll.Examples` would do as well.

# %%
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import atoll
from atoll.algorithms import FedAvg, FedBuff, FedProx, Scaffold
from atoll.models.function import FunctionTrainer
from atoll.models.linear import LinearTrainer
from atoll.models.torch import TorchTrainer

HERE = Path(__file__).resolve().parent
hospitals = atoll.load_job(HERE / "heart" / "job.toml").islands(1)
clients, held_out = hospitals.train, hospitals.held_out
for name, rows in clients.items():
    print(f"{name:<14} {len(rows):4d} training rows, {rows.targets.mean():.0%} diseased")

# %% [markdown]
# ## A job, built in Python
# A job is a trainer (how one client fits), an algorithm (what is computed) and the local work of a round.

# %%
logistic = LinearTrainer("logistic", hospitals.features, l2=0.01)
work = atoll.LocalWork(epochs=2, batch_size=16, optimizer=atoll.Optimizer(lr=0.05))


def job(algorithm, trainer=logistic, **options) -> atoll.Job:
    """The job of this script with one algorithm and trainer."""
    rounds = atoll.Stop(rounds=25)
    return atoll.Job(
        **{"trainer": trainer, "algorithm": algorithm, "local": work, "stop": rounds, "seed": 1}
        | options
    )


# %% [markdown]
# ## FedAvg, FedProx and SCAFFOLD side by side
# `run.metrics` is a DataFrame with a row per round. Same seed: same start, same batches.

# %%
algorithms = {"fedavg": FedAvg(), "fedprox": FedProx(mu=0.1), "scaffold": Scaffold()}
runs = {
    name: atoll.simulate(job(algorithm), clients, held_out=held_out)
    for name, algorithm in algorithms.items()
}
auc = pd.DataFrame({name: run.metrics["federated.auc"] for name, run in runs.items()})
print(auc.iloc[[0, 4, 9, 24]].round(3))

# %% [markdown]
# ## A torch network
# Any `nn.Module`, or a function that builds one; nothing else changes.

# %%
from atoll.models.networks import mlp  # noqa: E402 (in its own cell, so that the rest runs without torch)

net = TorchTrainer(mlp, {"inputs": hospitals.features, "hidden": (16,), "classes": 2}, classes=2)
runs["mlp"] = atoll.simulate(job(FedAvg(), net), clients, held_out=held_out)
print(runs["mlp"].model)
print(runs["mlp"].metrics[["federated.loss", "federated.auc"]].tail(1).round(3))

# %% [markdown]
# ## Your own fit function
# Any library and any loop, through named arrays. Here: Newton's method, one step per epoch.


# %%
def fit(parameters, data, context):
    """One client's training: Newton steps on the penalised logistic loss."""
    x, y = np.column_stack([data.features, np.ones(len(data))]), data.targets
    w = parameters["w"]
    for _ in range(int(context.epochs)):
        p = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (p - y) / len(y) + 0.01 * w
        curve = (x.T * (p * (1 - p))) @ x / len(y) + 0.01 * np.eye(len(w))
        w = w - np.linalg.solve(curve, slope)
    return {"w": w}, None


def evaluate(parameters, data):
    """Mean loss and accuracy on held-out rows."""
    z = data.features @ parameters["w"][:-1] + parameters["w"][-1]
    loss = np.mean(np.logaddexp(0, z) - data.targets * z)
    return {"loss": loss, "accuracy": np.mean((z > 0) == data.targets)}


newton = FunctionTrainer({"w": np.zeros(hospitals.features + 1)}, fit, evaluate)
runs["newton"] = atoll.simulate(job(FedAvg(), newton), clients, held_out=held_out)

# %% [markdown]
# ## All of them
# Loss and accuracy over all held-out patients after the last round.

# %%
columns = ["federated.loss", "federated.accuracy"]
last = pd.DataFrame({name: run.metrics[columns].iloc[-1] for name, run in runs.items()}).T
print(last.round(3))

# %% [markdown]
# ## Asynchronous, on a virtual clock
# Hospitals take exponentially distributed times, one second on average. A synchronous round waits for the
# slowest; FedBuff steps after every two arrivals. `clock` counts virtual seconds, and the same seed gives
# the same delays.

# %%
clock = atoll.Clock(delay=atoll.Delay("exponential", scale=1.0))
target = atoll.Stop(rounds=200, metric="federated.loss", target=0.5)
waits = {
    "synchronous": job(FedAvg(), clock=clock, stop=target),
    "asynchronous": job(FedBuff(), clock=clock, stop=target, schedule=atoll.Asynchronous(buffer=2)),
}
times = {}
for name, waiting in waits.items():
    run = atoll.simulate(waiting, clients, held_out=held_out)
    times[name] = run.rounds[-1]["clock"]
    print(f"{name:<13} {len(run.rounds):3d} steps, {times[name]:6.1f} virtual s  ({run.status})")

# %% [markdown]
# ## Keep it
# The folder holds the manifest, one record per round, the model and an offline HTML report.

# %%
folder = (
    Path(sys.argv[1]) if __name__ == "__main__" and len(sys.argv) > 1 else Path("runs/python_api")
)
print("report:", runs["scaffold"].report(folder))
