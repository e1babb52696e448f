"""Keys of a job file that would change nothing, because another key says so.

Whoever writes ``rounds.size = 10`` and forgets the cohort means ten clients, not all of them. A key at its
default says nothing, so that an override can take one back: ``--set rounds.size=0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atoll.core.errors import Fault

if TYPE_CHECKING:
    from atoll.job.schema import JobSpec

__all__ = ["idle_faults"]

_ADAMS = ("adam", "adamw", "nadam", "radam")
_SYNC = (
    "cohort", "size", "rate", "cohort_weights", "separation", "over_selection", "deadline", "quorum"
)  # fmt: skip
_ASYNC = ("buffer", "concurrency", "max_staleness")

_ONLY_WITH: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("data.stratify", "data.task", ("classification",)),
    ("data.partition.alpha", "data.partition.kind", ("dirichlet", "quantity")),
    ("data.partition.balance", "data.partition.kind", ("dirichlet",)),
    ("data.partition.min_rows", "data.partition.kind", ("dirichlet", "quantity")),
    ("data.partition.classes_per_client", "data.partition.kind", ("classes",)),
    ("data.partition.noise", "data.partition.kind", ("feature_noise",)),
    ("preprocessing.fill", "preprocessing.impute", ("constant",)),
    ("local.momentum", "local.optimizer", ("sgd", "rmsprop")),
    ("local.nesterov", "local.optimizer", ("sgd",)),
    ("local.betas", "local.optimizer", _ADAMS),
    ("local.eps", "local.optimizer", (*_ADAMS, "adagrad", "rmsprop")),
    ("local.schedule.gamma", "local.schedule.kind", ("step",)),
    ("local.schedule.every", "local.schedule.kind", ("step", "cosine")),
    ("local.schedule.floor", "local.schedule.kind", ("cosine",)),
    ("local.schedule.unit", "local.schedule.kind", ("step", "cosine")),
    *((f"rounds.{key}", "rounds.mode", ("sync",)) for key in _SYNC),
    *((f"rounds.{key}", "rounds.mode", ("async",)) for key in _ASYNC),
    ("rounds.size", "rounds.cohort", ("uniform", "weighted")),
    ("rounds.rate", "rounds.cohort", ("poisson",)),
    ("rounds.cohort_weights", "rounds.cohort", ("weighted",)),
    ("privacy.quantile", "privacy.clip_by", ("adaptive",)),
    ("privacy.client.bands", "privacy.client.mechanism", ("banded",)),
    ("privacy.client.buffers", "privacy.client.mechanism", ("blt",)),
    ("privacy.client.colluders", "privacy.client.where", ("sites",)),
    ("clock.delay.sigma", "clock.delay.kind", ("log_normal",)),
    ("clock.delay.trace", "clock.delay.kind", ("trace",)),
)
"""A key, and the words of another one beside which it means something; the first row that objects tells."""

_ONLY_BESIDE = (
    ("local.nesterov", "local.momentum"),
    ("privacy.clip_by", "privacy.clip"),
    ("clock.partial_low", "clock.partial"),
    ("stop.min_delta", "stop.metric"),
)
"""A key, and another one that has to be set beside it."""


def idle_faults(spec: JobSpec) -> Iterator[Fault]:
    """What is said in vain. A fit function of the job's own gets all of ``[local]``: there none of it is.

    Kinds of partitions are what experiments go through, ``--set data.partition.kind=iid``: where one is named,
    options of the others are not refused.
    """
    told = set[str]()
    dealt = spec.data.partition
    swept = dealt is not None and "kind" in dealt.model_fields_set
    for place, other, words in _ONLY_WITH:
        if place in told or not _said(spec, place) or (word := _at(spec, other)) in words:
            continue
        if swept and other == "data.partition.kind":
            continue
        told.add(place)
        choice = " or ".join(map(repr, words))
        remedy = f"set {other} = {choice}, or remove it"
        yield Fault(place, f"has no meaning with {other} = {word!r}", remedy)
    for place, other in _ONLY_BESIDE:
        if place not in told and _said(spec, place) and not _said(spec, other):
            yield Fault(place, f"has no meaning without {other}", f"set {other}, or remove it")
    if spec.local.steps and _said(spec, "local.epochs"):
        reason = "has no meaning beside local.steps, which counts instead"
        yield Fault("local.epochs", reason, "remove one of the two")
    for key in ("data.stratify", "data.central_test"):
        if key not in told and not spec.data.test_fraction and _said(spec, key):
            reason = "has no meaning with data.test_fraction = 0: no row is held out"
            yield Fault(key, reason, "set data.test_fraction, or remove it")
    delay = spec.clock.delay
    if delay.kind not in ("constant", "trace") and not delay.scale:
        reason = f"{delay.kind!r} with clock.delay.scale = 0 is no delay"
        yield Fault("clock.delay.kind", reason, "set clock.delay.scale, or remove it")


def _at(spec: JobSpec, place: str) -> Any:
    """The value of a key; None where its table is not there."""
    found: Any = spec
    for name in place.split("."):
        found = None if found is None else getattr(found, name)
    return found


def _said(spec: JobSpec, place: str) -> bool:
    """Whether a key has another value than its default, and Atoll reads it."""
    table, _, key = place.rpartition(".")
    section = _at(spec, table)
    if section is None or (spec.model.kind == "function" and table.startswith("local")):
        return False
    return key in section.said
