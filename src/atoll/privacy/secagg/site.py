"""A site's half of a masked round, a machine without clock, disk or randomness (decision D9).

=============  ======================================================================================
phase          meaning
=============  ======================================================================================
``idle``       nothing agreed on yet
``joining``    the terms are accepted; the record of it is being written
``committed``  the public keys are out; waits for those of the others
``shared``     the shares are out; waits for those of the others
``masking``    the masks are known; the shell rounds and masks the input
``keeping``    the input's root is being written down
``given``      the root is signed and out; waits to hear whose input is in the sum
``pledging``   the pledge to that set is being written down
``pledged``    the pledge is out; waits for those of the others
``releasing``  the release is being written down
``released``   the shares are out: one kind for each peer. The end
``aborted``    given up, with a reason; all secrets are forgotten. The end
=============  ======================================================================================

:data:`RULES` says for every phase and every kind of event what happens. A message of the server that
does not belong where it comes ends the attempt, but copies do not: the very message that was answered
last is answered again in the same words, so that a lost answer costs nothing. A refusal is final in
this attempt; a new one has new keys. Nothing leaves in a step that must be durable before
:class:`Kept` has said so; the chunks of the input too wait for it.

The state holds keys and is never written to disk: a site that loses it has dropped out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from atoll.core.errors import AtollError, AuthError
from atoll.privacy.secagg.canonical import digest
from atoll.privacy.secagg.ledger import Record
from atoll.privacy.secagg.masks import MaskPlan
from atoll.privacy.secagg.messages import (
    Dealt,
    FromServer,
    FromSite,
    Invitation,
    Opening,
    Pledge,
    Roster,
    Survivors,
    Vector,
)
from atoll.privacy.secagg.policy import Approved, Policy, objections
from atoll.privacy.secagg.session import Session

__all__ = [
    "PHASES",
    "RULES",
    "Abort",
    "Cancel",
    "Denied",
    "Effect",
    "Event",
    "Invite",
    "Keep",
    "Kept",
    "Mask",
    "Masked",
    "Say",
    "Signer",
    "Site",
    "Tick",
    "step",
]

Phase = Literal[
    "idle",
    "joining",
    "committed",
    "shared",
    "masking",
    "keeping",
    "given",
    "pledging",
    "pledged",
    "releasing",
    "released",
    "aborted",
]
PHASES: tuple[Phase, ...] = (
    "idle",
    "joining",
    "committed",
    "shared",
    "masking",
    "keeping",
    "given",
    "pledging",
    "pledged",
    "releasing",
    "released",
    "aborted",
)


class Signer(Protocol):
    """A site's Ed25519 identity."""

    @property
    def public_bytes(self) -> bytes:
        """The raw public key."""

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message``, 64 bytes."""


# Events, besides the server's messages.


@dataclass(frozen=True)
class Invite:
    """The server's invitation, with what this site knows itself.

    Args:
        invitation: from the server.
        approved: from the approved job, and the model as it arrived.
        entropy: 32 fresh bytes from the operating system; all keys of the attempt come from them.
        now: Unix seconds.
    """

    invitation: Invitation
    approved: Approved
    entropy: bytes = field(repr=False)
    now: float


@dataclass(frozen=True)
class Kept:
    """``record`` is durable."""

    record: Record


@dataclass(frozen=True)
class Denied:
    """``record`` may not be written, or could not be."""

    record: Record
    reason: str


@dataclass(frozen=True)
class Masked:
    """The input is masked; its chunks have this root and wait for the word to leave."""

    root: bytes


@dataclass(frozen=True)
class Tick:
    """It is ``now`` (Unix seconds); due at the terms' expiry."""

    now: float


@dataclass(frozen=True)
class Cancel:
    """This site gives up: no input, a bad one, or its operator says so."""

    reason: str


Event = Invite | FromServer | Kept | Denied | Masked | Tick | Cancel


# Effects.


@dataclass(frozen=True)
class Keep:
    """Write ``record`` durably if the ledger agrees, then say :class:`Kept`, else :class:`Denied`."""

    record: Record
    apart: int


@dataclass(frozen=True)
class Mask:
    """Round and mask the input with ``plan``, keep the chunks, then say :class:`Masked`."""

    plan: MaskPlan


@dataclass(frozen=True)
class Say:
    """Send ``message`` to the server (a :class:`Vector` with the chunks)."""

    message: FromSite


@dataclass(frozen=True)
class Abort:
    """The attempt has ended here without a further word. Told once.

    Args:
        reason: for the site's log, and for the server.
        blamed: the peer whose signed message was wrong; empty when it may be the server.
    """

    reason: str
    blamed: str = ""


Effect = Keep | Mask | Say | Abort


@dataclass(frozen=True)
class Site:
    """One site in one attempt; moved on by :func:`step`.

    Args:
        name: the site's.
        signer: its identity.
        policy: its standing rules.
        phase: see the module.
        session: what it knows and keeps secret in this attempt.
        heard: the message that was answered last.
        past: the messages answered before.
        said: what was said to it; empty while that is not ready.
        due: the record that is being written.
    """

    name: str
    signer: Signer = field(repr=False)
    policy: Policy = field(repr=False)
    phase: Phase = "idle"
    session: Session | None = field(default=None, repr=False)
    heard: Invitation | FromServer | None = field(default=None, repr=False)
    past: tuple[Invitation | FromServer, ...] = field(default=(), repr=False)
    said: tuple[Effect, ...] = field(default=(), repr=False)
    due: Record | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self.phase in ("released", "aborted")

    @property
    def at(self) -> Session:
        """The session, where the phase says there is one."""
        if self.session is None:
            raise AuthError(f"phase {self.phase} has no session")
        return self.session


