"""The server's half of a masked round, a machine without clock or disk (decision D9).

==============  ====================================================================================
phase           meaning
==============  ====================================================================================
``committing``  the terms are out; waits for keys
``dealing``     the keys are out (U1); waits for shares
``collecting``  the shares are out (U2); waits for masked inputs, and for their folding
``pledging``    whose input is in the sum (U3) is out; waits for pledges to it
``unmasking``   the pledges are out; waits for the shares that open the masks in the sum
``done``        what is left in the sum is known. The end
``failed``      given up, with a reason; the sum stays masked for good. The end
==============  ====================================================================================

Each phase ends when everybody still there has answered, or at :class:`Close` with those who have: at
least the threshold, else the attempt fails. ``unmasking`` ends as soon as enough shares are there. A
message that is not what its sender should say is blamed on it and counts as silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from atoll.core.errors import AuthError, JobError, raise_faults
from atoll.privacy.secagg.graph import neighbours
from atoll.privacy.secagg.keys import signed_by, usable
from atoll.privacy.secagg.masks import MaskPlan
from atoll.privacy.secagg.messages import (
    Commitment,
    Deal,
    Dealt,
    FromServer,
    FromSite,
    Invitation,
    Opening,
    Pledge,
    Release,
    Roster,
    Survivors,
    Vector,
    roster_hash,
    share_hash,
)
from atoll.privacy.secagg.recovery import Opened, remaining_masks
from atoll.privacy.secagg.terms import Terms

__all__ = [
    "PHASES",
    "RULES",
    "Blame",
    "Cancel",
    "Close",
    "Effect",
    "Event",
    "Fold",
    "Folded",
    "GiveUp",
    "Left",
    "Send",
    "Server",
    "Spoiled",
    "Unmask",
    "step",
]

Phase = Literal["committing", "dealing", "collecting", "pledging", "unmasking", "done", "failed"]
PHASES: tuple[Phase, ...] = (
    "committing",
    "dealing",
    "collecting",
    "pledging",
    "unmasking",
    "done",
    "failed",
)


# Events, besides the sites' messages.


@dataclass(frozen=True)
class Folded:
    """The input of ``sender`` is in the sum, whole."""

    sender: int


@dataclass(frozen=True)
class Spoiled:
    """The input of ``sender`` is not what was signed or declared; nothing of it is in the sum."""

    sender: int
    reason: str


@dataclass(frozen=True)
class Left:
    """Nothing more comes from ``sender``."""

    sender: int


@dataclass(frozen=True)
class Close:
    """This phase's time is over; the next begins with those who have answered."""


@dataclass(frozen=True)
class Cancel:
    """Nothing of this attempt is wanted any more."""

    reason: str


Event = FromSite | Folded | Spoiled | Left | Close | Cancel


# Effects.


@dataclass(frozen=True)
class Send:
    """Send ``message`` to the site called ``to``."""

    to: str
    message: Invitation | FromServer


@dataclass(frozen=True)
class Fold:
    """Add the chunks of ``sender``, if they have this root; then say Folded or Spoiled."""

    sender: int
    root: bytes


@dataclass(frozen=True)
class Blame:
    """The site called ``site`` said what no honest site says."""

    site: str
    reason: str


@dataclass(frozen=True)
class Unmask:
    """Take the masks of ``plan`` out of the sum: it is then the sum over ``members``."""

    plan: MaskPlan
    members: tuple[str, ...]


@dataclass(frozen=True)
class GiveUp:
    """The attempt has failed; told once. What was folded is worthless."""

    reason: str


Effect = Send | Fold | Blame | Unmask | GiveUp


