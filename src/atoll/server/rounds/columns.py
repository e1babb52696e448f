"""Sums of columns before the first round of a masked or encrypted run: only those of all sites are seen."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

from atoll.core.contracts import Outcome, Task
from atoll.core.errors import DataError, UpdateRefused
from atoll.core.layout import Array
from atoll.data.schema import Schema
from atoll.job.schema import JobSpec
from atoll.job.summed import check_columns, column_lanes, column_totals, sums_digest
from atoll.job.survey import schema_to_plain
from atoll.privacy.he.contexts import PublicContext
from atoll.server.office import Office
from atoll.server.rounds.desk import Call, all_took_part
from atoll.server.rounds.masking import Make
from atoll.server.rounds.summing import lanes_summed, summed_round
from atoll.server.store.contract import RunRow

__all__ = ["masked_sums"]


def masked_sums(
    office: Office,
    row: RunRow,
    spec: JobSpec,
    schema: Schema,
    make: Make,
    key: PublicContext | None = None,
    work: str = "",
) -> Generator[Call, Sequence[Outcome], Mapping[str, Array]]:
    """The calls of one such round about columns; returns the sums over all sites.

    Args:
        office: of the server.
        row: the run.
        spec: its job.
        schema: what the sites agreed on.
        make: makes tasks.
        key: of an encrypted run, the public half.
        work: what all sites are told to do.

    Raises:
        DataError: a site is not in the sum; all such sites are named.
    """
    plain = json.loads(row.spec)
    masking = lanes_summed(column_lanes(spec, schema), plain["privacy"], key)
    masking = replace(masking, work=work)
    digest, seconds = sums_digest(plain, schema_to_plain(schema)), office.settings.round
    masked = summed_round(office, row, masking, 0, digest, make, seconds, about="sums")
    summed = yield from masked.play([Task(site, 0) for site in row.sites])
    all_took_part("sums", summed.outcomes)
    totals = column_totals(spec, schema, summed.aggregate.sums)
    try:
        check_columns(totals)
    except UpdateRefused as error:
        raise DataError(
            f"sums: a site has sent what no rows have, and masks hide which: {error.message}",
            remedy="submit the job for other sites, or without masks to learn which it is",
        ) from error
    return totals
