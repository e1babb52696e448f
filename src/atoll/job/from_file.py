"""The objects of a checked job file."""

from __future__ import annotations

from pathlib import Path

from atoll.algorithms.statistics.running import NoModel, Statistic
from atoll.algorithms.statistics.together import Together
from atoll.core.contracts import Weighting
from atoll.job.between import discretion_of
from atoll.job.build import Job
from atoll.job.conflicts import federation_faults
from atoll.job.datasets import load_islands
from atoll.job.registry import algorithm_named, trainer_for
from atoll.job.schema import JobSpec
from atoll.job.study import study_of
from atoll.job.study_sites import study_islands
from atoll.job.tables import (
    clock_of,
    local_work,
    privacy_of,
    schedule_of,
    stop_of,
    weighting_of,
)
from atoll.runtime.loop import Stop

__all__ = ["job_from_spec"]


def job_from_spec(spec: JobSpec, folder: Path) -> Job:
    """Build the objects of a checked job file; its data are read when it runs.

    Args:
        spec: the checked file.
        folder: relative paths are relative to it.

    Raises:
        AtollError: what :func:`atoll.job.check.check_job` would have found.
    """
    if spec.statistics is not None:
        return _statistics(spec, folder)
    schedule, weighting, clock = schedule_of(spec), weighting_of(spec), clock_of(spec, folder)
    return Job(
        trainer=lambda islands: trainer_for(spec, islands, folder),
        algorithm=algorithm_named(spec.algorithm),
        local=local_work(spec),
        weighting=weighting,
        schedule=schedule,
        clock=clock,
        privacy=privacy_of(spec),
        stop=stop_of(spec),
        evaluate_every=spec.evaluation.every,
        central=spec.evaluation.central,
        federated=spec.evaluation.federated,
        compare=spec.evaluation.compare,
        checkpoint_every=spec.checkpoint.every,
        name=spec.name,
        seed=spec.seed,
        islands=lambda seed: load_islands(
            spec,
            folder,
            seed,
            lambda names: federation_faults(schedule, weighting, clock, names),
            lambda sites: discretion_of(spec, sites),
        ),
        definition=spec.definition(),
        executor=(spec.executor.name, spec.executor.workers, spec.executor.method),
        cluster=(spec.executor.address, spec.executor.gpus),
    )


_MOST_ROUNDS = 10_000


def _statistics(spec: JobSpec, folder: Path) -> Job:
    """A job that trains nothing; its algorithm is known once the sites have told of their columns."""
    return Job(
        trainer=NoModel(),
        algorithm=Statistic(Together({}), ()),
        weighting=Weighting("uniform"),
        schedule=schedule_of(spec),
        privacy=privacy_of(spec),
        stop=Stop(_MOST_ROUNDS, max_aborts=1),
        evaluate_every=0,
        central=False,
        federated=False,
        checkpoint_every=spec.checkpoint.every,
        name=spec.name,
        seed=spec.seed,
        islands=lambda seed: study_islands(spec, folder),
        definition=spec.definition(),
        executor=(spec.executor.name, spec.executor.workers, spec.executor.method),
        cluster=(spec.executor.address, spec.executor.gpus),
        study=study_of(spec),
    )
