"""``[privacy.metrics]``: how figures of held-out rows are noised, and what part of the goal that takes.

Training and figures are one account: the noise of all planned evaluations is calibrated to its share of the
goal first, and the noise of training then to all of it with those evaluations in it. As costs of parts add
up to more than that of the whole, training has a little more than the rest.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from atoll.core.errors import JobConflict
from atoll.job.declared import MetricsPrivacy, Privacy, RowPrivacy
from atoll.privacy.dp.calibration import calibrate
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.figures import NoisedFigures

if TYPE_CHECKING:
    from atoll.job.schema import JobSpec

__all__ = ["figures_of", "metrics_privacy", "with_figures"]


def metrics_privacy(spec: JobSpec) -> MetricsPrivacy | None:
    """The table, with how often held-out rows are looked at."""
    given, every = spec.privacy.metrics, spec.evaluation.every
    if given is None:
        return None
    planned = -(-spec.rounds.count // every) if every and spec.evaluation.federated else 0
    return MetricsPrivacy(**given.model_dump(), every=max(1, every), evaluations=planned)


def with_figures(record: RowPrivacy, metrics: MetricsPrivacy | None) -> RowPrivacy:
    """The table on rows, with what figures take of its goal; where they take nothing none are told.

    Raises:
        JobConflict: no noise keeps the share.
    """
    if metrics is None or not metrics.evaluations:
        return record
    z = metrics.noise_multiplier or _calibrated(record, metrics)
    return replace(record, beside=(Gaussian(z, 1.0, metrics.evaluations),)) if z else record


def figures_of(privacy: Privacy) -> NoisedFigures | None:
    """How figures are told; None for as they are."""
    if privacy.record is None or privacy.metrics is None or not privacy.record.beside:
        return None
    (event,) = privacy.record.beside
    return NoisedFigures(event.noise_multiplier, privacy.metrics.loss)


@lru_cache(maxsize=32)
def _calibrated(record: RowPrivacy, metrics: MetricsPrivacy) -> float:
    """The least noise at which all planned evaluations stay within their share; 0 without a goal."""
    if not record.goal.most > 0:
        return 0.0
    count, method = metrics.evaluations, record.method
    try:
        return calibrate(record.goal, count, share=metrics.share, method=method)
    except JobConflict as error:
        raise JobConflict(
            f"{count} evaluations under [privacy.metrics]: {error.message}",
            remedy="raise privacy.metrics.share or the goal in [privacy.record], or evaluate less often",
        ) from error
