"""What real federations bear, on real processes: writes the tables of ``docs/reliability.md``.

    python -m benchmarks.reliability [ROW ...] [--kills 200] [--seed 1] [--quick] [--no-page]

A row is a number of the table; without any, all are measured, which takes about an hour. Each federation is
a server and nodes as processes of their own, on this machine, with TLS and SQLite. Raw results go to
``.bench/reliability.jsonl``. ``--quick`` makes everything small and leaves the page alone. Where a row misses
its goal, that is said at the end, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "server" / "store"))

import federation_measures as measures
import postgres_cluster
from federation_kills import POINTS, Kill
from federation_liar import LIES

from benchmarks.machine import Background, describe
from benchmarks.pages import read, write

ROOT = Path(__file__).parents[1]
PAGE = "reliability.md"
RAW = ROOT / ".bench" / "reliability.jsonl"
MIB = 1 << 20

Lines = list[str]


@dataclass(frozen=True)
class Found:
    """One line of the table.

    Args:
        promise: what is promised.
        tested: how it was tried.
        goal: what it had to come to.
        found: what it came to.
        wrong: where it misses the goal.
    """

    promise: str
    tested: str
    goal: str
    found: str
    wrong: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """As the table shows it."""
        return self.promise, self.tested, self.goal, self.found


def missed(**faults: bool) -> tuple[str, ...]:
    """The names of what is true, as words."""
    return tuple(name.replace("_", " ") for name, is_so in faults.items() if is_so)


def note(kind: str, **values: Any) -> None:
    """Keep a raw result, and say it."""
    RAW.parent.mkdir(exist_ok=True)
    line = json.dumps({"at": time.time(), "kind": kind, **values})
    with RAW.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one federation."""
    with tempfile.TemporaryDirectory(prefix="atoll-reliability-") as folder:
        yield Path(folder)


# Kills --------------------------------------------------------------------------------------------


def kills(given: argparse.Namespace) -> tuple[Found, Lines]:
    """Runs whose processes are killed: enough of them, and then until every point was reached.

    Points that do not come by in twice as many kills are wrong, but in a quick look, which has time for few.
    """
    rng, runs = random.Random(given.seed), list[measures.Killed]()
    with scratch() as folder:
        for large in (False, True):
            (folder / str(large)).mkdir()
            mine, wanted = list[measures.Killed](), given.kills // 2
            for run in measures.killed_runs(folder / str(large), large, rng):
                mine.append(run)
                note("killed", large=large, **asdict(run))
                done = [kill for each in mine for kill in each.kills]
                all_there = given.quick or not unreached(done, large)
                if len(done) >= (wanted if all_there else 2 * wanted):
                    break
            runs += mine
    every = [kill for run in runs for kill in run.kills]
    wrong = [text for run in runs for text in run.wrong]
    never = [] if given.quick else unreached(every, large=True)
    back = sorted(kill.seconds for kill in every if not math.isnan(kill.seconds))
    servers = sum(kill.victim == "the server" for kill in every)
    same = f"the same model in {sum(not r.wrong for r in runs)} of {len(runs)} runs"
    return Found(
        "after `kill -9` a run goes on by itself, to the same bits",
        f"{servers} kills of the server and {len(every) - servers} of nodes in {len(runs)} runs of 20 rounds "
        "(SCAFFOLD; a small model, and one of 1.6 MB), half of them at random moments",
        "the same model each time; back at work in 10 s",
        f"{same}{'; ' + '; '.join(wrong[:3]) if wrong else ''}; back at work in {median(back):.1f} s "
        f"(median), {back[int(0.95 * (len(back) - 1))]:.1f} s (95 %), {back[-1]:.1f} s (longest)",
        (
            *wrong,
            *(f"no kill when {name}: not reached in {len(every)} kills" for name in never),
            *missed(back_at_work_after_more_than_10_s=back[-1] > 10),
        ),
    ), points(every)


def unreached(every: list[Kill], large: bool) -> Lines:
    """Points at which nobody was killed; of a small model only those that come by."""
    names = {kill.point for kill in every}
    return [p.name for p in POINTS if (large or not p.large) and p.name not in names]


