"""An honest account of who took part, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["participation_status"]

_SURPLUS = "surplus"
"""How the reason starts why a client that came after enough others is missing."""


def participation_status(status: str, rounds: Sequence[Mapping[str, Any]]) -> str:
    """``status``, with the sites named that were asked to the end and did not contribute.

    A site counts as lost from the round after its last contribution when it was invited to, and
    missing from, every committed round since. Clients that a cohort merely did not draw, that came
    after enough others, or that are still at work (in an asynchronous run) are not lost, unless an
    answer of theirs was turned down and none has ever counted.

    >>> ends = [{"round": 1, "committed": True, "invited": ["a", "b"], "contributed": {"a": 1, "b": 1},
    ...          "missing": {}},
    ...         {"round": 2, "committed": True, "invited": ["a", "b"], "contributed": {"a": 1},
    ...          "missing": {"b": "dropped: left"}}]
    >>> participation_status("completed", ends)
    'completed without b from round 2'
    """
    committed = [r for r in rounds if r["committed"]]
    if not committed:
        return status
    last = committed[-1]
    full = set(last["invited"])
    if any(set(r["invited"]) != full for r in committed[-3:]):
        return status  # a sampled cohort: absence in one round says nothing
    lost: list[tuple[str, int]] = []
    for client in last["invited"]:
        seen = [r["round"] for r in committed if client in r["contributed"]]
        # Who never counted is judged by all rounds, others by the last.
        told = [r["missing"].get(client, _SURPLUS) for r in ([last] if seen else committed)]
        if client in last["contributed"] or all(why.startswith(_SURPLUS) for why in told):
            continue
        lost.append((client, seen[-1] + 1 if seen else committed[0]["round"]))
    if not lost:
        return status
    shown = ", ".join(f"{client} from round {since}" for client, since in lost[:5])
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    return f"{status} without {shown}{more}"
