"""The site's rules and its ledger, at the moments of a task when they matter.

Before a worker gets a task, :meth:`Steward.admit` asks the policy and sets privacy aside; before an
answer leaves, :meth:`Steward.leave` counts it; when the server needs it no more, :meth:`Steward.settle`
closes it. All of it happens in the node's own process, from the job that came with the plan and files of
the site; of what the server says nothing can loosen a rule (decision D14).

A refusal names the rule, or what is left, and travels to the server as the site's answer.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from atoll.core.errors import Fault, PolicyError, StorageError, raise_faults
from atoll.job.schema import JobSpec
from atoll.node.budgets import Budgets
from atoll.node.home import Home, write_text
from atoll.node.ledger import UNITS, Charge, Limit
from atoll.node.ledger_file import Ledger
from atoll.node.pricing import Cost, price
from atoll.node.settings import Policy, Settings
from atoll.node.spool import Held
from atoll.wire.frames import Allowed, open_frame
from atoll.wire.identity import Identity
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["Asked", "Price", "Steward", "Verdict", "charged", "opened", "verdict"]

log = logging.getLogger("atoll.node")

Verdict = Literal["failed", "refused"]
_ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)

Price = Callable[[JobSpec, int | None], Sequence[Cost]]
"""What a round of a job costs at a site with so many training rows (None: not known yet), by unit."""


@dataclass(frozen=True)
class Asked:
    """What a run asks of a site.

    Args:
        spec: the job.
        dataset: name of the dataset it reads.
        researcher: who submitted it, as the server says.
    """

    spec: JobSpec
    dataset: str
    researcher: str = ""


def charged(task: TaskBody) -> str:
    """Under which name a round's answer is charged: all tries of a round at a site have one."""
    return f"{task.run}.train.{task.number}.{task.client}"


def verdict(error: Exception) -> Verdict:
    """What a site says of a task that ended with ``error``."""
    return "refused" if isinstance(error, PolicyError) else "failed"


def opened(home: Home, settings: Settings) -> Steward:
    """The steward of the node in ``home``.

    Raises:
        StorageError: the ledger is not as it was written.
        AtollError: the key cannot be read.
    """
    return Steward(home, settings.policy, Ledger(home.ledger, Identity.load(home.identity)))


