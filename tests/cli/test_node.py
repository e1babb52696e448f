"""``atoll node`` beside a real server: join, register, work, look, leave; stable statuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import atoll
from atoll.cli.main import main
from atoll.node.home import Home
from atoll.server import admin
from atoll.server.web.limits import Limits

sys.path.insert(0, str(Path(__file__).parent))

from live_server import live

TABLE = "age,chol,sick\n" + "".join(
    f"{40 + i},{200 + 7 * i % 50},{int(7 * i % 50 > 20)}\n" for i in range(40)
)
JOB = """
name = "toy"
seed = 1
[data]
source = "toy.csv"
target = "sick"
test_fraction = 0.3
[model]
kind = "logistic"
[algorithm]
name = "scaffold"
weights = "uniform"
[rounds]
count = 2
[evaluation]
compare = false
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # Soon asked again, a node hears soon that its key was revoked.
    with live(tmp_path_factory.mktemp("node") / "server", Limits(wait=1.0)) as home:
        yield home


@pytest.fixture
def node(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ATOLL_NODE_HOME", str(tmp_path / "node"))

    def run(*words, face="node"):
        status = main([face, *map(str, words)])
        return status, *capsys.readouterr()

    return run


def code_for(server, name, role="site"):
    return admin.invite(server, name, role, 1.0, time.time())


def started(home):
    """``atoll node start`` as a process, once it is connected."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("atoll")), "node", "start", "--home", str(home)],
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        state = home / "state.json"
        if state.exists() and json.loads(state.read_text())["state"] == "connected":
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"the node did not connect; status {process.wait()}")


def listening(pid):
    """Sockets of a process that wait for connections: state 0A in the kernel's tables."""
    own = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a file that was closed meanwhile
            own.add(os.readlink(file))
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [f[1] for f in lines if f[3] == "0A" and f"socket:[{f[9]}]" in own]


def test_a_site_joins_works_and_ends(server, node, tmp_path):
    home, table, job = tmp_path / "node", tmp_path / "toy.csv", tmp_path / "job.toml"
    table.write_text(TABLE)
    job.write_text(JOB)
    status, out, err = node("join", code_for(server, "east"))
    assert (status, "as           east" in out) == (0, True)
    assert "by telephone" in err
    assert node("data", "add", "toy", table)[0] == 0
    process = started(home)
    try:
        assert listening(process.pid) == []
        with atoll.connect(tmp_path / "me", code=code_for(server, "ada", "researcher")) as me:
            run = me.submit(job, sites=["east"])
            assert me.wait(run).status == "completed"
            folder = me.result(run, tmp_path / "result")
        manifest = json.loads((folder / "manifest.json").read_text())
        (tmp_path / "toy").mkdir()
        (tmp_path / "toy" / "east.csv").write_text(TABLE)
        job.write_text(JOB.replace("toy.csv", "toy/*.csv"))
        alone = atoll.simulate(atoll.load_job(job), executor="serial")
        assert manifest["model_hash"] == alone.model_hash
        until = time.monotonic() + 30  # the server says that the run is over; nothing of it is kept
        while kept := [p for p in (home / "spool").rglob("*") if p.is_file()]:
            assert time.monotonic() < until, kept
            time.sleep(0.02)
        status, out, _ = node("status", "--json")
        told = json.loads(out)
        assert (status, told["running"], told["state"]) == (0, True, "connected")
        assert "state        connected since" in node("status")[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(45) == 0
    finally:
        process.kill()
        process.wait()
    assert json.loads(node("status", "--json")[1])["state"] == "stopped"


def test_the_kind_of_error_behind_the_trouble_is_told(server, node, tmp_path):
    node("join", code_for(server, "coast"))
    home = Home(tmp_path / "node")
    with home.locked():
        home.tell({"state": "not connected", "trouble": "no answer", "code": "wire.unreachable"})
        told = json.loads(node("status", "--json")[1])
        assert (told["trouble"], told["code"]) == ("no answer", "wire.unreachable")
        home.tell({"state": "connected", "trouble": ""})  # of a node of an earlier version
        assert json.loads(node("status", "--json")[1])["code"] == ""
        home.tell({"state": "not connected", "trouble": "no answer", "code": "wire.unreachable"})
    assert json.loads(node("status", "--json")[1])["code"] == ""  # it does not run


def test_everybody_s_fingerprints_are_shown(server, node):
    node("join", code_for(server, "west"))
    mine = json.loads(node("status", "--json")[1])["fingerprint"]
    status, out, err = node("peers")
    assert (status, "you are west" in err) == (0, True)
    (line,) = [x for x in out.splitlines() if x.startswith("west")]
    assert line.split()[3:] == [*(mine[i : i + 4] for i in range(0, 64, 4)), "no"]
    found = json.loads(node("peers", "--json")[1])
    assert mine in [m["fingerprint"] for m in found["members"] if m["name"] == "west"]


def test_keys_are_pinned_once_and_shown_as_such(server, node):
    node("join", code_for(server, "centre"))
    status, out, err = node("peers", "--pin")
    assert (status, "centre" in err) == (0, True)
    (line,) = [x for x in out.splitlines() if x.startswith("centre")]
    assert line.endswith("yes")
    assert "nothing new" in node("peers", "--pin")[2]


def test_keys_of_researchers_are_pinned_one_by_one_and_forgotten_again(server, node, tmp_path):
    node("join", code_for(server, "reef"))
    for name in ("alma", "bert"):
        atoll.connect(tmp_path / name, code=code_for(server, name, "researcher")).close()
    home = Home(tmp_path / "node")
    mine = json.loads(node("whoami", "--home", tmp_path / "alma", "--json", face="job")[1])
    assert mine["name"] == "alma"

    def pinned():
        lines = [line.split() for line in node("peers")[1].splitlines()]
        return {words[0] for words in lines if words[-1] == "yes"}

    assert node("peers", "--only", "alma")[0] == 0
    assert pinned() == {"alma"}
    assert json.loads(home.researchers.read_text()) == {"alma": mine["fingerprint"]}
    assert not home.peers.exists()
    status, _, err = node("peers", "--pin", "--only", "allma")
    assert (status, "did you mean 'alma'?" in err) == (9, True)
    node("peers", "--pin")
    assert pinned() >= {"alma", "bert", "reef"}
    assert "no more pinned: bert" in node("peers", "--unpin", "bert")[2]
    assert "nobody, as none" in node("peers", "--unpin", "bert")[2]
    assert (pinned() & {"alma", "bert"}) == {"alma"}


def test_a_code_works_once(server, node, tmp_path):
    code = code_for(server, "north")
    assert node("join", code)[0] == 0
    status, _, err = node("join", code, "--home", tmp_path / "other")
    assert (status, err.startswith("error auth.")) == (8, True)
    assert not (tmp_path / "other" / "federation.json").exists()


def test_a_mistyped_code_is_told_by_its_group(node):
    status, _, err = node("join", "atoll-04FWF-P3HYN")
    assert status == 7
    assert "group" in err or "code" in err


def test_a_node_that_left_does_not_start_and_may_join_again(server, node, tmp_path):
    node("join", code_for(server, "south"))
    assert node("leave", "--yes")[0] == 0
    status, _, err = node("start")
    assert (status, "has not joined" in err) == (9, True)
    assert node("join", code_for(server, "south"))[0] == 0


@pytest.mark.slow
def test_a_revoked_node_ends_with_the_reason(server, node, tmp_path):
    node("join", code_for(server, "mole"))
    process = started(tmp_path / "node")
    try:
        admin.revoke(server, "mole", time.time())
        assert process.wait(60) == 8
    finally:
        process.kill()
        process.wait()


def test_datasets_are_listed_and_removed(node, tmp_path):
    table = tmp_path / "toy.csv"
    table.write_text(TABLE.replace("40,", "?,", 1))
    status, out, _ = node("data", "add", "toy", table, "--missing", "?", "--missing", "chol=0")
    assert (status, "age     number" in out) == (0, True)
    (found,) = json.loads(node("data", "list", "--json")[1])
    assert (found["name"], found["missing"]) == ("toy", ["?", "chol=0"])
    assert str(table) in node("data", "list")[1]
    assert node("data", "remove", "toy")[0] == 0
    assert node("data", "remove", "toy")[0] == 9
    status, _, err = node("data", "add", "toy", tmp_path / "none.csv")
    assert (status, "no such file" in err) == (3, True)


def test_a_node_without_a_federation_says_what_to_do(node):
    for words in (["start"], ["status"], ["peers"], ["leave", "--yes"]):
        status, _, err = node(*words)
        assert (status, "atoll node join CODE" in err) == (9, True), words


def test_rows_under_two_names_and_a_rule_that_goes_are_told(server, node, tmp_path):
    table = tmp_path / "toy.csv"
    table.write_text(TABLE)
    assert node("join", code_for(server, "twice"))[0] == 0
    assert node("data", "add", "toy", table)[2] == ""
    assert node("data", "add", "toy", table)[2] == ""  # the same name: nothing is lost
    assert (
        "the same rows are registered as 'toy': its rule" in node("data", "add", "other", table)[2]
    )
    assert "rule" not in node("data", "remove", "other")[2]
    assert node("data", "rule", "toy", "--minimum", 20)[0] == 0
    assert "its rule is forgotten too" in node("data", "remove", "toy")[2]