@dataclass(frozen=True)
class Server:
    """One attempt at the server; made by :meth:`start`, moved on by :func:`step`.

    Args:
        terms: of the round.
        phase: see the module.
        answers: by phase, what each site answered.
        folded: whose input is in the sum.
        gone: sites that nothing is expected of any more.
        roster: hash of the commitments, once they are in.
        circles: who holds the shares of each committed site: its neighbours and itself.
    """

    terms: Terms
    phase: Phase = "committing"
    answers: Mapping[str, Mapping[int, Any]] = field(default_factory=dict, repr=False)
    folded: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()
    roster: bytes = b""
    circles: Mapping[int, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def start(
        cls, terms: Terms, sign: Callable[[bytes], bytes]
    ) -> tuple[Server, tuple[Effect, ...]]:
        """An attempt, and the invitations to it.

        Raises:
            JobError: no round may be like this.
        """
        raise_faults(JobError, "a masked round cannot be like this", terms.faults())
        bare = Invitation(terms)
        invitation = replace(bare, signature=sign(bare.signed()))
        return cls(terms), tuple(Send(member.name, invitation) for member in terms.cohort)

    def of(self, phase: Phase) -> Mapping[int, Any]:
        """What the sites answered in ``phase``."""
        return self.answers.get(phase, {})

    @property
    def committed(self) -> tuple[int, ...]:
        """U1: who sent keys."""
        return tuple(sorted(self.of("committing")))

    @property
    def dealers(self) -> tuple[int, ...]:
        """U2: who sent shares."""
        return tuple(sorted(self.of("dealing")))

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3: whose input is in the sum."""
        return tuple(sorted(self.folded))

    def awaited(self) -> tuple[int, ...]:
        """Whose answer is still to come in this phase."""
        asked: Mapping[str, tuple[int, ...]] = {
            "committing": tuple(range(1, self.terms.sites + 1)),
            "dealing": self.committed,
            "collecting": self.dealers,
            "pledging": self.survivors,
            "unmasking": tuple(sorted(self.of("pledging"))),
        }
        answered = self.of(self.phase)
        return tuple(
            i for i in asked.get(self.phase, ()) if i not in answered and i not in self.gone
        )

    def name(self, index: int) -> str:
        """The name of the site with this index, or the index if there is none."""
        member = self.terms.member(index)
        return member.name if member else str(index)


Moved = tuple[Server, tuple[Effect, ...]]
Rule = Callable[[Server, Any], Moved]


def step(server: Server, event: Event) -> Moved:
    """The attempt after ``event``, and what is to be done."""
    moved, effects = RULES[server.phase, type(event)](server, event)
    while True:
        following, more = _onward(moved)
        effects += more
        if following is moved:
            return moved, effects
        moved = following


def _stay(server: Server, event: Event) -> Moved:
    return server, ()


def _blame(server: Server, sender: int, reason: str) -> Moved:
    return server, (Blame(server.name(sender), reason),)


def _answer(server: Server, event: FromSite) -> Moved:
    """Take an answer that its sender signed and may give; the first one stays."""
    earlier = server.of(server.phase).get(event.sender)
    if earlier is not None:
        return (
            _stay(server, event)
            if earlier == event
            else _blame(server, event.sender, f"gave two different {type(event).__name__}s")
        )
    if event.sender not in server.awaited():
        return _stay(server, event)
    reason = _CHECKS[type(event)](server, event)
    if reason:
        moved, effects = _blame(server, event.sender, reason)
        return replace(moved, gone=moved.gone | {event.sender}), effects
    taken = {**server.of(server.phase), event.sender: event}
    moved = replace(server, answers={**server.answers, server.phase: taken})
    return moved, (Fold(event.sender, event.root),) if isinstance(event, Vector) else ()


def _unsigned(server: Server, event: Any, *bound: bytes) -> str:
    member = server.terms.cohort[event.sender - 1]
    if signed_by(member.key, event.signature, event.signed(server.terms.context, *bound)):
        return ""
    return f"{type(event).__name__} is not signed by it for this round"


def _check_commitment(server: Server, event: Commitment) -> str:
    if wrong := _unsigned(server, event):
        return wrong
    if usable(event.channel) and usable(event.mask):
        return ""
    return "one of its public keys is no usable X25519 key"


def _check_deal(server: Server, event: Deal) -> str:
    circle, roster = server.circles[event.sender], server.roster
    if tuple(envelope.target for envelope in event.envelopes) != circle:
        return f"dealt to others than {circle}"
    member, context = server.terms.cohort[event.sender - 1], server.terms.context
    for envelope in event.envelopes:
        signed = envelope.signed(context, roster)
        if envelope.source != event.sender or not signed_by(member.key, envelope.signature, signed):
            return f"its shares for {server.name(envelope.target)} are not signed by it"
    return ""


def _check_vector(server: Server, event: Vector) -> str:
    if event.dealers != server.dealers:
        return f"masked its input for {event.dealers}, dealt had {server.dealers}"
    return _unsigned(server, event, server.roster)


def _check_pledge(server: Server, event: Pledge) -> str:
    member = server.terms.cohort[event.sender - 1]
    signed = Pledge.signed(server.terms.context, server.roster, server.dealers, server.survivors)
    return "" if signed_by(member.key, event.signature, signed) else "pledged to another set"


def _check_release(server: Server, event: Release) -> str:
    circles, context = server.circles, server.terms.context
    held = [dealer for dealer in server.dealers if event.sender in circles[dealer]]
    if [share.dealer for share in event.shares] != held:
        return f"released shares of others than {held}"
    for share in event.shares:
        kind = "seed" if share.dealer in server.folded else "key"
        envelopes = server.of("dealing")[share.dealer].envelopes
        hashes = next(e.hashes for e in envelopes if e.target == event.sender)
        said = share_hash(context, share.dealer, event.sender, share.kind, share.value)
        if share.kind != kind or said != hashes[kind == "key"]:
            return f"released another share of {server.name(share.dealer)} than it was dealt"
    return _unsigned(server, event, server.roster)


_CHECKS: Mapping[type, Callable[[Server, Any], str]] = {
    Commitment: _check_commitment,
    Deal: _check_deal,
    Vector: _check_vector,
    Pledge: _check_pledge,
    Release: _check_release,
}


def _folded(server: Server, event: Folded) -> Moved:
    if event.sender not in server.of("collecting"):
        return server, ()
    return replace(server, folded=server.folded | {event.sender}), ()


def _spoiled(server: Server, event: Spoiled) -> Moved:
    vectors = {i: v for i, v in server.of("collecting").items() if i != event.sender}
    answers = {**server.answers, "collecting": vectors}
    moved = replace(server, answers=answers, gone=server.gone | {event.sender})
    return _blame(moved, event.sender, event.reason)


def _left(server: Server, event: Left) -> Moved:
    return replace(server, gone=server.gone | {event.sender}), ()


def _close(server: Server, event: Close) -> Moved:
    """Nobody who is silent is waited for in this phase; later ones ask those who answered only."""
    if server.phase == "collecting" and not server.awaited():
        return server, ()  # only folding is waited for, and that is the server's own work
    return replace(server, gone=server.gone | set(server.awaited())), ()


def _fail(server: Server, reason: str) -> Moved:
    return replace(server, phase="failed"), (GiveUp(reason),)


def _cancel(server: Server, event: Cancel) -> Moved:
    return _fail(server, event.reason)


def _onward(server: Server) -> Moved:
    """The next phase, once this one's answers are in; the same server when they are not."""
    if server.phase in ("done", "failed"):
        return server, ()
    if server.phase == "unmasking":
        return _finish(server)
    answers = server.of(server.phase)
    if server.awaited() or (server.phase == "collecting" and set(answers) != server.folded):
        return server, ()
    if len(answers) < server.terms.threshold:
        few = f"{len(answers)} of {server.terms.sites} sites are left after {server.phase}"
        return _fail(server, f"{few}, the threshold is {server.terms.threshold}")
    if server.phase == "committing":
        server = _bound(server)
    following = PHASES[PHASES.index(server.phase) + 1]
    sends = _ANNOUNCE[server.phase](server)
    effects = tuple(Send(server.name(i), message) for i, message in sends.items())
    return replace(server, phase=following), effects


def _bound(server: Server) -> Server:
    """With what the commitments fix: their hash, and the graph that follows from it."""
    roster = roster_hash(tuple(server.of("committing").values()), server.terms.context)
    near = neighbours(server.committed, roster, server.terms.degree)
    circles = {i: tuple(sorted((i, *others))) for i, others in near.items()}
    return replace(server, roster=roster, circles=circles)


def _announce_roster(server: Server) -> dict[int, FromServer]:
    roster = Roster(tuple(server.of("committing")[i] for i in server.committed))
    return dict.fromkeys(server.committed, roster)


def _announce_deals(server: Server) -> dict[int, FromServer]:
    members = server.dealers
    inbox: dict[int, list[Any]] = {i: [] for i in members}
    for dealer in members:
        for envelope in server.of("dealing")[dealer].envelopes:
            inbox.get(envelope.target, []).append(envelope)
    return {i: Dealt(members, tuple(envelopes)) for i, envelopes in inbox.items()}


def _announce_survivors(server: Server) -> dict[int, FromServer]:
    return dict.fromkeys(server.survivors, Survivors(server.survivors))


def _announce_opening(server: Server) -> dict[int, FromServer]:
    pledges = server.of("pledging")
    shown = sorted(pledges)[: server.terms.threshold]  # more prove nothing more
    opening = Opening(server.survivors, tuple(pledges[i] for i in shown))
    return dict.fromkeys(sorted(pledges), opening)


_ANNOUNCE: Mapping[Phase, Callable[[Server], dict[int, FromServer]]] = {
    "committing": _announce_roster,
    "dealing": _announce_deals,
    "collecting": _announce_survivors,
    "pledging": _announce_opening,
}


def _finish(server: Server) -> Moved:
    """Open what the shares open; done when it is enough, failed when no more come."""
    opened = Opened(
        server.terms,
        server.of("committing"),
        server.circles,
        frozenset(server.dealers),
        server.folded,
    )
    missing = opened.missing(server.of("unmasking"))
    if missing and server.awaited():
        return server, ()
    if missing:
        names = [server.name(i) for i in missing]
        return _fail(server, f"too few shares of {names} came back")
    try:
        plan = remaining_masks(opened, server.of("unmasking"))
    except AuthError as error:
        moved, effects = _fail(server, error.message)
        return moved, (Blame(error.site, error.message), *effects)
    members = tuple(server.name(i) for i in server.survivors)
    return replace(server, phase="done"), (Unmask(plan, members),)


_LIVE: tuple[Phase, ...] = PHASES[:-2]
_ROWS: Mapping[type, Mapping[Phase, Rule]] = {
    Commitment: {"committing": _answer},
    Deal: {"dealing": _answer},
    Vector: {"collecting": _answer},
    Pledge: {"pledging": _answer},
    Release: {"unmasking": _answer},
    Folded: {"collecting": _folded},
    Spoiled: {"collecting": _spoiled},
    Left: dict.fromkeys(_LIVE, _left),
    Close: dict.fromkeys(_LIVE, _close),
    Cancel: dict.fromkeys(_LIVE, _cancel),
}

RULES: Mapping[tuple[Phase, type], Rule] = {
    (phase, kind): row.get(phase, _stay) for kind, row in _ROWS.items() for phase in PHASES
}
"""What happens in a phase at a kind of event; what comes too late or too early changes nothing."""
