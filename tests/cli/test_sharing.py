"""``atoll job share`` and its Python twin, at a federation whose runs are each researcher's own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import atoll
from atoll.cli.main import main
from atoll.core.errors import Forbidden, NotFound, StateError
from atoll.server import admin
from atoll.server.admin import Founding
from atoll.server.home import ServerHome
from atoll.server.store.opening import open_store

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "server" / "store"))

from free_ports import free_port
from live_server import live
from store_rows import run_row

RUN = "heart-0a1b2c"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Ada's run has ended, and has left a model."""
    home = tmp_path_factory.mktemp("sharing") / "server"
    admin.found(home, Founding(address=f"127.0.0.1:{free_port()}", runs="own"), time.time())
    with live(home):
        store = open_store(ServerHome(home).store_url(ServerHome(home).charter()))
        store.add_run(store.lease().epoch, run_row(RUN, by="ada", status="completed"))
        store.close()
        (home / "runs" / RUN).mkdir(parents=True)
        save_file({"weight": np.ones(3, np.float32)}, home / "runs" / RUN / "model.safetensors")
        yield home


@pytest.fixture(scope="module")
def people(server, tmp_path_factory):
    found = {}
    for name in ("ada", "bob"):
        home = tmp_path_factory.mktemp(name)
        code = admin.invite(server, name, "researcher", 1.0, time.time())
        found[name] = atoll.connect(home, code=code, proxy="")
    yield found
    for connection in found.values():
        connection.close()


def refused(connection) -> None:
    assert connection.jobs() == ()
    for ask in (connection.show, connection.cancel, connection.start):
        with pytest.raises(NotFound, match="that you may read"):
            ask(RUN)
    with pytest.raises(NotFound, match="that you may read"):
        next(iter(connection.watch(RUN)))
    with pytest.raises(NotFound, match="that you may read"):
        connection.result(RUN, "unused")


def test_a_run_is_read_and_begun_at_by_whom_it_is_shared_with(people, tmp_path):
    ada, bob = people["ada"], people["bob"]
    refused(bob)
    assert ada.share(RUN, "bob").readers == ("bob",)
    assert [info.id for info in bob.jobs()] == [RUN]
    info = bob.show(RUN)
    assert (info.readers, info.open, info.by) == (("bob",), False, "ada")
    np.testing.assert_array_equal(bob.start(RUN).tensors["weight"], np.ones(3, np.float32))
    assert (bob.result(RUN, tmp_path / "r") / "model.safetensors").is_file()
    with pytest.raises(Forbidden, match="ada's"):
        bob.share(RUN, "ada")
    with pytest.raises(Forbidden, match="ada's"):
        bob.cancel(RUN)
    assert ada.unshare(RUN, "bob").readers == ()
    refused(bob)
    with pytest.raises(NotFound, match="not shared with 'bob'"):
        ada.unshare(RUN, "bob")
    with pytest.raises(NotFound, match="did you mean 'bob'"):
        ada.share(RUN, "bop")
    with pytest.raises(StateError, match="your own"):
        ada.share(RUN, "ada")


def test_the_commands_print_who_may_read(people, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ATOLL_HOME", str(people["ada"].home))
    capsys.readouterr()

    def run(*words):
        return main(["job", *words]), capsys.readouterr().out

    assert run("share", RUN, "bob") == (0, f"{RUN} bob\n")
    assert "read by    ada, bob" in run("show", RUN)[1]
    assert json.loads(run("show", RUN, "--json")[1])["readers"] == ["bob"]
    assert run("unshare", RUN, "bob") == (0, f"{RUN} -\n")
    assert run("share", RUN, "nobody")[0] == 9


def test_the_operator_says_who_may_read_runs_and_that_is_in_the_log(tmp_path, capsys):
    home = tmp_path / "s"
    assert main(["server", "init", str(home), "--runs", "own"]) == 0
    assert ServerHome(home).charter().runs == "own"
    assert main(["server", "change", str(home), "--runs", "open"]) == 0
    out, err = capsys.readouterr()
    assert "runs         open" in out
    assert "every researcher may then read every run" in err
    assert "runs" not in json.loads((home / "server.json").read_text())
    assert main(["server", "change", str(home), "--runs", "own"]) == 0
    capsys.readouterr()
    assert main(["server", "status", str(home)]) == 0
    out = capsys.readouterr().out
    assert "each researcher's own" in out
    assert out.count("from the next start on they are read by") == 2
    assert main(["server", "change", str(home), "--runs", "mine"]) == 2
    text = (home / "server.json").read_text().replace('"own"', '"mine"')
    (home / "server.json").write_text(text)
    assert main(["server", "status", str(home)]) == 5
