"""T24: FCUBE, four clients whose features differ by octant while labels are balanced.

A 3-32-16-8-2 network, SGD .01 with momentum .9, batch 64, 10 local epochs, 50 rounds, five seeds;
accuracy on 1000 uniform points after the last round.
"""

from __future__ import annotations

from typing import Any

from atoll import Job, LocalWork, Optimizer, Stop, simulate
from atoll.algorithms import FedAvg, FedNova, FedProx, Scaffold
from atoll.core.seeds import Seed
from atoll.data.synthetic import fcube
from benchmarks.targets.judge import Published, deviation, mean, verdict

METHODS: dict[str, Any] = {
    "FedAvg": FedAvg,
    "SCAFFOLD": Scaffold,
    "FedProx": lambda: FedProx(mu=0.01),
    "FedNova": FedNova,
}
PUBLISHED = {
    "FedAvg": (Published(0.9964, 0.0005, 5), "independent run, 5 seeds"),
    "SCAFFOLD": (Published(0.9970, 0.0012, 5), "independent run, 5 seeds"),
    "FedProx": (Published(0.998, 0.000, 3), "paper, 3 seeds"),
    "FedNova": (Published(0.997, 0.001, 3), "paper, 3 seeds"),
}
SEEDS = (1, 2, 3, 4, 5)


def runs() -> list[tuple[str, dict[str, Any]]]:
    """Every run of the target."""
    return [(f"T24/{m}/{s}", {"method": m, "seed": s}) for s in SEEDS for m in METHODS]


def run(method: str, seed: int) -> dict[str, float]:
    """One federated run; returns the final accuracy."""
    from atoll.models.networks import mlp
    from atoll.models.torch.adapter import TorchTrainer

    clients, test = fcube(Seed(seed) / "fcube")
    trainer = TorchTrainer(mlp, {"inputs": 3, "hidden": (32, 16, 8), "classes": 2})
    job = Job(
        trainer=trainer,
        algorithm=METHODS[method](),
        local=LocalWork(10, batch_size=64, optimizer=Optimizer(lr=0.01, momentum=0.9)),
        stop=Stop(rounds=50),
        evaluate_every=50,
        federated=False,
    )
    done = simulate(job, clients, central=test, seed=seed)
    return {"accuracy": done.rounds[-1]["central"]["accuracy"]}


def table(results: dict[str, dict[str, float]]) -> list[str]:
    """The section of ``docs/results.md``."""
    lines = [
        "## T24 FCUBE",
        "",
        (__doc__ or "").strip().split("\n\n")[1].replace("\n", " "),
        "",
        "| method | ours, mean ± sd (n) | reference | difference | allowed | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for method, (theirs, source) in PUBLISHED.items():
        values = [
            results[f"T24/{method}/{s}"]["accuracy"]
            for s in SEEDS
            if f"T24/{method}/{s}" in results
        ]
        if not values:
            lines.append(f"| {method} | not run | {theirs.mean:.4f} ({source}) | | | |")
            continue
        good, allowed = verdict(values, theirs, floor=0.005)
        lines.append(
            f"| {method} | {mean(values):.4f} ± {deviation(values):.4f} ({len(values)}) | "
            f"{theirs.mean:.4f} ± {theirs.sd:.4f} ({source}) | {mean(values) - theirs.mean:+.4f} | "
            f"{allowed:.4f} | {'pass' if good else '**outside**'} |"
        )
    return [*lines, ""]