def points(every: list[Kill]) -> Lines:
    """The second table: kills where something was half done."""
    lines = [
        "| killed when | who | kills | back at work, median | longest |",
        "|---|---|---|---|---|",
    ]
    rows = [(point.name, point.who) for point in POINTS]
    rows += [("at a random moment", "all"), ("at a random moment, soon after another", "all")]
    names = {
        "at a random moment": "",
        "at a random moment, soon after another": "soon after another",
    }
    for name, who in rows:
        mine = [kill for kill in every if kill.point == names.get(name, name)]
        seconds = [kill.seconds for kill in mine if not math.isnan(kill.seconds)]
        times = f"{median(seconds):.1f} s | {max(seconds):.1f} s" if seconds else "- | -"
        number = len(mine) or ("0" if name in names else "NOT REACHED")
        lines.append(f"| {name} | {who} | {number} | {times} |")
    return lines


# The other rows -----------------------------------------------------------------------------------


def fencing(given: argparse.Namespace) -> Found:
    """Second servers."""
    tries, results = 3 if given.quick else 20, {}
    with scratch() as folder:
        results["SQLite"] = measures.fenced(folder, tries)
    if postgres_cluster.programs() is not None:
        with scratch() as folder, postgres_cluster.cluster() as cluster:
            results["PostgreSQL"] = measures.fenced(folder, tries, cluster.new_database())
    note("fencing", tries=tries, results=results)
    told = [
        f"{refused} of {tries} refused on {name}, {'run undisturbed' if same else 'RUN DISTURBED'}"
        for name, (refused, same) in results.items()
    ]
    return Found(
        "two servers never share a store",
        "a second server is started on the store of one at work, again and again",
        "100 % refused",
        "; ".join(told),
        missed(
            a_second_server_was_let_in=any(refused < tries for refused, _ in results.values()),
            the_run_was_disturbed=not all(same for _, same in results.values()),
        ),
    )


def stragglers(given: argparse.Namespace) -> Found:
    """Slow and absent sites."""
    deadline, rounds = (3.0, 4) if given.quick else (8.0, 8)
    with scratch() as folder:
        slow = measures.stragglers(folder, away=0, deadline=deadline, rounds=rounds)
    with scratch() as folder:
        away = 4.0 if given.quick else 60.0
        gone = measures.stragglers(folder, away=away, deadline=deadline, rounds=rounds + 4)
    note("stragglers", deadline=deadline, slow=asdict(slow), gone=asdict(gone))
    told = [
        f"{name}: {r.rounds} rounds ended at most {r.beyond:.2f} s after it, missing sites "
        f"{'named in each' if r.named else 'NOT ALWAYS NAMED'}"
        for name, r in (("100 times slower", slow), (f"stopped for {away:g} s", gone))
    ]
    return Found(
        "a round ends by its deadline, whoever is slow or cut off",
        f"3 of 10 sites are 100 times slower, or stopped for {away:g} s; deadline {deadline:g} s, quorum 7",
        "deadline + 2 s; the missing are named",
        "; ".join(told),
        missed(
            rounds_ended_too_late=max(slow.beyond, gone.beyond) > 2,
            missing_sites_not_always_named=not (slow.named and gone.named),
        ),
    )


def transfer(given: argparse.Namespace) -> Found:
    """An upload over a line that is cut."""
    size, cuts = (40 * MIB, 5) if given.quick else (400 * MIB, 20)
    with scratch() as folder:
        found = measures.cut_upload(folder, size, cuts, random.Random(given.seed))
    note("transfer", size=size, **asdict(found))
    again = found.sent_again / MIB / max(1, found.cuts)
    return Found(
        "a long transfer goes on where it was cut",
        f"an upload of {size // MIB} MiB over a line that is cut at random offsets",
        "at most a chunk (4 MiB) sent again for each cut; digest right",
        f"{found.cuts} cuts, {again:.2f} MiB sent again for each; digest "
        f"{'right' if found.whole else 'WRONG'}; {found.seconds:.1f} s",
        missed(
            more_than_a_chunk_sent_again=again > 4,
            the_digest_is_wrong=not found.whole,
            fewer_cuts_than_asked_for=found.cuts < cuts,
        ),
    )


