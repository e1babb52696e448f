"""Everything that can be wrong with a job before it runs, found together.

Each check reads some tables of the job. A table that is itself faulty would only produce echoes of its
fault, so a check runs when all tables it reads are whole.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from atoll.core.contracts import Weighting
from atoll.core.errors import Fault, JobConflict, JobError, MissingExtra, raise_faults, suggest
from atoll.core.values import ClientId
from atoll.job.conflicts import federation_faults, watch_faults
from atoll.job.datasets import BUILT_IN, load_islands
from atoll.job.faults import Gathering
from atoll.job.idle import idle_faults
from atoll.job.privacy import declared_faults
from atoll.job.registry import algorithm_named, model_faults
from atoll.job.schema import JobSpec
from atoll.job.study import study_faults
from atoll.job.tables import clock_of, local_work, privacy_of, schedule_of, weighting_of
from atoll.runtime.clock import Clock
from atoll.runtime.schedule import Synchronous

__all__ = ["check_job"]


def check_job(spec: JobSpec, folder: Path, found: Gathering, broken: Collection[str] = ()) -> None:
    """Add to ``found`` what is wrong across and behind the tables of a job.

    The data are read only when there is a fault already: else whoever runs the job reads them, once.

    Args:
        spec: the job, valid by itself but for the tables in ``broken``.
        folder: relative paths are relative to it.
        found: where faults go.
        broken: tables with faults of their own; checks that read them are left out.
    """
    if spec.statistics is not None or "statistics" in broken:
        with found.attempt("statistics"):
            raise_faults(JobError, "statistics", study_faults(spec))
        with found.attempt("executor"):
            _executor(spec, folder)
        return
    for check in _CHECKS:
        if not set(check.reads) & set(broken):
            with found.attempt(check.reads[0]):
                check.run(spec, folder)
    sound = not {"data", "preprocessing"} & set(broken)
    if found.faults and sound and not any(f.place.startswith("data.") for f in found.faults):
        with found.attempt("data"):
            load_islands(spec, folder, spec.seed, _known_parts(spec, broken))


@dataclass(frozen=True)
class _Check:
    """A check and the tables it reads; the first is where its faults are."""

    reads: tuple[str, ...]
    run: Callable[[JobSpec, Path], None]


def _known_parts(
    spec: JobSpec, broken: Collection[str]
) -> Callable[[Collection[ClientId]], list[Fault]]:
    """Faults with the federation, as far as the job's tables allow to say."""
    schedule = Synchronous() if "rounds" in broken else schedule_of(spec)
    weighting = Weighting() if "algorithm" in broken else weighting_of(spec)
    return lambda names: federation_faults(schedule, weighting, Clock(), names)


def _algorithm(spec: JobSpec, folder: Path) -> None:
    algorithm_named(spec.algorithm)


def _method(spec: JobSpec, folder: Path) -> None:
    """The algorithm against weights, local work and model; an unknown one is told by _algorithm."""
    try:
        algorithm = algorithm_named(spec.algorithm)
    except JobError:
        return
    found = [Fault("algorithm", f) for f in algorithm.faults(weighting_of(spec), local_work(spec))]
    foreign = spec.model.kind == "function" and not spec.model.options.get("corrects")
    if foreign and algorithm.needs_correction:
        reason = (
            f"{spec.algorithm.name} corrects the gradient of local training, "
            "which a fit function of your own does not do"
        )
        remedy = "apply context.rule in fit and set model.options.corrects = true, or use fedavg"
        found.append(Fault("model.fit", reason, remedy))
    raise_faults(JobConflict, "algorithm", found)


def _model(spec: JobSpec, folder: Path) -> None:
    raise_faults(JobError, "model", model_faults(spec, folder))


def _clock(spec: JobSpec, folder: Path) -> None:
    clock_of(spec, folder)


def _rounds(spec: JobSpec, folder: Path) -> None:
    raise_faults(JobConflict, "rounds", list(_pacing(spec)))


def _pacing(spec: JobSpec) -> Iterator[Fault]:
    rounds = spec.rounds
    if rounds.mode == "async":
        return
    if rounds.cohort in ("uniform", "weighted") and not rounds.size:
        yield Fault("rounds.size", f"a {rounds.cohort} cohort needs a size", "set rounds.size")
    if rounds.separation > 1 and rounds.cohort not in ("uniform", "weighted"):
        yield Fault(
            "rounds.separation",
            f"a cohort of {rounds.cohort!r} leaves nobody out for some rounds",
            "set rounds.cohort = 'uniform' with a size, or separation = 1",
        )
    if rounds.cohort == "weighted" and not rounds.cohort_weights:
        yield Fault(
            "rounds.cohort_weights",
            "a weighted cohort needs weights",
            "give them by client: { site = number }",
        )


def _idle(spec: JobSpec, folder: Path) -> None:
    """Of each table by itself: one with faults of its own stands at its defaults, which say nothing."""
    raise_faults(JobConflict, "keys without effect", list(idle_faults(spec)))


