"""``atoll server``: data on stdout, talk on stderr, stable statuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import typer.main
from free_ports import free_port

from atoll.cli import main as main_module
from atoll.cli import server as server_module
from atoll.cli.main import main
from atoll.server import admin
from atoll.server.home import ServerHome
from atoll.server.store.contract import STOPPED, Invite
from atoll.server.store.opening import open_store
from atoll.wire.codes import read_code

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "server" / "store"))

from live_server import live
from store_rows import run_row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def atoll(capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(*words):
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def runs(home):
    """Of ada, one that goes on and one that has ended."""
    store = open_store(ServerHome(home).store_url(ServerHome(home).charter()))
    epoch = store.acquire("before", 0.0)
    store.add_run(epoch, run_row("heart-1", by="ada"))
    store.add_run(epoch, run_row("heart-2", by="ada", status="completed"))
    yield store
    store.close()


@pytest.fixture
def home(tmp_path, atoll):
    address = f"127.0.0.1:{free_port()}"
    status, out, err = atoll(
        "server", "init", tmp_path / "s", "--name", "Heart", "--address", address
    )
    assert (status, out.startswith("heart-")) == (0, True)
    assert "next: atoll server start" in err
    return tmp_path / "s"


@pytest.mark.parametrize("command", ["sites", "status"])
def test_the_folder_may_be_named_as_it_is_at_the_start(atoll, home, command):
    named, also = atoll("server", command, home), atoll("server", command, "--home", home)
    assert named == also
    assert named[0] == 0


def test_the_default_address_is_this_machine_s_own_and_says_so(atoll, tmp_path):
    _, _, err = atoll("server", "init", tmp_path / "s")
    assert "--address" in err
    assert ServerHome(tmp_path / "s").charter().listen == "127.0.0.1:7443"


def test_the_next_command_can_be_pasted_where_folders_have_blanks(atoll, tmp_path):
    home = tmp_path / "our server"
    asked = ("server", "init", home, "--address", f"127.0.0.1:{free_port()}")
    for status in (0, 5):
        found, _, err = atoll(*asked)
        assert (found, f"next: atoll server start '{home}'" in err) == (status, True)
    assert f"next: atoll server init '{home}x'" in atoll("server", "status", f"{home}x")[2]


def test_an_invitation_s_code_is_all_there_is_on_stdout(atoll, home):
    status, out, err = atoll("server", "invite", "ulm", "--home", home)
    assert status == 0
    assert read_code(out).address == ServerHome(home).charter().address
    assert "atoll node join CODE" in err
    _, out, err = atoll("server", "invite", "ada", "--role", "researcher", "--home", home)
    assert "atoll job join CODE" in err


def test_members_and_who_is_still_awaited_are_listed(atoll, home, tmp_path):
    with live(home):
        _, code, _ = atoll("server", "invite", "ada", "--role", "researcher", "--home", home)
        assert atoll("job", "join", code.strip(), "--home", tmp_path / "ada")[0] == 0
    atoll("server", "invite", "ulm", "--home", home)
    status, out, err = atoll("server", "sites", "--home", home)
    assert (status, out.splitlines()[1].split()[:3]) == (0, ["ada", "researcher", "active"])
    assert "not yet joined: ulm" in err
    listed = json.loads(atoll("server", "sites", "--json", "--home", home)[1])
    assert [(m["name"], m["status"], len(m["fingerprint"])) for m in listed] == [
        ("ada", "active", 64)
    ]
    status, out, err = atoll("server", "revoke", "ada", "--home", home)
    assert (status, out) == (0, "ada revoked\n")
    assert atoll("job", "list", "--home", tmp_path / "ada")[0] == 7  # no server is running


def test_status_says_whether_it_runs_and_shows_the_log(atoll, home):
    atoll("server", "invite", "ulm", "--home", home)
    _, out, _ = atoll("server", "status", "--home", home)
    assert "stopped; epoch 0" in out
    assert "invited: ulm as site" in out
    with live(home):
        told = json.loads(atoll("server", "status", "--json", "--home", home)[1])
        assert (told["epoch"], told["invited"]) == (1, ["ulm"])
        assert told["address"].endswith(f":{told['running']['port']}")
    assert "epoch 1" in atoll("server", "status", "--home", home)[1]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["start", "nowhere"], 9, "atoll server init"),
        (["invite", "ulm", "--home", "nowhere"], 9, "no server in"),
        (["invite", "ulm", "--role", "boss", "--home", "HOME"], 2, "no role"),
        (["invite", "ulm", "--days", "0", "--home", "HOME"], 2, "days"),
        (["revoke", "nobody", "--home", "HOME"], 9, "not a member"),
        (["init", "HOME"], 5, "already"),
        (["init", "new", "--address", "x"], 2, "no address"),
        (["init", "new", "--cert", "c.pem"], 2, "--key"),
    ],
)
def test_what_cannot_be_done_is_told_with_its_status(
    atoll, home, tmp_path, monkeypatch, words, status, says
):
    monkeypatch.chdir(tmp_path)
    found, out, err = atoll("server", *(home if word == "HOME" else word for word in words))
    assert (found, out) == (status, "")
    assert says in err


def test_a_missing_library_is_named_with_what_brings_it(atoll, home, monkeypatch):
    monkeypatch.setattr(server_module, "_NEEDS", ("uvicorn", "not_there"))
    status, _, err = atoll("server", "status", "--home", home)
    assert (status, "not_there" in err, "atoll[server]" in err) == (6, True, True)


def test_a_run_is_ended_by_whoever_runs_the_server(atoll, home, runs):
    status, out, err = atoll("server", "cancel", "heart-1", "--home", home)
    assert (status, out) == (0, "heart-1 of ada\n")
    assert "when the server is started" in err
    last = runs.events()[-1]
    assert (last.kind, last.run) == (STOPPED, "heart-1")
    assert atoll("server", "cancel", "heart-2", "--home", home)[0] == 9
    assert atoll("server", "cancel", "heart-3", "--home", home)[0] == 9


def test_whose_key_is_revoked_is_told_to_have_runs_that_go_on(atoll, home, runs):
    joined(runs, "ada")
    status, out, err = atoll("server", "revoke", "ada", "--home", home)
    assert (status, out) == (0, "ada revoked\n")
    assert "goes on: heart-1\n" in err
    assert "atoll server cancel" in err


def joined(store, name: str) -> None:
    store.add_invite(Invite("ab" * 32, name, "researcher", 10.0))
    store.join("ab" * 32, name, bytes(32), 1.0)


def test_a_second_server_is_refused_by_name(atoll, home):
    with live(home):
        status, _, err = atoll("server", "start", home)
    assert (status, "another server runs" in err) == (5, True)


@pytest.mark.parametrize("group", ["server", "job"])
def test_the_reference_page_lists_every_command_and_option(group):
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    part = page.partition(f"## `atoll {group}`")[2].partition("\n## ")[0]
    commands = typer.main.get_command(main_module.root).commands[group].commands
    assert set(re.findall(r"^\| `(\w+)[ `]", part, flags=re.M)) == set(commands)
    for name, command in commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and "--help" not in parameter.opts:
                assert f"`{parameter.opts[0]}" in part, f"{name} {parameter.opts}"


def test_admin_and_server_agree_on_the_default_address():
    options = typer.main.get_command(main_module.root).commands["server"].commands["init"].params
    [address] = [option for option in options if option.name == "address"]
    assert address.default == admin.DEFAULT_ADDRESS
