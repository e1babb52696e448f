"""Options of an algorithm, checked against ranges written as in the papers: ``"[0, 1)"``, ``"(0, inf)"``."""

from __future__ import annotations

from collections.abc import Sequence

from atoll.core.errors import Fault, JobError, raise_faults, suggest

__all__ = ["check"]


def check(
    algorithm: object,
    *,
    optional: Sequence[str] = (),
    also: Sequence[Fault] = (),
    **rules: str | tuple[str, ...],
) -> None:
    """Refuse options out of range, all of them at once.

    Args:
        algorithm: holds one attribute per option.
        optional: options that may be None.
        also: faults found elsewhere, reported together with these.
        rules: by option, an interval such as ``"[0, 1)"``, ``"bool"``, or the allowed words.

    Raises:
        JobError: naming each option, its value and what it may be.
    """
    found = [
        fault
        for name, rule in rules.items()
        if not (name in optional and getattr(algorithm, name) is None)
        and (fault := _fault(name, getattr(algorithm, name), rule))
    ]
    what = f"options of algorithm {type(algorithm).__name__.lower()}"
    raise_faults(JobError, what, [*found, *also])


def _fault(name: str, value: object, rule: str | tuple[str, ...]) -> Fault | None:
    place = f"algorithm.{name}"
    if isinstance(rule, tuple):
        if value in rule:
            return None
        return Fault(place, f"{value!r} is not known", suggest(str(value), rule))
    if rule == "bool":
        return None if isinstance(value, bool) else Fault(place, f"{value!r} is not true or false")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Fault(place, f"{value!r} is not a number", f"give a number in {rule}")
    return None if _inside(value, rule) else Fault(place, f"{value} is not in {rule}")


def _inside(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below
