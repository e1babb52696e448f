"""A masked round at the server: the protocol's machine, told by sites' answers what it waits for.

Each step of the protocol is one call to sites, like any other: its tasks carry what the server says
(``said`` of :class:`~atoll.wire.messages.TaskBody`), the answers what a site says, and an answer that is
acknowledged is durable. Sites begin to train when they are asked for their keys, so the first two steps
cost nothing where training takes longer.

========== =================================== ====================================================
task       the server says                     a site answers
========== =================================== ====================================================
commit     the terms, signed                   fresh public keys
share      everybody's keys                    its secrets in shares, sealed for the others
train      the shares for this site            its masked integers, and a signature on their root
pledge     whose integers are in the sum       its signature on that
release    the pledges                         for each other site one share, of one kind
========== =================================== ====================================================

The third step is ``train`` where updates are added up. What sites would else tell beside their updates is
added up in the same way: sums of columns (``sums``) and figures of held-out rows (``evaluate``).

*Who took part in a step is written down before the next step is told to anybody.* A server that was
killed reads that, takes the same answers from disk, comes to the same machine (all that is random
happens at sites), and goes on. Where bytes are lost, or too few answer, the round is tried again with
fresh keys, but never once sites have been asked to release shares: then the round ends without a sum.
So a round with fewer than its quorum is not opened: who was started anew is in the next attempt's sum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atoll.core.contracts import Outcome, Task
from atoll.core.errors import JobError, NotFound, StorageError, UpdateRefused, WireError
from atoll.core.layout import Array
from atoll.core.values import Aggregate, ClientId
from atoll.job.summed import Subject, job_name, model_mark
from atoll.privacy.secagg import server as machine
from atoll.privacy.secagg.codec import MOST, read, written
from atoll.privacy.secagg.fixed import check_reach
from atoll.privacy.secagg.masks import RingSum, chunks_of
from atoll.privacy.secagg.messages import Commitment, Deal, FromSite, Pledge, Release, Vector
from atoll.privacy.secagg.policy import BLAMES
from atoll.privacy.secagg.server import Server
from atoll.privacy.secagg.terms import Lane, Member, Occasion, Terms, usual_threshold
from atoll.server.office import Office
from atoll.server.rounds.answers import Expected, Slot, read_answer
from atoll.server.rounds.desk import Call
from atoll.server.store.contract import RunRow
from atoll.server.store.rules import fence
from atoll.wire.frames import Blob
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["ATTEMPTS", "MASKING", "SAID", "STEPS", "MaskedRound", "Masking", "Summed"]

ATTEMPTS = 3
"""So often a round is tried, each time with fresh keys, before it is given up."""
SAID = "said"
"""Name of the array that holds a message."""
MASKING = "masking"  # kind of the events that hold a round's steps
_UNHEARD = ("unavailable", "dropped", "late", "refused")


@dataclass(frozen=True)
class _Step:
    kind: str
    phase: machine.Phase
    answer: type[FromSite]


STEPS = (
    _Step("commit", "committing", Commitment),
    _Step("share", "dealing", Deal),
    _Step("train", "collecting", Vector),
    _Step("pledge", "pledging", Pledge),
    _Step("release", "unmasking", Release),
)


@dataclass(frozen=True)
class Masking:
    """What a job says of its masked rounds.

    Args:
        lanes: what is added up.
        threshold: how many sites must stay; 0 for the usual.
        degree: neighbours of each site; 0 for all.
        rule: what the job says of privacy; bound into the terms.
        work: what all sites are told to do; likewise (:func:`~atoll.job.summed.work_mark`).
    """

    lanes: tuple[Lane, ...]
    threshold: int = 0
    degree: int = 0
    rule: str = ""
    work: str = ""


_INPUT = STEPS[2]

Make = Callable[[str, Task, str, Blob], TaskBody]
"""Makes the task of a kind for a client under an id, with the blob of what is said."""


@dataclass(frozen=True, eq=False)
class Summed:
    """What came of a round.

    Args:
        aggregate: the sums of the lanes as integers; of nobody where there is no sum.
        outcomes: in the order of the tasks.
        trained: the task by which each site in the sum was trained.
    """

    aggregate: Aggregate
    outcomes: tuple[Outcome, ...]
    trained: Mapping[ClientId, str] = field(default_factory=dict)


class _Lost(Exception):
    """What a stopped server had been told is not on disk any more."""


class MaskedRound:
    """One round, attempt after attempt.

    Args:
        office: of the server.
        row: the run.
        masking: the job's.
        number: of the round.
        model: hash of what the round starts from.
        make: makes tasks.
        seconds: the round's own time; steps beside the training get a quarter of it each.
        begun: whether a server before this one may have begun the round.
        about: what is added up.
        told: what the sites are told of the round beside its terms.
        least: fewest sites whose sum is of use: one of fewer is not opened, and tried again.
    """

    def __init__(
        self,
        office: Office,
        row: RunRow,
        masking: Masking,
        number: int,
        model: str,
        make: Make,
        seconds: float,
        *,
        begun: bool = True,
        about: Subject = "train",
        told: Mapping[str, Any] | None = None,
        least: int = 1,
    ) -> None:
        self._begun, self.about, self.told, self.least = begun, about, told or {}, least
        self._own = {"round": number, "about": about, "model": model}  # in all its notes alone
        self.office, self.row, self.masking = office, row, masking
        self.number, self.model, self.make, self.seconds = number, model, make, seconds
        self.answers: dict[str, str] = {}
        self._notes: dict[tuple[int, str], dict[str, Any]] = {}

    def play(self, tasks: Sequence[Task]) -> Generator[Call, Sequence[Outcome], Summed]:
        """The calls of the round; returns what came of it."""
        if self._begun:
            self._read_notes()
        ended: dict[ClientId, Outcome] = {}
        for number in range(ATTEMPTS):
            attempt = _Attempt(self, number, tasks, ended)
            failed = self._notes.get((number, "failed"))
            if failed is None:
                yield from attempt.play()
                if attempt.total is not None or attempt.opening:
                    return attempt.summed()
                failed = {"reason": attempt.failure, "without": attempt.without}
                self.note(number, "failed", **failed)
            ended = {o["client"]: Outcome(**o) for o in failed["without"]}
            attempt.failure = failed["reason"]
            if len(tasks) - len(ended) < max(attempt.threshold, self.least):
                break
        return attempt.summed()

    # Notes --------------------------------------------------------------------------------------

    def _read_notes(self) -> None:
        for event in self.office.store.events(self.row.id):
            if event.kind != MASKING:
                continue
            note = json.loads(event.text)
            if self._own.items() <= note.items():  # the first one counts
                self._notes.setdefault((note["attempt"], note["step"]), note)

    def note(self, attempt: int, step: str, **what: Any) -> Mapping[str, Any]:
        """Write something down for good; what stands there already stays."""
        key = attempt, step
        if key not in self._notes:
            office = self.office
            fence(office.epoch, office.store.lease().epoch)
            note = {**self._own, "attempt": attempt, "step": step, **what}
            office.event(MASKING, json.dumps(note), self.row.id)
            self._notes[key] = note
        return self._notes[key]

    def noted(self, attempt: int, step: str) -> Mapping[str, Any] | None:
        """What was written down."""
        return self._notes.get((attempt, step))


class _Attempt:
    """One attempt of a round: one machine, one set of keys.

    Attributes:
        total: the sum without masks, once there is one.
        opening: whether sites have been asked to release shares.
        failure: why there is no sum.
        without: of whom nothing is to be expected in another attempt.
    """

    def __init__(
        self,
        whole: MaskedRound,
        number: int,
        tasks: Sequence[Task],
        ended: Mapping[ClientId, Outcome],
    ) -> None:
        self._round, self._number, self._tasks = whole, number, tasks
        masking = whole.masking
        self.threshold = masking.threshold or usual_threshold(len(tasks))
        self.total: RingSum | None = None
        self.opening = False
        self.failure = ""
        self._outcomes = dict(ended)
        self._gone = set(ended)
        self._seconds: dict[ClientId, float] = {}
        self._sum: RingSum | None = None
        self._members: tuple[str, ...] = ()
        self._said: dict[ClientId, Any] = {}
        self._machine: Server | None = None

    @property
    def without(self) -> list[dict[str, Any]]:
        if self._machine is None:
            reason = f"no masked round: {self.failure}"
            return [vars(Outcome(site, "dropped", 0, reason)) for site in sorted(self._gone)]
        lost = [vars(o) for o in self._outcomes.values() if o.status in _UNHEARD]
        return lost + [vars(o) for o in self._accused()]

    def _accused(self) -> Iterator[Outcome]:
        """Who is blamed by more sites than the round could have done without."""
        spare = len(self._tasks) - self.threshold
        for task in self._tasks:
            start = f"{BLAMES} {task.client}: "
            said = [o.reason for o in self._outcomes.values() if o.reason.startswith(start)]
            if len(said) > spare:
                reason = f"{len(said)} sites say: {said[0][len(start) :]}"
                yield Outcome(task.client, "refused", 0, reason)

    def play(self) -> Generator[Call, Sequence[Outcome], None]:
        office, number = self._round.office, self._number
        terms, began = self._terms(), office.now()
        try:
            self._machine, effects = Server.start(terms, office.sign)
        except JobError as error:  # such as a cohort that a sampler has drawn too small
            self.failure = "; ".join(map(str, error.faults)) or error.message
            self._gone = {task.client for task in self._tasks}
            return
        self._sum = RingSum(terms)
        self._did(effects)
        for client in self._gone:
            self._tell(machine.Left(terms.index(client)))
        for step, following in zip(STEPS, (*STEPS[1:], None), strict=True):
            if self._at.phase != step.phase:
                break
            self.opening = step.kind == "release"
            after = self._round.noted(number, following.kind) if following else None
            try:
                if after is not None:
                    self._again(step, after["members"])
                else:
                    yield from self._call(step, began)
            except _Lost as lost:
                self._tell(machine.Cancel(str(lost)))
            if following and self._at.phase == following.phase:
                folded = self._at.folded if step.kind == "train" else self._at.of(step.phase)
                members = sorted(folded)
                if step.kind != "pledge" and len(members) < self._round.least:  # all are in it then
                    self._tell(
                        machine.Cancel(self._too_few({terms.cohort[i - 1].name for i in members}))
                    )
                    break
                self._round.note(number, following.kind, members=members)

    def _too_few(self, left: Collection[str]) -> str:
        lost = [task.client for task in self._tasks if task.client not in left]
        return f"a sum without {', '.join(lost[:5])} is of no use: {self._round.least} sites are needed"

    @property
    def _at(self) -> Server:
        if self._machine is None:
            raise _Lost("the attempt has not begun")
        return self._machine

    def _terms(self) -> Terms:
        """What sites sign; of a site that has another key by now, the one that it had."""
        at, masking, keys = self._round, self._round.masking, self._round.office.keys()
        own = {name: keys[name].hex() for name in sorted(t.client for t in self._tasks)}
        told = at.note(self._number, "commit", expiry=at.office.date() + 8 * at.seconds, keys=own)
        cohort = told.get("keys", own)  # an older server has not written them down
        job = job_name(at.row.job_hash, at.row.id, at.about)
        model = model_mark(at.about, at.model)
        return Terms(
            Occasion(at.office.federation, job, at.number, self._number, model),
            tuple(Member(name, bytes.fromhex(key)) for name, key in cohort.items()),
            self.threshold,
            masking.lanes,
            float(told["expiry"]),
            masking.degree,
            masking.rule,
            masking.work,
        )

    # Steps --------------------------------------------------------------------------------------

    def _call(self, step: _Step, began: float) -> Generator[Call, Sequence[Outcome], None]:
        """Ask the sites that this step is told to, and take in what they say."""
        office, total, quarter = self._round.office, self._round.seconds, self._round.seconds / 4
        least = 1 if step in STEPS[3:] else self._round.least
        left = total - (office.now() - began) if step.kind == "train" else quarter
        asked = self._said.keys() - self._gone
        tasks = [task for task in self._tasks if task.client in asked]
        bodies = [self._body(step, task) for task in tasks]
        outcomes = yield Call(
            bodies,
            self._expected(step),
            lambda task, body, arrays: self._take(step, task.client, body, arrays),
            max(left, quarter),
            office.settings.progress,
            needed=max(self.threshold, least),
            enough=None if self._masking.degree or step.kind != "release" else self.threshold,
        )
        for ref in {body.said for body in bodies if body.said is not None}:
            office.hide(self._round.row.id, ref.blob)
        for outcome in outcomes:
            self._close(step, outcome)

    @property
    def _masking(self) -> Masking:
        return self._round.masking

    def _close(self, step: _Step, outcome: Outcome) -> None:
        site = outcome.client
        self._seconds[site] = self._seconds.get(site, 0.0) + outcome.seconds
        if outcome.status == "contributed":
            return
        if not (step.kind == "release" or site in self._members):
            self._outcomes.setdefault(site, outcome)
        self._tell(machine.Left(self._at.terms.index(site)))

    def _again(self, step: _Step, members: Iterable[int]) -> None:
        """What a server that was stopped was told, from disk."""
        office, run = self._round.office, self._round.row.id
        terms, expected = self._at.terms, self._expected(step)
        wanted = {terms.cohort[i - 1].name for i in members}
        silent = self._said.keys() - self._gone - wanted
        prefix = self._id(step, "")
        rows = {row.client: row for row in office.store.contributions(run, prefix)}
        self._round.answers |= {row.task: row.sha256 for row in rows.values()}
        for site in [task.client for task in self._tasks if task.client in wanted]:
            try:
                frame = office.blobs.view(rows[site].sha256)
                body, arrays = read_answer(frame, rows[site].task, expected)
                self._take(step, site, body, arrays)
            except (KeyError, NotFound, StorageError, UpdateRefused, WireError) as error:
                raise _Lost(f"what {site} said was lost when the server stopped") from error
        for site in sorted(silent):
            reason = f"was not heard in time in the step {step.kind!r}"
            self._close(step, Outcome(site, "dropped", 0, reason))

    def _take(
        self, step: _Step, site: ClientId, body: ResultBody, arrays: Mapping[str, Array]
    ) -> None:
        """One answer of a site.

        Raises:
            WireError: it is none.
            UpdateRefused: it is not what an honest site says, or says more than it should.
        """
        if body.examples or body.weight or body.metrics or body.answer:
            raise UpdateRefused("an answer of a masked round says something in the clear")
        message = read(step.answer, arrays[SAID].tobytes())
        if message.sender != self._at.terms.index(site):
            raise UpdateRefused(
                f"a {step.answer.__name__} of site {message.sender} came from {site}"
            )
        reasons = self._tell(message)
        if isinstance(message, Vector) and not reasons:
            words = {name: array for name, array in arrays.items() if name != SAID}
            try:
                self._ring.add(chunks_of(self._at.terms, words), message.root)
            except UpdateRefused as error:
                self._tell(machine.Spoiled(message.sender, error.message))
                raise
            reasons = self._tell(machine.Folded(message.sender))
        if reasons:
            raise UpdateRefused(reasons[0])

    @property
    def _ring(self) -> RingSum:
        if self._sum is None:
            raise _Lost("the attempt has not begun")
        return self._sum

    def _expected(self, step: _Step) -> Expected:
        slots: dict[str, Slot] = {SAID: (None, "uint8")}
        if step.kind == "train":
            slots |= {
                lane.name: ((lane.length,), f"uint{lane.bits}") for lane in self._masking.lanes
            }
        return Expected(slots, most=MOST)

    def _id(self, step: _Step, site: ClientId) -> str:
        at, name = self._round, step.kind
        number = f"{at.number}-{self._number}"
        if at.about != "train":  # a round that a stop has cut off may end in another model
            name = at.about if step.kind == "train" else f"{step.kind}-{at.about}"
            number += f"-{at.model[:8]}"
        return f"{at.row.id}.{name}.{number}.{site}"

    def _body(self, step: _Step, task: Task) -> TaskBody:
        raw = np.frombuffer(written(self._said[task.client]), np.uint8)
        body = {"kind": step.kind, **(self._round.told if step.kind == "commit" else {})}
        blob = self._round.office.show(self._round.row.id, body, {SAID: raw})
        kind = self._round.about if step.kind == "train" else step.kind
        return self._round.make(kind, task, self._id(step, task.client), blob)

    # The machine --------------------------------------------------------------------------------

    def _tell(self, event: machine.Event) -> list[str]:
        """Move on; returns what the sender is blamed for."""
        self._machine, effects = machine.step(self._at, event)
        return self._did(effects)

    def _did(self, effects: Iterable[machine.Effect]) -> list[str]:
        blamed = list[str]()
        sends = {e.to: e.message for e in effects if isinstance(e, machine.Send)}
        if sends:
            self._said = sends
        for effect in effects:
            if isinstance(effect, machine.Blame):
                blamed.append(effect.reason)
                self._outcomes.setdefault(
                    effect.site, Outcome(effect.site, "refused", 0, effect.reason)
                )
                office = self._round.office
                office.event("blamed", effect.reason, self._round.row.id, effect.site)
            elif isinstance(effect, machine.Unmask):
                self._members = effect.members
                self._open(effect)
            elif isinstance(effect, machine.GiveUp):
                self.failure = effect.reason
        return blamed

    def _open(self, effect: machine.Unmask) -> None:
        """Take the masks out of the sum; what is left must be what so many sites can reach."""
        ring, terms = self._ring, self._at.terms
        ring.unmask(effect.plan)
        try:
            for name, words in ring.integers().items():
                lane = next(lane for lane in terms.lanes if lane.name == name)
                check_reach(lane, terms.sites, ring.count, words)
        except UpdateRefused as error:
            self.failure = error.message
            return
        self.total = ring

    # The end ------------------------------------------------------------------------------------

    def summed(self) -> Summed:
        """What came of it."""
        members = self._members if self.total is not None else ()
        lost = f"there is no sum: {self.failure or 'the round was given up'}"
        outcomes = []
        for task in self._tasks:
            site, seconds = task.client, self._seconds.get(task.client, 0.0)
            if site in members:
                outcomes.append(Outcome(site, "contributed", 0, "", seconds))
            else:
                found = self._outcomes.get(site)
                outcomes.append(found or Outcome(site, "dropped", 0, lost, seconds))
        sums = dict[str, Array]({} if self.total is None else self.total.integers())
        count = len(members)
        return Summed(
            Aggregate(sums, float(count), float(count), count, 0),
            tuple(outcomes),
            {site: self._id(_INPUT, site) for site in members},
        )
