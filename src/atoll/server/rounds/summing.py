"""Rounds whose sum alone is seen here, be it by masks or by ciphertexts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll.job.summed import Subject, work_mark
from atoll.privacy.he.contexts import PublicContext
from atoll.privacy.secagg.terms import Lane, rule_text
from atoll.runtime.client import Parts
from atoll.server.office import Office
from atoll.server.rounds.encrypting import EncryptedRound
from atoll.server.rounds.masking import Make, MaskedRound, Masking
from atoll.server.store.contract import RunRow
from atoll.wire.messages import TaskBody

__all__ = [
    "Encrypting",
    "Masking",
    "lanes_summed",
    "masking_of",
    "summed_round",
    "summing_of",
    "told_alike",
]


@dataclass(frozen=True)
class Encrypting(Masking):
    """What a job says of its encrypted rounds.

    Args:
        key: the public half of the sites' key.
    """

    key: PublicContext | None = None


def lanes_summed(
    lanes: tuple[Lane, ...], privacy: Mapping[str, Any], key: PublicContext | None
) -> Masking:
    """How these lanes are added up in a run with this section on privacy, and this key, if any."""
    rule = rule_text(privacy)
    if key is not None:
        return Encrypting(lanes, rule=rule, key=key)
    return Masking(lanes, privacy.get("threshold", 0), privacy.get("degree", 0), rule)


def masking_of(row: RunRow, parts: Parts) -> Masking | None:
    """How a run's rounds are masked; None where they are not."""
    chain = parts.chain
    mask, quantise = chain.find("mask"), chain.find("quantise")
    if mask is None or quantise is None:
        return None
    rule = rule_text(json.loads(row.spec)["privacy"])
    lanes = tuple(quantise.integer_lanes(chain.cohort))
    return Masking(lanes, mask.threshold, mask.degree, rule)


def summing_of(row: RunRow, parts: Parts, key: PublicContext | None) -> Masking | None:
    """How updates of a run are added up so that their sum alone is seen; None where each is."""
    quantise = parts.chain.find("quantise")
    if key is None or quantise is None:
        return masking_of(row, parts)
    lanes = tuple(quantise.integer_lanes(parts.chain.cohort))
    return lanes_summed(lanes, json.loads(row.spec)["privacy"], key)


def told_alike(masking: Masking, tasks: Sequence[TaskBody], *, buffered: bool = False) -> Masking:
    """``masking``, with what all sites of a round are told to do bound into its terms.

    Args:
        masking: of the round.
        tasks: one of the round's, without its message; none where nobody is asked.
        buffered: whether sites start from versions of their own.
    """
    return replace(masking, work=work_mark(tasks[0], buffered=buffered)) if tasks else masking


def summed_round(
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
    least: int = 1,
    **more: Any,
) -> MaskedRound | EncryptedRound:
    """One round of the kind that ``masking`` is; see there for the arguments.

    Args:
        office: of the server.
        row: the run.
        masking: what is added up, and how.
        number: of the round.
        model: hash of what the round starts from.
        make: makes tasks.
        seconds: the round's own time.
        begun: whether a server before this one may have begun the round.
        about: what is added up.
        least: fewest sites whose sum is of use.
        more: for masked rounds alone.
    """
    if isinstance(masking, Encrypting) and masking.key is not None:
        return EncryptedRound(
            office,
            row,
            masking.lanes,
            number,
            model,
            make,
            seconds,
            key=masking.key,
            begun=begun,
            about=about,
            work=masking.work,
            least=least,
        )
    limits: dict[str, Any] = {"begun": begun, "about": about, "least": least}
    return MaskedRound(office, row, masking, number, model, make, seconds, **limits, **more)
