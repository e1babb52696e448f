"""The masked rounds of one run at a site: keys and masks, which the worker process never sees.

The worker gives integers (the chain's ``quantise`` link rounds them there); here they are masked, chunk
by chunk, on their way from one file to another. What may not be done twice is written into the site's
book before it leaves. A site that is stopped in the middle has lost its keys and drops out of the attempt;
the next one has new keys.

The work begins with the server's first message, so that the steps before the masks cost no time.

What is added up is an update, or what a site would else tell beside its updates: sums of its columns, and
figures of its held-out rows (:mod:`atoll.job.summed`). None of them leaves this node in clear while the run
is masked, whatever it is asked for; and a run that was masked once stays so.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.chain import COHORT
from atoll.core.errors import (
    AuthError,
    StateError,
    StorageError,
    UpdateRefused,
    WireError,
)
from atoll.job.summed import (
    SUBJECTS,
    job_name,
    model_mark,
    sums_digest,
    work_mark,
)
from atoll.node.link import INLINE
from atoll.node.orders import Order, Report
from atoll.node.peers import Trust
from atoll.node.plans import Plan, read_plan
from atoll.node.run_folder import Held
from atoll.node.site import Site
from atoll.node.sums.buffers import Buffers, Shown
from atoll.node.sums.trained import Start, Trained, start_of
from atoll.privacy.secagg import site as machine
from atoll.privacy.secagg.codec import read, written
from atoll.privacy.secagg.masks import MaskPlan, RootHash, masked_integers, pieces, workbench
from atoll.privacy.secagg.messages import (
    Dealt,
    FromServer,
    FromSite,
    Invitation,
    Opening,
    Roster,
    Survivors,
    Vector,
)
from atoll.privacy.secagg.policy import BLAMES, Approved
from atoll.privacy.secagg.terms import Terms, model_digest, rule_text, usual_threshold
from atoll.wire.frames import Allowed, Blob, encode, head, open_frame
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["SUBJECTS", "Masked"]

_SAID = "said"
_ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)
_MESSAGE = Allowed(names=(_SAID,), dtypes=("uint8",), most_arrays=1, most_bytes=1 << 20)
_HEARD: Mapping[str, type[Invitation | FromServer]] = {
    "commit": Invitation,
    "share": Roster,
    **dict.fromkeys(SUBJECTS, Dealt),
    "pledge": Survivors,
    "release": Opening,
}
_ALIGN = 64

Find = Callable[[Blob], Path]
"""Where a blob lies that has been fetched."""

Attempt = tuple[str, int, int]
"""What is added up, the number of the round, and which try of it this is."""


class Masked:
    """The masked rounds of a run at this site.

    Args:
        run: its id.
        site: what all runs share.
        now: seconds since 1970.
    """

    def __init__(self, run: str, site: Site, now: Callable[[], float] = time.time) -> None:
        self._run, self._site, self._now = run, site, now
        self._plans: dict[str, Plan] = {}
        self._once = False
        self._machine: tuple[Attempt, machine.Site] | None = None
        self._trained: dict[tuple[str, int], Trained] = {}
        self._begun: tuple[str, int, Start] = "", -1, ()
        self._buffers = Buffers()
        self._start: Start = ()  # that was approved for the present attempt
        self._source = self._memory = ""
        self._said: dict[str, bytes | Path] = {}

    # What it is about ---------------------------------------------------------------------------

    def concerns(self, body: TaskBody, find: Find) -> bool:
        """Whether the task belongs to a masked round; what has a subject does where the run is masked."""
        if body.kind not in SUBJECTS:
            return body.kind in _HEARD
        return self._due(find(body.plan.blob))

    def first(self, body: TaskBody) -> TaskBody | None:
        """The work to begin with after ``body`` was looked at; None when there is none to begin."""
        if body.kind in SUBJECTS:
            return None if self.trained(body) else body
        subject = body.about, body.number
        begun = *subject, start_of(body)
        if body.kind != "commit" or begun == self._begun or subject in self._trained:
            return None
        self._begun = begun
        step = body.id.split(".", 2)[1]
        name = body.id.replace(f"{self._run}.{step}.", f"{self._run}.{body.about}.", 1)
        return body.model_copy(update={"id": name, "kind": body.about, "said": None})

    def keep(self, order: Order, report: Report) -> bool:
        """Remember what the worker made, if it belongs to a masked round; whether it does."""
        if order.task.kind not in SUBJECTS or not self._due(Path(order.plan)):
            return False
        if report.digest:
            self._site.spool.begin(self._run, report.digest)
        memory = Path(order.keep) if report.kept else None
        subject = order.task.kind, order.task.number
        start = start_of(order.task)
        self._trained[subject] = Trained(order.task.id, Path(order.result), memory, start)
        return True

    def trained(self, body: TaskBody) -> Trained | None:
        """What the worker made for the round of ``body``, if that is there.

        Raises:
            StateError: this node does not take part in the attempt (any more).
        """
        self._at(body)
        found = self._trained.get((body.about, body.number))
        if found is not None and (found.start != self._start or not found.result.exists()):
            found = None  # made from something else, or lost with the worker's folder
        return found

    def held(self, body: TaskBody, find: Find) -> Held | None:
        """The answer to a task, in the spool; None while the worker's integers are needed for it.

        Raises:
            StorageError: it cannot be kept; trying again is safe.
            AtollError: see :meth:`answer`.
        """
        found = None
        if body.kind in SUBJECTS and (found := self.trained(body)) is None:
            return None
        frame = self.answer(body, find)
        before = body.kept if found is None or found.memory is not None else found.task
        held = self._site.spool.finish(
            self._run,
            body.id,
            frame,
            memory=found.memory if found else None,
            before=before,
            trained=body.kind == "train",
            # Words without the keys that a failing machine loses with them are of no use to anybody.
            wait=isinstance(frame, Path) and frame.stat().st_size <= INLINE,
            named=self._site.naming(
                body, _done(body), "masked" if body.kind in SUBJECTS else "step"
            ),
        )
        if found is not None:  # another attempt finds the memory under this task
            left = Trained(body.id, found.result, None, found.start)
            self._trained[body.about, body.number] = left
        return held

    # Answers ------------------------------------------------------------------------------------

    def answer(self, body: TaskBody, find: Find) -> bytes | Path:
        """What this site says to a task: a frame, or the file that holds it.

        Raises:
            AtollError: nothing is said: the terms are refused, the server said what it may not, or a step
                cannot be written down. The attempt is over here.
        """
        if body.id not in self._said:
            if body.said is None:
                raise AuthError("a task of a masked job came without a message of the protocol")
            raw = open_frame(find(body.said.blob), _MESSAGE)[1][_SAID].tobytes()
            heard = read(_HEARD[body.kind], raw)
            if isinstance(heard, Invitation):
                self._said = {}
                self._forget((body.about, body.number), start_of(body))
            self._said[body.id] = self._answered(body, heard, find)
        return self._said[body.id]

    def _answered(self, body: TaskBody, heard: Invitation | FromServer, find: Find) -> bytes | Path:
        if isinstance(heard, Invitation):
            event: machine.Event = self._begin(body, heard, find)
        else:
            self._at(body)
            event = heard
        if not isinstance(heard, Dealt):
            message, _ = self._hear(body, event)
            if message is None:
                raise StateError("the masks were asked for in the wrong place")
            said = np.frombuffer(written(message), np.uint8)
            return encode(_done(body).model_dump(), {_SAID: said})
        trained = self.trained(body)
        if trained is None:
            raise StateError("the integers of this round have not been made yet")
        done, integers = trained.read()
        if done.status != "done":
            raise StateError(done.reason)
        if faults := trained.lane_faults(done, self._at(body).at.terms):
            self._cancel(faults)
            raise AuthError(faults)
        if body.about != "sums":
            self._site.leave(body, trained.result)
        path = trained.result.with_suffix(".masked")
        self._masked_file(body, event, integers, path)
        return path

    def _forget(self, subject: tuple[str, int], start: Start) -> None:
        """Nothing of earlier rounds is kept, nor what was made from something else."""
        kept = {subject} if subject in self._trained else set[tuple[str, int]]()
        if kept and self._trained[subject].start != start:
            kept = set()
        for old in self._trained.keys() - kept:
            found = self._trained.pop(old)
            for path in (found.result, found.memory):
                if path is not None:
                    self._site.spool.retire(self._run, path)

    # The machine --------------------------------------------------------------------------------

    @property
    def _trust(self) -> Trust:
        if self._site.trust is None:
            raise StateError(
                "this node has no keys for masked rounds", remedy="start it with: atoll node start"
            )
        return self._site.trust

    def _at(self, body: TaskBody) -> machine.Site:
        """The machine of the attempt that ``body`` belongs to."""
        key = _attempt(body)
        if self._machine is None or self._machine[0] != key or self._machine[1].ended:
            raise StateError(
                f"this site takes no part in attempt {key[2]} of round {key[1]}",
                remedy="it was started anew in the middle, and its keys are gone; the next has new ones",
            )
        if body.kind in SUBJECTS and start_of(body) != self._start:
            raise AuthError(f"task {body.id} is from another model than its round was begun with")
        return self._machine[1]

    def _begin(self, body: TaskBody, invitation: Invitation, find: Find) -> machine.Invite:
        """A new machine, and what this site itself knows of the round."""
        terms, trust, name = invitation.terms, self._trust, self._site.name
        plan = self._plan(find(body.plan.blob))
        policy = trust.policy(name, terms.cohort, self._site.settings.masking, auto=plan.auto)
        approved = self._approved(body, terms, find)
        unknown = [m.name for m in terms.cohort if m.name not in policy.pinned]
        if unknown:
            raise AuthError(
                f"the keys of {', '.join(unknown[:5])} are not pinned here as the server shows them",
                remedy="compare fingerprints with them, then: atoll node peers --pin",
            )
        self._start = start_of(body)
        self._memory = self._site.memory_digest(self._run, body.kept)
        self._machine = _attempt(body), machine.Site(name, trust.signer, policy)
        return machine.Invite(invitation, approved, os.urandom(32), self._now())

    def _approved(self, body: TaskBody, terms: Terms, find: Find) -> Approved:
        """What the job and the model say of the round; the server's terms must say the same."""
        path = find(body.plan.blob)
        plan = self._plan(path)
        if not plan.settled.masked:
            raise AuthError(f"a masked round of a job that is not masked: {plan.settled}")
        if strangers := {m.name for m in terms.cohort} - {*plan.sites}:
            raise AuthError(
                f"{min(strangers)!r:.80} is in the round, and not among the run's sites"
            )
        privacy = plan.privacy
        threshold = privacy.get("threshold") or usual_threshold(terms.sites)
        degree = privacy.get("degree", 0)
        if (terms.threshold, terms.degree) != (threshold, degree):
            raise AuthError(
                f"threshold {terms.threshold} and degree {terms.degree}; the job says {threshold} "
                f"and {degree}"
            )
        at = terms.occasion
        if (body.about, at.round, at.attempt) != _attempt(body):
            raise AuthError(f"task {body.id} comes with the terms of round {at.round}")
        other = [lane.name for lane in terms.lanes if (lane.step, lane.excess) != (1.0, "refuse")]
        if other:
            raise AuthError(f"lane {other[0]!r} is not one of whole numbers")
        name = job_name(plan.spec.hash(), self._run, body.about)
        mark = self._mark(body, path, terms, find)
        work = work_mark(body, buffered=plan.spec.rounds.mode == "async" and body.about == "train")
        return Approved(name, mark, terms.lanes, rule_text(privacy), work)

    def _mark(self, body: TaskBody, path: Path, terms: Terms, find: Find) -> str:
        """What the round starts from, in the form in which sums are compared."""
        self._source = ""
        if body.about == "sums":
            raw = open_frame(path, _ANY)[0]
            digest = sums_digest(raw.get("spec") or {}, raw.get("schema") or {})
            return model_mark(body.about, digest)
        if body.broadcast is None:
            raise AuthError("a masked round came without a model")
        arrays = open_frame(find(body.broadcast.blob), _ANY)[1]
        model = model_digest(arrays)
        if body.about == "train" and body.said is not None:
            plan, names = self._plan(path), [member.name for member in terms.cohort]
            _enough_noise(plan.privacy, arrays, terms)
            told = open_frame(find(body.said.blob), _MESSAGE)[0].get("starts")
            shown, apart = Shown(self._site.name, told, body, model, names), self._apart
            if mark := self._buffers.approved(plan, shown, apart):
                self._source = model
                return mark
        return model_mark(body.about, model)

    @property
    def _apart(self) -> int:
        """Fewest sites that another may be hidden among."""
        return self._site.settings.masking.apart

    def _plan(self, path: Path) -> Plan:
        """Of the run; read once for each file."""
        name = str(path)
        if name not in self._plans:
            self._plans = {name: read_plan(path)}
        return self._plans[name]

    def _due(self, path: Path) -> bool:
        """Whether the run is masked; one that ever was does not cease to be, whatever its plan says now."""
        if not self._once:
            plan, trust = self._plan(path), self._site.trust
            self._once = plan.settled.masked
            if not self._once and trust is not None:
                names = (job_name(plan.job, self._run, about) for about in SUBJECTS)
                self._once = any(trust.book.knows(name) for name in names)
        return self._once

    def _hear(
        self, body: TaskBody, event: machine.Event
    ) -> tuple[FromSite, None] | tuple[None, MaskPlan]:
        """Move the machine on until it says something or asks for the input.

        Raises:
            StateError: it gave up.
            AuthError: likewise, and a peer is to blame; it is named behind :data:`BLAMES`.
        """
        if self._machine is None:
            raise StateError("there is no attempt")
        key, at = self._machine
        todo: deque[machine.Event] = deque()
        if not isinstance(event, machine.Invite):
            todo.append(machine.Tick(self._now()))
        todo.append(event)
        while todo:
            at, effects = machine.step(at, todo.popleft())
            self._machine = key, at
            for effect in effects:
                if isinstance(effect, machine.Say):
                    return effect.message, None
                if isinstance(effect, machine.Mask):
                    return None, effect.plan
                if isinstance(effect, machine.Abort):
                    if effect.blamed:
                        raise AuthError(f"{BLAMES} {effect.blamed}: {effect.reason}")
                    raise StateError(effect.reason)
                todo.append(self._kept(effect))
        raise StateError(f"{body.id}: nothing is to be said to this")

    def _kept(self, effect: machine.Keep) -> machine.Event:
        try:
            own = replace(effect.record, source=self._source, memory=self._memory)
            self._trust.book.keep(own, effect.apart)
        except (StateError, StorageError) as error:
            return machine.Denied(effect.record, error.message)
        return machine.Kept(effect.record)

    # Masks --------------------------------------------------------------------------------------

    def _masked_file(
        self, body: TaskBody, event: machine.Event, integers: Mapping[str, Any], path: Path
    ) -> None:
        """Write the result: the masked integers, chunk by chunk, then the signature on their root.

        Raises:
            UpdateRefused: the integers are not those of the terms.
            StorageError: the disk takes no more.
        """
        _, plan = self._hear(body, event)
        session = self._at(body).at
        if plan is None:
            raise StateError("the masks have been used already")
        bare = Vector(session.index, bytes(32), session.dealers, bytes(64))
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            lane.name: (f"uint{lane.bits}", (lane.length,)) for lane in session.terms.lanes
        }
        shapes[_SAID] = "uint8", (len(written(bare)),)
        done = _done(body).model_dump()

        def whole() -> Iterator[bytes | memoryview]:
            yield head(done, shapes)
            hashed = RootHash()
            chunks = masked_integers(session.terms, plan, integers, workbench())
            yield from _laid(session.terms, hashed.through(chunks))
            message, _ = self._hear(body, machine.Masked(hashed.digest()))
            if message is None:
                raise StateError("the root was not signed")
            yield written(message)

        try:
            self._site.spool.write(self._run, path, whole())
        except UpdateRefused as error:
            self._cancel(error.message)
            raise

    def _cancel(self, reason: str) -> None:
        if self._machine is not None:
            key, at = self._machine
            self._machine = key, machine.step(at, machine.Cancel(reason))[0]


