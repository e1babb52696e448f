"""Write what contestants are given, as an Atoll run draws it; score what they give back."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.peers.given import FOLDER
from benchmarks.plain import loss_and_accuracy, network, settle
from benchmarks.workloads import WORKLOADS, plain_draws, rows

__all__ = ["export", "score"]


def export(name: str, rounds: int) -> None:
    """Write a workload's folder: rows, initial weights, and the draws of as many rounds."""
    w, data, folder = WORKLOADS[name], rows(name), FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    draws = plain_draws(name, rounds)
    arrays = {
        "x": data.x,
        "y": data.y,
        "cohorts": np.array([[client for client, _ in drawn] for drawn in draws]),
        "orders": np.array([[order for _, order in drawn] for drawn in draws]),
    }
    for what, array in arrays.items():
        np.save(folder / f"{what}.npy", np.ascontiguousarray(array))
    weights = [p.detach().numpy() for p in network(name).parameters()]
    np.savez(folder / "initial.npz", **{f"p{i}": value for i, value in enumerate(weights)})
    facts = {k: getattr(w, k) for k in ("clients", "each", "cohort", "batch", "lr")}
    (folder / "facts.json").write_text(json.dumps(facts))


def score(name: str, told: dict[str, Any], out: Path, asked: float) -> dict[str, float]:
    """A peer's result in the words of ours: ``round``, ``first``, ``loss``, ``accuracy``."""
    model, ends = network(name), told["ends"]
    with np.load(out) as file, torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.from_numpy(file[f"p{i}"]).reshape(parameter.shape))
    loss, accuracy = loss_and_accuracy(name, model)
    length = settle(ends) if len(ends) > 1 else median([float("nan")])
    return {"round": length, "first": ends[1] - asked, "loss": loss, "accuracy": accuracy}
