"""An encrypted round at the server: it adds up ciphertexts, and sites open the sum.

========== ================================================ =============================================
task       the server says                                  a site answers
========== ================================================ =============================================
``train``  the terms, signed                                its ciphertext, the hash of that, and a tag
``pledge`` whose ciphertexts are in the sum                 its signature on that
``open``   the sum, all tags, and pledges                   the sum in clear
========== ================================================ =============================================

The server holds the public half of the key, which is another type than the secret one, so nothing here could
open anything. What it takes for the sum is what two sites say alike.

*Who is in the sum is written down before anybody is asked to pledge.* A server that was killed reads that,
adds up the same ciphertexts from disk, and asks the same questions, whose answers it may have already. There
is one attempt: a site pledges itself once a round, so a round that fails after that ends without a sum.
So a sum of fewer sites than the round needs is not opened: those missing are waited for until the deadline,
and where they have not come then, nobody is asked to pledge. Opened, it would be in the way of the next sum on
the same model: sites refuse one that differs by so few of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from atoll.core.contracts import Outcome, Task
from atoll.core.errors import NotFound, StorageError, UpdateRefused, WireError
from atoll.core.layout import Array
from atoll.core.values import Aggregate, ClientId
from atoll.job.summed import Subject, job_name, model_mark
from atoll.privacy.he.contexts import PublicContext
from atoll.privacy.he.rounds import MOST_PIECE, Included, cut, joined, pieces_in, pledged
from atoll.privacy.he.sealed import SealedSum
from atoll.privacy.he.tags import TAG
from atoll.privacy.secagg.terms import Lane, Occasion, Terms
from atoll.server.office import Office
from atoll.server.rounds.answers import Expected, Slot, read_answer
from atoll.server.rounds.desk import Call, Take
from atoll.server.rounds.key_sharing import invited, terms_of
from atoll.server.rounds.masking import Make, Summed
from atoll.server.store.contract import RunRow
from atoll.server.store.rules import fence
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["AGREEING", "OPENERS", "EncryptedRound"]

OPENERS = 3
"""So many sites are asked to open a sum first; the others only where these do not agree."""
AGREEING = 2
"""So many sites must say the same."""
_NOTE = "encrypting"

Calls = Generator[Call, Sequence[Outcome], Any]


class EncryptedRound:
    """One round.

    Args:
        office: of the server.
        row: the run.
        lanes: what is added up.
        number: of the round.
        model: hash of what the round starts from.
        make: makes tasks.
        seconds: the round's own time; steps beside the training get a quarter of it each.
        key: the public half.
        begun: whether a server before this one may have begun the round.
        about: what is added up.
        work: what all sites are told to do beside the model.
        least: fewest sites whose sum is of use: one of fewer is not opened.

    Attributes:
        answers: digests of what sites have answered, by task, where the round knows more than its calls.
    """

    def __init__(
        self,
        office: Office,
        row: RunRow,
        lanes: tuple[Lane, ...],
        number: int,
        model: str,
        make: Make,
        seconds: float,
        *,
        key: PublicContext,
        begun: bool = True,
        about: Subject = "train",
        work: str = "",
        least: int = 1,
    ) -> None:
        self._office, self._row, self._lanes = office, row, lanes
        self._number, self._model, self._make, self._seconds = number, model, make, seconds
        self._key, self._begun, self._about, self._work = key, begun, about, work
        self._least = least
        self._own = {"round": number, "about": about, "model": model}
        self.answers: dict[str, str] = {}
        self._total = SealedSum(key)
        self._entries: dict[ClientId, tuple[bytes, bytes]] = {}
        self._outcomes: dict[ClientId, Outcome] = {}
        self._failure = ""

    def play(self, tasks: Sequence[Task]) -> Generator[Call, Sequence[Outcome], Summed]:
        """The calls of the round; returns what came of it."""
        terms = self._terms([task.client for task in tasks])
        if faults := terms.faults():
            self._failure = "; ".join(map(str, faults))
            return self._summed(terms, tasks, {}, ())
        told = invited(self._office, terms)
        noted = self._noted() if self._begun else None
        if noted is None:
            yield from self._gather(terms, tasks, told)
            if len(self._entries) >= self._needed(terms):
                self._note(sorted(self._entries))
        else:
            self._again(tasks, noted)
        if not self._failure and len(self._entries) < (least := self._needed(terms)):
            self._failure = f"{len(self._entries)} ciphertexts, and {least} are needed"
        sums: Mapping[str, Array] = {}
        if not self._failure:
            sums = yield from self._opened(terms, tasks, told)
        return self._summed(terms, tasks, sums, sorted(self._entries) if sums else ())

    # Ciphertexts --------------------------------------------------------------------------------

    def _needed(self, terms: Terms) -> int:
        """Fewest ciphertexts whose sum is opened."""
        return max(terms.threshold, self._least)

    def _gather(self, terms: Terms, tasks: Sequence[Task], told: Mapping[str, Array]) -> Calls:
        """Ask everybody for a ciphertext, and add them up as they come."""

        def take(task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
            self._add(task.client, body, arrays)

        outcomes = yield from self._call(
            self._about, tasks, told, self._expected, take, self._seconds, self._needed(terms)
        )
        self._outcomes = {o.client: o for o in outcomes}

    def _add(self, site: ClientId, body: ResultBody, arrays: Mapping[str, Array]) -> None:
        """One site's ciphertext.

        Raises:
            UpdateRefused: it is none, or comes with something in the clear.
        """
        if body.examples or body.weight or body.metrics or body.answer:
            raise UpdateRefused("an answer of an encrypted round says something in the clear")
        sealed = cut(arrays, self._lanes, self._key.parameters)
        root = arrays["root"].tobytes()
        if sealed.root != root:
            raise UpdateRefused("a ciphertext with another hash than it says")
        self._total.add(sealed)
        self._entries[site] = root, arrays["tag"].tobytes()

    def _again(self, tasks: Sequence[Task], members: Sequence[ClientId]) -> None:
        """What a server that was stopped was told, from disk."""
        office, run = self._office, self._row.id
        kept = {
            row.client: row for row in office.store.contributions(run, self._id(self._about, ""))
        }
        self.answers |= {row.task: row.sha256 for row in kept.values()}
        for site in members:
            try:
                frame = office.blobs.view(kept[site].sha256)
                self._add(site, *read_answer(frame, kept[site].task, self._expected))
            except (KeyError, NotFound, StorageError, UpdateRefused, WireError):
                self._failure = f"what {site} said was lost when the server stopped"
                return

    @property
    def _expected(self) -> Expected:
        count = pieces_in(self._lanes, self._key.parameters)
        slots: dict[str, Slot] = {
            "root": ((32,), "uint8"),
            "tag": ((TAG,), "uint8"),
            "sizes": ((count,), "uint32"),
            "pieces": (None, "uint8"),
        }
        return Expected(slots, most=count * MOST_PIECE)

    # Opening ------------------------------------------------------------------------------------

    def _opened(
        self, terms: Terms, tasks: Sequence[Task], told: Mapping[str, Array]
    ) -> Generator[Call, Sequence[Outcome], Mapping[str, Array]]:
        """The sum in clear; empty where there is none."""
        inside = [task for task in tasks if task.client in self._entries]
        members = sorted((terms.index(site), root) for site, (root, _) in self._entries.items())
        included = Included(tuple(members))
        told = {**told, **included.arrays()}
        pledges = yield from self._pledges(terms, inside, included, told)
        if len(pledges) < terms.threshold:
            self._failure = f"{len(pledges)} sites pledged themselves, {terms.threshold} are needed"
            return {}
        tags = [self._entries[terms.cohort[index - 1].name][1] for index, _ in members]
        told |= {
            "pledgers": np.array(sorted(pledges), np.int64),
            "pledges": _bytes(b"".join(pledges[index] for index in sorted(pledges))),
            "tags": _bytes(b"".join(tags)),
            **joined(self._total.sealed()),
        }
        inside = [task for task in inside if terms.index(task.client) in pledges]
        # Another three each round: opening costs time, and nobody shall be asked for every sum.
        inside.sort(key=lambda t: hashlib.sha256(terms.context + t.client.encode()).digest())
        votes = _Votes(self._lanes)
        for some in (inside[:OPENERS], inside[OPENERS:]):
            if not some or votes.agreed:
                break
            yield from self._open(some, told, votes)
        self._tell_apart(votes)
        if not votes.agreed:
            said = f"{votes.heard} sites opened the sum, and no {AGREEING} of them say the same"
            self._failure = "; ".join([said, *votes.silent[:1]])
        return votes.sums

    def _pledges(
        self, terms: Terms, tasks: Sequence[Task], included: Included, told: Mapping[str, Array]
    ) -> Generator[Call, Sequence[Outcome], dict[int, bytes]]:
        found: dict[int, bytes] = {}

        def take(task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
            index = terms.index(task.client)
            valid = pledged(terms, included, {index: arrays["signature"].tobytes()})
            if not valid:
                raise UpdateRefused("its pledge is not a signature on the members of the sum")
            found.update(valid)

        expected = Expected({"signature": ((64,), "uint8")})
        least = terms.threshold
        yield from self._call(
            "pledge", tasks, told, expected, take, self._seconds / 4, least, least
        )
        return found

    def _open(self, tasks: Sequence[Task], told: Mapping[str, Array], votes: _Votes) -> Calls:
        expected = Expected(
            {lane.name: ((lane.length,), f"int{lane.bits}") for lane in self._lanes}
        )
        outcomes = yield from self._call(
            "open", tasks, told, expected, votes.take, self._seconds / 4, 1, AGREEING
        )
        votes.silent += [f"{o.client}: {o.reason}" for o in outcomes if o.reason]

    def _tell_apart(self, votes: _Votes) -> None:
        """Say in the log who has told another sum than was taken."""
        for site in votes.others:
            self._office.event("blamed", "told another sum than two sites", self._row.id, site)

    # Calls --------------------------------------------------------------------------------------

    def _call(
        self,
        kind: str,
        tasks: Sequence[Task],
        told: Mapping[str, Array],
        expected: Expected,
        take: Take,
        seconds: float,
        needed: int,
        enough: int | None = None,
    ) -> Generator[Call, Sequence[Outcome], Sequence[Outcome]]:
        office, run = self._office, self._row.id
        blob = office.show(run, {"kind": kind}, told)
        bodies = [self._make(kind, task, self._id(kind, task.client), blob) for task in tasks]
        outcomes = yield Call(
            bodies,
            expected,
            take,
            seconds,
            office.settings.progress,
            needed=needed,
            enough=enough,
        )
        office.hide(run, blob)
        return outcomes

    def _id(self, kind: str, site: ClientId) -> str:
        name, place = kind, str(self._number)
        if self._about != "train":  # a round that a stop has cut off may end in another model
            name = kind if kind == self._about else f"{kind}-{self._about}"
            place += f"-{self._model[:8]}"
        return f"{self._row.id}.{name}.{place}.{site}"

    def _terms(self, sites: Sequence[ClientId]) -> Terms:
        office, row = self._office, self._row
        bare = terms_of(office, row, sites, "train")
        job = job_name(row.job_hash, row.id, self._about)
        model = model_mark(self._about, self._model)
        at = Occasion(office.federation, job, self._number, 0, model)
        return replace(bare, occasion=at, lanes=self._lanes, work=self._work)

    # Notes --------------------------------------------------------------------------------------

    def _noted(self) -> list[ClientId] | None:
        """Who is in the sum, as a server before this one has written down; None where none has."""
        for event in self._office.store.events(self._row.id):
            if event.kind == _NOTE:
                note = json.loads(event.text)
                if self._own.items() <= note.items():  # the first one counts
                    return list(note["members"])
        return None

    def _note(self, members: Sequence[ClientId]) -> None:
        office = self._office
        fence(office.epoch, office.store.lease().epoch)
        office.event(_NOTE, json.dumps({**self._own, "members": members}), self._row.id)

    # The end ------------------------------------------------------------------------------------

    def _summed(
        self,
        terms: Terms,
        tasks: Sequence[Task],
        sums: Mapping[str, Array],
        members: Sequence[ClientId],
    ) -> Summed:
        lost, outcomes = f"there is no sum: {self._failure or 'the round was given up'}", []
        for task in tasks:
            site, known = task.client, self._outcomes.get(task.client)
            seconds = 0.0 if known is None else known.seconds
            if site in members:
                outcomes.append(Outcome(site, "contributed", 0, "", seconds))
            elif known is None or known.status == "contributed":
                outcomes.append(Outcome(site, "dropped", 0, lost, seconds))
            else:
                outcomes.append(known)
        count = len(members)
        return Summed(
            Aggregate(dict(sums), float(count), float(count), count, 0),
            tuple(outcomes),
            {site: self._id(self._about, site) for site in members},
        )


class _Votes:
    """What sites say that the sum is.

    Attributes:
        heard: how many have said something.
        sums: what enough of them say alike; empty before.
        silent: why others have not.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self._by: dict[ClientId, bytes] = {}
        self._first: dict[bytes, dict[str, Array]] = {}
        self.sums: Mapping[str, Array] = {}
        self.silent: list[str] = []

    @property
    def heard(self) -> int:
        return len(self._by)

    @property
    def agreed(self) -> bool:
        return bool(self.sums)

    @property
    def others(self) -> list[ClientId]:
        """Who says something else."""
        right = next((d for d, sums in self._first.items() if sums is self.sums), b"")
        return [site for site, said in self._by.items() if self.agreed and said != right]

    def take(self, task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
        """One site's sum."""
        whole = hashlib.sha256()
        for lane in self._lanes:
            whole.update(np.ascontiguousarray(arrays[lane.name]).view(np.uint8).data)
        said = whole.digest()
        self._by[task.client] = said
        if said not in self._first:
            self._first[said] = {
                lane.name: np.array(arrays[lane.name], np.int64) for lane in self._lanes
            }
        if list(self._by.values()).count(said) == AGREEING:
            self.sums = self._first[said]


def _bytes(raw: bytes) -> Array:
    return np.frombuffer(raw, np.uint8)
