"""``atoll doctor --job`` for statistics: whether this site would answer, by its own rule and log."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.core.errors import AtollError
from atoll.job.schema import JobSpec
from atoll.job.settling import FEWEST
from atoll.job.study_deployed import agreed_by
from atoll.node.datasets import Dataset, digest_of, open_table
from atoll.node.policy.queries import Answering
from atoll.wire.findings import Finding, faults_of, ok

__all__ = ["would_answer"]


def would_answer(spec: JobSpec, site: str, dataset: Dataset) -> Iterator[Finding]:
    """Go through preparation with copies of this site in place of the others; nothing is noted in the log.

    Args:
        spec: a job of statistics.
        site: this site's name in the federation.
        dataset: its rows, its rule and its log.
    """
    names = [site, *(f"copy {number}" for number in range(1, FEWEST))]
    at = Answering(spec, site, len(names), dataset)
    try:
        rows = open_table(dataset)
        told = at.survey(rows)
        agreed = agreed_by(spec, dict.fromkeys(names, told))
        at.ready(agreed, rows, digest_of(dataset.path))
    except AtollError as error:
        yield from faults_of("statistics", error)
        return
    book = agreed.book
    read = ", ".join(book.columns)
    yield ok("data", f"{dataset.name}: {len(book.columns)} columns are read: {read}")
    yield ok("statistics", f"would be answered under a minimum of {book.rule.minimum} persons")
