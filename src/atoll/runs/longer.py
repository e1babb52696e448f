"""Going on with a run for more rounds than its job had planned.

The same job with a larger number of rounds is another job, with another hash; but its first rounds are, to
the bit, those that were run already. So they need not be run again, unless something in them depended on
which round was to be the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from atoll.job.build import Job

__all__ = ["differences", "why_not_longer"]

_ROUNDS = ("rounds.count", "stop.rounds")
"""Where the number of rounds stands: in a job file's definition, and in that of a job made in Python."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys in which two definitions differ, each with both values.

    >>> differences({"local": {"lr": 0.1}, "seed": 1}, {"local": {"lr": 0.2}, "seed": 1})
    ['local.lr (0.1 then, 0.2 now)']
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key} ({_said(old, key)} then, {_said(new, key)} now)" for key in keys]


def why_not_longer(before: Mapping[str, Any], job: Job, *, private: bool, done: int) -> str:
    """Why ``job`` does not go on with what was run under ``before``; empty where it does.

    Args:
        before: definition of the job that was run.
        job: the one that is to go on.
        private: whether its chain keeps an account of differential privacy.
        done: rounds that were run.
    """
    old, new = dict(_flat(before)), dict(_flat(job.describe()))
    key = next((k for k in _ROUNDS if k in old and k in new), "")
    others = {k for k in {**old, **new} if k != key and old.get(k) != new.get(k)}
    if not key or others:
        return f"they differ in {', '.join(differences(before, job.describe())[:5])}"
    if new[key] < old[key]:
        return f"it had planned {old[key]} rounds, and {new[key]} are fewer"
    if private:
        return "its noise was made for the rounds that were planned, and more of them cost more"
    every = job.evaluate_every
    if job.stop.metric and every and done >= old[key] and done % every:
        return f"round {done} was evaluated as the last one, out of turn, and {job.stop.metric} is watched"
    return ""


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", list(value) if isinstance(value, tuple) else value


def _said(values: Mapping[str, Any], key: str) -> str:
    return f"{values[key]!r:.60}" if key in values else "not there"
