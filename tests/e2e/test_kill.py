"""``kill -9`` at any moment loses at most the round in flight; the run ends in the same bits (D10).

One undisturbed run is the measure. Others are killed at seeded instants, from start-up to the last
file, and continued with ``--resume`` until they are done: the model, its hash and every round's
record must be the undisturbed run's, and no process may be left over.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_copies import Copy, Launcher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = 250
KILLS = 10
"""For each executor."""

JOB = f"""
name = "kill"
seed = 7

[data]
source = "rows.csv"
site_column = "site"
target = "label"
test_fraction = 0.25

[model]
kind = "logistic"

[local]
batch_size = 4
lr = 0.05

[algorithm]
name = "scaffold"

[rounds]
count = {ROUNDS}
cohort = "uniform"
size = 3

[clock]
dropout = 0.1

[clock.delay]
kind = "exponential"
scale = 1.0

[evaluation]
compare = false

[stop]
metric = "federated.loss"

[checkpoint]
every = 3
"""

READ = ("atoll.cli.main", "atoll.cli.run", "atoll.simulation", "atoll.runtime.processes", "pandas")
"""What runs read; one more module can break the promise on purpose, to see this file fail."""
COMMAND = "atoll.cli.main:app"


def rows() -> str:
    rng = random.Random(1)
    lines = ["site,x,y,label"]
    for site, n in (("north", 30), ("south", 12), ("west", 21), ("east", 8), ("isle", 16)):
        for _ in range(n):
            x, y = rng.gauss(0, 1), rng.gauss(0, 1)
            label = "yes" if x - y + rng.gauss(0, 1) > 0 else "no"
            lines.append(f"{site},{x:.4f},{y:.4f},{label}")
    return "\n".join(lines) + "\n"


def start(launcher: Launcher, job: Path, out: Path, *options: str) -> Copy:
    """``atoll run`` in a process group of its own."""
    words = ["atoll", "run", str(job), "--out", str(out), "--quiet", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return launcher.start(COMMAND, words, log_of(out), environment, group=True)


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def alive(group: int) -> list[int]:
    """Processes of a group that have not ended (a zombie waiting for its parent has)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def nothing_left(group: int) -> bool:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if not alive(group):
            return True
        time.sleep(0.02)
    return False


def outcome(out: Path) -> dict:
    """All that a run promises to be the same, whatever happened to it."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((out / "manifest.json").read_text())
    for record in (*lines, manifest):
        for key in ("seconds", "started", "finished", "executor"):
            record.pop(key, None)
    return {
        "rounds": lines,
        "manifest": manifest,
        "model": (out / "model.safetensors").read_bytes(),
        "best": (out / "best.safetensors").read_bytes(),
        "names": sorted(p.name for p in out.iterdir()),
        "checkpoints": sorted(p.name for p in (out / "checkpoint").iterdir()),
    }


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """Runs are copies of one process: what they read takes longer than many of them live."""
    made = Launcher(READ)
    yield made
    made.close()


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    folder.joinpath("rows.csv").write_text(rows())
    folder.joinpath("job.toml").write_text(JOB)
    return folder / "job.toml"


@pytest.fixture(scope="module")
def undisturbed(job, launcher) -> tuple[dict, float]:
    """The measure, and how long it takes."""
    out = job.parent / "undisturbed"
    began = time.monotonic()
    assert start(launcher, job, out).wait(120) == 0, log_of(out).read_text()
    length = time.monotonic() - began
    expected = outcome(job.parent / "undisturbed")
    assert [r["round"] for r in expected["rounds"]] == list(range(1, ROUNDS + 1))
    assert expected["manifest"]["model_hash"] == expected["rounds"][-1]["model_hash"]
    return expected, length


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_run_killed_at_any_moment_ends_in_the_same_bits(job, launcher, undisturbed, executor):
    expected, length = undisturbed
    rng = random.Random(executor)
    kills, runs, reached = 0, 0, []
    while kills < KILLS:
        runs += 1
        out = job.parent / f"{executor}-{runs}"
        while True:
            process = start(
                launcher, job, out, "--resume", "--executor", executor, "--workers", "2"
            )
            # Once enough have died, the last run may come to its end.
            wait = rng.uniform(0, length) if kills < KILLS else 120
            try:
                status = process.wait(wait)
            except subprocess.TimeoutExpired:
                # The whole group, as the kernel or a batch system does, or the coordinator alone.
                (os.killpg if kills % 2 else os.kill)(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                metrics = out / "metrics.jsonl"
                reached.append(metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
                assert nothing_left(process.pid)
                continue
            assert status == 0, log_of(out).read_text()
            break
        assert outcome(out) == expected
    assert any(0 < n < ROUNDS for n in reached), reached


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_sigterm_ends_the_run_after_its_round_and_leaves_it_resumable(
    job, launcher, undisturbed, executor
):
    out = job.parent / f"term-{executor}"
    process = start(launcher, job, out, "--executor", executor, "--workers", "2")
    metrics, until = out / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, log_of(out).read_text()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    status, said = process.wait(60), log_of(out).read_text()
    assert status == 130, said
    assert "--resume" in said
    assert nothing_left(process.pid)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"].startswith("interrupted")
    assert 5 <= manifest["rounds"] == metrics.read_bytes().count(b"\n") < ROUNDS
    # Continued by the other executor.
    other = "serial" if executor == "processes" else "processes"
    process = start(launcher, job, out, "--resume", "--executor", other, "--workers", "2")
    assert process.wait(120) == 0, log_of(out).read_text()
    assert outcome(out) == undisturbed[0]
