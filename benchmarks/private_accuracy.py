"""What differential privacy costs in accuracy: a table for ``docs/privacy.md``.

    python -m benchmarks.private_accuracy [--repeats 3] [--quick] [--no-page]

Noise comes from the operating system, so every repetition is another run of the same job; the table
gives means and standard deviations over repetitions. Epsilon is that of the whole run, at delta 1e-5.

* record level: DP-SGD at the sites (``[privacy.record]``), whose unit is one row;
* client level: clipped updates and noise on their sum (``[privacy.client]``), whose unit is one of 100
  clients with all of its rows.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})

import atoll
from benchmarks.pages import write
from benchmarks.run import ROOT

DELTA = 1e-5


@dataclass(frozen=True)
class Line:
    """One row of the table.

    Args:
        title: of the job.
        unit: what is protected.
        job: the job file, below ``examples``.
        metric: of the central test rows.
        epsilons: 0 for no noise and no clipping.
        common: overrides for every epsilon.
        private: overrides where there is an epsilon; ``{epsilon}`` stands for it.
        open: overrides where there is none: what suits clipped steps need not suit others.
    """

    title: str
    unit: str
    job: str
    metric: str
    epsilons: tuple[float, ...]
    common: tuple[str, ...]
    private: tuple[str, ...]
    open: tuple[str, ...] = ()


RECORD = ("privacy.record.epsilon={epsilon}", f"privacy.record.delta={DELTA}")
CLIENT = ("privacy.client.epsilon={epsilon}", f"privacy.client.delta={DELTA}")
QUIET = ("evaluation.federated=false", "evaluation.compare=false", "evaluation.every=0")
HEART = (
    *QUIET,
    *("data.central_test=true", "data.test_fraction=0.3", "data.drop=['ca','thal','slope']"),
    *("algorithm.weights='uniform'", "rounds.count=15", "local.epochs=1", "local.batch_size=32"),
    *("local.lr=0.3", "local.momentum=0.0", "stop.metric=''", "stop.patience=0"),
)
FASHION = (*QUIET, "algorithm.weights='uniform'", "executor.name='serial'")
LINES = (
    Line(
        "heart, 4 hospitals, logistic, AUC",
        "record",
        "heart/job.toml",
        "auc",
        (1.0, 3.0, 8.0, 0.0),
        HEART,
        (*RECORD, "privacy.record.clip=1.0"),
    ),
    Line(
        "Fashion-MNIST, 10 IID clients of 6,000, dense, accuracy",
        "record",
        "fashion_mnist/mlp.toml",
        "accuracy",
        (1.0, 3.0, 8.0, 0.0),
        (
            *FASHION,
            *("data.partition.kind='iid'", "data.partition.clients=10", "rounds.cohort='all'"),
            *("rounds.size=0", "rounds.count=10", "local.epochs=1", "local.batch_size=256"),
            "local.lr=0.5",
        ),
        (*RECORD, "privacy.record.clip=1.0"),
        ("local.lr=0.1",),
    ),
    Line(
        "Fashion-MNIST, 100 IID clients of 600, dense, accuracy",
        "client",
        "fashion_mnist/mlp.toml",
        "accuracy",
        (3.0, 8.0, 0.0),
        (
            *FASHION,
            *("data.partition.kind='iid'", "rounds.cohort='all'", "rounds.size=0"),
            *("rounds.count=12", "local.epochs=2", "local.batch_size=32", "local.lr=0.1"),
        ),
        (*CLIENT, "privacy.clip=0.5"),
    ),
)


def measured(line: Line, epsilon: float, quick: bool) -> tuple[float, float]:
    """The metric at the end of one run, and the epsilon that it states (0 for none)."""
    overrides = [*line.common]
    if epsilon:
        overrides += [text.format(epsilon=epsilon) for text in line.private]
    else:
        overrides += line.open
    if quick:
        overrides.append("rounds.count=2")
    last = next(text for text in reversed(overrides) if text.startswith("rounds.count="))
    overrides.append(f"evaluation.every={last.partition('=')[2]}")
    job = atoll.load_job(ROOT / "examples" / line.job, overrides)
    run = atoll.simulate(job, executor="serial")
    stated: Any = run.manifest["privacy"]
    spent = stated.get("epsilon") if isinstance(stated, dict) else None
    return float(run.rounds[-1]["central"][line.metric]), float(spent or 0.0)


def table(repeats: int, quick: bool) -> list[str]:
    """The lines of the page."""
    out = [
        "| job | unit | epsilon asked for | stated at the end | result |",
        "|---|---|---|---|---|",
    ]
    for line in LINES:
        for epsilon in line.epsilons:
            # Without noise every repetition is the same.
            found = [measured(line, epsilon, quick) for _ in range(repeats if epsilon else 1)]
            values = [value for value, _ in found]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            stated = f"{max(spent for _, spent in found):.2f}" if epsilon else "-"
            asked = f"{epsilon:g}" if epsilon else "none"
            row = f"{fmean(values):.3f}{spread}"
            out.append(f"| {line.title} | {line.unit} | {asked} | {stated} | {row} |")
            print(out[-1], flush=True)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-page", action="store_true")
    given = parser.parse_args(argv)
    lines = table(given.repeats, given.quick)
    if not given.quick and not given.no_page:
        write("accuracy", lines, page="privacy.md")


if __name__ == "__main__":
    main()
