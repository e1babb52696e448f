"""What all runs at one site share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from atoll.core.chain import COHORT
from atoll.core.errors import AtollError, PolicyError, StateError, StorageError
from atoll.job.deployed import dataset_name
from atoll.job.settling import FEWEST
from atoll.node.audit.answers import Answers, Form, Named
from atoll.node.cache import Cache
from atoll.node.datasets import Dataset, Datasets, digest_of
from atoll.node.home import Home
from atoll.node.link import Link, passing
from atoll.node.orders import Report
from atoll.node.peers import Trust
from atoll.node.plans import read_plan
from atoll.node.policy.steward import Asked, Steward, charged
from atoll.node.run_folder import Held
from atoll.node.run_keys import RunKeys
from atoll.node.settings import Settings
from atoll.node.spool import Spool
from atoll.privacy.secagg.terms import model_digest
from atoll.wire.frames import Allowed, open_frame
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["Site"]

log = logging.getLogger("atoll.node")

_ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)


@dataclass(frozen=True, eq=False)
class Site:
    """What all runs at this site share.

    Args:
        home: the node's folder.
        name: of the site, which is the client's.
        settings: limits of this site.
        link: to the server.
        spool: what must not be lost.
        cache: what was downloaded.
        jitter: numbers in [0, 1) that spread the tries of many nodes.
        trust: what masked rounds need; None where the node takes part in none.
        steward: the site's rules and ledger; None where it has neither, as in simulations.
        hand_in: hands in a short result; None for :meth:`Link.deliver`.
        audit: writes answers into the site's audit log; None where it keeps none, as in simulations.
    """

    home: Home
    name: str
    settings: Settings
    link: Link
    spool: Spool
    cache: Cache
    jitter: Callable[[], float]
    trust: Trust | None = None
    steward: Steward | None = None
    hand_in: Callable[[Held, bytes], object] | None = None
    audit: Answers | None = None
    pins: dict[str, frozenset[str]] = field(default_factory=dict)
    """Digests that each run needs now."""
    trouble: dict[str, str] = field(default_factory=dict)
    """What is in the way of each run now, and passes."""
    begun: set[str] = field(default_factory=set)
    """Runs that this process has taken on and that have not ended."""
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def hindered(self, run: str, what: str) -> None:
        """Tell the log, once for as long as it stays the same, and whoever asks, what is in a run's way."""
        before, self.trouble[run] = self.trouble.get(run), f"run {run}: {what}"
        if self.trouble[run] != before:
            log.warning("run %s: %s", run, what)

    def take_on(self, run: str) -> None:
        """Count ``run`` among those that are worked on here, from now until its end.

        Raises:
            PolicyError: there are as many already as this site works on at once.
        """
        with self._counting:
            begun = {name for name in self.spool.runs if self.spool.digest(name)} | self.begun
            if run not in begun and len(begun) >= self.settings.runs:
                raise PolicyError(
                    f"this site works on {self.settings.runs} runs at once, and has begun as many",
                    remedy="submit the job again when one has ended, or ask its operator to raise runs",
                )
            self.begun.add(run)

    @property
    def register(self) -> object:
        """What tells one state of the register of datasets from the next: :attr:`Datasets.state`."""
        return Datasets(self.home.datasets).state

    def asked(self, plan: Path) -> tuple[Dataset, Asked]:
        """What the run with this plan asks for, and the dataset that it reads.

        Raises:
            NotFound: no such dataset is registered.
            AtollError: the plan cannot be read.
        """
        run, register = read_plan(plan), Datasets(self.home.datasets)
        if self.audit is not None:
            self.audit.log.register(register.told())
        dataset = register.get(dataset_name(run.spec.data))
        count = len(run.sites) or FEWEST
        told = run.by, count, run.sites, dataset.columns, run.signed
        return dataset, Asked(run.spec, dataset.name, *told)

    def admit(self, task: TaskBody, asked: Asked) -> None:
        """Let a worker have ``task``, or say which rule forbids it: :meth:`Steward.admit`."""
        if self.steward is None:
            return
        cohort = 0
        if task.broadcast is not None and asked.shared_noise:
            told = open_frame(self.cache.path(task.broadcast.blob), _ANY)[1].get(COHORT)
            cohort = 0 if told is None or not told.size else int(told.flat[0])
        self.steward.admit(task, asked, cohort)

    def note(self, task: TaskBody, result: ResultBody, report: Report) -> None:
        """A worker has answered: :meth:`Steward.note`; what it did not do stands in the log here too."""
        if result.status != "done":
            said = (task.run, task.id, result.status, result.reason)
            log.warning("run %s: %s %s: %s", *said)
        if self.steward is not None:
            self.steward.note(task, result, report.values)

    def leave(self, task: TaskBody, integers: Path) -> None:
        """What lies in a file is about to leave under masks: :meth:`Steward.leave`."""
        if self.steward is not None and self.steward.charges(charged(task)):
            self.steward.leave(charged(task), digest_of(str(integers)))

    def naming(self, task: TaskBody, result: ResultBody, form: Form = "plain") -> Named | None:
        """What is told the bytes of an answer before they are kept: :meth:`Answers.naming`."""
        return None if self.audit is None else self.audit.naming(task, result, form)

    def leaving(self, held: Held) -> None:
        """A result is about to leave: :meth:`Steward.leaving`, and what the audit log says of it is durable."""
        if self.steward is not None:
            try:
                self.steward.leaving(held)
            except AtollError as error:
                if self.audit is not None and not passing(error):
                    self.audit.withheld(held, error.message)
                raise
        if self.audit is not None:
            self.audit.leaving(held)

    def memory_digest(self, run: str, kept: str) -> str:
        """What stands for the client's memory after the task ``kept``; empty where there is none.

        Raises:
            StateError: it should be here and cannot be read.
        """
        try:
            path = self.spool.memory(run, kept)
            return "" if path is None else model_digest(open_frame(path, _ANY)[1])
        except StorageError as error:  # which no other try makes better
            raise StateError(error.message, remedy=error.remedy) from error

    def settle(self, run: str, task: str) -> None:
        """Let go of an answer that the server needs no more."""
        self.spool.settle(run, task)
        if self.audit is not None:
            self.audit.log.settle(task)
        if self.steward is not None:
            self.steward.settle(task)

    def end(self, run: str) -> None:
        """Let go of everything of a run."""
        self.spool.end(run)
        with self._counting:
            self.begun.discard(run)
        RunKeys(self.home.keys).drop(run)
        if self.audit is not None:
            self.audit.end(run)
        if self.steward is not None:
            self.steward.end(run)
