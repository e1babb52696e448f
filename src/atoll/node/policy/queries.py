"""A site's answers to statistics: its own rule, its log of what was asked, and then the sums.

This runs in a worker process that runs nothing of the job's: jobs of statistics bring no code, and the node
gives none to such a worker. So the checks are product code from end to end, like the sums:

- the rule is that of the dataset's registration; what the server says that all sites agreed on may only be
  stricter;
- the query log lies in the node's folder, one file a dataset, for all jobs and researchers. A question is in
  it, on the disk, before the first sum of it is written: a process that is killed has never sent what is not
  noted;
- counts of few persons leave under masks only, unless the rule says otherwise.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atoll.algorithms.statistics.holding import Holding
from atoll.algorithms.statistics.running import Statistic
from atoll.core.contracts import Task
from atoll.core.errors import AtollError, PolicyError, StateError, StorageError, raise_faults
from atoll.core.values import Broadcast, Update
from atoll.data.query_log import QueryLog
from atoll.data.table import Table
from atoll.job.schema import JobSpec
from atoll.job.study import Agreed
from atoll.job.study_deployed import held_at, parts_at, ready_at, study_for, told_at
from atoll.node.datasets import Dataset
from atoll.node.rules import Rule
from atoll.privacy.secagg.terms import Lane
from atoll.runtime.client import Parts, answer_task
from atoll.runtime.pattern import lanes_at

__all__ = ["Answering", "locked"]


@dataclass(eq=False)
class Answering:
    """One run of statistics at this site.

    Args:
        spec: the job.
        site: this one.
        sites: how many take part in the run.
        dataset: with its rule, and the file of its query log.
    """

    spec: JobSpec
    site: str
    sites: int
    dataset: Dataset
    _held: tuple[dict[str, Any], Holding, Parts] | None = field(default=None, init=False)

    @property
    def masked(self) -> bool:
        """Whether single answers are seen by nobody: from the job and the number of sites alone."""
        return study_for(self.spec, self.sites).rule.masked

    def survey(self, rows: Table) -> dict[str, Any]:
        """What the site tells of its columns.

        Raises:
            PolicyError: columns that statistics may not read, or extremes that do not leave.
            AtollError: see :meth:`atoll.job.study.Study.tell`.
        """
        study, rule = study_for(self.spec, self.sites), self.dataset.rule
        named = study.named() or tuple(n for n in rows.names if n not in _hidden(rows, rule))
        raise_faults(PolicyError, self._whose, rule.column_faults(named))
        if not study.named():
            rows = rows.without(*_hidden(rows, rule))
        return told_at(self.spec, self.site, rows, self.sites, rule.disclosure)

    def ready(self, agreed: Agreed, rows: Table, digest: str) -> dict[str, Any]:
        """Whether the site is going to answer; nothing is noted yet.

        Raises:
            PolicyError: the agreement is weaker than the site's rule.
            Forbidden: together with earlier answers this would isolate somebody.
        """
        holding, parts = self._opened(agreed, rows)
        self._ask_log(agreed, holding, parts, digest, dry=True)
        return ready_at(parts)

    def answer(
        self, agreed: Agreed, rows: Table, digest: str, task: Task, asked: Broadcast
    ) -> Update:
        """The site's sums of a round.

        Raises:
            PolicyError, Forbidden: as :meth:`ready`; or they hold counts of few persons in the clear.
            StorageError: the question could not be noted.
        """
        holding, parts = self._opened(agreed, rows)
        update, _ = answer_task(parts, task, asked, {})
        algorithm = parts.algorithm
        if self.dataset.rule.small == "masked" and not self.masked:
            if not isinstance(algorithm, Statistic):
                raise StateError("this run is none of statistics")
            # It knows every kind of analysis, and is asked where single answers are seen.
            from atoll.algorithms.statistics.cells import small_counts

            found = small_counts(
                algorithm.analysis, algorithm.told(update), agreed.book.rule.minimum
            )
            if found:
                raise PolicyError(
                    f"{self._whose}: {'; '.join(found)} would leave in the clear",
                    site=self.site,
                    remedy="set privacy.aggregation = 'masked' in the job, or leave the analysis out",
                )
        self._ask_log(agreed, holding, parts, digest, dry=False)
        return update

    def lanes(self, agreed: Agreed, rows: Table, task: Task, asked: Broadcast) -> tuple[Lane, ...]:
        """The lanes of a round's sums, from what is asked alone; empty where sums go in the clear."""
        _, parts = self._opened(agreed, rows)
        return lanes_at(parts, task, asked) if self.masked else ()

    @property
    def _whose(self) -> str:
        return f"the rule of dataset {self.dataset.name!r} at {self.site}"

    def _opened(self, agreed: Agreed, rows: Table) -> tuple[Holding, Parts]:
        plain = agreed.to_plain()
        if self._held is None or self._held[0] != plain:
            study = study_for(self.spec, self.sites)
            if len(agreed.sites) != self.sites:
                raise PolicyError(f"{len(agreed.sites)} of {self.sites} sites have agreed")
            columns = study.named() or agreed.book.columns
            self.dataset.rule.check(agreed.book.rule, columns, masked=self.masked)
            holding = held_at(self.spec, agreed, self.site, rows)
            self._held = plain, holding, parts_at(self.spec, agreed, holding, self.site)
        return self._held[1:]

    def _ask_log(
        self, agreed: Agreed, holding: Holding, parts: Parts, digest: str, *, dry: bool
    ) -> None:
        rule = replace(
            agreed.book.rule, masked=self.masked, differences=self.dataset.rule.differences
        )
        algorithm: Any = parts.algorithm
        path = Path(self.dataset.queries)
        with locked(path):
            log = QueryLog(rule.minimum, path, rule.masked, digest)
            try:
                holding.admit(algorithm.analysis, rule, log, self.site, dry=dry)
            except AtollError as error:
                error.site = error.site or self.site
                raise


def _hidden(rows: Table, rule: Rule) -> list[str]:
    """Columns that the rule keeps from statistics that take all there are."""
    kept = {*rule.columns, rule.person}
    return [name for name in rows.names if rule.columns and name not in kept]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time reads and writes the log at ``path``; a killed one holds no lock.

    Raises:
        StorageError: the folder cannot be written.
    """
    import fcntl  # does not exist everywhere

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = path.with_suffix(".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unopened(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # such as on a network folder without locks
            raise _unopened(path, error) from error
        yield
    finally:
        os.close(descriptor)


def _unopened(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the query log of {path.stem!r} cannot be opened: {error.strerror}",
        remedy="mend the node's folder; nothing was sent",
    )