def _enough_noise(privacy: Mapping[str, Any], arrays: Mapping[str, Any], terms: Terms) -> None:
    """Refuse terms under which fewer shares of noise may be in the sum than each share is made for."""
    if (privacy.get("client") or {}).get("where") != "sites":
        return
    told = arrays.get(COHORT)
    if told is None or not told.size:
        raise AuthError("the model came without the number of sites that share the noise")
    least = privacy.get("threshold") or usual_threshold(int(told.flat[0]))
    if terms.threshold < least:
        raise AuthError(
            f"{terms.threshold} sites could open the sum, and its noise is made for {least}",
            remedy="set privacy.threshold in the job, so that rounds with fewer sites may be opened",
        )


def _done(body: TaskBody) -> ResultBody:
    return ResultBody(task=body.id, status="done")


def _attempt(body: TaskBody) -> Attempt:
    """Subject, round and attempt of a task."""
    number, attempt, *_ = [*body.id.split(".", 3)[2].split("-"), ""]
    other = body.kind in SUBJECTS and body.kind != body.about
    if other or number != str(body.number) or not (attempt.isascii() and attempt.isdigit()):
        raise WireError(f"{body.id!r:.120} is no task of a masked round")
    return body.about, body.number, int(attempt)


def _laid(terms: Terms, chunks: Iterable[memoryview]) -> Iterator[bytes | memoryview]:
    """The chunks as they lie in a frame: a lane begins at a multiple of 64 bytes."""
    end = 0
    for piece, chunk in zip(pieces(terms), chunks, strict=True):
        if piece.start == 0 and end % _ALIGN:
            yield bytes(-end % _ALIGN)
            end += -end % _ALIGN
        yield chunk
        end += len(chunk)
    yield bytes(-end % _ALIGN)