class Steward:
    """The rules of a site.

    Args:
        home: of the node.
        policy: from its settings.
        ledger: its own.
        price: what jobs cost.

    Raises:
        StorageError: what is kept beside the ledger cannot be read.
    """

    def __init__(self, home: Home, policy: Policy, ledger: Ledger, price: Price = price) -> None:
        self._policy, self._ledger, self._price = policy, ledger, price
        self._budgets = Budgets(home.budgets)
        self._rows_path = home.ledger.with_name("rows.json")
        self._rows: dict[str, int] = {
            run: rows for run, rows in home.read(self._rows_path).items() if type(rows) is int
        }
        self._lock = threading.Lock()

    def tell(self) -> str:
        """How far the ledger has come, for the server; empty while there is nothing in it."""
        head = self._ledger.head
        return str(head) if head.count else ""

    def see(self, head: str) -> None:
        """What the server remembers of the ledger."""
        before = self._ledger.trouble
        self._ledger.see(head)
        if self._ledger.trouble and not before:
            log.error("%s", self._ledger.trouble)

    def begin(self, ready: Collection[str]) -> None:
        """After a start: give back what was set aside for work that is lost; ``ready`` is not."""
        count = self._ledger.give_back(ready)
        if count:
            log.info("privacy set aside for %d lost tasks was given back", count)

    def admit(self, task: TaskBody, asked: Asked) -> None:
        """Let a worker have ``task``, or say which rule forbids it; a round is paid for when this returns.

        Raises:
            PolicyError: a rule of the site, or a limit of its ledger.
            AtollError: what the job costs cannot be told, or the ledger cannot be written.
        """
        limits = self._budgets.of(asked.dataset)
        costs = self._price(asked.spec, self._rows.get(task.run))
        faults = list(_faults(self._policy, asked, limits, costs))
        raise_faults(PolicyError, "the rules of this site forbid it", faults)
        cost = _chosen(self._counting(costs), limits)
        if cost is None:
            return
        charge = Charge(
            charged(task),
            asked.dataset,
            cost.unit,
            tuple(cost.events),
            asked.spec.hash(),
            task.run,
            task.number,
            asked.researcher,
        )
        if task.kind == "train":
            self._give_up_earlier(task)
            self._ledger.reserve(charge, limits)
        elif task.kind != "evaluate" and cost.certain:
            self._ledger.afford(charge, limits)  # better told before the work than after it

    def _give_up_earlier(self, task: TaskBody) -> None:
        """A site is in one round of a run at a time: what an earlier one has not released, it never will.

        Masked rounds of which no input left end without a word on the single task.
        """
        for entry in self._ledger.open(task.run):
            if entry.charge.round < task.number:
                self.settle(entry.charge.task)

    def _counting(self, costs: Iterable[Cost]) -> list[Cost]:
        return [c for c in costs if c.events and (self._policy.server_noise or not c.at_server)]

    def note(self, task: TaskBody, result: ResultBody) -> None:
        """Remember how many rows a run trains on here: what a round costs may depend on it.

        Raises:
            StorageError: it could not be written.
        """
        rows = result.answer.get("rows") if task.kind == "ready" else None
        if type(rows) is int and self._rows.get(task.run) != rows:
            with self._lock:
                self._keep_rows({**self._rows, task.run: rows})

    def leave(self, task: str, answer: str) -> None:
        """Count an answer that is about to leave, if its round costs anything.

        Args:
            task: as :func:`charged` names it.
            answer: SHA-256 of what is going to be in the sum; of all tries of a round the same.

        Raises:
            StateError: another answer has left, or nothing is reserved. This one stays.
            StorageError: it could not be written down; nothing may leave.
        """
        if self._ledger.entry(task) is not None:
            self._ledger.release(task, answer)

    def leaving(self, held: Held) -> None:
        """The same for a result in the spool; one that tells why there is no answer costs nothing.

        Raises:
            StateError, StorageError: as :meth:`leave`.
            WireError: the result cannot be read.
        """
        known = self._ledger.entry(held.task)
        if known is None or (known.state != "reserved" and known.answer == held.blob.sha256):
            return
        if open_frame(held.path, _ANY)[0].get("status") == "done":
            self._ledger.release(held.task, held.blob.sha256)

    def settle(self, task: str) -> None:
        """The server needs no answer to a task any more; what never left is given back.

        While the disk takes nothing it stays counted.
        """
        try:
            self._ledger.settle(task)
        except StorageError as error:
            log.warning("%s stays counted in the privacy ledger: %s", task, error)

    def end(self, run: str) -> None:
        """A run is over: settle all of it."""
        for entry in self._ledger.open(run):
            self.settle(entry.charge.task)
        with self._lock:
            if run in self._rows:
                try:
                    self._keep_rows({k: v for k, v in self._rows.items() if k != run})
                except StorageError as error:
                    log.warning("%s", error)

    def _keep_rows(self, rows: dict[str, int]) -> None:
        write_text(self._rows_path, json.dumps(rows, sort_keys=True) + "\n")
        self._rows = rows


def _chosen(costs: Sequence[Cost], limits: Sequence[Limit]) -> Cost | None:
    """What is charged: the finest unit that covers every limit, else the coarsest there is."""
    if not costs:
        return None
    order = sorted(costs, key=lambda cost: UNITS.index(cost.unit))
    needed = max((UNITS.index(limit.unit) for limit in limits), default=0)
    return next((c for c in order if UNITS.index(c.unit) >= needed), order[-1])


def _faults(
    policy: Policy, asked: Asked, limits: Sequence[Limit], costs: Sequence[Cost]
) -> Iterable[Fault]:
    """Which rules the job breaks."""
    privacy: Any = getattr(asked.spec, "privacy", None)
    if not policy.unmasked and getattr(privacy, "aggregation", "plain") != "masked":
        yield Fault(
            "policy.unmasked",
            "single updates of this job reach the server in clear",
            'set privacy.aggregation = "masked" in the job',
        )
    limited = policy.private == "limited" and limits
    if not limited and policy.private != "all":
        return
    what = f"dataset {asked.dataset!r}" + (f" ({limits[0]})" if limits else "")
    if not any(cost.events for cost in costs):
        yield Fault(
            "policy.private",
            f"{what} is for jobs with differential privacy only, and this one has none",
            "add noise with privacy.record or privacy.client in the job",
        )
    elif not policy.server_noise and all(cost.at_server for cost in costs if cost.events):
        yield Fault(
            "policy.server_noise",
            f"{what} is for jobs whose noise is added before the server can see anything",
            'set privacy.client.where = "sites", or privacy.record, in the job',
        )
