"""How the sites of an encrypted run come to one secret key through a server that never has it.

What passes here is in :mod:`atoll.privacy.he.sharing`: fresh public keys, the secret key sealed for each site,
and the public half, which is all that the server keeps. :class:`~atoll.privacy.he.contexts.PublicContext`
refuses bytes that hold a secret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from atoll.core.contracts import Outcome, Task
from atoll.core.errors import (
    AuthError,
    JobConflict,
    UpdateRefused,
    WireError,
    raise_faults,
)
from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.job.summed import job_name
from atoll.privacy.he.contexts import PublicContext, installed
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.rounds import key_lane
from atoll.privacy.he.sharing import WRAP, Greeting
from atoll.privacy.secagg.codec import written
from atoll.privacy.secagg.keys import signed_by, usable
from atoll.privacy.secagg.messages import Invitation
from atoll.privacy.secagg.terms import Member, Occasion, Terms, rule_text, usual_threshold
from atoll.server.office import Office
from atoll.server.rounds.answers import Expected
from atoll.server.rounds.desk import Call, all_took_part
from atoll.server.rounds.masking import Make
from atoll.server.store.contract import RunRow
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["LASTS", "invited", "shared_key", "terms_of"]

LASTS = 10 * 365 * 86_400.0
"""Seconds that the terms of a run's key and rounds are valid, from the run's submission; what a site does in a
round it does once, so old terms are of no use to anybody."""
_MOST_KEY = 1 << 20
"""Bytes of a key, public or sealed."""

Answers = Mapping[ClientId, Mapping[str, Array]]


def terms_of(office: Office, row: RunRow, sites: Sequence[ClientId], about: str) -> Terms:
    """Terms of a run's key, between so many of its sites; of a round with other fields.

    Args:
        office: of the server.
        row: the run.
        sites: who takes part.
        about: what it is about.
    """
    keys = office.keys()
    at = Occasion(office.federation, job_name(row.job_hash, row.id, about), 0, 0, "")
    return Terms(
        at,
        tuple(Member(name, keys[name]) for name in sorted(sites)),
        usual_threshold(len(sites)),
        (key_lane(len(sites)),),
        row.created + LASTS,
        weight_rule=rule_text(json.loads(row.spec)["privacy"]),
    )


def invited(office: Office, terms: Terms) -> dict[str, Array]:
    """The terms as a message holds them, signed."""
    bare = Invitation(terms)
    return {"invitation": _bytes(written(Invitation(terms, office.sign(bare.signed()))))}


def shared_key(
    office: Office, row: RunRow, make: Make, work: str = ""
) -> Generator[Call, Sequence[Outcome], PublicContext]:
    """The calls of the agreement; returns the public half.

    Args:
        office: of the server.
        row: the run.
        make: makes tasks.
        work: what sites are told to do beside that.

    Raises:
        JobConflict: the run has too few sites.
        MissingExtra: TenSEAL is not installed here.
        DataError: a site does not take part; all such sites are named.
    """
    installed()
    terms = replace(terms_of(office, row, row.sites, "key"), work=work)
    raise_faults(JobConflict, "this run cannot be encrypted", terms.faults())
    parameters = Parameters.exact(max(2, terms.sites))
    told, ask = invited(office, terms), _Asking(office, row, make)
    names = [member.name for member in terms.cohort]

    def greets(site: ClientId, arrays: Mapping[str, Array]) -> None:
        index, channel = terms.index(site), arrays["channel"].tobytes()
        signed = Greeting.signed(terms.context, index, channel)
        key = terms.cohort[index - 1].key
        if not (signed_by(key, arrays["signature"].tobytes(), signed) and usable(channel)):
            raise UpdateRefused("what it has said is no key, or not signed by it for this run")

    said = yield from ask("greet", names, told, _slots(channel=32, signature=64), greets)
    greeted = {
        "channels": np.concatenate([said[name]["channel"] for name in names]),
        "signatures": np.concatenate([said[name]["signature"] for name in names]),
    }
    slots = {"public": None, "name": 32, "sealed": None, "wraps": WRAP * len(names)}
    found: list[PublicContext] = []

    def holds(site: ClientId, arrays: Mapping[str, Array]) -> None:
        try:
            found.append(PublicContext(parameters, arrays["public"].tobytes()))
        except (AuthError, WireError) as error:
            raise UpdateRefused(
                f"what it sent as the public key is none: {error.message}"
            ) from error

    dealer = names[0]
    expected = _slots(**slots, signature=64)
    dealt = (yield from ask("deal", [dealer], told | greeted, expected, holds))[dealer]
    name = dealt["name"].tobytes()

    def same(site: ClientId, arrays: Mapping[str, Array]) -> None:
        if arrays["name"].tobytes() != name:
            raise UpdateRefused("it has found another key than was dealt")

    parcel = {what: dealt[what] for what in ("sealed", "wraps", "signature")}
    told = told | {"channels": greeted["channels"], "signatures": greeted["signatures"]}
    told |= {"sealed": parcel["sealed"], "wraps": parcel["wraps"], "dealt": parcel["signature"]}
    yield from ask("take", names, told, _slots(name=32), same)
    return found[0]


class _Asking:
    """Asks sites for one step, all of whom must answer."""

    def __init__(self, office: Office, row: RunRow, make: Make) -> None:
        self._office, self._row, self._make = office, row, make

    def __call__(
        self,
        kind: str,
        sites: Sequence[ClientId],
        told: Mapping[str, Array],
        expected: Expected,
        check: Callable[[ClientId, Mapping[str, Array]], None],
    ) -> Generator[Call, Sequence[Outcome], Answers]:
        office, row, settings = self._office, self._row, self._office.settings
        blob = office.show(row.id, {"kind": kind}, told)
        tasks = [
            self._make(kind, Task(site, 0), f"{row.id}.{kind}.0.{site}", blob) for site in sites
        ]
        answers: dict[ClientId, Mapping[str, Array]] = {}

        def take(task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
            check(task.client, arrays)
            answers[task.client] = {name: np.array(array) for name, array in arrays.items()}

        outcomes = yield Call(
            tasks, expected, take, settings.round, settings.progress, needed=len(tasks)
        )
        office.hide(row.id, blob)
        all_took_part(f"{kind}, for the run's key", outcomes)
        return answers


def _slots(**sizes: int | None) -> Expected:
    """Vectors of bytes; of a length that is not known there may be a key's."""
    vectors = {n: (None if size is None else (size,), "uint8") for n, size in sizes.items()}
    return Expected(vectors, most=_MOST_KEY)


def _bytes(raw: bytes) -> Array:
    return np.frombuffer(raw, np.uint8)
