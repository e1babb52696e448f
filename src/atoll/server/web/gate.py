"""The one gate: who asks, and may they. Whatever it does not let through is refused.

Nothing but a request's line and headers is looked at, so a refusal costs neither memory nor disk. The
checks of a member's request, in this order:

1.  it is signed, in the one profile that there is (:mod:`atoll.wire.signatures`);
2.  the key is a member's, neither revoked nor left, and the signature is that key's;
3.  it is meant for this federation;
4.  it was made now, give or take the clocks' difference;
5.  it was made for this start of the server (the epoch), with a number that was not used before;
6.  the member's role may use the route.

The digest of the body is a part of what was signed; :mod:`atoll.server.web.bodies` compares it.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from atoll.core.errors import AtollError, AuthError, Busy, Forbidden
from atoll.server.store.contract import Member, Store
from atoll.server.web.limits import Buckets, Limits, origin
from atoll.server.web.routes import Heading, Route
from atoll.wire.identity import spoken
from atoll.wire.signatures import Claim, Window, verify
from atoll.wire.status import EPOCH

__all__ = ["Gate", "Pass", "Roster", "StaleRequest"]


class StaleRequest(AuthError):
    """Signed for another start of the server, or with a number that was used: to be signed anew.

    Args:
        message: which of the two.
        epoch: of the server.
        highest: number that this key has used in it.
    """

    code = EPOCH

    def __init__(self, message: str, epoch: int, highest: int) -> None:
        super().__init__(message)
        self.epoch, self.highest = epoch, highest


@dataclass(frozen=True)
class Pass:
    """What the gate found out.

    Args:
        member: who asks; None where the route does not want to know.
        claim: the signed claim, good for ``member``; of a newcomer only its form is known to be right.
    """

    member: Member | None = None
    claim: Claim | None = None


class Roster:
    """The members, as another process's command may have changed them a moment ago.

    Args:
        store: where they stand.
        every: seconds after which they are read again.
        clock: seconds; one that is set back makes them be read at once.
    """

    def __init__(self, store: Store, every: float, clock: Callable[[], float]) -> None:
        self._store, self._every, self._clock = store, every, clock
        self._members: dict[str, Member] = {}
        self._read = -float("inf")

    @property
    def stale(self) -> bool:
        """Whether :meth:`refresh` is due."""
        return not 0 <= self._clock() - self._read < self._every

    def refresh(self) -> None:
        """Read them again; from any thread."""
        now = self._clock()
        self._members = {member.fingerprint: member for member in self._store.members()}
        self._read = now

    def find(self, fingerprint: str) -> Member | None:
        """Whose key this is; None for a stranger's."""
        return self._members.get(fingerprint)

    def all(self) -> tuple[Member, ...]:
        """Everybody who ever was a member."""
        return tuple(self._members.values())


