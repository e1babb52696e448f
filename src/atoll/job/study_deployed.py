"""A study where its sites are apart: the halves of what :mod:`atoll.job.study_sites` does in one process.

At the sites :func:`told_at`, :func:`held_at`, :func:`parts_at` and :func:`ready_at`; at the server
:func:`agreed_by` and :func:`coordinated`. Digits add up without rounding, so a deployed run in which every
site answers ends in the bits of the simulation, with masks and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from atoll.algorithms.statistics.holding import Holding
from atoll.algorithms.statistics.running import NoModel
from atoll.core.contracts import Weighting
from atoll.core.errors import DataError, JobConflict, raise_faults
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data.disclosure import Disclosure
from atoll.data.table import Table
from atoll.job.build import Job
from atoll.job.digits import with_digits
from atoll.job.from_file import job_from_spec
from atoll.job.islands import Islands
from atoll.job.schema import JobSpec, Section
from atoll.job.settling import settle
from atoll.job.standing import Rows
from atoll.job.study import Agreed, Study, study_of
from atoll.job.survey import body_of
from atoll.job.tables import privacy_of, schedule_of
from atoll.runtime.client import Parts

__all__ = ["agreed_by", "coordinated", "held_at", "parts_at", "ready_at", "study_for", "told_at"]


def study_for(spec: JobSpec, sites: int) -> Study:
    """The study of a job between so many sites: their number decides whether ``auto`` masks."""
    settled = settle(privacy_of(spec), schedule_of(spec), None, sites)
    return study_of(spec, masked=settled.masked)


def told_at(
    spec: JobSpec, site: ClientId, table: Table, sites: int, own: Disclosure | None = None
) -> dict[str, Any]:
    """What a site tells of its columns: :meth:`atoll.job.study.Study.tell`.

    Args:
        spec: the job.
        site: this one.
        table: its rows.
        sites: how many take part in the run.
        own: the site's disclosure control; None for the job's.
    """
    return study_for(spec, sites).tell(site, table, own)


def agreed_by(spec: JobSpec, surveys: Mapping[ClientId, Mapping[str, Any]]) -> Agreed:
    """What the sites agree on; every analysis fits it.

    Raises:
        DataError: with every fault of every site.
    """
    study = study_for(spec, len(surveys))
    agreed = study.agree(surveys)
    study.analysis(agreed)
    return agreed


def held_at(spec: JobSpec, agreed: Agreed, site: ClientId, table: Table) -> Holding:
    """A site's rows as the analyses read them: :meth:`atoll.job.study.Study.holding`.

    Raises:
        DataError: the rows do not fit what was agreed on, or this site is not one of those that did.
        Forbidden: fewer persons than the minimum.
    """
    if site not in agreed.sites:
        raise DataError("the plan of this run does not name this site", site=site)
    return study_for(spec, len(agreed.sites)).holding(agreed, site, table)


def parts_at(spec: JobSpec, agreed: Agreed, holding: Holding, site: ClientId) -> Parts:
    """What is fixed for the run at this site.

    Raises:
        DataError: an analysis does not fit the columns.
    """
    job = _job(spec, agreed)
    return _parts(job, {site: holding.seen}, len(agreed.sites))


def _job(spec: JobSpec, agreed: Agreed, *, elsewhere: bool = False) -> Job:
    """The job as it runs between the sites that agreed."""
    job = job_from_spec(spec, Path()).settled(len(agreed.sites))
    return job.asking(agreed, elsewhere=elsewhere)


def _parts(job: Job, clients: Mapping[ClientId, Any], sites: int) -> Parts:
    parts = Parts(
        algorithm=job.algorithm,
        trainer=NoModel(),
        clients=clients,
        seed=Seed(job.seed),
        weighting=Weighting("uniform"),
        apart=True,
    )
    made, faults = with_digits(job.privacy, parts, sites)
    raise_faults(JobConflict, "this job cannot run on this federation", faults)
    return made


class Ready(Section):
    """What a site answers once it could begin: how many rows, or 1 where sums are masked."""

    rows: Annotated[int, Field(ge=1, le=2**53)]


def ready_at(parts: Parts) -> dict[str, Any]:
    """What a site answers once it could begin, ready for JSON."""
    rows = 1 if parts.chain else len(next(iter(parts.clients.values())))
    return Ready(rows=rows).model_dump(mode="json")


def coordinated(
    spec: JobSpec, agreed: Agreed, answers: Mapping[ClientId, Mapping[str, Any]]
) -> tuple[Job, Parts]:
    """The server's half of the run, without rows.

    Args:
        spec: the job.
        agreed: what the sites agree on.
        answers: what :func:`ready_at` gave, by site.

    Raises:
        WireError: what a site sent is no answer; names the site.
        DataError: an analysis does not fit the columns.
        JobConflict: masks are impossible with so few sites.
    """
    told = {site: body_of(Ready, answers[site], site) for site in agreed.sites}
    islands = Islands(
        train={site: Rows(answer.rows) for site, answer in told.items()},
        notes=agreed.notes,
        agreed=agreed,
    )
    job = _job(spec, agreed, elsewhere=True)
    job = replace(job, islands=lambda seed: islands, executor=("remote", 0, "auto"))
    return job, _parts(job, islands.train, len(agreed.sites))
