"""Tables of a job file become the frozen objects of the runtime, one function each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.core.contracts import Weighting
from atoll.core.errors import Fault, JobError
from atoll.core.local import LocalWork, Optimizer
from atoll.core.local import Schedule as RateSchedule
from atoll.job.figures import metrics_privacy, with_figures
from atoll.job.privacy import ClientPrivacy, Privacy, RowPrivacy
from atoll.runtime.clock import Availability, Clock, Delay, read_intervals, read_seconds
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Stop
from atoll.runtime.schedule import Asynchronous, Schedule, Synchronous

if TYPE_CHECKING:
    from atoll.job.schema import JobSpec

__all__ = ["clock_of", "local_work", "privacy_of", "schedule_of", "stop_of", "weighting_of"]


def local_work(spec: JobSpec) -> LocalWork:
    """``[local]``."""
    given = spec.local
    return LocalWork(
        epochs=given.epochs,
        steps=given.steps,
        batch_size=given.batch_size,
        optimizer=Optimizer(
            name=given.optimizer,
            lr=given.lr,
            momentum=given.momentum,
            nesterov=given.nesterov,
            weight_decay=given.weight_decay,
            betas=given.betas,
            eps=given.eps,
        ),
        schedule=RateSchedule(**given.schedule.model_dump()),
        clip_norm=given.clip_norm,
        drop_last=given.drop_last,
    )


def weighting_of(spec: JobSpec) -> Weighting:
    """``weights`` of ``[algorithm]``."""
    weights = spec.algorithm.weights
    return Weighting(weights) if isinstance(weights, str) else Weighting("given", weights)


def clock_of(spec: JobSpec, folder: Path) -> Clock:
    """``[clock]``, with its traces read.

    Raises:
        JobError: a trace without a file.
        DataError: a trace that cannot be read.
    """
    given, delay = spec.clock, spec.clock.delay
    if delay.kind == "trace" and not delay.trace:
        fault = Fault("clock.delay.trace", "a trace needs a file", "name a CSV with client,seconds")
        raise JobError("the delay has no trace", faults=[fault])
    spans = given.availability_trace
    return Clock(
        delay=Delay(
            kind=delay.kind,
            scale=delay.scale,
            sigma=delay.sigma,
            per=delay.per,
            per_example=delay.per_example,
            trace=read_seconds(folder / delay.trace) if delay.kind == "trace" else {},
        ),
        availability=Availability(
            given.availability, read_intervals(folder / spans) if spans else None
        ),
        dropout=given.dropout,
        partial=given.partial,
        partial_low=given.partial_low,
    )


def schedule_of(spec: JobSpec) -> Schedule:
    """``[rounds]``: when the server has enough."""
    given = spec.rounds
    if given.mode == "async":
        return Asynchronous(given.buffer, given.concurrency, given.max_staleness)
    cohort = Cohort(given.cohort, given.size, given.rate, given.cohort_weights, given.separation)
    return Synchronous(cohort, given.over_selection, given.deadline or math.inf, given.quorum)


def privacy_of(spec: JobSpec) -> Privacy:
    """``[privacy]``."""
    given, client, metrics = spec.privacy, spec.privacy.client, metrics_privacy(spec)
    return Privacy(
        aggregation=given.aggregation,
        bound=given.bound,
        cap=given.cap,
        threshold=given.threshold,
        degree=given.degree,
        max_norm=given.max_norm,
        clip=given.clip,
        clip_by=given.clip_by,
        quantile=given.quantile,
        client=None if client is None else ClientPrivacy(**client.model_dump()),
        record=None
        if given.record is None
        else with_figures(RowPrivacy(**given.record.model_dump()), metrics),
        metrics=metrics,
    )


def stop_of(spec: JobSpec) -> Stop:
    """``[stop]``, with the number of rounds."""
    return Stop(
        rounds=spec.rounds.count,
        metric=spec.stop.metric,
        patience=spec.stop.patience,
        min_delta=spec.stop.min_delta,
        target=spec.stop.target,
        seconds=spec.stop.virtual_seconds or math.inf,
        max_aborts=spec.rounds.max_aborts,
    )
