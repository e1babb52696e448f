"""What a run may say of its privacy: whether masking and differential privacy were on, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.core.chain import Chain
from atoll.privacy.dp.events import Guarantee
from atoll.privacy.he.opening import SharedKey

__all__ = ["ledger_of", "statement_of"]


def statement_of(chain: Chain, committed: int, attempted: int) -> dict[str, Any]:
    """The manifest's ``privacy``; empty where an update passes nothing.

    Args:
        chain: of the run.
        committed: rounds so far that took a step.
        attempted: all rounds so far.
    """
    if not chain:
        return {}
    mask = chain.find("mask")
    said: dict[str, Any] = {
        "links": " > ".join(link.name for link in chain.links) or "none",
        "masking": "off: the server sees every update"
        if mask is None
        else f"on: the server learns sums alone, of at least {mask.least(chain.cohort)} of "
        f"{chain.cohort} clients. What a sum says about a client, it says",
    }
    if chain.find("encrypt") is not None:
        said["masking"] = f"off; updates are {SharedKey.label}"
    if chain.account is None:
        return {**said, "differential privacy": "none"}
    spent = dict(chain.account.spent(attempted if chain.account.attempts else committed))
    guarantee = Guarantee(spent["epsilon"], spent["delta"], spent["unit"], spent["neighbouring"])
    outside = spent["outside"]
    said["differential privacy"] = str(guarantee)
    if attack := spent.get("attack"):
        said["membership attacks"] = (
            f"find at most {_up(attack['found'])} % of the members while they take {100 * attack['fpr']:g} % "
            f"of others for members; {100 * attack['target']:g} % is never passed"
        )
    said["not counted in it"] = ", ".join(outside) if outside else "nothing that the job releases"
    if figures := spent.get("figures"):
        said["figures of held-out rows"] = (
            f"with noise of each client, in it: {figures['evaluations']} evaluations, by themselves "
            f"epsilon {figures['epsilon']:.3g}. How far off a figure may be stands beside it as its _error"
        )
    return {**said, **spent}


def _up(share: float) -> str:
    return f"{math.ceil(share * 10_000 - 1e-9) / 100:.2f}"


def ledger_of(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per committed round of a private run: what was spent up to it."""
    return [
        {"round": record["round"], **{k: v for k, v in record["privacy"].items() if k != "rows"}}
        for record in rounds
        if record["committed"] and "epsilon" in record.get("privacy", {})
    ]