class Gate:
    """Lets requests through, or raises.

    Args:
        federation: id of this federation.
        epoch: of this start of the server.
        roster: the members.
        limits: see there.
        now: seconds since 1970.

    Attributes:
        start: drawn anew: tells this start of the server from every other, of the same epoch too.
    """

    def __init__(
        self,
        federation: str,
        epoch: int,
        roster: Roster,
        limits: Limits,
        now: Callable[[], float],
    ) -> None:
        self._federation, self._epoch, self._roster = federation, epoch, roster
        self._limits, self._now = limits, now
        self._windows: dict[str, Window] = {}
        self._joins = Buckets(limits.joins_per_second, limits.joins)
        self._strange = Buckets(limits.strange_per_second, limits.strange)
        self.token = b""
        self.start = secrets.token_hex(8)

    @property
    def epoch(self) -> int:
        """Of this start of the server."""
        return self._epoch

    def admit(self, route: Route, heading: Heading, claim: Claim | None) -> Pass:
        """Let a request pass, or say why not.

        Args:
            route: what is asked for.
            heading: the request before its body.
            claim: what its signature claims; None where there is no signature.

        Raises:
            AuthError: it is not known for certain who asks.
            StaleRequest: it is, but the request is of another epoch, or was seen before.
            Forbidden: it is known, and revoked, or this is not for that role.
            Busy: too many attempts from one place.
        """
        if "open" in route.roles:
            self._slow_down(self._strange, heading)
            return Pass()
        if "bearer" in route.roles:
            self._check_token(heading.headers)
            return Pass()
        if "newcomer" in route.roles:
            self._slow_down(self._joins, heading)
        if claim is None:
            raise AuthError("this request is not signed", remedy="sign every request")
        if "newcomer" in route.roles:
            self._check_time(claim)
            return Pass(claim=claim)
        member = self._member(claim)
        if claim.federation != self._federation:
            raise AuthError(
                f"this request is for the federation {claim.federation}, not for this one",
                remedy="join this federation with a code of its own",
            )
        self._check_time(claim)
        self._check_order(claim)
        if member.role not in route.roles:
            raise Forbidden(
                f"{member.name} is a {member.role}: {route.name} is not for that role",
                remedy=f"it is for: {', '.join(sorted(route.roles))}",
            )
        return Pass(member, claim)

    def still(self, member: Member) -> None:
        """Refuse who has ceased to be a member while a request was waiting.

        Raises:
            Forbidden: revoked, or left.
        """
        found = self._roster.find(member.fingerprint)
        _check_standing(found if found is not None else member)

    def refused(self, heading: Heading, error: AtollError) -> AtollError:
        """What a refused stranger is told: why, or, when there were too many, to slow down."""
        if isinstance(error, (StaleRequest, Forbidden, Busy)):
            return error
        try:
            self._slow_down(self._strange, heading)
        except Busy as busy:
            return busy
        return error

    def _slow_down(self, buckets: Buckets, heading: Heading) -> None:
        if wait := buckets.take(origin(heading.address), self._now()):
            raise Busy(
                f"too many requests from {heading.address}",
                remedy=f"try again in {max(1, round(wait))} s",
            )

    def _check_token(self, headers: Mapping[str, str]) -> None:
        given = headers.get("authorization", "").encode("utf-8", "replace")
        if not self.token or not hmac.compare_digest(given, b"Bearer " + self.token):
            raise AuthError(
                "this page wants the token in the server's folder",
                remedy="send Authorization: Bearer with the contents of metrics.token",
            )

    def _member(self, claim: Claim) -> Member:
        member = self._roster.find(claim.keyid)
        if member is None:
            raise AuthError(
                f"the key {spoken(claim.keyid[:16])} … is not a member's",
                remedy="join with a code from whoever runs the server",
            )
        verify(claim, member.key)
        _check_standing(member)
        return member

    def _check_time(self, claim: Claim) -> None:
        ahead = claim.created - self._now()
        if abs(ahead) > self._limits.skew:
            side = "ahead of" if ahead > 0 else "behind"
            raise AuthError(
                f"this request was made {abs(ahead):.0f} s {side} the server's clock; "
                f"at most {self._limits.skew:.0f} s are allowed",
                remedy="set the clock of this machine, for example with NTP",
            )

    def _check_order(self, claim: Claim) -> None:
        window = self._windows.setdefault(claim.keyid, Window())
        if claim.epoch != self._epoch:
            raise StaleRequest(
                f"the server has started anew: this is epoch {self._epoch}, not {claim.epoch}",
                self._epoch,
                window.highest,
            )
        if not window.accept(claim.sequence):
            raise StaleRequest(
                f"number {claim.sequence} was used before or is too old",
                self._epoch,
                window.highest,
            )


def _check_standing(member: Member) -> None:
    if member.status == "revoked":
        raise Forbidden(
            f"the key of {member.name} was revoked",
            remedy="ask whoever runs the server why; a new key needs a new code",
        )
    if member.status == "left":
        raise Forbidden(
            f"{member.name} has left the federation", remedy="join again with a new code"
        )
