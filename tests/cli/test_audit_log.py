"""``atoll node log``: what has left a site, and whether its lines are as they were written."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from atoll.cli.main import main
from atoll.node.audit.log import AuditLog
from atoll.node.home import Home
from atoll.wire.identity import Identity

DAY = 86_400.0
BYTES = b"the very bytes that left"


@pytest.fixture
def home(tmp_path) -> Home:
    made = Home(tmp_path / "node")
    made.make()
    Identity.create(made.identity)
    return made


@pytest.fixture
def run(home, capsys):
    def run(*words):
        status = main(["node", "log", *map(str, words), "--home", str(home.path)])
        return status, *capsys.readouterr()

    return run


def told(run, *words):
    status, out, _ = run(*words, "--json")
    assert status == 0
    return json.loads(out)


def answer(log: AuditLog, run: str, number: int, outcome: str = "left", **more) -> None:
    task = f"{run}.train.{number}.east"
    sha = hashlib.sha256(BYTES if (run, number) == ("r1", 1) else task.encode()).hexdigest()
    body = {"what": "answer", "outcome": outcome, "run": run, "task": task, "kind": "train"}
    size = {"round": number, "form": "plain", "bytes": 100, "answer": sha, **more}
    log.answer(task, sha, {**body, **size})
    assert log.secured(task, sha)


def written(home: Home) -> AuditLog:
    """A site's log of three days: a run a day, on two datasets."""
    now = [0.0]
    log = AuditLog(home.audit, Identity.load(home.identity), now=lambda: now[0])
    log.joined({"federation": "lagoon", "site": "east", "server": "s:1", "server_key": "ab"})
    log.register({"heart": {"path": "/heart.csv", "columns": {"a": "number"}, "rule": {}}})
    for day, data in enumerate(("heart", "heart", "lungs"), 1):
        now[0], name = day * DAY, f"r{day}"
        facts = {"job": "ab" * 32, "name": f"job-{day}", "by": "ana", "dataset": data}
        log.run(name, {**facts, "aggregation": "plain"})
        for number in range(3):
            answer(log, name, number, rows=42, charge=f"{name}.train.{number}.east")
        answer(log, name, 3, "refused", reason="the rules of this site forbid it")
    log.anchor()
    return log


def test_what_left_is_shown_by_run_dataset_and_time(home, run):
    written(home)
    status, out, _ = run("show")
    assert status == 0
    assert "joined" in out
    assert "lagoon as east" in out
    assert "data registered" in out
    assert out.count("\n") == 1 + 2 + 12
    assert re.search(r"1970-01-02 00:00:00 +left +r1 +ana +heart +train 0 +plain +42 +100", out)
    assert "the rules of this site forbid it" in out
    assert "in the ledger" in out
    assert len(told(run, "show", "--run", "r2")) == 4
    assert {e["run"] for e in told(run, "show", "--dataset", "lungs")} == {"r3"}
    assert {e["what"] for e in told(run, "show", "--dataset", "heart")} == {"dataset", "answer"}
    assert [e["task"] for e in told(run, "show", "--last", "1")] == ["r3.train.3.east"]
    assert {e["run"] for e in told(run, "show", "--since", "1970-01-03")} == {"r2", "r3"}
    assert {e["run"] for e in told(run, "show", "--since", "1970-01-03T00:00:01")} == {"r3"}
    entry = told(run, "show", "--run", "r1")[0]
    assert (entry["job"], entry["by"], entry["aggregation"]) == ("ab" * 32, "ana", "plain")
    assert (entry["file"], entry["line"]) == (1, 5)
    assert run("show", "--since", "yesterday")[0] == 2


def test_totals_tell_what_left_for_each_run(home, run):
    written(home)
    status, out, _ = run("show", "--totals")
    assert status == 0
    first = out.splitlines()[1].split()
    assert first[:5] == ["r1", "job-1", "ana", "heart", "plain"]
    assert first[-5:] == ["3", "1", "0", "400", "3"]
    totals = told(run, "show", "--totals", "--dataset", "lungs")
    assert [(t["run"], t["left"], t["refused"], t["bytes"]) for t in totals] == [("r3", 3, 1, 400)]


def test_the_bytes_of_an_answer_are_found_by_their_hash(home, run, tmp_path):
    written(home)
    file = tmp_path / "answer"
    file.write_bytes(BYTES)
    (entry,) = told(run, "show", "--file", file)
    assert entry["task"] == "r1.train.1.east"
    (same,) = told(run, "show", "--hash", hashlib.sha256(BYTES).hexdigest().upper())
    assert same == entry
    file.write_bytes(BYTES + b"!")
    status, _, err = run("show", "--file", file)
    assert status == 9
    assert "has left this site" in err
    assert run("show", "--file", tmp_path / "none")[0] == 3


def test_verify_names_the_bad_line_and_knows_a_later_head(home, run):
    log = written(home)
    status, out, err = run("verify")
    assert status == 0
    assert "audit log  18 lines in 1 files, as they were written" in out
    head = err.splitlines()[-1]
    answer(log, "r4", 0)
    assert told(run, "verify", "--seen", head)["behind"] == 1
    log.anchor()
    assert run("verify", "--seen", head)[0] == 0
    later = told(run, "verify")["head"]
    path = home.audit / "audit-000001.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"bytes":100', b'"bytes":101', 1))
    status, _, err = run("verify")
    assert status == 5
    assert "line 5: was changed after it was written" in err
    assert run("show")[0] == 5  # what is not as it was written is not shown either
    path.write_bytes(raw)
    for name in list(home.audit.iterdir()):
        name.unlink()
    written(home)  # another one in its place, as long as the head says
    answer(AuditLog(home.audit, Identity.load(home.identity)), "r4", 0)
    status, _, err = run("verify", "--seen", later)
    assert status == 5
    assert "line 19" in err
    assert run("verify", "--seen", "1:2.3.4")[0] != 0


def test_a_site_of_which_nothing_has_left_says_so(home, run):
    assert run("verify")[1] == "audit log  0 lines in 0 files, as they were written\n"
    assert told(run, "show") == []
