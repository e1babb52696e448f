"""Rounds whose sum alone is seen here, be it by masks or by ciphertexts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atoll.job.summed import Subject
from atoll.privacy.he.contexts import PublicContext
from atoll.privacy.secagg.terms import Lane, rule_text
from atoll.runtime.client import Parts
from atoll.server.encrypting import EncryptedRound
from atoll.server.masking import Make, MaskedRound, Masking, masking_of
from atoll.server.office import Office
from atoll.server.store.contract import RunRow

__all__ = ["Encrypting", "Masking", "lanes_summed", "summed_round", "summing_of"]


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


def summing_of(row: RunRow, parts: Parts, key: PublicContext | None) -> Masking | None:
    """How updates of a run are added up so that their sum alone is seen; None where each is."""
    quantise = parts.chain.find("quantise")
    if key is None or quantise is None:
        return masking_of(row, parts)
    lanes = tuple(quantise.integer_lanes(parts.chain.cohort))
    return lanes_summed(lanes, json.loads(row.spec)["privacy"], key)


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
        more: for masked rounds alone.
    """
    if isinstance(masking, Encrypting) and masking.key is not None:
        lanes, key = masking.lanes, masking.key
        return EncryptedRound(
            office, row, lanes, number, model, make, seconds, key=key, begun=begun, about=about
        )
    return MaskedRound(
        office, row, masking, number, model, make, seconds, begun=begun, about=about, **more
    )
