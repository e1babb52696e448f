"""``atoll job``: data on stdout, talk on stderr, stable statuses."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from atoll.cli.main import main
from atoll.server import admin
from atoll.server.service import Readable, Service
from atoll.wire.frames import Blob
from atoll.wire.messages import BlobRef, JobReply, RoundsReply

sys.path.insert(0, str(Path(__file__).parent))

from live_server import live

HEART = Path(__file__).parents[2] / "examples" / "heart" / "job.toml"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live(tmp_path_factory.mktemp("remote") / "server") as home:
        yield home


@pytest.fixture(scope="module")
def me(server, tmp_path_factory):
    home = tmp_path_factory.mktemp("me")
    code = admin.invite(server, "ada", "researcher", 1.0, time.time())
    assert main(["job", "join", code, "--home", str(home), "--proxy", ""]) == 0
    return home


@pytest.fixture
def job(me, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ATOLL_HOME", str(me))
    capsys.readouterr()

    def run(*words):
        status = main(["job", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def reply(status="completed", reason="completed without ulm from round 3"):
    return JobReply(
        id="heart-1",
        name="heart",
        job_hash="a" * 64,
        by="ada",
        created=0.0,
        sites=["bern", "ulm"],
        status=status,
        phase="running",
        reason=reason,
        rounds=3,
    )


def test_joining_tells_name_and_federation_and_the_key_to_compare(server, tmp_path, capsys):
    code = admin.invite(server, "bob", "researcher", 1.0, time.time())
    status = main(["job", "join", code, "--home", str(tmp_path / "bob"), "--proxy", ""])
    out, err = capsys.readouterr()
    assert (status, out.split()[0]) == (0, "bob")
    assert "telephone" in err


def test_a_job_that_cannot_be_deployed_is_refused_with_all_faults(job):
    status, out, err = job("submit", HEART, "--site", "nowhere", "--set", "clock.dropout=0.5")
    assert (status, out) == (2, "")
    assert "sites" in err
    assert "clock.dropout" in err


def test_submit_prints_the_run_s_id_alone(job, server):
    store = admin.invite(server, "ulm", "site", 1.0, time.time())
    assert store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "submit", lambda self, by, body: "heart-1")
        patch.setattr(Service, "job", lambda self, run: reply())
        status, out, err = job("submit", HEART)
    assert (status, out) == (0, "heart-1\n")
    assert "atoll job watch heart-1" in err


def test_a_submission_names_the_model_that_it_begins_at(job, server, tmp_path):
    np.savez(tmp_path / "first.npz", weight=np.ones(20), intercept=np.zeros(()))
    bodies = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "submit", lambda self, by, body: bodies.append(body) or "heart-1")
        patch.setattr(Service, "job", lambda self, run: reply())
        status, out, err = job("submit", HEART, "--from", str(tmp_path / "first.npz"))
    assert (status, out) == (0, "heart-1\n")
    assert f"begins at {tmp_path / 'first.npz'}, sha256 {bodies[0].spec['model']['start']}" in err
    status, out, err = job("submit", HEART, "--from", "heart-99")
    assert (status, out) == (9, "")
    assert "heart-99" in err


def test_runs_are_listed_and_shown_for_people_and_programs(job, monkeypatch):
    assert job("list")[1].splitlines()[0].split() == [
        *("run", "by", "status", "phase", "rounds", "remark")
    ]
    monkeypatch.setattr(Service, "jobs", lambda self: [reply()])
    monkeypatch.setattr(Service, "job", lambda self, run: reply())
    assert "completed without ulm from round 3" in job("list")[1]
    assert json.loads(job("list", "--json")[1])[0]["id"] == "heart-1"
    _, out, _ = job("show", "heart-1")
    assert "status     completed: completed without ulm from round 3" in out
    assert json.loads(job("show", "heart-1", "--json")[1])["sites"] == ["bern", "ulm"]


@pytest.mark.parametrize(("ended", "status"), [("completed", 0), ("failed", 4), ("cancelled", 4)])
def test_watch_ends_with_the_run_and_its_status_tells_how(job, monkeypatch, ended, status):
    records = [{"round": n, "train": {"loss": 1.0 / n}, "committed": True} for n in (1, 2, 3)]
    monkeypatch.setattr(
        Service,
        "rounds",
        lambda self, run, after=0: RoundsReply(rounds=records[after:], status=ended, ended=True),
    )
    monkeypatch.setattr(Service, "job", lambda self, run: reply(ended, "no more sites"))
    found, out, err = job("watch", "other-1")
    assert found == status
    assert f"status     {ended}: no more sites" in out
    assert "round 1/3" in err
    going = reply("open", "")
    monkeypatch.setattr(Service, "job", lambda self, run: going)
    _, _, err = job("watch", "another-2")
    assert "round 1  loss" in err  # of statistics, for one, nobody knows how many there will be
    found, out, _ = job("watch", "heart-1", "--json")
    assert [json.loads(line)["round"] for line in out.splitlines()] == [1, 2, 3]


def test_result_prints_the_folder_and_points_to_the_report(job, monkeypatch, tmp_path):
    raw = b"<html>"
    monkeypatch.setattr(
        Service, "files", lambda self, run: {"report.html": BlobRef.of(Blob.of(raw))}
    )
    monkeypatch.setattr(
        Service, "file", lambda self, run, name: Readable(len(raw), lambda a, b: raw[a:b])
    )
    status, out, err = job("result", "heart-1", "--out", tmp_path / "r")
    assert (status, out) == (0, f"{tmp_path / 'r'}\n")
    assert str(tmp_path / "r" / "report.html") in err


@pytest.mark.parametrize("command", ["show", "watch", "cancel", "result"])
def test_a_run_that_is_not_there_gives_status_9(job, command):
    status, out, err = job(command, "nothing-9")
    assert (status, out) == (9, "")
    assert "error state.missing" in err


def test_who_has_not_joined_is_told_how(job, tmp_path):
    status, _, err = job("list", "--home", tmp_path)
    assert (status, "atoll job join CODE" in err) == (9, True)


def test_a_mistyped_code_is_told_before_anything_is_sent(job, tmp_path):
    status, _, err = job("join", "atoll-0000", "--home", tmp_path / "x")
    assert status == 7
    assert "code" in err


def test_a_server_that_has_moved_is_noted_once_it_has_answered_with_its_key(server, job, capsys):
    code = admin.invite(server, "eve", "researcher", 1.0, time.time())
    home = server.parent / "eve"
    main(["job", "join", code, "--home", str(home), "--proxy", ""])
    port = admin.overview(server, time.time()).charter.address.rpartition(":")[2]
    capsys.readouterr()
    status, out, err = job("server", "--home", home, "--address", f"localhost:{port}")
    assert (status, out.splitlines()[0]) == (0, f"address      localhost:{port}"), err
    before = (home / "federation.json").read_bytes()
    for wrong in (["--certificate", "ab" * 32], ["--address", "127.0.0.1:1"]):
        assert job("server", "--home", home, *wrong)[0] in (7, 8)
        assert (home / "federation.json").read_bytes() == before
    assert job("list", "--home", home)[0] == 0
    assert job("server", "--home", server.parent / "nobody")[0] == 9


def test_a_result_of_a_run_that_failed_says_so(job, monkeypatch, tmp_path):
    raw = b'{"status": "failed: 2 rounds in a row could not commit"}'
    found = {"manifest.json": BlobRef.of(Blob.of(raw))}
    monkeypatch.setattr(Service, "files", lambda self, run: found)
    monkeypatch.setattr(
        Service, "file", lambda self, run, name: Readable(len(raw), lambda a, b: raw[a:b])
    )
    status, out, err = job("result", "heart-1", "--out", tmp_path / "f")
    assert (status, out) == (0, f"{tmp_path / 'f'}\n")
    assert "not complete: failed: 2 rounds in a row" in err
