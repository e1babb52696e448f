"""What a job's ``[privacy]`` section says, and what in it contradicts itself whatever the federation is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from atoll.core.contracts import Weighting
from atoll.core.errors import Fault
from atoll.core.ranges import check
from atoll.privacy.dp.accounting import Method
from atoll.privacy.dp.calibration import Goal
from atoll.privacy.dp.events import Gaussian
from atoll.runtime.schedule import Asynchronous, Schedule, Synchronous

__all__ = [
    "CORRELATED",
    "ClientPrivacy",
    "MetricsPrivacy",
    "Privacy",
    "RowPrivacy",
    "declared_faults",
]

CORRELATED = ("tree", "banded", "blt")
"""Mechanisms whose noise is correlated over rounds."""

_CENTRAL = ("auto", "gaussian", *CORRELATED)
_SHARED = ("auto", "skellam", "discrete_gaussian")
_OWN = ("auto", "gaussian")
_GOAL: Mapping[str, Any] = {
    "noise_multiplier": "[0, inf)",
    "epsilon": "[0, inf)",
    "delta": "(0, 1)",
    "found": "[0, 1)",
    "fpr": "(0, 1)",
}
"""What a unit of privacy may ask for."""


@dataclass(frozen=True)
class ClientPrivacy:
    """``[privacy.client]``: differential privacy whose unit is a client, all of its rows together.

    Args:
        noise_multiplier: z; 0 where it follows from the goal and the planned rounds.
        epsilon: never passed; 0 for no limit.
        delta: at which epsilon is stated.
        found: largest part of the members that any attack finds, never passed; 0 for no limit.
        fpr: part of the strangers that such an attack takes for members.
        where: who adds the noise: the ``server``, the ``sites`` (a share each, inside the mask) or each
            ``client`` (all of it, which hides its update from everybody: local privacy).
        mechanism: ``gaussian``, ``tree``, ``banded`` or ``blt`` at the server, ``skellam`` or
            ``discrete_gaussian`` at the sites; ``auto`` for the first of each.
        amplified: whether secret Poisson sampling is counted.
        bands: of ``banded``; 0 for as many as there are rounds between two visits of a client.
        buffers: most that ``blt`` has.
        colluders: sites whose shares of the noise do not count.
        open_metrics: whether figures of clients' rows may be released outside epsilon.
    """

    noise_multiplier: float = 0.0
    epsilon: float = 0.0
    delta: float = 1e-5
    found: float = 0.0
    fpr: float = 0.01
    where: Literal["server", "sites", "client"] = "server"
    mechanism: Literal[
        "auto", "gaussian", "tree", "banded", "blt", "skellam", "discrete_gaussian"
    ] = "auto"
    amplified: bool = False
    bands: int = 0
    buffers: int = 4
    colluders: int = 0
    open_metrics: bool = False

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(
            self,
            "privacy.client",
            **_GOAL,
            where=("server", "sites", "client"),
            mechanism=("auto", "gaussian", *CORRELATED, "skellam", "discrete_gaussian"),
            amplified="bool",
            bands="whole [0, inf)",
            buffers="whole [1, 8]",
            colluders="whole [0, inf)",
            open_metrics="bool",
        )

    @property
    def goal(self) -> Goal:
        """What the run may cost one client."""
        return Goal(self.epsilon, self.delta, self.found, self.fpr)


@dataclass(frozen=True)
class RowPrivacy:
    """``[privacy.record]``: local training that hides single rows.

    Args:
        clip: largest L2 norm of one row's gradient.
        noise_multiplier: z of every step; 0 where it follows from the goal and the planned rounds.
        epsilon: never passed at any site; 0 for no limit.
        delta: at which epsilon is stated.
        found: largest part of the members that any attack finds, never passed at any site; 0 for no limit.
        fpr: part of the strangers that such an attack takes for members.
        micro_batch: most rows whose gradients are held at once; 0 for as many as fit.
        open_metrics: whether figures of held-out rows may be released outside epsilon.
        beside: what is released of rows beside training, all of it: figures with noise.
    """

    clip: float = 1.0
    noise_multiplier: float = 0.0
    epsilon: float = 0.0
    delta: float = 1e-5
    found: float = 0.0
    fpr: float = 0.01
    micro_batch: int = 0
    open_metrics: bool = False
    beside: tuple[Gaussian, ...] = ()

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(
            self,
            "privacy.record",
            **_GOAL,
            clip="(0, inf)",
            micro_batch="whole [0, inf)",
            open_metrics="bool",
        )

    @property
    def goal(self) -> Goal:
        """What the run may cost one row."""
        return Goal(self.epsilon, self.delta, self.found, self.fpr)

    @property
    def method(self) -> Method:
        """Of accounting: Renyi divergence, in milliseconds, where it is close enough."""
        return "best" if self.found else "rdp"


@dataclass(frozen=True)
class MetricsPrivacy:
    """``[privacy.metrics]``: noise on figures of held-out rows, inside the goal of ``[privacy.record]``.

    Args:
        noise_multiplier: z of one evaluation; 0 where it follows from ``share``.
        share: part of the goal that all planned evaluations together may take.
        loss: a row's loss counts as at most this.
        every: rounds from one evaluation to the next.
        evaluations: planned ones.
    """

    noise_multiplier: float = 0.0
    share: float = 0.1
    loss: float = 4.0
    every: int = 1
    evaluations: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(
            self,
            "privacy.metrics",
            noise_multiplier="[0, inf)",
            share="(0, 1)",
            loss="(0, inf)",
            every="whole [1, inf)",
            evaluations="whole [0, inf)",
        )


@dataclass(frozen=True)
class Privacy:
    """``[privacy]``: what an update passes on its way out.

    Args:
        aggregation: ``plain``, ``quantised`` (as integers), ``masked`` (the same integers, added up
            under masks) or ``encrypted`` (the same, added up as ciphertexts); ``auto`` until
            :mod:`atoll.job.settling` has made one of them of it.
        bound: largest absolute value of a coordinate, where no clip says it.
        cap: largest number of examples that counts as weight; 0 for 1000.
        threshold: how many clients must stay in a masked round; 0 for two thirds and one.
        degree: neighbours in a sparse graph; 0 for everybody.
        clip: C, the largest L2 norm of an update; 0 for none.
        clip_by: the whole update (``l2``), every layer, or ``adaptive`` by quantile.
        quantile: share of updates that an adaptive clip leaves as they are.
        client: client-level differential privacy; None for none.
        record: record-level differential privacy; None for none.
        metrics: how figures of held-out rows are noised; None for not at all.
        max_norm: updates of a larger L2 norm are refused; 0 for no limit.
        bits: of the integers that a model's values become.
    """

    aggregation: Literal["auto", "plain", "quantised", "masked", "encrypted"] = "plain"
    bound: float = 1.0
    cap: int = 0
    threshold: int = 0
    degree: int = 0
    clip: float = 0.0
    clip_by: Literal["l2", "layer", "adaptive"] = "l2"
    quantile: float = 0.5
    client: ClientPrivacy | None = None
    record: RowPrivacy | None = None
    metrics: MetricsPrivacy | None = None
    max_norm: float = 0.0
    bits: Literal[32, 64] = 32

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(
            self,
            "privacy",
            optional=("client", "record", "metrics"),
            aggregation=("auto", "plain", "quantised", "masked", "encrypted"),
            bound="(0, inf)",
            cap="whole [0, inf)",
            threshold="whole [0, inf)",
            degree="whole [0, inf)",
            clip="[0, inf)",
            clip_by=("l2", "layer", "adaptive"),
            quantile="[0, 1]",
            client=ClientPrivacy,
            record=RowPrivacy,
            metrics=MetricsPrivacy,
            max_norm="[0, inf)",
            bits=(32, 64),
        )

    @property
    def integers(self) -> bool:
        """Whether updates become integers."""
        return self.aggregation not in ("plain", "auto")

    def __bool__(self) -> bool:
        """Whether there is anything to pass."""
        return self.integers or self.clip > 0 or self.client is not None


def declared_faults(
    privacy: Privacy, schedule: Schedule, weighting: Weighting, federated: bool
) -> list[Fault]:
    """What contradicts itself whatever the federation is.

    Args:
        privacy: the section.
        schedule: of the rounds.
        weighting: the rule for weights.
        federated: whether clients evaluate on their held-out rows.
    """
    found = list(_aggregation_faults(privacy, schedule))
    if privacy.client is not None:
        found += _client_faults(privacy, privacy.client, schedule, weighting, federated)
    if privacy.record is not None:
        found += _row_faults(privacy, privacy.record, schedule, federated)
    if privacy.metrics is not None:
        found += _metrics_faults(privacy, privacy.metrics, federated)
    return found


def _metrics_faults(privacy: Privacy, metrics: MetricsPrivacy, federated: bool) -> Iterator[Fault]:
    record = privacy.record
    if record is None:
        yield Fault(
            "privacy.metrics",
            "noises figures of rows, and the job hides no rows",
            "add privacy.record, or remove the table",
        )
        return
    if record.open_metrics:
        reason = "beside privacy.record.open_metrics, which tells the same figures without noise"
        yield Fault("privacy.metrics", reason, "remove one of the two")
    if not federated:
        reason = "noises figures of held-out rows, and the job asks for none"
        remedy = "set evaluation.federated = true with evaluation.every, or remove the table"
        yield Fault("privacy.metrics", reason, remedy)
    if not metrics.noise_multiplier and not record.goal:
        reason = "takes a share of an epsilon that the job does not name"
        remedy = "set privacy.metrics.noise_multiplier, or epsilon or found in privacy.record"
        yield Fault("privacy.metrics", reason, remedy)
    elif federated and not record.beside:
        reason = "is not in the account of [privacy.record]"
        remedy = "take the record from atoll.job.figures.with_figures, with evaluations above 0"
        yield Fault("privacy.metrics", reason, remedy)


def _row_faults(
    privacy: Privacy, record: RowPrivacy, schedule: Schedule, federated: bool
) -> Iterator[Fault]:
    if isinstance(schedule, Asynchronous) and schedule.max_staleness == 0:
        yield Fault(
            "rounds.max_staleness",
            "a site whose update is thrown away for its age trains a second time for the same step, and the "
            "account has one training a step",
            "set it to 1 or more, or rounds.mode = 'sync'",
        )
    if privacy.client is not None:
        yield Fault(
            "privacy.record",
            "beside privacy.client: one run has one unit of privacy",
            "remove one of the two tables",
        )
    yield from _goal_faults("privacy.record", record)
    if federated and not record.open_metrics and privacy.metrics is None:
        yield Fault(
            "evaluation.federated",
            "releases figures of held-out rows without noise, outside epsilon",
            "add [privacy.metrics] for noise on them, set evaluation.federated = false, or "
            "privacy.record.open_metrics = true to say so",
        )


def _goal_faults(place: str, said: ClientPrivacy | RowPrivacy) -> Iterator[Fault]:
    if not said.noise_multiplier and not said.goal:
        remedy = "set noise_multiplier, or epsilon and delta, or found"
        yield Fault(place, "names no noise", remedy)
    if said.epsilon and said.found:
        reason = "beside epsilon: noise has one goal"
        remedy = "remove one of the two; what the run costs in the other is stated in any case"
        yield Fault(f"{place}.found", reason, remedy)
    if said.found and said.found <= said.fpr:
        reason = f"{said.found:g} is what guessing finds, with fpr = {said.fpr:g}"
        yield Fault(f"{place}.found", reason, "ask for more than fpr, such as 3 times as much")
    if not said.found and said.fpr != Goal().fpr:
        reason = "is the rate at which found is meant, which the job does not name"
        yield Fault(f"{place}.fpr", reason, "set found, or remove fpr")


def _aggregation_faults(privacy: Privacy, schedule: Schedule) -> Iterator[Fault]:
    if privacy.aggregation not in ("masked", "auto"):
        for key in ("threshold", "degree"):
            if getattr(privacy, key):
                yield Fault(
                    f"privacy.{key}",
                    f"has no meaning with aggregation = {privacy.aggregation!r}",
                    "set privacy.aggregation = 'masked'",
                )
    if privacy.max_norm and privacy.integers:
        yield Fault(
            "privacy.max_norm",
            f"the server of a job with aggregation = {privacy.aggregation!r} sees no single norm",
            "set privacy.clip, which sites keep to, or aggregation = 'plain'",
        )
    lonely = isinstance(schedule, Asynchronous) and schedule.buffer < 2
    if privacy.aggregation == "quantised" and lonely:
        yield Fault(
            "rounds.mode",
            "every update is a step of its own, and integers are for sums",
            "use fedbuff with a rounds.buffer, or rounds.mode = 'sync'",
        )


def _client_faults(
    privacy: Privacy,
    client: ClientPrivacy,
    schedule: Schedule,
    weighting: Weighting,
    federated: bool,
) -> Iterator[Fault]:
    if not privacy.clip:
        yield Fault(
            "privacy.clip",
            "differential privacy needs a bound on what one client sends",
            "set privacy.clip, such as 1.0",
        )
    yield from _goal_faults("privacy.client", client)
    if weighting.kind == "examples" and not privacy.cap:
        yield Fault(
            "algorithm.weights",
            "weights by examples have no bound, so one client may count any number of times",
            "set privacy.cap, or algorithm.weights = 'uniform'",
        )
    poisson = isinstance(schedule, Synchronous) and schedule.cohort.kind == "poisson"
    if client.amplified and not poisson:
        yield Fault(
            "privacy.client.amplified",
            "only Poisson sampling earns amplification",
            "set rounds.cohort = 'poisson' with a rate, or amplified = false",
        )
    if federated and not client.open_metrics:
        yield Fault(
            "evaluation.federated",
            "releases figures of clients' rows without noise, outside epsilon",
            "set evaluation.federated = false, or privacy.client.open_metrics = true to say so",
        )
    yield from _mechanism_faults(privacy, client, schedule)


def _mechanism_faults(
    privacy: Privacy, client: ClientPrivacy, schedule: Schedule
) -> Iterator[Fault]:
    known = {"server": _CENTRAL, "sites": _SHARED, "client": _OWN}[client.where]
    if client.mechanism not in known:
        yield Fault(
            "privacy.client.mechanism",
            f"{client.mechanism!r} is no noise of the {client.where}",
            f"one of {', '.join(known)}, or another privacy.client.where",
        )
    if client.where == "sites" and privacy.aggregation != "masked":
        yield Fault(
            "privacy.client.where",
            "a site's share of the noise protects a sum, and the server sees each update",
            "set privacy.aggregation = 'masked', or where = 'server'",
        )
    if client.where == "client":
        yield from _local_faults(privacy, client, schedule)
    elif privacy.clip_by == "adaptive" and isinstance(schedule, Asynchronous):
        yield Fault(
            "privacy.clip_by",
            "'adaptive' moves the bound while updates that keep to an earlier one are under way, and noise is "
            "for the newest",
            "set clip_by = 'l2', or rounds.mode = 'sync'",
        )
    correlated = client.mechanism in CORRELATED
    if correlated and privacy.clip_by == "adaptive":
        yield Fault(
            "privacy.clip_by",
            "'adaptive' changes the bound between rounds, over which the noise is correlated",
            "set clip_by = 'l2', or mechanism = 'gaussian'",
        )
    if correlated and client.amplified:
        yield Fault(
            "privacy.client.amplified",
            f"{client.mechanism!r} is for jobs without sampling",
            "set mechanism = 'gaussian', or amplified = false",
        )


def _local_faults(privacy: Privacy, client: ClientPrivacy, schedule: Schedule) -> Iterator[Fault]:
    if privacy.clip_by == "adaptive":
        yield Fault(
            "privacy.clip_by",
            "'adaptive' has each client say whether it was below the bound, without noise of its own",
            "set clip_by = 'l2', or where = 'server'",
        )
    if client.amplified:
        yield Fault(
            "privacy.client.amplified",
            "who receives an update knows whose it is, so sampling hides nobody",
            "set amplified = false, or where = 'server'",
        )
    if isinstance(schedule, Asynchronous):
        yield Fault(
            "rounds.mode",
            "a fast client sends more than once in a step, and each of its updates costs",
            "set rounds.mode = 'sync', or where = 'server'",
        )
