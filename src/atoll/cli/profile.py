"""``atoll run --profile`` on a screen: where the time went, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.cli.output import table_of

__all__ = ["profile_text"]


def profile_text(profile: Mapping[str, Any]) -> str:
    """The account of a run's time for people.

    Args:
        profile: what :meth:`atoll.runtime.profile.Profile.to_plain` gives.
    """
    header: tuple[str, ...] = ("where the time went", "seconds", "share", "round 1", "later rounds")
    if profile["rounds"] < 2:
        header = header[:4]
    rows = [_row(phase)[: len(header)] for phase in profile["phases"]]
    first, later = (sum(p[k] for p in profile["phases"]) for k in ("first", "later"))
    whole = ("all", _seconds(profile["total"]), "100 %", _seconds(first), _seconds(later))
    return "\n".join([table_of(header, [*rows, whole[: len(header)]]), *_facts(profile)])


def _row(phase: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        phase["words"],
        _seconds(phase["seconds"]),
        f"{phase['share']:.1%}".replace("%", " %"),
        _seconds(phase["first"]) if phase["first"] else "",
        _seconds(phase["later"]) if phase["later"] else "",
    )


def _facts(profile: Mapping[str, Any]) -> list[str]:
    """Tasks, workers and path, as far as they are known."""
    facts = []
    if tasks := profile["tasks"]:
        facts.append(
            f"{tasks:,} tasks took {_seconds(profile['working'])} in all, "
            f"{_seconds(profile['working'] / tasks)} each, the longest {_seconds(profile['longest'])}"
        )
    if workers := profile["workers"]:
        shares = ", ".join(f"{share:.0%}".replace("%", " %") for share in workers)
        facts.append(f"workers at work while the executor ran: {shares}")
    if profile["path"]:
        facts.append(f"path of local training: {profile['path']}")
    return facts


def _seconds(seconds: float) -> str:
    """Three digits, in the unit that suits.

    >>> [_seconds(s) for s in (12.345, 0.01234, 0.0000123)]
    ['12.3 s', '12.3 ms', '0.0123 ms']
    """
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
