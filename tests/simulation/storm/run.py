"""Run seeds: ``python -m storm.run --seeds 0:300``; one seed with its trace: ``--seed 17 --trace``.

The seed and ``PYTHONHASHSEED=0`` decide everything that happens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

from storm import kernel as k
from storm import played, putback, work
from storm.bugs import BUGS
from storm.checks import Violation
from storm.weather import KINDS, weather_of
from storm.world import World

import atoll.job.registry
import atoll.node.agent
import atoll.node.errands
import atoll.node.home
import atoll.node.link
import atoll.node.room.dispatcher
import atoll.runs.session
import atoll.server.blobs.folder
import atoll.wire.transfers

INSTALLED = cache(atoll.job.registry.entry_points)
"""Looking through all installed packages takes longer than a round."""
LONGEST = 20_000.0
"""Virtual seconds after which a run that has not ended never will."""
SETTLING = 100.0
"""Virtual seconds in which nodes hear that a run has ended."""


@dataclass
class Result:
    """What became of one seed."""

    seed: int
    violations: list[Violation]
    trace: list[tuple[float, str, str]]
    counts: Counter[str]
    points: Counter[str]
    crashes: Counter[str]
    status: str = ""
    steps: int = 0
    rounds: int = 0
    seconds: float = 0.0
    facts: dict[str, object] = field(default_factory=dict)


def simulate(seed: int, folder: Path, bug: str = "") -> Result:
    """One seed."""
    began = time.perf_counter()
    random = Random(seed)
    weather = weather_of(seed, random, work.SITES)
    place = folder / str(seed)
    place.mkdir(parents=True)
    world = World(random, weather, place)
    with ExitStack() as stack:
        stack.enter_context(k.virtual_modules(world.kernel))
        for patch in _patches(world):
            stack.enter_context(patch)
        if bug:
            stack.enter_context(BUGS[bug](world))
        _live(world, seed)
        stack.callback(_end, world)
    shutil.rmtree(place, ignore_errors=True)
    return Result(
        seed=seed,
        violations=world.checks.violations,
        trace=world.trace,
        counts=weather.counts,
        points=weather.points,
        crashes=weather.crashes,
        status=" ".join(row.status for row in world.database.runs.values()),
        steps=world.kernel.steps,
        rounds=sum(len(rows) for rows in world.database.rounds.values()),
        seconds=time.perf_counter() - began,
        facts={
            "jobs": weather.jobs,
            "gentle": weather.gentle,
            "at": world.kernel.now,
            "alarms": world.checks.alarms,
        },
    )


def _live(world: World, seed: int) -> None:
    """From the first start until everything has settled."""
    lost = putback.before(world, seed)
    world.begin()
    checks, database = world.checks, world.database

    def over() -> bool:
        ended = [row.status in work.ENDED for row in database.runs.values()]
        done = len(ended) == len(world.specs) and all(ended)
        return bool(checks.violations) or (done and not world.stormy)

    if not world.kernel.run(over, LONGEST):
        checks.violated("G3", "the run does not end")
    if not checks.violations:
        until = world.kernel.now + SETTLING
        world.kernel.run(lambda: bool(checks.violations), until)
    if not checks.violations:
        checks.history()
    if lost is not None and not checks.violations:
        putback.after(world, lost)


def _end(world: World) -> None:
    """Unwind all threads, so that none is left to the garbage collector."""
    for process in [
        *(s.process for s in world.servers),
        *(n.process for n in world.nodes.values()),
    ]:
        if process is not None and not process.dead:
            world.kernel.kill(process)


def _patches(world: World) -> list[object]:
    """What stands for what is outside of the process."""
    errands, dispatcher = atoll.node.errands, atoll.node.room.dispatcher
    agent, link = atoll.node.agent, atoll.node.link
    inline = world.weather.inline

    def pid() -> int:
        process = world.kernel.process
        return 0 if process is None else process.number

    return [
        mock.patch.object(dispatcher, "new_worker", played.new_worker),
        mock.patch.object(dispatcher, "Log", played.Log),
        mock.patch.object(errands, "INLINE", inline),
        mock.patch.object(link, "INLINE", inline),
        mock.patch.object(atoll.wire.transfers, "CHUNK", played.CHUNK),
        mock.patch.object(agent, "_TELL", 1000.0),
        mock.patch.object(atoll.node.home.Home, "tell"),
        mock.patch.object(atoll.runs.session, "write_report"),
        mock.patch.object(atoll.job.registry, "entry_points", INSTALLED),
        mock.patch.object(atoll.server.blobs.folder, "os", SimpleNamespace(getpid=pid)),
    ]


def shown(result: Result, lines: int = 0, bug: str = "") -> str:
    """A failing seed, for people."""
    trace = result.trace[-lines:] if lines else result.trace
    told = [f"{at:10.3f}  {who:10}  {text}" for at, who, text in trace]
    found = [f"{v.guarantee} at {v.at:.3f}: {v.text}\n{v.stack}" for v in result.violations]
    return "\n".join([*told, f"seed {result.seed}: {result.facts}", *found, _replay(result, bug)])


def _replay(result: Result, bug: str) -> str:
    planted = f' --bug "{bug}"' if bug else ""
    again = f"PYTHONHASHSEED=0 PYTHONPATH=tests/simulation {Path(sys.executable).name}"
    return f"replay: {again} -m storm.run --seed {result.seed} --trace{planted}"


def _tell_at_once(result: Result, bug: str) -> None:
    """What is known of a failing seed even if the run is ended before it tells of all."""
    found = "; ".join(f"{v.guarantee} at {v.at:.3f}: {v.text}" for v in result.violations)
    print(f"seed {result.seed}: {found}\n{_replay(result, bug)}", file=sys.stderr, flush=True)


def coverage(counts: Counter[str], points: Counter[str], crashes: Counter[str]) -> str:
    """How often each kind of fault happened, and at which points processes died."""
    lines = ["faults:"]
    lines += [f"  {counts[kind]:8}  {kind}" for kind in KINDS]
    lines += ["points (times a process died there / times it came there):"]
    lines += [f"  {crashes[p]:6} / {n:8}  {p}" for p, n in sorted(points.items())]
    return "\n".join(lines)


def _many(first: int, last: int, bug: str, stop: bool) -> dict[str, Any]:
    """Seeds one after another; what came of them, ready for JSON."""
    counts: Counter[str] = Counter()
    points: Counter[str] = Counter()
    crashes: Counter[str] = Counter()
    states: Counter[str] = Counter()
    failed: list[str] = []
    guarantees: set[str] = set()
    steps, digest = 0, hashlib.sha256()
    shm = Path("/dev/shm")
    place = shm if os.access(shm, os.W_OK) else None
    prefix = f"storm-{os.getpid()}-"
    _leave_nothing(prefix, place)
    with tempfile.TemporaryDirectory(dir=place, prefix=prefix) as folder:
        for seed in range(first, last):
            result = simulate(seed, Path(folder), bug)
            counts += result.counts
            points += result.points
            crashes += result.crashes
            states[result.status] += 1
            steps += result.steps
            digest.update(repr(result.trace).encode())
            done = seed - first + 1
            if done % 500 == 0:
                told = f"seeds {first} to {seed}: {len(failed)} violations"
                print(told, file=sys.stderr, flush=True)
            if result.violations:
                _tell_at_once(result, bug)
                failed.append(shown(result, 60, bug))
                guarantees |= {v.guarantee for v in result.violations}
                if stop:
                    break
    return {
        "counts": counts,
        "points": points,
        "crashes": crashes,
        "states": states,
        "failed": failed,
        "guarantees": sorted(guarantees),
        "steps": steps,
        "digest": digest.hexdigest(),
    }


def _leave_nothing(prefix: str, place: Path | None) -> None:
    """At SIGTERM, end without the folder; no greenlet is asked, as it would go on in virtual time."""

    def end(number: int, frame: object) -> None:
        for folder in (place or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _end_with_input() -> None:
    """End this process when its input does: whoever holds the other end is gone, even by SIGKILL."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _spread(first: int, last: int, jobs: int, bug: str, stop: bool) -> list[dict[str, Any]]:
    """The same on several processes, none of which outlives this one."""
    bounds = [first + (last - first) * n // jobs for n in range(jobs + 1)]
    command = [sys.executable, "-m", "storm.run", "--json", "--tied", f"--bug={bug}"]
    command += [*(["--stop"] if stop else []), "--seeds"]
    theirs, mine = os.pipe()  # this end is open for as long as this process lives
    processes = [
        subprocess.Popen([*command, f"{a}:{b}"], stdin=theirs, stdout=subprocess.PIPE, text=True)
        for a, b in pairwise(bounds)
    ]
    os.close(theirs)
    try:
        told = [process.communicate()[0] for process in processes]
    finally:
        os.close(mine)
    if failed := [process.returncode for process in processes if process.returncode]:
        sys.exit(f"{len(failed)} of {jobs} processes have failed: status {failed[0]}")
    return [json.loads(text) for text in told]


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What came of all seeds, from what came of each process's."""
    if len(parts) == 1:
        return parts[0]
    counted = {
        name: sum((Counter(part[name]) for part in parts), Counter())
        for name in ("counts", "points", "crashes", "states")
    }
    return {
        **counted,
        "failed": [text for part in parts for text in part["failed"]],
        "guarantees": sorted({name for part in parts for name in part["guarantees"]}),
        "steps": sum(part["steps"] for part in parts),
        "digest": hashlib.sha256("".join(part["digest"] for part in parts).encode()).hexdigest(),
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="storm.run", description=__doc__)
    parser.add_argument("--seeds", default="0:20", help="from:to")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="print the whole trace")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--tied", action="store_true", help="end when the standard input does")
    parser.add_argument("--stop", action="store_true", help="end with the first failing seed")
    parser.add_argument("--bug", default="", choices=["", *BUGS], help="plant a bug")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if asked.seed is not None:
        with tempfile.TemporaryDirectory() as folder:
            result = simulate(asked.seed, Path(folder), asked.bug)
        print(shown(result, 0 if asked.trace else 20, asked.bug))
        return 1 if result.violations else 0
    if asked.tied:
        _end_with_input()
    first, _, last = asked.seeds.partition(":")
    began = time.perf_counter()
    if asked.jobs > 1:
        parts = _spread(int(first), int(last), asked.jobs, asked.bug, asked.stop)
    else:
        parts = [_many(int(first), int(last), asked.bug, asked.stop)]
    found = _together(parts)
    if asked.json:
        print(json.dumps(found))
        return 0
    print(coverage(*(Counter(found[name]) for name in ("counts", "points", "crashes"))))
    print("\n\n".join(found["failed"]))
    number = int(last) - int(first)
    seconds = time.perf_counter() - began
    print(
        f"{number} seeds, {found['steps']} steps, {dict(found['states'])}: "
        f"{len(found['failed'])} violations, {seconds:.1f} s"
    )
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
