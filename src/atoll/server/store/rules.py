"""What a store admits and refuses, as pure functions of rows: the same for every kind of store."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from atoll.core.errors import AuthError, FenceError, NotFound, StateError
from atoll.server.store.contract import Contribution, Heard, Invite, Member, Role, RoundRow

__all__ = [
    "SHARED",
    "UNSHARED",
    "admit",
    "allow_invite",
    "allow_round",
    "fence",
    "hear",
    "held_by",
    "no_run",
    "nobody",
    "oldest_start",
    "plain",
    "readable",
    "run_changes",
    "train_prefix",
]

SHARED = "shared"
"""Kind of the event of a run that its researcher has shared."""
UNSHARED = "unshared"
"""Kind of the event of one who may not read a run any more."""

_CHANGEABLE = frozenset({"status", "reason", "plan", "phase"})
_LONGEST_NAME = 200

_STARTS = 10_000
"""Starts that are kept: a server that a supervisor restarts every minute comes so far in a week."""


def fence(epoch: int, newest: int) -> None:
    """Refuse an ``epoch`` that is not the newest."""
    if epoch != newest or epoch < 1:
        raise FenceError(
            f"this server's epoch is {epoch}, the store's is {newest}: another server took over",
            remedy="leave the work to the other server, or stop it and start this one again",
        )


def oldest_start(epoch: int) -> int:
    """The first epoch of which a store in ``epoch`` still keeps what its start has drawn."""
    return max(1, epoch - _STARTS + 1)


def held_by(holder: str) -> FenceError:
    """The refusal of a second server."""
    return FenceError(
        f"the store is held by {holder or 'another server'}",
        remedy="stop that server first, or give this one a store of its own",
    )


def no_run(run: str) -> NotFound:
    """The answer where a run is asked for that is not there."""
    return NotFound(f"there is no run {run}", remedy="list the runs: atoll job list")


def nobody(name: str) -> NotFound:
    """The answer where a name is not a member's."""
    return NotFound(f"{name!r} is not a member", remedy="list the members: atoll server sites")


def readable(text: str) -> str:
    """``text`` as every database can hold it: no NUL, no half of a surrogate pair."""
    return (
        text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
    )


def plain(value: Any) -> str:
    """JSON text of ``value``; floats are exact, key order is kept."""
    return json.dumps(value, separators=(",", ":"))


def run_changes(changes: Mapping[str, str]) -> dict[str, str]:
    """The changes to a run, checked for their names."""
    if unknown := sorted(set(changes) - _CHANGEABLE):
        raise TypeError(f"a run's {unknown} cannot change; only {sorted(_CHANGEABLE)} can")
    return {name: readable(value) for name, value in changes.items()}


def train_prefix(run: str) -> str:
    """How the ids of a run's train tasks start."""
    return f"{run}.train."


def allow_invite(invite: Invite, known: Invite | None, members: Sequence[Member]) -> None:
    """Refuse an invitation whose secret is known or whose name is taken."""
    if known is not None:
        raise StateError("an invitation with this secret exists", remedy="make another one")
    if invite.name:
        _allow_name(invite.name)
        _refuse_taken(invite.name, members)


def admit(
    invite: Invite | None,
    name: str,
    key: bytes,
    now: float,
    members: Sequence[Member],
    role: Role | None = None,
) -> tuple[Member, Invite]:
    """The new member and the used invitation, as they are to be written.

    Args:
        invite: the one with the secret that was shown; None when there is none.
        name: what the newcomer calls itself; may be empty where the invitation says it.
        key: raw public key.
        now: seconds since 1970.
        members: all keys ever admitted.
        role: what the newcomer wants to be; None where it does not say.
    """
    print_ = hashlib.sha256(key).hexdigest()
    mine = next((m for m in members if m.fingerprint == print_), None)
    if mine is not None and mine.status == "revoked":
        raise AuthError(
            "this key was revoked",
            remedy="move identity.pem out of the folder, at a site ledger and audit with it, and keep them: "
            "a new code then makes a new key",
        )
    if invite is None:
        raise AuthError("this code is not known here", remedy="ask the server for a new code")
    if invite.used is not None:
        if invite.used_by == print_ and mine is not None and mine.status == "active":
            return mine, invite
        raise AuthError("this code was used before", remedy="ask the server for a new code")
    if now >= invite.expires:
        raise AuthError("this code has expired", remedy="ask the server for a new code")
    if invite.name and name and name != invite.name:
        raise AuthError(
            f"this code is for {invite.name!r}, not {name!r}", remedy="ask for a code of your own"
        )
    if role is not None and role != invite.role:
        raise StateError(
            f"this code is for a {invite.role}, not for a {role}; it is not used up",
            remedy=f"ask for a {role}'s code, and leave this one to {invite.name or 'its owner'}",
        )
    called = invite.name or name
    _allow_name(called)
    if mine is not None and (mine.name != called or mine.role != invite.role):
        raise StateError(
            f"this key belongs to {mine.name!r} ({mine.role})", remedy="join with a key of its own"
        )
    _refuse_taken(called, [m for m in members if m.fingerprint != print_])
    newcomer = Member(called, invite.role, key, print_, "active", now)
    return newcomer, replace(invite, used=now, used_by=print_)