def memory(given: argparse.Namespace) -> Found:
    """The server's memory beside a large model."""
    sites, values = (4, 5_000_000) if given.quick else (8, 25_000_000)
    with scratch() as folder:
        found = measures.server_growth(folder, sites, values, rounds=3)
    note("memory", sites=sites, values=values, **found)
    return Found(
        "the server's memory depends on the model, not on the sites",
        f"{sites} nodes, a model of {values * 4 / 1e6:g} MB, 3 rounds; the most that the process held, less "
        "what it held before",
        "2.5 models",
        f"{found['anonymous']:.2f} models of its own memory, {found['share']:.2f} with its share of mapped "
        "files",
        missed(grown_too_far=found["anonymous"] > 2.5 and not given.quick),
    )


def _tests(*places: str) -> tuple[int, list[str], float]:
    """Run tests; how many passed, which did not and why, seconds. All that these said is shown."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    end = "\n".join(done.stdout.splitlines()[-3:])
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", end)}
    if not counts:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return counts.pop("passed", 0), failed, time.monotonic() - began


@dataclass(frozen=True)
class Checked:
    """A row whose figure is that its tests hold.

    Args:
        promise: what is promised.
        goal: what it has to come to.
        places: the tests, as pytest is told.
        holds: what it means when they hold; their number when left out.
    """

    promise: str
    goal: str
    places: tuple[str, ...]
    holds: str = ""

    def __call__(self, given: argparse.Namespace) -> Found:
        """Run them."""
        passed, failed, seconds = _tests(*self.places)
        note("tests", places=self.places, passed=passed, failed=failed, seconds=seconds)
        words = " ".join(f"'{place}'" if " " in place else place for place in self.places)
        holds = self.holds or f"{passed} checks hold"
        found = f"{len(failed)} OF {passed + len(failed)} FAIL" if failed else holds
        return Found(self.promise, f"`pytest {words}`", self.goal, found, tuple(failed))


def storms(given: argparse.Namespace) -> Found:
    """Server, nodes, network, disks and clock in virtual time."""
    seeds = 20 if given.quick else given.seeds
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": "tests/simulation"}
    command = ["-m", "storm.run", "--json", "--seeds", f"0:{seeds}", "--jobs", str(os.cpu_count())]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if not done.stdout:
        sys.exit(done.stderr)
    found = json.loads(done.stdout)
    crashes = sum(found["crashes"].values())
    note("storms", seeds=seeds, failed=found["failed"], crashes=crashes, states=found["states"])
    return Found(
        "an answer counts exactly once, nothing that was acknowledged is lost, a round is committed once",
        f"`make simulate SEEDS={seeds}`: storms over server, nodes, network, disks and clock in virtual time; "
        "all guarantees checked after every step, and the history at the end",
        "0 violations",
        f"{len(found['failed'])} violations in {seeds} storms with {crashes} crashes",
        tuple(found["failed"]),
    )


def flood(given: argparse.Namespace) -> Found:
    """Strangers at the door."""
    number = 1000 if given.quick else 10_000
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.flood", str(number)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = re.findall(r"^(.*?) +(\d+) MB +round trip +([\d.]+) ms$", done.stdout, re.MULTILINE)
    sizes, times = [int(size) for _, size, _ in rows], [float(t) for _, _, t in rows]
    bombs = re.findall(r"([\d.]+) MB taken", done.stdout)
    note("flood", connections=number, said=done.stdout)
    return Found(
        "bombs and floods of strangers cost little",
        f"`python -m benchmarks.flood {number}`: bodies without end, half handshakes, half requests, {number} "
        "connections",
        "growth < 64 MB; members served",
        f"growth {max(sizes) - sizes[0]} MB; of bombs at most {max(map(float, bombs))} MB are taken; a "
        f"member's round trip {times[0]:.1f} ms before, {times[-1]:.1f} ms while the connections are held",
        missed(the_server_grew_by_64_MB_or_more=max(sizes) - sizes[0] >= 64),
    )


def contracts(given: argparse.Namespace) -> Found:
    """Who may import what."""
    program = str(Path(sys.executable).with_name("lint-imports"))
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    match = re.search(r"(\d+) kept, (\d+) broken", done.stdout)
    if match is None:
        sys.exit(done.stdout + done.stderr)
    kept, broken = match.groups()
    note("contracts", kept=kept, broken=broken)
    return Found(
        "nothing that comes over the wire is code: no pickle, no names of types",
        "`lint-imports`, over all modules; a pickle in place of an answer is row 14",
        "0 code paths",
        f"{kept} contracts kept, {broken} broken",
        missed(contracts_are_broken=broken != "0"),
    )


E2E, WIRE = "tests/e2e/test_federation_", "tests/wire/test_"
ROWS: Mapping[str, Callable[[argparse.Namespace], Any]] = {
    "1": Checked(
        "a deployed run ends in the bits of its simulation, on SQLite as on PostgreSQL with an object store",
        "equal hashes",
        (f"{E2E}pilot.py", f"{E2E}store.py"),
    ),
    "5": Checked(
        "a node needs no way in, and a CONNECT proxy is way enough out",
        "a run ends well; no listening socket",
        (f"{E2E}proxy.py",),
    ),
    "9": Checked(
        "runs at once do not touch each other; sites may leave and come back",
        "each as if alone",
        (f"{E2E}sites.py",),
    ),
    "12": Checked(
        "malformed input does no harm",
        "0 crashes",
        (
            *(f"{WIRE}{name}.py" for name in ("frames", "messages", "metrics")),
            "tests/server/test_app.py",
        ),
    ),
    "13": flood,
    "14": Checked(
        "what is no honest answer (NaN, weights, shapes, another's …) is refused and named",
        "100 % refused; the model is that of the others",
        (f"{E2E}liars.py",),
        f"{len(LIES)} lies of {len(LIES)} refused; the same bits as without the liar",
    ),
    "15": Checked(
        "nothing is accepted twice, also across a restart",
        "0 accepted twice",
        ("tests/server/test_serving.py", "tests/server/test_gate.py", "-k", "recorded or number"),
    ),
    "16": Checked(
        "nobody passes for another: every route, role and wrong identity",
        "100 % refused",
        ("tests/server/test_gate.py",),
    ),
    "17": contracts,
    "21": Checked(
        "the audit log of a site is tamper-evident: flip, delete, truncate, exchange lines, files and heads",
        "100 % found, the line named",
        ("tests/node/test_audit_log.py",),
    ),
    "22": storms,
    "23": kills,
    "24": fencing,
    "25": stragglers,
    "26": transfer,
    "27": memory,
    "28": Checked(
        "another version works, or is refused with a reason",
        "works, or says why not",
        ("tests/wire", "tests/server/store", "-k", "newer or another_version or unknown_code"),
    ),
}


def update(found: Mapping[str, Found]) -> None:
    """Put rows into the table; others stay as they are."""
    rows = {
        line.split("|")[1].strip(): line
        for line in read("table", PAGE).splitlines()
        if line.startswith("|") and line.split("|")[1].strip().isdigit()
    }
    for number, row in found.items():
        cells = (
            number,
            *row.cells,
            f"{datetime.now(UTC):%Y-%m-%d}",
        )
        rows[number] = f"| {' | '.join(cells)} |"
    head = ["| # | promise | tested by | goal | found | on |", "|---|---|---|---|---|---|"]
    write("table", head + [rows[number] for number in sorted(rows, key=int)], PAGE)


def main() -> int:
    """Entry point; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--kills", type=int, default=0, help="so many in all; 200")
    parser.add_argument("--seeds", type=int, default=10_000, help="storms; 10000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-page", action="store_true", help="only print")
    given = parser.parse_args()
    given.kills = given.kills or (8 if given.quick else 200)
    if unknown := [row for row in given.rows if row not in ROWS]:
        parser.error(f"unknown row {unknown[0]}; known: {', '.join(ROWS)}")
    page = not (given.quick or given.no_page)
    wrong: Lines = []
    print(describe())
    for number in given.rows or ROWS:
        others, began = Background(), time.monotonic()
        found = ROWS[number](given)
        row, extra = found if isinstance(found, tuple) else (found, [])
        print("\n".join([f"| {number} | {' | '.join(row.cells)} |", *extra]))
        wrong += [f"row {number}: {text}" for text in row.wrong]
        share = others.share()
        remark = f"{describe()}. Other processes used {share:.0%} of the machine meanwhile."
        print(f"{remark} ({time.monotonic() - began:.0f} s)\n", flush=True)
        if page:
            update({number: row})
            if extra:
                write("points", [*extra, "", f"{datetime.now(UTC):%Y-%m-%d}, {remark}"], PAGE)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
