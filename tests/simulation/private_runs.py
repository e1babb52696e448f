"""Small runs with masks, clipping and noise."""

from __future__ import annotations

from typing import Any

import runtime_clients as rc

from atoll import simulate
from atoll.core.contracts import Weighting
from atoll.core.local import LocalWork, Optimizer
from atoll.job.build import Job
from atoll.job.privacy import ClientPrivacy, Privacy, RowPrivacy
from atoll.models.linear import LinearTrainer
from atoll.runs.result import Run
from atoll.runtime.loop import Stop

SIZES = {"a": 20, "b": 31, "c": 44, "d": 12, "e": 25}
CLIENTS = rc.federation(SIZES)
STEP = LocalWork(optimizer=Optimizer(lr=0.1))


def job(**settings: Any) -> Job:
    usual: dict[str, Any] = {
        "trainer": LinearTrainer("logistic", rc.FEATURES),
        "local": STEP,
        "stop": Stop(4),
        "federated": False,
        "privacy": Privacy(aggregation="masked"),
    }
    return Job(**{**usual, **settings})


def aggregated(how: str, **settings: Any) -> Job:
    return job(**{**settings, "privacy": Privacy(aggregation=how)})  # type: ignore[arg-type]


def run(clients: Any = CLIENTS, *, executor: Any = None, out: Any = None, **settings: Any) -> Run:
    return simulate(job(**settings), clients, executor=executor, workers=2, out=out)


def shown(made: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in made.rounds]


def private(**client: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"weighting": Weighting("uniform")}
    return {**usual, "privacy": Privacy(clip=0.5, client=ClientPrivacy(**client))}


def moody(**moods: float) -> tuple[Any, Any]:
    return rc.Moody(LinearTrainer("logistic", rc.FEATURES), 1), rc.federation(SIZES, moods)


def by_row(**record: Any) -> dict[str, Any]:
    return {
        "privacy": Privacy(record=RowPrivacy(**{"clip": 0.5, **record})),
        "local": LocalWork(batch_size=8, optimizer=Optimizer(lr=0.1)),
    }
