"""T11: server optimisers on Fashion-MNIST with 10 clients (15-seed setting).

40 rounds, one local epoch, batch 32, SGD .01 with momentum .9; 80 % of each client's rows train; random
crop and flip, then (x - .1307) / .3081; a CNN of 80,202 parameters; server accuracy at round 40.
"""

from __future__ import annotations

from typing import Any

from atoll import Job, LocalWork, Optimizer, Stop, simulate
from atoll.algorithms import FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from atoll.core.contracts import Examples
from atoll.core.seeds import Seed
from atoll.data.idx import fashion_mnist
from atoll.data.partition import deal, dirichlet, iid, split_clients
from benchmarks.targets.judge import Published, deviation, mean, verdict

MEAN, SD = 0.1307, 0.3081
METHODS: dict[str, Any] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(mu=0.01),
    "FedAvgM": lambda: FedAvgM(server_lr=1.0, momentum=0.7),
    "FedAdam": lambda: FedAdam(
        server_lr=0.1, beta1=0.7, beta2=0.99, tau=0.01, bias_correction="t+1", initial_v=0.0
    ),
    "FedYogi": lambda: FedYogi(
        server_lr=0.01, beta1=0.7, beta2=0.99, tau=0.001, bias_correction="none", initial_v=0.0
    ),
}
PUBLISHED = {
    ("Dir .1", "FedAvg"): Published(0.815, 0.032, 15),
    ("Dir .1", "FedProx"): Published(0.813, 0.029, 15),
    ("Dir .1", "FedAvgM"): Published(0.837, 0.015, 15),
    ("Dir .1", "FedAdam"): Published(0.830, 0.017, 15),
    ("Dir .1", "FedYogi"): Published(0.838, 0.018, 15),
    ("IID", "FedAvg"): Published(0.868, 0.004, 15),
}
SEEDS = (1, 2, 3)


def runs() -> list[tuple[str, dict[str, Any]]]:
    """Every run of the target: a name and the arguments of :func:`run`."""
    return [
        (f"T11/{setting}/{method}/{seed}", {"setting": setting, "method": method, "seed": seed})
        for seed in SEEDS
        for setting, method in PUBLISHED
    ]


def run(setting: str, method: str, seed: int) -> dict[str, float]:
    """One federated run; returns the server's accuracy after each tenth round and at the end."""
    from atoll.models.networks import CropFlip, cnn_thesis
    from atoll.models.torch.adapter import TorchTrainer

    train, test = (_normalised(e) for e in fashion_mnist())
    draw = Seed(seed) / "partition"
    if setting == "IID":
        rows = iid(train.targets, 10, draw)
    else:
        rows = dirichlet(train.targets, 10, draw, alpha=0.1, balanced=False, min_rows=10)
    clients, _ = split_clients(deal(train, rows), 0.2, Seed(seed) / "split")
    job = Job(
        trainer=TorchTrainer(cnn_thesis, augment=CropFlip(fill=-MEAN / SD), classes=10),
        algorithm=METHODS[method](),
        local=LocalWork(1, batch_size=32, optimizer=Optimizer(lr=0.01, momentum=0.9)),
        stop=Stop(rounds=40),
        evaluate_every=10,
        federated=False,
    )
    done = simulate(job, clients, central=test, seed=seed)
    found = {f"round {r['round']}": r["central"]["accuracy"] for r in done.rounds if r["central"]}
    return {**found, "accuracy": done.rounds[-1]["central"]["accuracy"]}


def _normalised(examples: Examples) -> Examples:
    pixels = (examples.features - MEAN) / SD
    return Examples(pixels.astype("float32"), examples.targets.astype("int64"))


def table(results: dict[str, dict[str, float]]) -> list[str]:
    """The section of ``docs/results.md``."""
    lines = [
        "## T11 Server optimisers on Fashion-MNIST",
        "",
        (__doc__ or "").strip().split("\n\n")[1].replace("\n", " "),
        "",
        "| setting | method | ours, mean ± sd (n) | published, mean ± sd (15) | difference | allowed | "
        "verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    own: dict[tuple[str, str], list[float]] = {}
    for (setting, method), theirs in PUBLISHED.items():
        keys = [f"T11/{setting}/{method}/{s}" for s in SEEDS]
        values = [results[k]["accuracy"] for k in keys if k in results]
        own[setting, method] = values
        if not values:
            lines.append(f"| {setting} | {method} | not run | {theirs.mean:.3f} | | | |")
            continue
        good, allowed = verdict(values, theirs, floor=0.005)
        lines.append(
            f"| {setting} | {method} | {mean(values):.4f} ± {deviation(values):.4f} ({len(values)}) | "
            f"{theirs.mean:.3f} ± {theirs.sd:.3f} | {mean(values) - theirs.mean:+.4f} | {allowed:.4f} | "
            f"{'pass' if good else '**outside**'} |"
        )
    base = own["Dir .1", "FedAvg"]
    lines += ["", "Order at Dir .1, paired by seed (accuracy minus FedAvg's):", ""]
    for method in METHODS:
        pairs = [a - b for a, b in zip(own["Dir .1", method], base, strict=False)]
        if method != "FedAvg" and pairs:
            shown = ", ".join(f"{p:+.4f}" for p in pairs)
            lines.append(
                f"- {method}: {shown} (published mean: "
                f"{PUBLISHED['Dir .1', method].mean - 0.815:+.3f})"
            )
    return [*lines, ""]