def _watched(spec: JobSpec, folder: Path) -> None:
    raise_faults(JobConflict, "stop", list(_never_computed(spec)))


def _never_computed(spec: JobSpec) -> Iterator[Fault]:
    on = spec.evaluation
    return watch_faults(spec.stop, on.every, central=on.central, federated=on.federated)


def _executor(spec: JobSpec, folder: Path) -> None:
    if spec.executor.name == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtra("the executor 'ray' needs Ray", remedy="pip install 'atoll[ray]'")


def _privacy(spec: JobSpec, folder: Path) -> None:
    judged = spec.evaluation.federated and spec.evaluation.every > 0
    found = declared_faults(privacy_of(spec), schedule_of(spec), weighting_of(spec), judged)
    raise_faults(JobConflict, "privacy", found)


def _metric(spec: JobSpec, folder: Path) -> None:
    """A misspelt metric would be watched for ever; foreign fit functions name their own."""
    where, _, name = spec.stop.metric.partition(".")
    if not name or spec.model.kind == "function":
        return
    known = _METRICS[spec.data.task]
    if (
        where == "federated"
        and spec.privacy.metrics is not None
        and name in known
        and name not in ("loss", "accuracy")
    ):
        reason = f"{name!r} is not among the figures that privacy.metrics tells with noise"
        fault = Fault("stop.metric", reason, f"watch federated.{known[0]}, or no figure")
        raise JobConflict("stop", faults=[fault])
    if name not in known:
        remedy = suggest(spec.stop.metric, [f"{where}.{other}" for other in known])
        fault = Fault("stop.metric", f"a {spec.data.task} has no metric {name!r}", remedy)
        raise JobError("stop", faults=[fault])


def _central(spec: JobSpec, folder: Path) -> None:
    """A central metric needs a central test set, which only some sources have."""
    data = spec.data
    own = data.source in BUILT_IN or (data.central_test and data.test_fraction > 0)
    if spec.stop.metric.startswith("central.") and not own:
        reason = f"{spec.stop.metric!r} is watched, but there is no central test set"
        fault = Fault("stop.metric", reason, "set data.central_test = true, or watch federated")
        raise JobConflict("stop", faults=[fault])


def _data(spec: JobSpec, folder: Path) -> None:
    raise_faults(JobConflict, "data", list(_misplaced(spec)))


def _misplaced(spec: JobSpec) -> Iterator[Fault]:
    """Keys of ``[data]`` that this source would silently ignore."""
    data, given = spec.data, spec.data.said
    images = data.source.endswith(".npz") and not data.target
    if data.source in BUILT_IN or images:
        for key in ("target", "site_column", "features", "drop", "columns", "classes"):
            if key in given:
                yield Fault(
                    f"data.{key}", f"has no meaning for the source {data.source!r}", "remove it"
                )
        if spec.preprocessing.said:
            yield Fault("preprocessing", "is for tables", "remove it")
    elif "target" not in given:
        yield Fault("data.target", "this key is required for tables", "name the column to predict")
    if data.source in ("synthetic", "fcube"):
        for key in ("test_fraction", "central_test", "stratify"):
            if key in given:
                reason = f"has no meaning for {data.source!r}, which has test rows of its own"
                yield Fault(f"data.{key}", reason, "remove it")
    if data.source in ("synthetic", "fcube") and data.partition is not None:
        yield Fault("data.partition", f"{data.source!r} has its own clients", "remove it")
    if data.source not in BUILT_IN and data.options:
        yield Fault("data.options", "files have no options", "remove them")
    if data.site_column and data.partition is not None:
        yield Fault(
            "data.partition", "the data already have sites, by data.site_column", "remove one"
        )
    named = {"target": data.target, "site_column": data.site_column}
    for key, column in named.items():
        for other in ("features", "drop"):
            if column and column in getattr(data, other):
                yield Fault(f"data.{other}", f"{column!r} is the {key}", "remove it from the list")
    if data.target and data.target == data.site_column:
        yield Fault("data.target", f"{data.target!r} is also the site_column", "name another")
    for column in sorted(set(data.drop) & (set(data.columns) | set(data.features))):
        yield Fault("data.drop", f"{column!r} is also declared or listed", "remove one of the two")


_METRICS = {
    "classification": ("loss", "accuracy", "auc"),
    "regression": ("loss", "mse", "mae", "r2"),
}

_CHECKS = (
    _Check(("data", "preprocessing"), _data),
    _Check(("model", "data", "local"), _model),
    _Check(("algorithm",), _algorithm),
    _Check(("algorithm", "local", "model"), _method),
    _Check(("rounds",), _rounds),
    _Check(("clock",), _clock),
    _Check(("model",), _idle),
    _Check(("stop", "evaluation"), _watched),
    _Check(("stop", "model", "data"), _metric),
    _Check(("stop", "data"), _central),
    _Check(("privacy", "rounds", "algorithm", "evaluation"), _privacy),
    _Check(("executor",), _executor),
)
