"""A node under examination: every fault with its remedy, without a server and beside a running node."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_federation as ff
import pytest

from atoll.core.errors import AtollError, FenceError, PutBack, Unreachable
from atoll.node import doctor
from atoll.node.datasets import Datasets
from atoll.node.doctor import examine
from atoll.node.fence import Fence
from atoll.node.home import Federation, Home
from atoll.node.policy.ledger import Charge
from atoll.node.policy.ledger_file import Ledger
from atoll.wire.disk import RealDisk
from atoll.wire.findings import Finding
from atoll.wire.identity import Identity

JOB = """name = "toy"
[data]
source = "sites/*.csv"
target = "sick"
classes = ["0", "1"]
[data.columns.a]
[data.columns.b]
[model]
kind = "logistic"
"""


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens, and nobody can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def home(tmp_path: Path, nobody: str) -> Home:
    """A node that has joined a federation whose server is down."""
    made = Home(tmp_path / "node")
    made.make()
    Identity.create(made.identity)
    key = Identity.fresh().public_bytes.hex()
    made.join(Federation("f", "east", nobody, "0" * 64, key, time.time()))
    (tmp_path / "east.csv").write_text(ff.table_text(1))
    Datasets(made.datasets).add("sites", tmp_path / "east.csv")
    return made


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def looked(home: Home, check: str, **more: Any) -> list[Finding]:
    return [f for f in examine(home.path, timeout=20.0, **more) if f.check == check]


def the_fault(found: list[Finding]) -> Finding:
    (one,) = [f for f in found if f.state == "fault"]
    return one


def test_without_a_server_all_else_is_looked_at(home: Home, job: Path) -> None:
    found = list(examine(home.path, job=job, timeout=20.0))
    faults = [f.check for f in found if f.state == "fault"]
    assert faults == ["connection"]
    missed = {f.check for f in found if f.state == "unknown"}
    assert missed == {"tls", "certificate", "server", "clock", "membership"}
    fine = {f.check for f in found if f.state == "ok"}
    assert {"folder", "files", "disk", "spool", "memory", "libraries", "data", "rehearsal"} <= fine


def test_a_ledger_that_was_touched(home: Home) -> None:
    assert looked(home, "ledger") == []
    ledger = Ledger(home.ledger, Identity.load(home.identity))
    ledger.reserve(Charge("r1.train.1.east", "sites", "record", (), "ab" * 32))
    (fine,) = looked(home, "ledger")
    assert (fine.state, fine.text[:7]) == ("ok", "1 lines")
    home.ledger.write_bytes(home.ledger.read_bytes().replace(b"reserved", b"returned"))
    assert "line 1: was changed" in the_fault(looked(home, "ledger")).text


def test_a_folder_that_has_joined_nothing(tmp_path: Path) -> None:
    found = list(examine(tmp_path / "none"))
    one = the_fault(found)
    assert (one.check, one.status) == ("folder", 9)
    assert "atoll node join CODE" in one.remedy
    assert {"memory", "libraries"} <= {f.check for f in found}


def test_a_key_that_others_may_read(home: Home) -> None:
    home.identity.chmod(0o644)
    one = the_fault(looked(home, "files"))
    assert one.remedy == f"chmod 600 {home.identity}"


def test_a_key_that_is_none(home: Home) -> None:
    home.identity.write_text("none")
    assert "no private key" in the_fault(looked(home, "files")).text


def test_a_record_of_joining_that_others_may_change(home: Home) -> None:
    home.federation.chmod(0o666)
    one = the_fault(looked(home, "files"))
    assert one.remedy == f"chmod go-w {home.federation}"


def test_a_proxy_s_password_that_others_may_read(home: Home) -> None:
    home.settings.write_text('proxy = "http://u:geheim@p:1"\n')
    home.settings.chmod(0o644)
    one = the_fault(looked(home, "files"))
    assert one.remedy == f"chmod 600 {home.settings}"
    assert "geheim" not in one.text


def test_settings_that_the_running_node_does_not_know_yet(home: Home) -> None:
    server = ff.FakeServer()
    agent = ff.node_at(home.path.parent, home.path.name, server)
    with home.locked(), ff.Running(agent):
        ff.eventually(lambda: home.read(home.state).get("state") == "connected")
        assert looked(home, "settings") == []
        home.settings.write_text("[policy]\nunmasked = false\n")
        (one,) = looked(home, "settings")
        assert (one.state, one.remedy) == ("warning", "start the node again")


def test_settings_with_an_unknown_key(home: Home) -> None:
    home.settings.write_text("[limits]\nmemry = 4.0\n")
    one = the_fault(looked(home, "settings"))
    assert one.status == 2
    assert "memory" in one.remedy


def test_no_node_runs_or_one_does(home: Home) -> None:
    (found,) = looked(home, "node")
    assert (found.state, "atoll node start" in found.remedy) == ("warning", True)
    home.tell({"state": "waiting", "since": "today", "trouble": "", "runs": {}})
    with home.locked():
        (found,) = looked(home, "node")
        assert (found.state, found.text) == ("ok", "runs since today, waiting")
        home.tell({"state": "waiting", "since": "today", "trouble": "no answer", "runs": {}})
        (found,) = looked(home, "node")
        assert (found.state, "no answer" in found.text) == ("warning", True)
        assert "see its log" in found.remedy


def test_a_server_that_is_older_than_the_one_this_site_saw(home: Home) -> None:
    disk = RealDisk()
    fence = Fence(home.path / "seen.json", disk)
    fence.follow(17, "a" * 16)
    for epoch, start in ((12, "b" * 16), (17, "b" * 16)):
        with pytest.raises(FenceError) as caught:
            fence.follow(epoch, start)
        state = {"state": "not connected", "since": "today", "trouble": str(caught.value)}
        home.tell({**state, "code": caught.value.code})
        with home.locked():
            (found,) = looked(home, "node")
        assert (found.state, caught.value.message in found.text) == ("fault", True)
        assert found.remedy == caught.value.remedy
        assert "atoll server restored FOLDER --seen 17" in found.remedy


@pytest.mark.parametrize(
    ("kind", "state"), [(PutBack, "fault"), (FenceError, "fault"), (Unreachable, "warning")]
)
def test_such_a_server_is_known_by_the_kind_of_trouble_and_not_by_its_words(
    home: Home, kind: type[AtollError], state: str
) -> None:
    """A server of an older version says the same without the kind; its words and its remedy are shown."""
    for words in ("no words that anybody looks for", "the server was put back from a backup"):
        error = kind(words, remedy="its operator: restore it")
        told = {"state": "not connected", "since": "today", "trouble": str(error)}
        home.tell({**told, "code": error.code})
        with home.locked():
            (found,) = looked(home, "node")
        assert (found.state, words in found.text, found.remedy) == (state, True, error.remedy)
    home.tell(told)  # of a node of an older version
    with home.locked():
        (found,) = looked(home, "node")
    assert (found.state, found.remedy) == ("warning", error.remedy)


def test_a_spool_that_is_full_and_one_that_fills(home: Home) -> None:
    home.spool.mkdir()
    (home.spool / "x").write_bytes(bytes(900_000))
    home.settings.write_text(f"spool = {1e6 / (1 << 30)}\n")
    (found,) = looked(home, "spool")
    assert (found.state, "raise spool" in found.remedy) == ("warning", True)
    (home.spool / "y").write_bytes(bytes(200_000))
    assert "no more work" in the_fault(looked(home, "spool")).text


def test_a_disk_that_is_full(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    found = looked(home, "disk")
    assert "256 MiB needed" in the_fault(found).text
    assert any("may grow by" in f.text for f in found if f.state == "warning")


def test_a_model_for_which_the_disk_is_too_small(
    home: Home, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "COPIES", 1 << 60)
    one = the_fault(looked(home, "disk", job=job))
    assert "needed by the job" in one.text


def test_more_memory_allowed_than_the_machine_has(home: Home) -> None:
    home.settings.write_text("[limits]\nmemory = 100000.0\n")
    found = looked(home, "memory")
    assert found[0].state == "warning"
    assert "[limits] in node.toml" in found[0].remedy


def test_a_machine_without_free_memory(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_available", lambda: 1 << 20)
    (found,) = looked(home, "memory")
    assert (found.state, "end other programs" in found.remedy) == ("warning", True)


def test_a_pin_that_is_damaged(home: Home) -> None:
    home.join(Federation("f", "east", "127.0.0.1:1", "zz", "zz", 0.0))
    one = the_fault(looked(home, "key"))
    assert "join again" in one.remedy


def test_a_proxy_that_is_none(home: Home) -> None:
    home.settings.write_text('proxy = "ftp://p"\n')
    home.settings.chmod(0o600)
    assert the_fault(looked(home, "proxy")).status == 7


def test_no_dataset_at_all(home: Home) -> None:
    Datasets(home.datasets).remove("sites")
    (found,) = looked(home, "datasets")
    assert (found.state, found.remedy) == ("warning", "atoll node data add NAME PATH")


def test_a_dataset_whose_file_is_gone(home: Home, tmp_path: Path) -> None:
    (tmp_path / "east.csv").unlink()
    one = the_fault(looked(home, "datasets"))
    assert (one.status, "atoll node data add sites PATH" in one.remedy) == (3, True)


def test_a_dataset_whose_file_may_not_be_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "let the node's user read it" in the_fault(looked(home, "datasets")).remedy


def test_a_job_for_a_dataset_under_another_name(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(JOB.replace("sites/*.csv", "site.csv"))
    one = the_fault(looked(home, "data", job=path))
    assert one.status == 9
    assert "atoll node data add site PATH" in one.remedy
    assert "'sites'" in one.remedy


def test_a_job_that_cannot_be_deployed(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(JOB + "[clock]\ndropout = 0.5\n")
    one = the_fault(looked(home, "job", job=path))
    assert (one.status, "clock.dropout" in one.text) == (2, True)


def test_a_job_file_with_a_fault_is_not_blamed_for_data_that_are_elsewhere(
    home: Home, tmp_path: Path
) -> None:
    path = tmp_path / "other.toml"
    path.write_text(JOB + "[rounds]\ncuont = 3\n")
    one = the_fault(looked(home, "job", job=path))
    assert "cuont" in one.text


def test_a_job_file_that_is_not_there(home: Home, tmp_path: Path) -> None:
    assert the_fault(looked(home, "job", job=tmp_path / "none.toml")).status == 2


def test_faults_of_the_data_come_before_the_rehearsal(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(JOB.replace("[data.columns.a]", "[data.columns.a]\nrange = [100, 200]"))
    one = the_fault(looked(home, "data", job=path))
    assert "60 of 60 cells are outside [100, 200]" in one.text
    (rehearsal,) = looked(home, "rehearsal", job=path)
    assert rehearsal.state == "unknown"


def test_a_torch_model_where_torch_is_missing_or_old(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.version
    path = tmp_path / "other.toml"
    path.write_text(JOB.replace('"logistic"', '"mlp"\noptions = { hidden = [2] }'))
    monkeypatch.setattr(doctor, "rehearse", lambda *_: iter(()))

    def without(name: str) -> str:
        if name == "torch":
            raise doctor.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", without)
    one = the_fault(looked(home, "libraries", job=path))
    assert (one.status, one.remedy) == (6, "pip install 'atoll[torch]'")
    monkeypatch.setattr(doctor, "version", lambda n: "1.13.1+cpu" if n == "torch" else real(n))
    one = the_fault(looked(home, "libraries", job=path))
    assert "torch 1.13.1+cpu is older than 2.4" in one.text
    assert one.remedy == "pip install 'torch>=2.4'"


def test_a_job_without_torch_asks_for_none(home: Home, job: Path) -> None:
    (found,) = looked(home, "libraries", job=job)
    assert found.state == "ok"
    assert "torch" not in found.text
    assert found.text.startswith("Python 3.")
