"""Why rounds could not commit, and what helps, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["told_of", "way_out"]

_WAIT = "lower the quorum, lengthen the deadline, or see metrics.jsonl for who is missing and why"
_MEND = "lower the learning rate; look for missing or infinite values in these clients' rows"


def told_of(last: Mapping[str, Any]) -> str:
    """Why the last round could not commit, and at whom; empty before the first.

    Args:
        last: the record of that round.
    """
    if not last:
        return ""
    names = [f"{client} {why}" for client, why in list(last["missing"].items())[:3]]
    more = len(last["missing"]) - len(names)
    rest = f" and {more} more" if more > 0 else ""
    return f"; the last: {last['reason']}" + (f" ({'; '.join(names)}{rest})" if names else "")


def way_out(last: Mapping[str, Any]) -> str:
    """What helps: where every missing client of the last round was refused, no quorum does.

    Args:
        last: the record of that round; empty before the first.
    """
    reasons = [str(why) for why in (last.get("missing") or {}).values()]
    refused = bool(reasons) and all(why.startswith("refused") for why in reasons)
    return _MEND if refused else _WAIT
