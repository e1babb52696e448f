"""A server under examination: every fault with its remedy, whether it runs or not."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port

from atoll.server import admin, doctor
from atoll.server.admin import Founding
from atoll.server.doctor import examine
from atoll.server.epochs import PUT_BACK
from atoll.server.home import ServerHome
from atoll.server.store.contract import RESTORED, Contribution, RunRow
from atoll.server.store.opening import open_store
from atoll.server.web.serving import Running, serve
from atoll.wire.certificates import create_certificate
from atoll.wire.findings import Finding

DAY = 86_400.0


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    """A server that does not run."""
    address = f"127.0.0.1:{free_port()}"
    admin.found(tmp_path / "server", Founding(address=address), time.time())
    return ServerHome(tmp_path / "server")


@contextlib.contextmanager
def running(home: ServerHome) -> Iterator[None]:
    up, seen, ended = threading.Event(), list[Running](), list[int]()

    def ready(made: Running) -> None:
        seen.append(made)
        up.set()

    thread = threading.Thread(target=lambda: ended.append(serve(home, ready=ready)))
    thread.start()
    assert up.wait(30)
    try:
        yield
    finally:
        seen[0].stop(0)
        thread.join(30)
        assert ended == [0]


def looked(home: ServerHome, check: str, **more: Any) -> list[Finding]:
    return [f for f in examine(home.path, timeout=20.0, **more) if f.check == check]


def the_fault(found: list[Finding]) -> Finding:
    (one,) = [f for f in found if f.state == "fault"]
    return one


def change(home: ServerHome, **changes: str) -> None:
    home.write(replace(home.charter(), **changes))


def test_a_server_that_is_stopped_is_well_and_told_to_be_stopped(home: ServerHome) -> None:
    found = list(examine(home.path))
    assert not [f for f in found if f.state == "fault"]
    assert {f.check for f in found if f.state == "unknown"} == {"answer"}
    (lock,) = [f for f in found if f.check == "lock"]
    assert (lock.state, lock.remedy) == ("warning", f"atoll server start {home.path}")


def test_a_server_that_runs_answers_and_is_not_disturbed(home: ServerHome) -> None:
    with running(home):
        found = {f.check: f for f in examine(home.path)}
        assert found["lock"].state == found["port"].state == found["answer"].state == "ok"
        assert "with its own certificate, and ready" in found["answer"].text
        assert home.running() is not None


def test_a_server_that_was_put_back_from_a_backup(home: ServerHome) -> None:
    assert looked(home, "starts")[0].state == "ok"
    store = open_store(home.store_url(home.charter()))
    text = "it saw a start in epoch 9 that this store does not know; here: 3"
    store.add_event(PUT_BACK, text, "", "ulm", time.time())
    one = the_fault(looked(home, "starts"))
    assert "put back from a backup: ulm says that it saw a start in epoch 9" in one.text
    assert "atoll server restored FOLDER --seen 9" in one.remedy
    store.add_event(RESTORED, "from a backup", "", "", time.time())
    assert looked(home, "starts")[0].state == "ok"
    store.close()


def test_a_folder_without_a_server(tmp_path: Path) -> None:
    (one,) = examine(tmp_path / "none")
    assert (one.check, one.state, one.status) == ("folder", "fault", 9)
    assert "atoll server init" in one.remedy


def test_a_record_that_is_damaged(home: ServerHome) -> None:
    home.charter_file.write_text(json.dumps({"name": "x"}))
    assert "restore it from a backup" in the_fault(list(examine(home.path))).remedy


@pytest.mark.parametrize("name", ["identity.pem", "tls/key.pem", "metrics.token"])
def test_a_secret_that_others_may_read(home: ServerHome, name: str) -> None:
    (home.path / name).chmod(0o644)
    one = the_fault(looked(home, "files"))
    assert one.remedy == f"chmod 600 {home.path / name}"


def test_a_database_password_that_others_may_read(home: ServerHome) -> None:
    change(home, store=f"postgresql://u:geheim@/x?host={home.path}")
    home.charter_file.chmod(0o644)
    one = the_fault(looked(home, "files"))
    assert one.remedy == f"chmod 600 {home.charter_file}"
    assert not [f for f in examine(home.path) if "geheim" in f.text + f.remedy]


def test_a_certificate_that_expires_soon(home: ServerHome) -> None:
    (found,) = looked(home, "certificate", now=lambda: time.time() + 3640 * DAY)
    assert found.state == "warning"
    assert "new codes for all members" in found.remedy


def test_a_certificate_and_a_key_that_do_not_belong_together(
    home: ServerHome, tmp_path: Path
) -> None:
    create_certificate(tmp_path / "c.pem", tmp_path / "k.pem", ["x"], now=time.time())
    (tmp_path / "c.pem").replace(home.path / "tls" / "cert.pem")
    one = the_fault(looked(home, "certificate"))
    assert "its own private key" in one.remedy


def test_a_library_that_is_missing(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else real(name)
    )
    one = the_fault(looked(home, "libraries"))
    assert (one.status, one.remedy) == (6, "pip install 'atoll[server]'")
    (store,) = looked(home, "store")
    assert store.state == "unknown"


def test_a_store_that_is_gone(home: ServerHome) -> None:
    (home.path / "atoll.db").unlink()
    assert "backup" in the_fault(looked(home, "store")).remedy
    (lock,) = looked(home, "lock")
    assert lock.state == "unknown"


def test_a_store_that_is_not_reached(home: ServerHome) -> None:
    change(home, store=f"postgresql://u:geheim@/x?host={home.path}")
    one = the_fault(looked(home, "store"))
    assert (one.status, "does the database run?" in one.remedy) == (5, True)


def test_a_store_of_another_shape(home: ServerHome) -> None:
    with sqlite3.connect(home.path / "atoll.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '0000'")
    raw.close()
    (found,) = looked(home, "store")
    assert (found.state, "brings it up to date" in found.remedy) == ("warning", True)


def test_a_database_without_a_federation(home: ServerHome) -> None:
    with sqlite3.connect(home.path / "other.db") as raw:
        raw.execute("CREATE TABLE x (y)")
    raw.close()
    change(home, store=str(home.path / "other.db"))
    assert "holds no federation" in the_fault(looked(home, "store")).text


def test_a_store_that_another_server_holds(home: ServerHome) -> None:
    other = open_store(str(home.path / "atoll.db"))
    try:
        other.acquire("process 7 on elsewhere", time.time())
        one = the_fault(looked(home, "lock"))
    finally:
        other.close()
    assert "process 7 on elsewhere" in one.text
    assert "one store is for one server" in one.remedy


def test_a_server_that_has_lost_its_store(home: ServerHome) -> None:
    with home.locked():
        one = the_fault(looked(home, "lock"))
    assert one.remedy == "restart it"


def test_a_clock_that_was_set_back(home: ServerHome) -> None:
    store = open_store(str(home.path / "atoll.db"))
    store.acquire("x", time.time() + DAY)
    store.close()
    assert "NTP" in the_fault(looked(home, "clock")).remedy


def test_a_folder_for_blobs_that_cannot_be_written(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("atoll.wire.findings._write_durably", refuse)
    assert "Permission denied" in the_fault(looked(home, "blobs")).text


def test_an_object_store_that_is_none(home: ServerHome) -> None:
    change(home, blobs="ftp://x")
    assert the_fault(looked(home, "object store")).status == 5


def test_a_disk_that_is_too_small_for_the_models_that_there_were(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = looked(home, "disk")
    assert (found.state, "1 GiB needed" in found.text) == ("ok", True)
    with (home.blobs / ("0" * 64)).open("wb") as file:
        file.truncate(1 << 30)
    (found,) = looked(home, "disk")
    assert "3 GiB needed for rounds under way" in found.text
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert the_fault(looked(home, "disk")).status == 5


def test_a_port_that_somebody_else_has(home: ServerHome) -> None:
    port = int(home.charter().listen.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        one = the_fault(looked(home, "port"))
    assert f"ss -ltnp 'sport = :{port}'" in one.remedy
    assert f"atoll server change {home.path} --address HOST:PORT" in one.remedy
    change(home, address="fl.example.org:443")
    with socket.create_server(("127.0.0.1", port)):
        one = the_fault(looked(home, "port"))
    assert f"atoll server change {home.path} --listen HOST:PORT" in one.remedy


def test_a_port_that_was_changed_under_a_running_server(home: ServerHome) -> None:
    with home.locked():
        home.tell({"pid": 1, "port": free_port(), "listen": "127.0.0.1:7444"})
        (found,) = looked(home, "port")
    assert (found.state, found.remedy) == ("warning", "restart the server")
    assert "listens on 127.0.0.1:7444" in found.text


def test_a_port_that_only_root_may_have(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, *_: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    assert "port from 1024 on" in the_fault(looked(home, "port")).remedy


def test_a_server_that_hangs(home: ServerHome) -> None:
    with home.locked():
        home.tell({"pid": 1, "port": free_port()})
        one = the_fault(looked(home, "answer"))
    assert "does not answer" in one.text
    assert "restart" in one.remedy


def test_a_server_whose_disk_is_full_is_not_ready_until_there_is_room(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(home):
        assert looked(home, "answer")[0].state == "ok"
        monkeypatch.setattr("atoll.server.web.serving.cramped", lambda path: f"{path} is full")
        told = the_fault(looked(home, "answer"))
        assert told.text == "it answers that it is not ready"
        assert "goes on by itself" in told.remedy  # restarted it would not
        monkeypatch.setattr("atoll.server.web.serving.cramped", lambda path: "")
        assert looked(home, "answer")[0].state == "ok"


def test_a_server_that_shows_an_older_certificate(home: ServerHome) -> None:
    with running(home):
        create_certificate(home.path / "c.pem", home.path / "k.pem", ["localhost"], now=time.time())
        (home.path / "c.pem").replace(home.path / "tls" / "cert.pem")
        one = the_fault(looked(home, "answer"))
    assert (one.remedy, one.status) == ("restart the server", 8)


def test_an_address_that_others_cannot_find(home: ServerHome) -> None:
    (found,) = looked(home, "address")
    command = f"atoll server change {home.path} --address HOST:PORT"
    assert (found.state, command in found.remedy) == ("warning", True)
    change(home, address="no-such-host.invalid:7443")
    (found,) = looked(home, "address")
    assert (found.state, "DNS" in found.remedy, command in found.remedy) == ("warning", True, True)


def test_a_federation_without_sites(home: ServerHome) -> None:
    (found,) = looked(home, "members")
    assert (found.state, found.remedy) == ("warning", "atoll server invite NAME")


def test_a_site_that_is_silent_in_an_open_run(home: ServerHome) -> None:
    store = open_store(str(home.path / "atoll.db"))
    now = time.time()
    for number, name in enumerate(("bern", "ulm", "zug")):
        secret = bytes([number]) * 16
        code = admin.Invite(admin.hashlib.sha256(secret).hexdigest(), name, "site", now + 99)
        store.add_invite(code)
        store.join(code.secret_hash, "", bytes([number + 1]) * 32, now)
    epoch = store.acquire("me", now)
    sites = ("bern", "ulm")
    row = RunRow("r1", "toy", "0" * 64, "{}", {}, sites, "ada", now - 7200, "open")
    store.add_run(epoch, row)
    store.contribute(
        epoch, Contribution("r1", "r1.train.1.ulm", "ulm", "0" * 64, 1, "done", 1, 1.0, now - 5)
    )
    try:
        quiet, rest = looked(home, "members")
    finally:
        store.close()
    assert (quiet.state, quiet.text) == (
        "warning",
        "bern has not answered in run r1 for 2 hours",
    )
    assert "atoll node status" in quiet.remedy
    assert rest.text == "3 active sites, 1 silent; never at work so far: zug"


def test_a_job_that_cannot_be_deployed(home: ServerHome, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    text = '[data]\nsource = "t.csv"\ntarget = "y"\n'
    path.write_text(text)
    (found,) = looked(home, "job", job=path)
    assert (found.state, "can run here" in found.text) == ("ok", True)
    path.write_text(text + "[clock]\ndropout = 0.1\n")
    assert "clock.dropout" in the_fault(looked(home, "job", job=path)).text
    assert the_fault(looked(home, "job", job=tmp_path / "none.toml")).status == 2


def test_times_are_told_in_words() -> None:
    assert [doctor._ago(s) for s in (50, 600, 7200, 3 * DAY)] == [
        "50 seconds",
        "10 minutes",
        "2 hours",
        "3 days",
    ]
