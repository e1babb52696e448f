"""Why rounds could not commit, and what helps, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ended", "parted", "told_of", "way_out"]

_WAIT = "lower the quorum, lengthen the deadline, or see metrics.jsonl for who is missing and why"
_AGAIN = "start it again: each site has to answer in each round, from the first to the last"
_MEND = (
    "lower the learning rate, scale large targets of a regression (preprocessing.scale_target); look for "
    "missing or infinite values in these clients' rows"
)
_CODE = "mend the job's code, or these clients' rows, where they failed, and start it again"


def ended(count: int, last: Mapping[str, Any], *, everybody: bool = False) -> str:
    """What has ended a run: its last rounds could not commit.

    Args:
        count: how many in a row.
        last: the record of the last of them; empty where it is not known.
        everybody: as in :func:`way_out`.
    """
    if count > 1:
        return f"{count} rounds in a row could not commit{told_of(last)}"
    why = ", as not every site has answered" if everybody and last.get("missing") else ""
    return f"a round could not commit{why}{told_of(last).removeprefix('; the last')}"


def told_of(last: Mapping[str, Any]) -> str:
    """Why the last round could not commit, and at whom; empty before the first.

    Args:
        last: the record of that round.
    """
    if not last:
        return ""
    missing = list(last["missing"].items())[:3]
    names = [f"{client} {_alone(client, parted(str(why))[0])}" for client, why in missing]
    more = len(last["missing"]) - len(names)
    rest = f" and {more} more" if more > 0 else ""
    return f"; the last: {last['reason']}" + (f" ({'; '.join(names)}{rest})" if names else "")


def way_out(last: Mapping[str, Any], *, everybody: bool = False) -> str:
    """What helps: where every missing client of the last round was refused, or has failed, no quorum does.

    Args:
        last: the record of that round; empty before the first.
        everybody: whether each client has to answer in each round, as in statistics.
    """
    reasons = [str(why) for why in (last.get("missing") or {}).values()]
    steps = list[str]()
    for status, remedy in (("refused", _MEND), ("failed", _CODE)):
        some = [why for why in reasons if why.startswith(status)]
        steps += [parted(some[0])[1] or remedy] if some else []
        if reasons and len(some) == len(reasons):
            return steps[-1]
    if len(steps) == 2 and all(why.startswith(("refused", "failed")) for why in reasons):
        return "; ".join(dict.fromkeys(steps))
    return _AGAIN if everybody else _WAIT


def parted(why: str) -> tuple[str, str]:
    r"""A reason as a site tells it, and the next step that it names; empty for none.

    >>> parted("its rule forbids it\n  next: ask for masks")
    ('its rule forbids it', 'ask for masks')
    """
    text, _, step = why.partition("\n  next: ")
    return text, step.strip()


def _alone(client: str, why: str) -> str:
    """A reason without the name of its site, which stands before it."""
    return why.replace(f": at {client}: ", ": ", 1)
