"""The encrypted rounds of one run at a site: the shared key, ciphertexts and their opening.

As in masked rounds (:mod:`atoll.node.sums.masking`) the worker gives integers and sees no key. What this
process must not do twice stands in the same book, and what it needs to go on after a stop lies in files
(:mod:`atoll.node.run_keys`): every step can be answered again from these and the message alone.

==========  =========================================  =============================================
task        the server says                            this site answers
==========  =========================================  =============================================
``greet``   the terms of the key                       a fresh public key, signed
``deal``    everybody's, to one site                   the secret key, sealed for each site
``take``    what that site has sealed                  the name of the key it has found inside
``train``   the terms of the round                     its ciphertext, the hash of that, and a tag
``pledge``  whose ciphertexts are in the sum           its signature on that, once a round
``open``    the sum, tags and pledges                  the sum in clear, as whole numbers
==========  =========================================  =============================================

``sums`` and ``evaluate`` are added up as ``train`` is. A site opens nothing before it has seen that two
thirds of the sites have pledged themselves to one and the same set, and that what lies before it is the sum
over that set (:mod:`atoll.privacy.he.tags`).

What is told of an opened sum are whole numbers, never the slots themselves: the noise in those gives away the
key (Li and Micciancio, "On the Security of Homomorphic Encryption on Approximate Numbers", EUROCRYPT 2021,
https://eprint.iacr.org/2020/1533).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import AuthError, StateError, WireError, raise_faults
from atoll.core.layout import Array
from atoll.job.summed import SUBJECTS, job_name, model_mark, sums_digest, work_mark
from atoll.node.audit.answers import Form
from atoll.node.link import INLINE
from atoll.node.orders import Order, Report
from atoll.node.peers import Trust
from atoll.node.plans import Plan, read_plan
from atoll.node.run_folder import Held
from atoll.node.run_keys import RunKeys
from atoll.node.site import Site
from atoll.node.sums.masking import Find
from atoll.node.sums.trained import Trained, start_of
from atoll.privacy.he.contexts import SecretContext, new_key
from atoll.privacy.he.opening import SharedKey
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.rounds import Included, cut, joined, key_lane, pledged, rows_of
from atoll.privacy.he.sealed import Sealed, seal
from atoll.privacy.he.sharing import (
    WRAP,
    Greeting,
    Parcel,
    greeting,
    key_name,
    parcel,
    unpacked_key,
)
from atoll.privacy.he.tags import TAG, Tags
from atoll.privacy.he.whole import packed, unpacked
from atoll.privacy.secagg.codec import read
from atoll.privacy.secagg.ledger import Record
from atoll.privacy.secagg.messages import Invitation
from atoll.privacy.secagg.policy import Approved, objections
from atoll.privacy.secagg.terms import Lane, Terms, model_digest, rule_text, usual_threshold
from atoll.wire.frames import Allowed, encode, open_frame, pieces
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["KEY_STEPS", "Encrypted"]

KEY_STEPS = ("greet", "deal", "take")
_ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)

Arrays = Mapping[str, Any]


class Encrypted:
    """The encrypted rounds of a run at this site.

    Args:
        run: its id.
        site: what all runs share.
        now: seconds since 1970.
    """

    def __init__(self, run: str, site: Site, now: Callable[[], float] = time.time) -> None:
        self._run, self._site, self._now = run, site, now
        self._keys = RunKeys(site.home.keys)
        self._plans: dict[str, Plan] = {}
        self._trained: dict[str, Trained] = {}
        self._answered = ""
        self._start_memory = "", ""
        self._secret: tuple[int, bytes, SecretContext] | None = None

    # What it is about ---------------------------------------------------------------------------

    def concerns(self, body: TaskBody, find: Find) -> bool:
        """Whether the task belongs to an encrypted run's key or rounds."""
        if body.kind in (*KEY_STEPS, "open"):
            return True
        return body.kind in (*SUBJECTS, "pledge") and self.due(find(body.plan.blob))

    def due(self, path: Path) -> bool:
        """Whether the run with this plan is encrypted."""
        return self._plan(path).settled.kind == "encrypted"

    def first(self, body: TaskBody) -> TaskBody | None:
        """The work to begin with after ``body`` was looked at; None when there is none to begin."""
        if body.kind not in SUBJECTS or body.id == self._answered or self.trained(body):
            return None
        return body

    def trained(self, body: TaskBody) -> Trained | None:
        """What the worker made for a task, if that is there."""
        found = self._trained.get(body.id)
        return found if found is not None and found.result.exists() else None

    def keep(self, order: Order, report: Report) -> bool:
        """Remember what the worker made, if it is to be encrypted; whether it is."""
        if order.task.kind not in SUBJECTS or not self.due(Path(order.plan)):
            return False
        if report.digest:
            self._site.spool.begin(self._run, report.digest)
        memory = Path(order.keep) if report.kept else None
        task = order.task
        self._trained[task.id] = Trained(task.id, Path(order.result), memory, start_of(task))
        return True

    def held(self, body: TaskBody, find: Find) -> Held | None:
        """The answer to a task, in the spool; None while the worker's integers are needed for it.

        Raises:
            StorageError: it cannot be kept; trying again is safe.
            AtollError: nothing is said: the terms are refused, or the server said what it may not.
        """
        found = None
        if body.kind in SUBJECTS and (found := self.trained(body)) is None:
            self._terms(body, self._said(body, find), find)  # better refused before the work
            return None
        if found is not None and found.start != start_of(body):
            raise AuthError(f"task {body.id} is from another model than its work was begun with")
        frame = self._answer(body, self._said(body, find), found, find)
        held = self._site.spool.finish(
            self._run,
            body.id,
            frame,
            memory=found.memory if found else None,
            before=body.kept,
            trained=body.kind == "train",
            wait=not isinstance(frame, Path) or frame.stat().st_size <= INLINE,
            named=self._site.naming(body, _done(body), _form(body)),
        )
        if found is not None:
            self._answered = body.id
            self._trained.pop(body.id, None)
            self._site.spool.retire(self._run, found.result)
        return held

    # Steps --------------------------------------------------------------------------------------

    def _answer(
        self, body: TaskBody, said: Arrays, found: Trained | None, find: Find
    ) -> bytes | Path:
        terms = self._terms(body, said, find)
        if found is not None:
            return self._input(body, terms, found)
        steps: Mapping[str, Callable[[TaskBody, Terms, Arrays], Mapping[str, Array]]] = {
            "greet": self._greet,
            "deal": self._deal,
            "take": self._take,
            "pledge": self._pledge,
            "open": self._open,
        }
        try:
            return encode(_done(body).model_dump(), steps[body.kind](body, terms, said))
        except KeyError as error:
            raise WireError(f"a message of the step {body.kind!r} without {error}") from error

    def _greet(self, body: TaskBody, terms: Terms, said: Arrays) -> Mapping[str, Array]:
        own = greeting(
            terms, self._index(terms), self._keys.seed(self._run), self._trust.signer.sign
        )
        return {"channel": _bytes(own.channel), "signature": _bytes(own.signature)}

    def _deal(self, body: TaskBody, terms: Terms, said: Arrays) -> Mapping[str, Array]:
        if self._index(terms) != 1:
            raise AuthError("the key of a run is dealt by its first site, which this is not")
        if not self._keys.has(self._run):
            self._keys.keep(self._run, new_key(_parameters(terms)))
        raw, context = self._key(terms)
        seed, sign = self._keys.seed(self._run), self._trust.signer.sign
        dealt = parcel(terms, 1, seed, _greetings(said), raw, sign)
        return {
            "public": _bytes(context.public().raw),
            "name": _bytes(key_name(raw)),
            "sealed": _bytes(dealt.sealed),
            "wraps": _bytes(b"".join(dealt.wraps)),
            "signature": _bytes(dealt.signature),
        }

    def _take(self, body: TaskBody, terms: Terms, said: Arrays) -> Mapping[str, Array]:
        wraps = tuple(rows_of(said["wraps"], WRAP))
        dealt = Parcel(said["sealed"].tobytes(), wraps, said["dealt"].tobytes())
        seed = self._keys.seed(self._run)
        raw = unpacked_key(terms, self._index(terms), seed, _greetings(said), dealt, dealer=1)
        if self._keys.has(self._run):
            if self._keys.key(self._run) != raw:
                raise AuthError("another key than this run has had", remedy="start the run anew")
        else:
            SecretContext(_parameters(terms), raw)  # or it is none
            self._keys.keep(self._run, raw)
        return {"name": _bytes(key_name(raw))}

    def _input(self, body: TaskBody, terms: Terms, found: Trained) -> Path:
        """The ciphertext of what the worker made, in a file."""
        done, integers = found.read()
        if done.status != "done":
            raise StateError(done.reason)
        if faults := found.lane_faults(done, terms):
            raise AuthError(faults)
        raw, context = self._key(terms)
        slots = packed(terms.lanes, integers, context.parameters)
        index, public = self._index(terms), context.public()
        sealed = seal(public, slots)
        root = sealed.root
        tag = Tags(public, raw, terms.context).tag((index, root), sealed)
        book = self._trust.book
        memory = self._memory(body)
        book.keep(Record("join", terms.occasion, terms.context, memory=memory))
        book.keep(Record("input", terms.occasion, terms.context, memory=memory))
        if body.kind != "sums":
            self._site.leave(body, found.result)
        path = found.result.with_suffix(".encrypted")
        arrays = {**joined(sealed), "root": _bytes(root), "tag": _bytes(tag)}
        self._site.spool.write(self._run, path, pieces(_done(body).model_dump(), arrays))
        return path

    def _pledge(self, body: TaskBody, terms: Terms, said: Arrays) -> Mapping[str, Array]:
        included = self._included(terms, said)
        self._record("pledge", body, terms, included)
        signature = self._trust.signer.sign(included.signed(terms.context))
        return {"signature": _bytes(signature)}

    def _open(self, body: TaskBody, terms: Terms, said: Arrays) -> Mapping[str, Array]:
        included = self._included(terms, said)
        signatures = dict(zip(said["pledgers"].tolist(), rows_of(said["pledges"], 64), strict=True))
        if len(pledged(terms, included, signatures)) < terms.threshold:
            raise AuthError(
                f"fewer than {terms.threshold} sites have pledged themselves to this sum"
            )
        raw, context = self._key(terms)
        total = cut(said, terms.lanes, context.parameters)
        tags = rows_of(said["tags"], TAG)
        Tags(context, raw, terms.context).check(included.entries, tags, total)
        self._record("release", body, terms, included)
        return _whole(terms.lanes, context, total, len(included.entries))

    def _included(self, terms: Terms, said: Arrays) -> Included:
        """Who is in the sum; this site is, and enough others.

        Raises:
            AuthError: they are none, too few, or without this site.
        """
        included = Included.of(said["members"].tolist(), rows_of(said["roots"], 32))
        indices = [index for index, _ in included.entries]
        if indices != sorted(set(indices)) or not all(map(terms.member, indices)):
            raise AuthError("the members of a sum are no sites of the round")
        if self._index(terms) not in indices:
            raise AuthError("a sum that this site is not part of")
        if len(indices) < terms.threshold:
            raise AuthError(f"a sum of {len(indices)} sites, and {terms.threshold} are the fewest")
        return included

    def _record(self, kind: Any, body: TaskBody, terms: Terms, included: Included) -> None:
        """Write down that this is the sum, the only one of the round."""
        names = tuple(terms.cohort[index - 1].name for index, _ in included.entries)
        value, memory = included.digest(terms.context), self._memory(body)
        self._trust.book.keep(
            Record(kind, terms.occasion, value, names, memory=memory),
            self._site.settings.masking.apart,
        )

    def _memory(self, body: TaskBody) -> str:
        """What stands for the memory that the task's work starts from."""
        if self._start_memory[0] != body.kept:
            self._start_memory = body.kept, self._site.memory_digest(self._run, body.kept)
        return self._start_memory[1]

    # Terms --------------------------------------------------------------------------------------

    @property
    def _trust(self) -> Trust:
        if self._site.trust is None:
            raise StateError(
                "this node has no keys for encrypted rounds",
                remedy="start it with: atoll node start",
            )
        return self._site.trust

    def _index(self, terms: Terms) -> int:
        return terms.index(self._site.name)

    def _key(self, terms: Terms) -> tuple[bytes, SecretContext]:
        # For as many sites as the plan of this very task has: that is in the terms, so all sites cut into
        # digits alike. Who did it otherwise would have the last digits of its own stand out in the sum.
        (sites,) = {len(plan.sites) for plan in self._plans.values()}
        if self._secret is None or self._secret[0] != sites:
            raw = self._keys.key(self._run)
            self._secret = sites, raw, SecretContext(Parameters.exact(max(2, sites)), raw)
        return self._secret[1:]

    def _said(self, body: TaskBody, find: Find) -> Arrays:
        if body.said is None:
            raise AuthError("a task of an encrypted job came without a message of the protocol")
        return open_frame(find(body.said.blob), _ANY)[1]

    def _terms(self, body: TaskBody, said: Arrays, find: Find) -> Terms:
        """The terms that came with a message, if they are what this site's job, model and rules say.

        Raises:
            AuthError: with everything that is not.
        """
        if "invitation" not in said:
            raise AuthError("a message of an encrypted round came without its terms")
        invitation = read(Invitation, said["invitation"].tobytes())
        terms, trust, name = invitation.terms, self._trust, self._site.name
        path = find(body.plan.blob)
        plan = self._plan(path)
        if plan.settled.kind != "encrypted":
            raise AuthError(f"an encrypted round of a job that is not encrypted: {plan.settled}")
        approved = self._approved(body, plan, path, terms, find)
        policy = trust.policy(name, terms.cohort, self._site.settings.masking)
        unknown = [m.name for m in terms.cohort if m.name not in policy.pinned]
        if unknown:
            raise AuthError(
                f"the keys of {', '.join(unknown[:5])} are not pinned here as the server shows them",
                remedy="compare fingerprints with them, then: atoll node peers --pin",
            )
        faults = objections(policy, approved, invitation, name, self._now())
        if terms.threshold != usual_threshold(terms.sites):
            raise AuthError(f"threshold {terms.threshold} of {terms.sites} sites")
        raise_faults(AuthError, "this site takes no part in a round with these terms", faults)
        return terms

    def _approved(
        self, body: TaskBody, plan: Plan, path: Path, terms: Terms, find: Find
    ) -> Approved:
        names, at = {member.name for member in terms.cohort}, terms.occasion
        if strangers := names - {*plan.sites}:
            raise AuthError(
                f"{min(strangers)!r:.80} is in the round, and not among the run's sites"
            )
        rule = rule_text(plan.privacy)
        if body.kind in KEY_STEPS:
            if names != {*plan.sites}:
                raise AuthError("the key of a run is for all of its sites, and for no others")
            job = job_name(plan.spec.hash(), self._run, "key")
            return Approved(job, "", (key_lane(len(plan.sites)),), rule, work_mark(body))
        about = body.kind if body.kind in SUBJECTS else body.about
        if (at.round, at.attempt) != (body.number, 0):
            raise AuthError(f"task {body.id} comes with the terms of round {at.round}")
        other = [lane.name for lane in terms.lanes if (lane.step, lane.excess) != (1.0, "refuse")]
        if other:
            raise AuthError(f"lane {other[0]!r} is not one of whole numbers")
        job = job_name(plan.spec.hash(), self._run, about)
        start = self._start(body, about, path, find)
        return Approved(job, start, terms.lanes, rule, work_mark(body))

    def _start(self, body: TaskBody, about: str, path: Path, find: Find) -> str:
        """What the round starts from, in the form in which sums are compared."""
        if about == "sums":
            raw = open_frame(path, _ANY)[0]
            return model_mark(about, sums_digest(raw.get("spec") or {}, raw.get("schema") or {}))
        if body.broadcast is None:
            raise AuthError("an encrypted round came without a model")
        return model_mark(about, model_digest(open_frame(find(body.broadcast.blob), _ANY)[1]))

    def _plan(self, path: Path) -> Plan:
        """Of the run; read once for each file."""
        name = str(path)
        if name not in self._plans:
            self._plans = {name: read_plan(path)}
        return self._plans[name]


def _parameters(terms: Terms) -> Parameters:
    """Of the key, from its own terms."""
    return Parameters.exact(max(2, terms.sites))


def _whole(
    lanes: Sequence[Lane], context: SecretContext, total: Sealed, present: int
) -> dict[str, Array]:
    """The sums of all lanes as they are told: whole numbers in the ring of each."""
    key = SharedKey(context)
    slots = key.joined(total, [key.part(total)])
    found = unpacked(lanes, slots, context.parameters, present)
    return {lane.name: found[lane.name].astype(f"int{lane.bits}") for lane in lanes}


def _greetings(said: Arrays) -> list[Greeting]:
    """What everybody has said first, in the order of the terms."""
    both = zip(rows_of(said["channels"], 32), rows_of(said["signatures"], 64), strict=True)
    return [Greeting(channel, signature) for channel, signature in both]


def _form(body: TaskBody) -> Form:
    if body.kind in SUBJECTS:
        return "encrypted"
    return "opened" if body.kind == "open" else "step"


def _done(body: TaskBody) -> ResultBody:
    return ResultBody(task=body.id, status="done")


def _bytes(raw: bytes) -> Array:
    return np.frombuffer(raw, np.uint8)