def _allow_name(name: str) -> None:
    if not name or len(name) > _LONGEST_NAME or not name.isprintable() or name.strip() != name:
        raise StateError(
            f"{name[:_LONGEST_NAME]!r} is not a name",
            remedy=f"use 1 to {_LONGEST_NAME} printable characters without spaces at the ends",
        )


def _refuse_taken(name: str, members: Iterable[Member]) -> None:
    """Refuse a name that an active member has, or that people would take for theirs."""
    for member in members:
        if member.status != "active" or _read_as(member.name) != _read_as(name):
            continue
        if member.name == name:
            raise StateError(
                f"{name!r} is a member already",
                remedy="atoll server revoke, or atoll server invite with another name",
            )
        raise StateError(
            f"{name!r} is written almost as {member.name!r}, who is a member already",
            remedy="choose a name that nobody takes for another",
        )


def _looks() -> dict[int, str]:
    """Letters of other alphabets, small ones, by the Latin letter that they look like; figures likewise."""
    alike = {
        "a": (0x430, 0x3B1, 0x251),
        "b": (0x432, 0x3B2),
        "c": (0x441,),
        "d": (0x501,),
        "e": (0x435, 0x3B5),
        "g": (0x581, 0x261),
        "h": (0x43D, 0x4BB, 0x3B7, 0x570),
        "i": (0x456, 0x3B9, 0x131),
        "j": (0x458,),
        "k": (0x43A, 0x3BA),
        "l": (0x4CF, 0x31),
        "m": (0x43C, 0x3BC),
        "n": (0x578, 0x3BD),
        "o": (0x43E, 0x3BF, 0x585, 0x30),
        "p": (0x440, 0x3C1),
        "q": (0x51B,),
        "s": (0x455,),
        "t": (0x442, 0x3C4),
        "u": (0x57D,),
        "v": (0x475,),
        "w": (0x51D,),
        "x": (0x445, 0x3C7),
        "y": (0x443, 0x4AF, 0x3C5),
        "z": (0x3B6,),
        "-": (0x2010, 0x2012, 0x2013, 0x2014, 0x2212),
    }
    return {code: letter for letter, codes in alike.items() for code in codes}


_LOOKS = _looks()


def _read_as(name: str) -> str:
    """A name without what people do not see or hear: capitals, blanks, the parts of an accent, the alphabet."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(plain.translate(_LOOKS).split())


def hear(row: RoundRow, answer: Contribution, keep: Callable[[Contribution], Heard]) -> Heard:
    """Keep an answer that is written with a round, or refuse both.

    Args:
        row: the round.
        answer: of one of its sites.
        keep: writes it where there is none, and says what it found.
    """
    if answer.run != row.run or (found := keep(answer)) == "different":
        raise StateError(f"the answer to {answer.task} is not that of run {row.run}")
    return found


def allow_round(row: RoundRow, last: int, marks: Mapping[str, int | None]) -> None:
    """Refuse a round out of order, or one with contributions that are not there to be taken.

    Args:
        row: the round.
        last: number of the newest round; 0 before the first.
        marks: for each contribution found among the row's tasks, the round it went into.
    """
    if row.number <= last:
        raise StateError(f"round {row.number} of run {row.run} cannot follow round {last}")
    if len(set(row.tasks)) != len(row.tasks):
        raise StateError(f"round {row.number} of run {row.run} names a task twice")
    for task in row.tasks:
        if task not in marks:
            raise NotFound(f"nobody contributed to task {task} of round {row.number}")
        if marks[task] is not None:
            raise StateError(f"the answer to task {task} went into round {marks[task]} already")
