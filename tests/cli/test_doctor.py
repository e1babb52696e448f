"""``atoll doctor`` as it is typed: lines or JSON on stdout, the first fault's kind as exit status."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.main import main
from atoll.server import admin
from atoll.server.admin import Founding


@pytest.fixture
def server(tmp_path: Path) -> Path:
    admin.found(tmp_path / "server", Founding(), time.time())
    return tmp_path / "server"


def asked(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    status = main(["doctor", *map(str, words)])
    return status, *capsys.readouterr()


def test_a_server_that_is_well_gives_status_0(server: Path, capsys: Any) -> None:
    status, out, err = asked(capsys, "--server", server)
    assert status == 0
    assert "ok       store" in out
    assert "warning" in err
    assert "fault" not in err


def test_a_fault_gives_its_own_status_and_its_remedy(server: Path, capsys: Any) -> None:
    (server / "identity.pem").chmod(0o644)
    status, out, err = asked(capsys, "--server", server)
    assert status == 5
    assert "FAULT    files" in out
    assert f"next: chmod 600 {server / 'identity.pem'}" in out
    assert err.startswith(("1 fault, ", "2 faults"))


def test_json_is_one_object(server: Path, capsys: Any) -> None:
    _, out, _ = asked(capsys, "--server", server, "--json")
    told = json.loads(out)
    assert set(told) == {"findings", "count"}
    assert sum(told["count"].values()) == len(told["findings"])
    assert set(told["findings"][0]) == {"check", "state", "text", "remedy", "status"}


def test_a_node_that_has_not_joined_is_told_how(tmp_path: Path, capsys: Any) -> None:
    status, out, _ = asked(capsys, "--home", tmp_path / "node")
    assert status == 9
    assert "atoll node join CODE" in out


def test_the_node_s_folder_comes_from_the_environment(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOLL_NODE_HOME", str(tmp_path / "mine"))
    _, out, _ = asked(capsys)
    assert str(tmp_path / "mine") in out


def test_a_node_and_a_server_at_once_are_refused(tmp_path: Path, capsys: Any) -> None:
    status, _, err = asked(capsys, "--home", tmp_path, "--server", tmp_path)
    assert status == 2
    assert "one by one" in err


def test_folders_may_be_relative(
    server: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(server.parent)
    assert asked(capsys, "--server", "server")[0] == 0
    assert str(server.parent / "node") in asked(capsys, "--home", "node")[1]
