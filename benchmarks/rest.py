"""What it brings that clients rest between their rounds, and noise that is correlated over rounds.

    python -m benchmarks.rest                       # the noise, for equal epsilon: seconds
    python -m benchmarks.rest --accuracy [--repeats 3] [--no-page]   # and what a model makes of it: minutes

The noise is computed, not drawn: the deviation of what a round carries, and the root mean square over
rounds of what has gathered in the sum of all rounds so far, which is what a model is. Both in units of the
clip, for the same epsilon at delta 1e-5 over the whole run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})

import atoll
from atoll.job.load import parse_job
from atoll.job.privacy import client_event
from atoll.job.tables import privacy_of, schedule_of
from atoll.privacy.dp.events import Gaussian, MatrixGaussian
from atoll.privacy.dp.matrix import Correlated, error, memory, start, step
from atoll.privacy.dp.noise import SystemSource
from benchmarks.pages import write
from benchmarks.run import ROOT

DELTA = 1e-5
EPSILON = 3.0
PLANS = ((50, 5), (100, 10), (256, 16), (256, 64), (1000, 100))
"""Rounds, and from one round of a client to its next."""

MECHANISMS = ("gaussian", "tree", "banded", "blt")
VALUES = 1_000_000

JOB = "fashion_mnist/mlp.toml"
USUAL = (
    *("evaluation.federated=false", "evaluation.compare=false", "algorithm.weights='uniform'"),
    *("executor.name='serial'", "data.partition.kind='iid'", "rounds.cohort='uniform'"),
    *("rounds.size=10", "rounds.count=50", "evaluation.every=50", "stop.metric=''"),
    *("local.epochs=2", "local.batch_size=32", "local.lr=0.1"),
)
PRIVATE = ("privacy.clip=0.5", f"privacy.client.delta={DELTA}")


def priced(rounds: int, apart: int, mechanism: str) -> MatrixGaussian:
    """The event of a whole run of a job, with its calibrated noise."""
    rest = {"cohort": "uniform", "size": 1, "separation": apart, "count": rounds}
    client = {"epsilon": EPSILON, "delta": DELTA, "mechanism": mechanism}
    spec = parse_job(
        {
            "data": {"source": "synthetic"},
            "rounds": rest if apart > 1 else {"count": rounds},
            "algorithm": {"weights": "uniform"},
            "evaluation": {"federated": False},
            "privacy": {"clip": 1.0, "client": client},
        }
    )
    event = client_event(privacy_of(spec), schedule_of(spec), rounds)
    if isinstance(event, Gaussian):  # independent noise: one band
        visits = -(-rounds // apart)
        return MatrixGaussian("banded", event.noise_multiplier, rounds, 1, visits, apart)
    if not isinstance(event, MatrixGaussian):
        raise TypeError(f"{mechanism} is no noise of the server")
    return event


def gathered(event: MatrixGaussian) -> float:
    """Root mean square of the noise in the sums."""
    return event.noise_multiplier * error(event)


def seconds(event: MatrixGaussian) -> float:
    """Of the processor, for a round's noise of :data:`VALUES` values: the best of five."""
    source, state = SystemSource(), start(event, VALUES)
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        _, after = step(source, event, state, 1.0)
        best = min(best, time.process_time() - began)
        state = Correlated(event.bands, after.kept)  # as many earlier rounds as are ever looked at
    return best


def noise() -> Iterator[str]:
    """The lines of the first table."""
    yield (
        "| rounds, apart | noise | of one round | in the sums | over independent | vectors kept "
        "| ms a round |"
    )
    yield "|---|---|---|---|---|---|---|"
    for rounds, apart in PLANS:
        always = priced(rounds, 1, "gaussian")
        alone = gathered(priced(rounds, apart, "gaussian"))
        share = gathered(always) / alone
        yield (
            f"| {rounds}, 1 | gaussian | {always.deviation:.2f} | {gathered(always):.1f} | {share:.2f} | 0 | |"
        )
        for mechanism in MECHANISMS:
            event = priced(rounds, apart, mechanism)
            found, kept = gathered(event), memory(event)
            cost = f"{1000 * seconds(event):.0f}" if kept <= 70 else ""
            yield (
                f"| {rounds}, {apart} | {mechanism} | {event.deviation:.2f} | {found:.1f} | "
                f"{found / alone:.2f} | {kept} | {cost} |"
            )


def measured(overrides: Sequence[str]) -> float:
    """Accuracy on the central test images after the last round."""
    job = atoll.load_job(ROOT / "examples" / JOB, [*USUAL, *overrides])
    run = atoll.simulate(job, executor="serial")
    return float(run.rounds[-1]["central"]["accuracy"])


def accuracy(repeats: int) -> Iterator[str]:
    """The lines of the second table."""
    yield "| noise | separation | epsilon 3 | epsilon 8 |"
    yield "|---|---|---|---|"
    for apart, mechanism in ((1, "gaussian"), *((10, each) for each in MECHANISMS)):
        cells = []
        for epsilon in (3.0, 8.0):
            private = (
                *PRIVATE,
                f"rounds.separation={apart}",
                f"privacy.client.epsilon={epsilon}",
                f"privacy.client.mechanism='{mechanism}'",
            )
            found = [measured(private) for _ in range(repeats)]
            spread = f" ± {stdev(found):.3f}" if repeats > 1 else ""
            cells.append(f"{fmean(found):.3f}{spread}")
        yield f"| {mechanism} | {apart} | {' | '.join(cells)} |"
    plain = measured(("rounds.separation=10",))
    yield f"| none | 10 | {plain:.3f} | {plain:.3f} |"


def shown(lines: Iterator[str]) -> list[str]:
    """The lines, each printed as soon as it is there."""
    out = []
    for line in lines:
        print(line, flush=True)
        out.append(line)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-page", action="store_true")
    given = parser.parse_args(argv)
    tables = {"rest": noise}
    if given.accuracy:
        tables["rest-accuracy"] = lambda: accuracy(given.repeats)
    for name, made in tables.items():
        lines = shown(made())
        if not given.no_page:
            write(name, lines, page="privacy.md")


if __name__ == "__main__":
    main()
