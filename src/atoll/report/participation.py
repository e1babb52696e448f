"""Who took part: counted from the round records, said in one sentence, drawn as a strip.

Every task ends in one of these ways: it *contributed*; it is *missing* for a reason (late, dropped,
unavailable, refused, failed, surplus); it was *void*, because its round was not committed; or it is still
*under way* (asynchronous runs).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.report.charts import Cell, Part, cell_grid, figure, legend, stacked_columns
from atoll.report.markup import Safe, join, tag

__all__ = ["MANY", "Participation", "Record", "participation", "participation_section", "sentence"]

Record = Mapping[str, Any]
"""One line of ``metrics.jsonl``."""

MANY = 60
"""More clients than this are shown together, not one by one."""

_MOST_CELLS = 6000
_MOST_COLUMNS = 120

KINDS = {
    "contributed": "contributed",
    "surplus": "surplus (over-selection)",
    "late": "late",
    "dropped": "dropped out",
    "unavailable": "unavailable",
    "refused": "update refused",
    "failed": "failed",
    "missing": "missing",
    "void": "round not committed",
    "underway": "still under way",
}
"""What can become of a task, mild to bad, with its words in the legend."""


@dataclass(frozen=True)
class Participation:
    """What became of every task of a run.

    Args:
        clients: all clients, those of the manifest first.
        rounds: number of each round, in order.
        fates: for each round, client -> (kind, reason in full).
        rejected: numbers of the rounds that were not committed.
        population: number of clients of the federation, of whom those without a task may be unnamed.
    """

    clients: Sequence[str]
    rounds: Sequence[int]
    fates: Sequence[Mapping[str, tuple[str, str]]]
    rejected: Sequence[int]
    population: int

    def totals(self) -> Counter[str]:
        """How many tasks ended in which way."""
        return Counter(kind for fates in self.fates for kind, _ in fates.values())

    def by_client(self) -> dict[str, Counter[str]]:
        """The same for each client."""
        counts: dict[str, Counter[str]] = {client: Counter() for client in self.clients}
        for fates in self.fates:
            for client, (kind, _) in fates.items():
                counts[client][kind] += 1
        return counts


def participation(manifest: Mapping[str, Any], rounds: Sequence[Record]) -> Participation:
    """Read what became of every task from the records."""
    fates = [_fates(record) for record in rounds]
    clients = dict.fromkeys(map(str, manifest.get("data") or {}))
    for of_round in fates:
        clients |= dict.fromkeys(of_round)
    known = (manifest.get("population") or {}).get("clients")
    return Participation(
        clients=list(clients),
        population=max(int(known or 0), len(clients)),
        rounds=[int(r.get("round") or i + 1) for i, r in enumerate(rounds)],
        fates=fates,
        rejected=[int(r.get("round") or i + 1) for i, r in enumerate(rounds) if _rejected(r)],
    )


def _rejected(record: Record) -> bool:
    return record.get("committed") is False


def _fates(record: Record) -> dict[str, tuple[str, str]]:
    waiting = ("void", str(record.get("reason") or "")) if _rejected(record) else ("underway", "")
    fates = {str(client): waiting for client in record.get("invited") or ()}
    for client, reason in (record.get("missing") or {}).items():
        kind = str(reason).partition(":")[0].strip()
        fates[str(client)] = (kind if kind in KINDS else "missing", str(reason))
    for client, rows in (record.get("contributed") or {}).items():
        fates[str(client)] = waiting if _rejected(record) else ("contributed", f"{rows} rows")
    return fates


def sentence(manifest: Mapping[str, Any], people: Participation) -> str:
    """Who took part, without varnish."""
    if not people.rounds:
        return "No round was run, so nobody took part."
    count, totals = len(people.rounds), people.totals()
    used, all_tasks = totals["contributed"], sum(totals.values()) - totals["underway"]
    everybody = used == all_tasks == count * people.population
    each = f"in each of the {count} rounds" if count > 1 else "in the only round"
    if everybody:
        return f"All {people.population} sites contributed {each}."
    parts = [f"{used:,} of {all_tasks:,} tasks entered the model ({_percent(used, all_tasks)})."]
    if used < all_tasks:
        parts.append(f"The others: {_reasons(totals)}.")
    parts.append(_fewest(people))
    if people.rejected:
        verb = "was" if len(people.rejected) == 1 else "were"
        parts.append(f"{len(people.rejected)} of {count} rounds {verb} not committed.")
    return " ".join(part for part in parts if part)


def _percent(part: int, whole: int) -> str:
    if not whole:
        return "0 %"
    # Never rounded up to 100 % or down to 0 %: that would claim more than happened.
    share = 100 * part / whole
    if part not in (0, whole):
        share = min(max(share, 0.1), 99.9)
    return f"{share:.1f} %".replace(".0 %", " %")


def _reasons(counts: Mapping[str, int]) -> str:
    named = [
        f"{KINDS[kind]} {counts[kind]:,}"
        for kind in KINDS
        if kind not in ("contributed", "underway") and counts.get(kind)
    ]
    return ", ".join(named)


def _fewest(people: Participation) -> str:
    counts = people.by_client()
    never = [client for client in people.clients if not counts[client]["contributed"]]
    if people.population > MANY:
        reached = len(people.clients) - len(never)
        return f"{reached:,} of {people.population:,} clients contributed at least once."
    said = [f"Never contributed: {', '.join(never)}."] if never else []
    partial = [c for c in people.clients if c not in never and _absent(counts[c])]
    partial.sort(key=lambda client: counts[client]["contributed"])
    for client in partial[:3]:
        used = counts[client]["contributed"]
        said.append(f"{client} is in {used} of {len(people.rounds)} rounds.")
    return " ".join(said)


def _absent(counts: Mapping[str, int]) -> bool:
    return any(n for kind, n in counts.items() if kind not in ("contributed", "underway"))


def participation_section(people: Participation) -> Safe:
    """The strip, and the same in numbers."""
    if not people.rounds:
        return tag("p", "No round was run.", class_="empty")
    used = [kind for kind in KINDS if people.totals()[kind]]
    key = legend([(f"m-{kind}", KINDS[kind]) for kind in used])
    if people.population > MANY:
        return join(_columns(people, used, key), _spread(people), _numbers(people))
    return join(_strip(people, key), _numbers(people))


def _bins(people: Participation, most: int) -> list[range]:
    size = math.ceil(len(people.rounds) / max(most, 1))
    return [
        range(start, min(start + size, len(people.rounds)))
        for start in range(0, len(people.rounds), size)
    ]


def _when(people: Participation, indices: range) -> str:
    first, last = people.rounds[indices[0]], people.rounds[indices[-1]]
    return f"round {first}" if first == last else f"rounds {first}-{last}"


def _strip(people: Participation, key: Safe) -> Safe:
    most = min(_MOST_COLUMNS, _MOST_CELLS // max(len(people.clients), 1))
    bins = _bins(people, most)
    cells = [
        cell
        for column, indices in enumerate(bins)
        for row, client in enumerate(people.clients)
        if (cell := _cell(people, client, row, column, indices))
    ]
    names = [str(people.rounds[indices[0]]) for indices in bins]
    names[-1] = str(people.rounds[-1])
    grid = cell_grid("Participation per client and round", people.clients, names, cells, "round")
    together = f", {len(bins[0])} rounds in a cell" if len(bins[0]) > 1 else ""
    words = f"Each row is a client, each column a round{together}; an empty cell was not invited."
    return figure(grid, words, key, wide=True)


def _cell(people: Participation, client: str, row: int, column: int, indices: range) -> Cell | None:
    fates = [people.fates[i][client] for i in indices if client in people.fates[i]]
    if not fates:
        return None
    where = f"{client}, {_when(people, indices)}"
    if len(indices) == 1:
        kind, reason = fates[0]
        told = (
            reason if kind in ("missing", reason.partition(":")[0]) else f"{KINDS[kind]} {reason}"
        )
        return Cell(row, column, f"m-{kind}", 1.0, f"{where}: {told.strip()}")
    counts = Counter(kind for kind, _ in fates)
    told = ", ".join(f"{KINDS[kind]} {n}" for kind, n in counts.most_common())
    if not counts["contributed"]:
        return Cell(row, column, f"m-{counts.most_common(1)[0][0]}", 1.0, f"{where}: {told}")
    share = counts["contributed"] / len(fates)
    return Cell(row, column, "m-contributed", 0.2 + 0.8 * share, f"{where}: {told}")


def _columns(people: Participation, used: Sequence[str], key: Safe) -> Safe:
    bins = _bins(people, _MOST_COLUMNS)
    columns = []
    for indices in bins:
        counts = Counter(kind for i in indices for kind, _ in people.fates[i].values())
        parts = [Part(KINDS[k], f"m-{k}", counts[k] / len(indices)) for k in used]
        columns.append((_when(people, indices), parts))
    chart = stacked_columns(
        "Tasks per round by outcome",
        columns,
        "round",
        ends=(str(people.rounds[0]), str(people.rounds[-1])),
    )
    words = "Tasks per round and what became of them"
    words += f" (mean over {len(bins[0])} rounds)." if len(bins[0]) > 1 else "."
    return figure(chart, words, key, wide=True)


def _spread(people: Participation) -> Safe:
    often = [counts["contributed"] for counts in people.by_client().values()]
    size = max(1, math.ceil((max(often, default=0) + 1) / 30))
    counts = Counter(n // size for n in often)
    counts[0] += people.population - len(people.clients)  # those that nobody ever invited
    columns = [
        (f"{_between(k * size, (k + 1) * size - 1)} rounds", [Part("clients", "c0", counts[k])])
        for k in range(max(counts) + 1)
    ]
    chart = stacked_columns(
        "Clients by rounds contributed",
        columns,
        "rounds contributed",
        ends=("0", str(max(often, default=0))),
    )
    return figure(chart, "How many clients contributed how often.", wide=True)


def _between(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _numbers(people: Participation) -> Safe:
    counts = people.by_client()
    clients: Iterable[str] = people.clients
    note = ""
    if people.population > MANY:
        clients = sorted(people.clients, key=lambda client: counts[client]["contributed"])[:20]
        unnamed = len(people.clients) < people.population
        note = f" (the 20 that contributed least{', of those invited' if unnamed else ''})"
    rows = [
        tag(
            "tr",
            tag("th", client, scope="row"),
            tag("td", counts[client]["contributed"]),
            tag("td", sum(counts[client].values())),
            tag("td", _reasons(counts[client]) or "-", class_="words"),
        )
        for client in clients
    ]
    heads = [tag("th", name, scope="col") for name in ("client", "contributed", "tasks")]
    heads.append(tag("th", "missing", scope="col", class_="words"))
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return tag("details", tag("summary", f"In numbers{note}"), tag("div", table, class_="scroll"))
