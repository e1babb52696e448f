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
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from atoll.core.errors import Fault, PolicyError, StorageError, raise_faults
from atoll.job.deployed import settled_of
from atoll.job.package import spec_to_plain
from atoll.job.schema import JobSpec
from atoll.node.home import Home, write_text
from atoll.node.policy.approvals import Approvals, Request, Told
from atoll.node.policy.budgets import Budgets
from atoll.node.policy.ledger import UNITS, Charge, Limit
from atoll.node.policy.ledger_file import Ledger
from atoll.node.policy.pricing import Cost, Facts, price
from atoll.node.policy.researchers import Researchers
from atoll.node.run_folder import Held
from atoll.node.settings import Policy, Settings
from atoll.wire.frames import Allowed, open_frame
from atoll.wire.identity import Identity
from atoll.wire.messages import ResultBody, SignedBody, TaskBody

__all__ = ["Asked", "Price", "Steward", "Verdict", "charged", "opened", "verdict"]

log = logging.getLogger("atoll.node")

_BEFORE = ("survey", "sums", "ready")
_FIGURES = {"sums": "sums of the columns", "evaluate": "metrics"}
_WITHOUT = {
    "sums": 'set preprocessing.mode = "site" in the job',
    "evaluate": "set evaluation.federated = false in the job",
}
_EVALUATION = re.compile(r"\.evaluate\.(\d+)-[0-9a-f]{8}\.")
"""Of a plain one; what is hidden is counted by :meth:`Steward.leave`, before it is."""
Verdict = Literal["failed", "refused"]
_ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)

Price = Callable[[JobSpec, Facts], Sequence[Cost]]
"""What a round of a job costs at a site, by unit."""


@dataclass(frozen=True)
class Asked:
    """What a run asks of a site.

    Args:
        spec: the job.
        dataset: name of the dataset it reads.
        researcher: who submitted it, as the server says.
        sites: how many sites take part, as the server says.
        members: their names.
        columns: kind of each column of the dataset, as registered.
        signed: the researcher's signature, unchecked.
    """

    spec: JobSpec
    dataset: str
    researcher: str = ""
    sites: int = 1
    members: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    signed: SignedBody | None = None

    @property
    def shared_noise(self) -> bool:
        """Whether each site adds a share of the noise."""
        client = self.spec.privacy.client
        return client is not None and client.where == "sites"

    @cached_property
    def plain(self) -> Mapping[str, Any]:
        """The job's definition, as JSON."""
        return spec_to_plain(self.spec)

    def request(self, task: TaskBody, federation: str) -> Request:
        """What the steward is asked to approve, with the code that this very task brings."""
        code = {name: ref.sha256 for name, ref in task.code.items()}
        return Request(
            self.plain,
            code,
            self.dataset,
            self.columns,
            self.researcher,
            self.members,
            federation,
        )


def charged(task: TaskBody) -> str:
    """Under which name an answer is charged: all tries of a round, or of an evaluation, have one at a site."""
    kind = "evaluate" if "evaluate" in (task.kind, task.about) else "train"
    return f"{task.run}.{kind}.{task.number}.{task.client}"


def _charged(task: str) -> str:
    """The same from a task's id; that of an evaluation names its model too."""
    return _EVALUATION.sub(r".evaluate.\1.", task)


def _check_name(task: TaskBody) -> None:
    """A plain answer is found in the ledger by its task's id: under another's it would leave uncounted.

    Raises:
        PolicyError: it has another's.
    """
    if _charged(task.id) != charged(task):
        raise PolicyError(
            f"task {task.id} does not have the name of {charged(task)}, for which it is to be paid",
            remedy="does the server run the same version of Atoll?",
        )


def verdict(error: Exception) -> Verdict:
    """What a site says of a task that ended with ``error``."""
    return "refused" if isinstance(error, PolicyError) else "failed"


def opened(home: Home, settings: Settings, told: Told | None = None) -> Steward:
    """The steward of the node in ``home``.

    Args:
        home: the node's folder.
        settings: of its site.
        told: gets what was decided of single jobs, before it counts.

    Raises:
        StorageError: the ledger is not as it was written.
        AtollError: the key cannot be read.
    """
    joined = home.read(home.federation)
    federation, site = str(joined.get("federation", "")), str(joined.get("site", ""))
    ledger = Ledger(home.ledger, Identity.load(home.identity), federation=federation)
    approvals, kind = None, settings.policy.approval
    if kind != "none":
        key, files = Identity.load(home.identity), home.cache.joinpath
        approvals = Approvals(
            home.approvals,
            key,
            federation=federation,
            files=files,
            code_only=kind == "code",
            told=told,
        )
    researchers = Researchers(home, federation, site, settings.policy.researchers)
    return Steward(home, settings.policy, ledger, approvals=approvals, researchers=researchers)


