"""The chain of a job of statistics: digits and masks, or nothing."""

from __future__ import annotations

from dataclasses import replace

from atoll.core.chain import Chain, Setting
from atoll.core.errors import Fault
from atoll.job.declared import Privacy
from atoll.privacy.links.digits import Digits
from atoll.privacy.links.mask import Mask
from atoll.runtime.client import Parts

__all__ = ["with_digits"]


def with_digits(privacy: Privacy, parts: Parts, sites: int) -> tuple[Parts, list[Fault]]:
    """The parts with their chain, and what is wrong with it.

    Args:
        privacy: the section, settled.
        parts: the run's.
        sites: how many take part.
    """
    if privacy.aggregation != "masked":
        return parts, []
    mask = Mask(privacy.threshold, privacy.degree)
    chain = Chain((Digits(), mask), sites)
    setting = Setting(
        vectors={},
        metrics={},
        model=0,
        weighting=parts.weighting,
        cohort=sites,
        quorum=1,
        population=sites,
        rate=None,
        forms_cohorts=True,
        additive=True,
    )
    faults = list(mask.faults(setting))
    return (parts if faults else replace(parts, chain=chain)), faults
