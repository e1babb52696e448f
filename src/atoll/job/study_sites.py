"""A study where all of its tables lie on one machine: what ``atoll run`` does with ``[statistics]``."""

from __future__ import annotations

from pathlib import Path

from atoll.core.errors import AtollError, DataError, Fault, raise_faults
from atoll.core.seeds import Seed
from atoll.data.query_log import QueryLog
from atoll.job.islands import Islands
from atoll.job.schema import JobSpec
from atoll.job.settling import settle
from atoll.job.sites import site_tables
from atoll.job.study import study_of
from atoll.job.tables import privacy_of, schedule_of

__all__ = ["study_islands"]


def study_islands(spec: JobSpec, folder: Path) -> Islands:
    """The rows of the study at each site, after every site has agreed to what is asked.

    The logs of queries are this run's own: what was asked in another simulation is not known here.

    Args:
        spec: a job with a section on statistics.
        folder: relative paths are relative to it.

    Raises:
        DataError: with every fault of every site.
        Forbidden: disclosure control refuses; names the site.
    """
    raw = site_tables(spec.data, folder, Seed(spec.seed) / "data")
    settled = settle(privacy_of(spec), schedule_of(spec), None, len(raw))
    study = study_of(spec, masked=settled.masked)
    surveys, faults = {}, list[Fault]()
    for site, table in sorted(raw.items()):
        try:
            surveys[site] = study.tell(site, table)
        except DataError as error:
            faults += error.faults or [Fault(f"site {site!r}", error.message, error.remedy)]
    raise_faults(DataError, "the sites' tables", faults)
    agreed = study.agree(surveys)
    analysis, rule = study.analysis(agreed), agreed.book.rule
    held = {}
    for site in agreed.sites:
        try:
            held[site] = study.holding(agreed, site, raw[site])
        except AtollError as error:
            error.site = error.site or site
            raise
    logs = {site: QueryLog(rule.minimum, None, rule.masked) for site in held}
    for dry in (True, False):
        for site, holding in held.items():
            holding.admit(analysis, rule, logs[site], site, dry=dry)
    train = {site: holding.seen for site, holding in held.items()}
    return Islands(train=train, notes=agreed.notes, agreed=agreed)