class Steward:
    """The rules of a site.

    Args:
        home: of the node.
        policy: from its settings.
        ledger: its own.
        price: what jobs cost.
        approvals: of its steward; None where no job needs one.
        researchers: whose jobs it works on; None where nobody signs, as in rehearsals.

    Raises:
        StorageError: what is kept beside the ledger cannot be read.
    """

    def __init__(
        self,
        home: Home,
        policy: Policy,
        ledger: Ledger,
        price: Price = price,
        approvals: Approvals | None = None,
        researchers: Researchers | None = None,
    ) -> None:
        self._policy, self._ledger, self._price = policy, ledger, price
        self._approvals, self._researchers = approvals, researchers
        self._budgets = Budgets(home.budgets)
        self._facts_path = home.ledger.with_name("facts.json")
        self._facts = _facts(self._facts_path, home.read(self._facts_path))
        self._costly = set(self._facts)
        self._lock = threading.Lock()

    def tell(self) -> str:
        """How far the ledger has come, for the server; empty while there is nothing in it."""
        head = self._ledger.head
        return str(head) if head.count else ""

    @property
    def trouble(self) -> str:
        """Why the ledger pays for nothing; empty where it does."""
        return self._ledger.trouble

    def see(self, head: str) -> None:
        """What the server remembers of the ledger."""
        before = self._ledger.trouble
        self._ledger.see(head)
        if self._ledger.trouble and not before:
            log.error("%s", self._ledger.trouble)

    def begin(self, ready: Collection[str]) -> None:
        """After a start: give back what was set aside for work that is lost; ``ready`` is not."""
        count = self._ledger.give_back({_charged(task) for task in ready})
        if count:
            log.info("privacy set aside for %d lost tasks was given back", count)

    def admit(self, task: TaskBody, asked: Asked, cohort: int = 0) -> None:
        """Let a worker have ``task``, or say which rule forbids it; a round is paid for when this returns.

        Args:
            task: the server's.
            asked: what its run asks for.
            cohort: n, the most sites of one sum, as the task's model says it; 0 where it says nothing.

        Raises:
            PolicyError: a rule of the site, a limit of its ledger, or its steward.
            AtollError: what the job costs cannot be told, or the ledger cannot be written.
        """
        if self._researchers is not None:
            self._researchers.check(task, asked.spec, asked.researcher, asked.members, asked.signed)
        if self._approvals is not None:
            request = asked.request(task, self._approvals.federation)
            self._approvals.check(task.run, request, task.code)
        limits = self._budgets.of(asked.dataset)
        facts = replace(self._known(task), cohort=cohort)
        costs = [c for c in self._price(asked.spec, facts) if c.events != ()]
        if costs:
            self._costly.add(task.run)
        if task.kind == "survey" and (start := _start(asked.spec)):
            told = task.run, asked.researcher, start
            log.info("run %s of %s begins at a model that came with it, sha256 %s", *told)
        faults = list(_faults(self._policy, task, asked, limits, costs))
        raise_faults(PolicyError, "the rules of this site forbid it", faults)
        counting = [c for c in costs if self._policy.server_noise or not c.at_server]
        cost = _chosen(counting, limits)
        if cost is None:
            return
        if cost.events is not None:
            self._pay(task, asked, cost, limits)
        elif task.kind == "train":
            raise PolicyError(
                f"what round {task.number} costs cannot be told: this site has not prepared the run, "
                "or its model came without the cohort",
                remedy="start the run anew; does the server run the same version of Atoll?",
            )

    def _pay(self, task: TaskBody, asked: Asked, cost: Cost, limits: Sequence[Limit]) -> None:
        figures = task.kind == "evaluate"
        if figures and not cost.figures:
            return
        if task.kind in ("train", "evaluate") and not settled_of(asked.spec, asked.sites).hidden:
            _check_name(task)
        charge = Charge(
            charged(task),
            asked.dataset,
            cost.unit,
            tuple((cost.figures if figures else cost.events) or ()),
            asked.spec.hash() + ("/figures" if figures else ""),  # whose rounds are counted apart
            task.run,
            task.number,
            asked.researcher,
        )
        if figures:
            self._ledger.reserve(charge, limits, cost.evaluations)
        elif task.kind == "train":
            self._give_up_earlier(task)
            self._ledger.reserve(charge, limits, cost.turns)
        elif task.kind in (*_BEFORE, "fit"):
            self._ledger.afford(charge, limits)  # better told before the work than after it

    def _give_up_earlier(self, task: TaskBody) -> None:
        """A site is in one round of a run at a time: what an earlier one has not released, it never will.

        Masked rounds of which no input left end without a word on the single task.
        """
        for entry in self._ledger.open(task.run):
            if entry.charge.round < task.number:
                self.settle(entry.charge.task)

    def note(self, task: TaskBody, result: ResultBody, values: int = 0) -> None:
        """Remember of a run what its rounds' cost depends on, if they cost anything.

        Args:
            task: the worker's.
            result: its answer.
            values: of an update to which noise is added, as the worker says; 0 where it does not.

        Raises:
            StorageError: it could not be written.
        """
        if task.run not in self._costly:
            return
        known = self._known(task)
        rows = result.answer.get("rows") if task.kind == "ready" else None
        now = replace(
            known,
            rows=rows if type(rows) is int else known.rows,
            values=values or known.values,
        )
        if now != known:
            with self._lock:
                self._keep({**self._facts, task.run: now})

    def _known(self, task: TaskBody) -> Facts:
        """What is known by the very plan of a task: a server may show another one in between."""
        known, plan = self._facts.get(task.run), task.plan.sha256
        return known if known is not None and known.plan == plan else Facts(plan=plan)

    def charges(self, task: str) -> bool:
        """Whether the round of a task, as :func:`charged` names it, costs anything."""
        return self._ledger.entry(task) is not None

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
        task = _charged(held.task)
        known = self._ledger.entry(task)
        if known is None or (known.state != "reserved" and known.answer == held.blob.sha256):
            return
        if open_frame(held.path, _ANY)[0].get("status") == "done":
            self._ledger.release(task, held.blob.sha256)

    def settle(self, task: str) -> None:
        """The server needs no answer to a task any more; what never left is given back.

        While the disk takes nothing it stays counted.
        """
        try:
            self._ledger.settle(_charged(task))
        except StorageError as error:
            log.warning("%s stays counted in the privacy ledger: %s", task, error)

    def end(self, run: str) -> None:
        """A run is over: settle all of it."""
        for entry in self._ledger.open(run):
            self.settle(entry.charge.task)
        with self._lock:
            self._costly.discard(run)
            if run in self._facts:
                try:
                    self._keep({k: v for k, v in self._facts.items() if k != run})
                except StorageError as error:
                    log.warning("%s", error)

    def _keep(self, facts: dict[str, Facts]) -> None:
        plain = {
            run: {"rows": each.rows, "values": each.values, "plan": each.plan}
            for run, each in facts.items()
        }
        write_text(self._facts_path, json.dumps(plain, sort_keys=True) + "\n")
        self._facts = facts


