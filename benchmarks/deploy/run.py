"""Rounds of deployments side by side; tables go into ``docs/performance.md``.

    python -m benchmarks.deploy.run [--workloads W5 W6] [--repeats N] [--quick] [--no-page]

Contestants take turns (A B C A B C); figures are medians over rounds after the first and then over turns,
ratios medians of the ratios within one turn. Memory is read in a turn of its own, as reading it costs time.
Raw results go to ``.bench/deploy.jsonl``; the page keeps the last table of a workload that was not run.
``--quick`` makes one short turn and leaves the page alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from benchmarks.deploy.work import WORKLOADS
from benchmarks.machine import Background, compiled, describe
from benchmarks.pages import write
from benchmarks.run import ROOT
from benchmarks.turns import Result, arguments, launch, note, peers, remark, spread

RAW = ROOT / ".bench" / "deploy.jsonl"
TABLES = ROOT / ".bench" / "deploy-tables.json"
PATIENCE = 600
CONTESTANTS = {"floor": "plain sockets", "ours": "Atoll", "flower": "Flower", "nvflare": "NVFlare"}
"""Runners of this package and their names."""
PEERS = ("flower", "nvflare")
SLOW = {("flower", "W6"): 12, ("nvflare", "W6"): 12}
"""Rounds of who takes seconds for each."""
QUICK = {"W5": 3, "W6": 8}


def run(who: str, workload: str, rounds: int, watched: bool) -> Result:
    """One run of a contestant; ``failed`` says why it gave no result."""
    words = [workload, "--rounds", rounds, *(["--watch"] if watched else [])]
    found = launch(f"deploy.{who}", *words, patience=PATIENCE)
    if "failed" in found:
        return found
    ends = found["ends"]
    each = [b - a for a, b in pairwise(ends)]
    return {"round": median(each), "best": min(each), "first": ends[0], "memory": found["memory"]}


def measure(workload: str, field: Sequence[str], turns: int, quick: bool) -> list[Result]:
    """All contestants in turns, and once more for their memory."""
    results: list[Result] = []
    for turn in range(turns + (not quick)):
        watched = turn == turns or quick
        for who in field:
            rounds = QUICK[workload] if quick else WORKLOADS[workload].rounds
            rounds = min(rounds, SLOW.get((who, workload), rounds))
            found = run(who, workload, rounds, watched)
            about = {"who": who, "workload": workload, "turn": turn, "rounds": rounds}
            results.append({**about, "timed": turn < turns, **found})
            note(RAW, results[-1])
            told = found.get("failed") or f"{shown(found['round'])} a round {found['memory'] or ''}"
            print(f"  {workload} turn {turn + 1}: {CONTESTANTS[who]}: {told}", file=sys.stderr)
    return results


def shown(seconds: float) -> str:
    """Seconds or milliseconds, three digits."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def lines(workload: str, results: Sequence[Result]) -> list[str]:
    """The table of a workload."""
    head = ["a round", "times Atoll's (least to most)", "round 1 done", "server at most"]
    head += ["of it grown in the run", "all processes at most"]
    made = [f"| {workload} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    ours = {r["turn"]: r["round"] for r in results if r["who"] == "ours" and "round" in r}
    for who in dict.fromkeys(r["who"] for r in results):
        mine = [r for r in results if r["who"] == who]
        if wrong := [r["failed"] for r in mine if "failed" in r]:
            made.append(f"| {CONTESTANTS[who]} | failed: {wrong[0]} |" + " - |" * (len(head) - 1))
            continue
        timed = [r for r in mine if r["timed"]]
        ratios = [r["round"] / ours[r["turn"]] for r in timed if r["turn"] in ours]
        memory: Mapping[str, float] = next((r["memory"] for r in mine if r["memory"]), {})
        cells = [
            shown(median(r["round"] for r in timed)),
            spread(ratios),
            shown(median(r["first"] for r in timed)),
            *(f"{memory[k]:.0f} MB" if memory else "-" for k in ("server", "growth", "tree")),
        ]
        made.append(f"| {CONTESTANTS[who]} | {' | '.join(cells)} |")
    return made


def keep(workload: str, table: Sequence[str]) -> list[str]:
    """Keep the table until the next; the page's section."""
    held = json.loads(TABLES.read_text()) if TABLES.exists() else {}
    held[workload] = list(table)
    TABLES.write_text(json.dumps(held))
    return [line for name in WORKLOADS for line in [*held.get(name, []), ""]][:-1]


def _arguments() -> argparse.Namespace:
    parser = arguments(__doc__, repeats=0, note="; 0: by workload")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Entry point; the exit code."""
    given = _arguments()
    theirs, said = peers(*(who for who in given.only if who in PEERS))
    field = [who for who in given.only if who not in PEERS or who in theirs]
    compiled()
    print("\n".join([describe(), *said]))
    failed = False
    for workload in given.workloads:
        others = Background()
        turns = given.repeats or (1 if given.quick else WORKLOADS[workload].turns)
        results = measure(workload, field, turns, given.quick)
        failed |= any("failed" in r for r in results)
        table = [*lines(workload, results), "", remark(others, *said)]
        print("\n".join(["", *table]))
        if not (given.quick or given.no_page) and set(field) == set(CONTESTANTS):
            write("deployed", keep(workload, table))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
