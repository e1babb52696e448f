"""What a site has done in masked rounds, written down before it shows, and never done twice.

A site's keys live in memory; what it may not repeat lives here. Four steps cannot be taken back:

===========  ===================================================================================
``join``     taking part in an attempt: with one set of keys only, and none once shares went out
``input``    sending a masked input: the same masks under two inputs would show their difference
``pledge``   signing who is in the sum: two sets would show the difference of two sums
``release``  sending shares: for one set, in one attempt, once for the round
===========  ===================================================================================

The machine asks for each of them with an effect, and goes on only when the record is durable. Whether a
record may be written is decided by :func:`objection` alone, from the records there are, so that a
restart, an older copy of the machine or two at once change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from atoll.core.errors import StateError
from atoll.privacy.secagg.terms import Occasion

__all__ = ["Book", "Record", "objection"]


Kind = Literal["join", "input", "pledge", "release"]


@dataclass(frozen=True)
class Record:
    """One step that cannot be taken back.

    Args:
        kind: which step.
        occasion: of which attempt of which round.
        value: hash of what was done.
        members: names of the sites in the sum, from the pledge on.
        source: digest of the model that this site's own input was made from, where the sites of a round did not
            all start from one; empty where ``occasion.model`` says it.
    """

    kind: Kind
    occasion: Occasion
    value: bytes
    members: tuple[str, ...] = ()
    source: str = ""
    memory: str = ""

    @property
    def start(self) -> str:
        """What this site's own input was made from."""
        return self.source or self.occasion.model


_BEFORE: dict[Kind, Kind] = {"input": "join", "pledge": "input", "release": "pledge"}


def objection(records: Iterable[Record], record: Record, apart: int = 0) -> str:
    """Why ``record`` may not be written; empty when it may (it may stand there already).

    Args:
        records: all that this site wrote.
        record: the next one.
        apart: sums on the same model whose cohorts differ in fewer sites than this are refused,
            unless the cohorts are the same.
    """
    records = tuple(records)
    if record in records:
        return ""
    at = record.occasion
    same_round = [r for r in records if r.occasion.name == at.name]
    if any(r.kind == "release" for r in same_round):
        return f"shares were released for round {at.round} already"
    joined = max((r.occasion.attempt for r in same_round if r.kind == "join"), default=-1)
    if record.kind == "join":
        if joined >= at.attempt:
            return f"attempt {joined} was joined already"
        return _spent(records, record) or _other_memory(records, record)
    if joined != at.attempt:
        return f"attempt {joined} has taken the place of attempt {at.attempt}"
    here = {r.kind: r for r in same_round if r.occasion == at}
    if record.kind in here:
        return f"another {record.kind} was given in attempt {at.attempt} already"
    needed = _BEFORE[record.kind]
    before = here.get(needed)
    if before is None:
        return f"there was no {needed} before this {record.kind}"
    if record.kind == "release" and before.value != record.value:
        return "the pledge was on another set of sites"
    if before.memory != record.memory:
        return f"the {needed} was made from another memory of this site"
    return (
        _spent(records, record)
        or _other_memory(records, record)
        or _too_near(records, record, apart)
    )


def _spent(records: tuple[Record, ...], record: Record) -> str:
    """Whether what this site makes of its model is in another sum of the same run already.

    Where sites did not all start from one model, sums over other buffers may be taken apart in many ways.
    So one update is in one sum, however often the server asks; only the very same buffer may be tried again.
    """
    for earlier in records if record.source else ():
        again = earlier.kind == "release" and earlier.start == record.start
        other = earlier.occasion.model != record.occasion.model
        if again and other and earlier.occasion.job == record.occasion.job:
            return f"this site's update is in the sum of round {earlier.occasion.round} already"
    return ""


def _other_memory(records: tuple[Record, ...], record: Record) -> str:
    """Whether a sum of what this site makes of its model with another memory is there already.

    From which of its memories a site goes on (control variates, a personal part) is the server's word. If all
    others gave what they gave before, the two sums would differ by this site's two updates alone.
    """
    for earlier in records:
        again = earlier.kind == "release" and earlier.start == record.start
        if again and earlier.memory != record.memory:
            return (
                "what this site made of the same model, with another memory, is in the sum of round "
                f"{earlier.occasion.round} already"
            )
    return ""


def _too_near(records: tuple[Record, ...], record: Record, apart: int) -> str:
    """Whether subtracting an earlier sum would leave the sum of a few sites."""
    for earlier in records:
        if earlier.kind != "release" or earlier.start != record.start or not record.members:
            continue
        between = set(earlier.members) ^ set(record.members)
        # The same sites again tell nothing new, if all started from the same.
        same = not between and earlier.occasion.model == record.occasion.model
        if not same and len(between) < apart:
            who = sorted(between) or "single sites"
            return f"{who} could be told from the sum of round {earlier.occasion.round}"
    return ""


class Book:
    """The ledger in memory: for simulations and tests, and the model of a durable one."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def keep(self, record: Record, apart: int = 0) -> None:
        """Write ``record``, or find it written.

        Raises:
            StateError: it may not be written.
        """
        reason = objection(self.records, record, apart)
        if reason:
            raise StateError(reason, remedy="nothing was sent; wait for the next round")
        if record not in self.records:
            self.records.append(record)