Moved = tuple[Site, tuple[Effect, ...]]
Rule = Callable[[Site, Any], Moved]


def step(site: Site, event: Event) -> Moved:
    """The site after ``event``, and what is to be done."""
    message = event.invitation if isinstance(event, Invite) else event
    if message == site.heard:
        return site, site.said
    if message in site.past:  # a late copy of what was answered long ago
        return site, ()
    try:
        return RULES[site.phase, type(event)](site, event)
    except AtollError as error:
        return _aborted(site, error.message, error.site)


def _aborted(site: Site, reason: str, blamed: str = "") -> Moved:
    gone = replace(site, phase="aborted", session=None, heard=None, past=(), said=(), due=None)
    return gone, (Abort(reason, blamed),)


def _stay(site: Site, event: Event) -> Moved:
    return site, ()


def _refuse(site: Site, event: Event) -> Moved:
    return _aborted(site, f"{type(event).__name__} does not belong into phase {site.phase!r}")


def _cancel(site: Site, event: Cancel | Denied) -> Moved:
    return _aborted(site, event.reason)


def _tick(site: Site, event: Tick) -> Moved:
    if event.now >= site.at.terms.expiry:
        return _aborted(site, "the terms have expired")
    return site, ()


def _heard(site: Site, event: Invitation | FromServer | None) -> Site:
    """``event`` is the message that is being answered now."""
    if event is None:
        return site
    past = site.past if site.heard is None else (*site.past, site.heard)
    return replace(site, heard=event, past=past)


def _ask(site: Site, phase: Phase, record: Record, event: Invitation | FromServer | None) -> Moved:
    """Wait for ``record`` before anything is said in answer to ``event``."""
    moved = replace(_heard(site, event), phase=phase, due=record, said=())
    return moved, (Keep(record, site.policy.apart),)


def _say(site: Site, phase: Phase, message: FromSite, heard: FromServer | None = None) -> Moved:
    effects = (Say(message),)
    moved = replace(_heard(site, heard), phase=phase, said=effects, due=None)
    return moved, effects


def _join(site: Site, event: Invite) -> Moved:
    faults = objections(site.policy, event.approved, event.invitation, site.name, event.now)
    if site.policy.pinned.get(site.name) != site.signer.public_bytes:
        return _aborted(site, f"{site.name}'s own key is not the pinned one")
    if faults:
        return _aborted(site, "the terms are refused: " + "; ".join(map(str, faults)))
    session = Session.fresh(event.invitation.terms, site.name, event.entropy, site.signer.sign)
    moved = replace(site, session=session)
    record = Record("join", session.terms.occasion, digest("join", session.own.signed(b"")))
    return _ask(moved, "joining", record, event.invitation)


def _commit(site: Site, event: Kept) -> Moved:
    return _say(site, "committed", site.at.own) if event.record == site.due else (site, ())


def _share(site: Site, event: Roster) -> Moved:
    session, deal = site.at.deal(event, site.signer.sign)
    return _say(replace(site, session=session), "shared", deal, event)


def _plan(site: Site, event: Dealt) -> Moved:
    session = site.at.take(event)
    moved = replace(_heard(site, event), session=session, phase="masking", said=())
    return moved, (Mask(session.plan()),)


def _note(site: Site, event: Masked) -> Moved:
    session = replace(site.at, root=event.root)
    value = digest("input", session.terms.context, session.roster, session.dealers, event.root)
    record = Record("input", session.terms.occasion, value)
    return _ask(replace(site, session=session), "keeping", record, None)


def _give(site: Site, event: Kept) -> Moved:
    if event.record != site.due:
        return site, ()
    at = site.at
    vector = Vector(at.index, at.root, at.dealers)
    signed = replace(vector, signature=site.signer.sign(vector.signed(at.terms.context, at.roster)))
    return _say(site, "given", signed)


def _agree(site: Site, event: Survivors) -> Moved:
    session = site.at.agree(event)
    moved = replace(site, session=session)
    return _ask(moved, "pledging", session.record("pledge"), event)


def _pledge(site: Site, event: Kept) -> Moved:
    if event.record != site.due:
        return site, ()
    return _say(site, "pledged", Pledge(site.at.index, site.signer.sign(site.at.pledge())))


def _open(site: Site, event: Opening) -> Moved:
    site.at.check(event)
    return _ask(site, "releasing", site.at.record("release"), event)


def _release(site: Site, event: Kept) -> Moved:
    if event.record != site.due:
        return site, ()
    moved, effects = _say(site, "released", site.at.release(site.signer.sign))
    return replace(moved, session=None), effects  # the shares that stay unsaid are forgotten


_LIVE: tuple[Phase, ...] = PHASES[1:-2]
_ROWS: Mapping[type, Mapping[Phase, Rule]] = {
    Invite: {"idle": _join},
    Roster: {"committed": _share},
    Dealt: {"shared": _plan},
    Survivors: {"given": _agree},
    Opening: {"pledged": _open},
    Kept: {"joining": _commit, "keeping": _give, "pledging": _pledge, "releasing": _release},
    Denied: dict.fromkeys(("joining", "keeping", "pledging", "releasing"), _cancel),
    Masked: {"masking": _note},
    Tick: dict.fromkeys(_LIVE, _tick),
    Cancel: dict.fromkeys(("idle", *_LIVE), _cancel),
}
_MESSAGES = (Invite, Roster, Dealt, Survivors, Opening)

RULES: Mapping[tuple[Phase, type], Rule] = {
    (phase, kind): row.get(phase, _refuse if kind in _MESSAGES and phase != "aborted" else _stay)
    for kind, row in _ROWS.items()
    for phase in PHASES
}
"""What happens in a phase at a kind of event."""