def _facts(path: Path, raw: Mapping[str, Any]) -> dict[str, Facts]:
    """What is known of each run, as it was kept.

    Raises:
        StorageError: it is not as it was written.
    """
    try:
        found = {run: Facts(**told) for run, told in raw.items()}
        sound = all(
            type(each.rows) is int and type(each.values) is int and type(each.plan) is str
            for each in found.values()
        )
    except TypeError:
        sound = False
    if not sound:
        raise StorageError(
            f"{path} is damaged",
            remedy="remove it; runs in progress that cost privacy must then be started anew",
        )
    return found


def _chosen(costs: Sequence[Cost], limits: Sequence[Limit]) -> Cost | None:
    """What is charged: the finest unit that covers every limit, else the coarsest there is."""
    if not costs:
        return None
    order = sorted(costs, key=lambda cost: UNITS.index(cost.unit))
    needed = max((UNITS.index(limit.unit) for limit in limits), default=0)
    return next((c for c in order if UNITS.index(c.unit) >= needed), order[-1])


def _start(spec: JobSpec) -> str:
    """Hash of the model that a job begins at; empty for that of its seed."""
    return str(getattr(getattr(spec, "model", None), "start", ""))


def _faults(
    policy: Policy, task: TaskBody, asked: Asked, limits: Sequence[Limit], costs: Sequence[Cost]
) -> Iterable[Fault]:
    """Which rules the job, or this task of it, breaks."""
    if getattr(asked.spec, "statistics", None) is not None and task.code:
        yield Fault("statistics", "comes with code, which statistics do not bring", "leave it out")
    if not policy.starts and (start := _start(asked.spec)):
        yield Fault(
            "policy.starts",
            f"this job begins at a model that came with it (sha256 {start}), not at one of its seed",
            "submit it without a model to begin at",
        )
    settled = settled_of(asked.spec, asked.sites)
    if not policy.unmasked and not settled.masked:
        yield Fault(
            "policy.unmasked",
            "updates of this job are encrypted, under a key that every site has, and not masked"
            if settled.hidden
            else f"single updates of this job reach the server without masks ({settled})",
            'set privacy.aggregation = "masked" in the job',
        )
    limited = policy.private == "limited" and limits
    if not limited and policy.private != "all":
        return
    what = f"dataset {asked.dataset!r}" + (f" ({limits[0]})" if limits else "")
    if not any(cost.hides for cost in costs):
        yield Fault(
            "policy.private",
            f"{what} is for jobs with differential privacy only, and this one has none",
            "add noise with privacy.record or privacy.client in the job",
        )
    elif not policy.server_noise and all(cost.at_server for cost in costs):
        yield Fault(
            "policy.server_noise",
            f"{what} is for jobs whose noise is added before the server can see anything",
            'set privacy.client.where = "sites", or privacy.record, in the job',
        )
    noised = task.kind == "evaluate" and any(cost.figures for cost in costs)
    if task.kind in _FIGURES and not policy.open_figures and not noised:
        yield Fault(
            "policy.open_figures",
            f"{_FIGURES[task.kind]} of {what} do not leave without noise",
            _WITHOUT[task.kind],
        )
