"""From the results of runs to tables, and the check that all did the same work. No clock, no processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = ["Row", "check", "lines", "milliseconds", "rows", "summary"]

Result = dict[str, Any]

TOLERANCE = 5e-4
"""Relative difference of two losses that agree to three digits."""

LEARNS_ELSE = "central"
REFERENCES = ("plain", "atoll")
"""Whose loss counts: the first of these that ran as many rounds."""


@dataclass(frozen=True)
class Row:
    """What one contestant did in all turns.

    Args:
        name, peer, workers, rounds: of the contestant.
        round: median length of a round in seconds; NaN when every run failed.
        ratio: (median, least, most) of its round over Atoll's within one turn.
        first: median seconds from the command to the end of the first round.
        memory: MB at most; NaN when not looked at.
        loss: at the end; of the turns the one furthest from the reference.
        same: whether that is the reference's; None where nothing is to compare.
        failed: why a run of it gave no result.
    """

    name: str
    peer: str
    workers: int
    rounds: int
    round: float
    ratio: tuple[float, float, float]
    first: float
    memory: float
    loss: float
    same: bool | None
    failed: str = ""


def _key(result: Result) -> tuple[str, int]:
    return result["name"], result["workers"]


def agree(loss: float, reference: float) -> bool:
    """Whether two losses are the same to three digits; never if one is not a number."""
    return abs(loss - reference) <= TOLERANCE * abs(reference)


def _middle(values: Iterable[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return median(known) if known else math.nan


def _reference(results: Sequence[Result], rounds: int) -> float:
    """The loss that all who ran so many rounds must reach."""
    for peer in REFERENCES:
        for r in results:
            if r["peer"] == peer and r["rounds"] == rounds and "loss" in r:
                return float(r["loss"])
    return math.nan


def _best(results: Sequence[Result], own: str) -> tuple[str, int] | None:
    """A row of ours with the number of workers that is fastest."""
    lengths: dict[tuple[str, int], list[float]] = {}
    for r in results:
        if r["name"] == own and r.get("timed", True) and "round" in r:
            lengths.setdefault(_key(r), []).append(r["round"])
    return min(lengths, key=lambda key: median(lengths[key])) if lengths else None


def _ratios(own: Sequence[Result], base: Sequence[Result]) -> tuple[float, float, float]:
    by_turn = {r["turn"]: r["round"] for r in base}
    found = [r["round"] / by_turn[r["turn"]] for r in own if r["turn"] in by_turn]
    return (median(found), min(found), max(found)) if found else (math.nan,) * 3


def rows(results: Sequence[Result], own: str = "atoll") -> list[Row]:
    """Rows of one workload and method, in the order in which contestants first ran.

    Args:
        results: of single runs: ``name``, ``peer``, ``workers``, ``rounds``, ``turn``, then ``round``,
            ``first``, ``loss`` or ``failed``; ``timed`` False for runs made for their memory or loss only,
            ``memory`` where it was looked at, ``extra`` for runs that only give a loss to compare with,
            ``exact`` False for those whose loss may differ.
        own: the row of ours that ratios refer to, with the number of workers that is fastest.
    """
    best = _best(results, own)
    shown = [r for r in results if not r.get("extra")]
    base = [r for r in shown if _key(r) == best and r.get("timed", True) and "round" in r]
    made = []
    for key in dict.fromkeys(_key(r) for r in shown):
        runs = [r for r in shown if _key(r) == key]
        timed = [r for r in runs if r.get("timed", True) and "round" in r]
        failed = next((r["failed"] for r in runs if "failed" in r), "")
        rounds = runs[0]["rounds"]
        target = _reference(results, rounds)
        losses = [r["loss"] for r in timed]
        loss = max(
            losses, key=lambda v: math.inf if math.isnan(v) else abs(v - target), default=math.nan
        )
        shown_loss = runs[0]["peer"] != LEARNS_ELSE and bool(losses)
        compared = shown_loss and runs[0].get("exact", True)
        made.append(
            Row(
                *(key[0], runs[0]["peer"], key[1], rounds),
                round=_middle(r["round"] for r in timed),
                ratio=_ratios(timed, base),
                first=_middle(r["first"] for r in timed),
                memory=max((r["memory"] for r in runs if "memory" in r), default=math.nan),
                loss=loss if shown_loss else math.nan,
                same=agree(loss, target) if compared else None,
                failed=failed,
            )
        )
    return made


def milliseconds(seconds: float) -> str:
    """Three digits and a unit, or a dash."""
    if math.isnan(seconds):
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def times(value: float) -> str:
    """A ratio with three digits and no exponent."""
    return _number(value, ".2f" if value < 10 else ".1f" if value < 100 else ".0f")


def lines(made: Sequence[Row], workload: str, method: str) -> list[str]:
    """A Markdown table of rows, fastest first."""
    out = [
        f"| {workload}, {method} | workers | a round | times Atoll's (least to most) | round 1 done "
        "| memory at most | final loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(made, key=lambda r: math.inf if math.isnan(r.round) else r.round):
        if math.isnan(row.round):
            out.append(f"| {row.name} | {row.workers} | **failed**: {row.failed} | | | | |")
            continue
        middle, least, most = row.ratio
        loss = _number(row.loss, ".6f") + ("" if row.same is not False else " **differs**")
        full = max(r.rounds for r in made)
        loss += f" after {row.rounds} rounds" if row.rounds != full and loss != "-" else ""
        cells = [
            row.name,
            str(row.workers),
            milliseconds(row.round),
            f"{times(middle)} ({times(least)} to {times(most)})",
            _number(row.first, ".1f") + " s",
            _number(row.memory, ".0f") + " MB",
            loss,
        ]
        out.append(f"| {' | '.join(cells)} |")
    return out


def check(made: Sequence[Row], workload: str, method: str) -> list[str]:
    """What is wrong with a table, a line each: runs that failed, losses that differ."""
    where = f"{workload}, {method}"
    wrong = []
    for row in made:
        who = f"{where}: {row.name}, {row.workers} workers"
        if row.failed:
            wrong.append(f"{who}: {row.failed}")
        if row.same is False:
            wrong.append(f"{who}: final loss {row.loss:.6f} differs: not the same work")
    return wrong


def summary(tables: Mapping[tuple[str, str], Sequence[Result]]) -> list[str]:
    """How much faster our rows are than the fastest peer and Flower; their time over the centralised loop's.

    Args:
        tables: results by workload and method.
    """
    out = [
        "| workload | method | ours | fastest peer (workers) | fastest peer / ours | Flower / ours "
        "| ours / centralised loop, 2 processes |",
        "|---|---|---|---|---|---|---|",
    ]
    for (workload, method), results in tables.items():
        for own in dict.fromkeys(r["name"] for r in results if r["peer"] == "atoll"):
            cells = [workload, method, own, *_compared(rows(results, own))]
            out.append(f"| {' | '.join(cells)} |")
    return out


def _compared(made: Sequence[Row]) -> tuple[str, str, str, str]:
    """The cells of :func:`summary` from rows whose ratios refer to one row of ours."""
    others = [r for r in made if r.peer not in ("atoll", "plain", LEARNS_ELSE)]
    peers = [r for r in others if r.same and not math.isnan(r.ratio[0])]
    first = min(peers, key=lambda r: r.ratio[0], default=None)
    flower = next((r.ratio[0] for r in peers if r.peer == "flower"), math.nan)
    central = [r.ratio[0] for r in made if r.peer == LEARNS_ELSE and r.workers == 2]
    return (
        f"{first.name} ({first.workers})" if first else "-",
        times(first.ratio[0] if first else math.nan),
        times(flower),
        _number(1 / central[0] if central else math.nan, ".2f"),
    )
