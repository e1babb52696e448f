"""A job that a researcher hands in: checked as far as can be without its data, then a run.

Its code is never run here, nor imported: the server checks names, digests and sizes.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path

from atoll.core.errors import AuthError, Fault, Forbidden, JobError, raise_faults, suggest
from atoll.core.values import ClientId
from atoll.job.conflicts import federation_faults
from atoll.job.deployed import deployable
from atoll.job.package import spec_digest, spec_from_plain
from atoll.job.schema import JobSpec
from atoll.job.tables import clock_of, schedule_of, weighting_of
from atoll.server.office import Office
from atoll.server.rounds.results import OPEN
from atoll.server.store.contract import RESTORED, Member, RunRow
from atoll.wire.messages import INITIAL, SubmitBody
from atoll.wire.submissions import Submission

__all__ = ["accepted", "submitted"]


def submitted(office: Office, by: str, body: SubmitBody) -> str:
    """The run that this very submission has become, whose answer was lost; empty where there is none."""
    signed = body.signed.model_dump()
    return next((r.id for r in office.store.runs() if (r.by, r.signed) == (by, signed)), "")


def accepted(office: Office, by: Member, body: SubmitBody, members: Collection[ClientId]) -> RunRow:
    """The run that a submission becomes; it is not in the store yet.

    Args:
        office: of the server.
        by: the researcher.
        body: as it came.
        members: names of the active sites.

    Raises:
        Forbidden: they are none.
        JobError: with every fault that can be found here.
    """
    if by.role != "researcher":
        raise Forbidden(f"{by.name} is no researcher", remedy="ask for a researcher's code")
    spec = spec_from_plain(body.spec)
    if spec.hash() != body.job_hash:
        raise JobError(
            f"the job's hash is {spec.hash()[:12]} here and {body.job_hash[:12]} where it was made",
            remedy="do both sides run the same version?",
        )
    _check_signature(office, by, spec, body)
    sites = tuple(sorted(set(body.signed.sites or members)))
    faults = [*deployable(spec), *_site_faults(sites, members), *_fit(spec, sites)]
    faults += _file_faults(office, body)
    if spec.statistics is not None and (body.files or body.initial is not None):
        faults.append(Fault("files", "statistics bring no code and no model", "leave them out"))
    raise_faults(JobError, f"job {spec.name!r} cannot be deployed", faults)
    return RunRow(
        id=_name(office, spec),
        name=spec.name,
        job_hash=body.job_hash,
        spec=json.dumps(body.spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        files={name: ref.model_dump() for name, ref in body.brought.items()},
        sites=sites,
        by=by.name,
        signed=body.signed.model_dump(),
        created=office.now(),
        status=OPEN,
    )


def _check_signature(office: Office, by: Member, spec: JobSpec, body: SubmitBody) -> None:
    """Sites check it too; here it is refused before anybody has worked for it."""
    files = {name: ref.sha256 for name, ref in body.brought.items()}
    told, signed = (office.federation, by.name, spec_digest(spec), files), body.signed
    try:
        Submission(*told, tuple(signed.sites), signed.nonce).check(signed)
        sound = signed.key == by.key.hex()
    except AuthError:
        sound = False
    if not sound:
        raise JobError(
            f"this job is not what {by.name} has signed",
            remedy="do both sides run the same version?",
        )


def _name(office: Office, spec: JobSpec) -> str:
    """An id without dots: in a task's id they separate.

    A store from a backup has forgotten runs, of which sites may hold answers: numbers alone would meet them.
    """
    called = re.sub(r"[^A-Za-z0-9_-]", "-", spec.name)
    if office.settings.runs == "own":
        return f"{called}-{secrets.token_hex(6)}"  # a number would count the runs of others
    number = len(office.store.runs()) + 1
    restored = any(event.kind == RESTORED for event in office.store.events(""))
    again = f"-e{office.epoch}" if restored else ""
    return f"{called}-{number}{again}"


def _site_faults(sites: Collection[ClientId], members: Collection[ClientId]) -> Iterator[Fault]:
    if not sites:
        yield Fault("sites", "the federation has no active site", "invite one first")
    for site in sites:
        if site not in members:
            yield Fault("sites", f"{site!r} is no active site", suggest(site, members))


def _fit(spec: JobSpec, sites: Collection[ClientId]) -> list[Fault]:
    clock = clock_of(spec.model_copy(update={"clock": type(spec.clock)()}), Path())
    return federation_faults(schedule_of(spec), weighting_of(spec), clock, sites)


def _file_faults(office: Office, body: SubmitBody) -> Iterator[Fault]:
    total = sum(ref.size for ref in body.files.values())
    most = office.settings.largest_file
    if total > most:
        yield Fault("files", f"{total} bytes of code: at most {most}", "leave out what is no code")
    if INITIAL in body.files:
        yield Fault("files", f"{INITIAL!r} is no name of a file")
    if bool(body.spec.get("model", {}).get("start")) != (body.initial is not None):
        yield Fault("model.start", "names a model that has to come with the job, and only then")
    for name, ref in body.brought.items():
        if office.blobs.size(ref.sha256) != ref.size:
            yield Fault(f"files.{name}", "is not here", "upload it before the job")
