"""A server that lies over the wire: no site releases a share, and a site that does not check is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atoll.cli.main import main
from atoll.node.lies import LIES, told
from atoll.node.masking import Masked
from atoll.node.settings import Masking, Settings
from atoll.privacy.secagg import session as sessions


@pytest.mark.parametrize("lie", LIES)
def test_every_site_gives_up_and_releases_nothing(lie: str, tmp_path: Path) -> None:
    found = told(lie, tmp_path)
    assert found.released == ()
    assert found.withstood, found.refused


def test_there_are_fourteen_lies() -> None:
    assert len(LIES) == 14


@pytest.mark.parametrize(
    ("lie", "check"),
    [("both lists", "check"), ("repeated site", "_quorum"), ("own death", "_quorum")],
)
def test_a_site_that_does_not_check_is_noticed(
    lie: str, check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.Session, check, lambda self, *arguments: None)
    assert not told(lie, tmp_path).withstood


def test_a_site_that_asks_for_seven_sites_refuses_six(tmp_path: Path) -> None:
    settings = Settings(masking=Masking(smallest=7))
    found = told("both lists", tmp_path, settings)
    assert all("6 sites" in reason for reason in found.refused.values())


@pytest.mark.parametrize("lie", ["in clear", "fewer sites"])
def test_a_node_that_believes_the_plan_alone_is_noticed(
    lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it asked of each task anew whether it has to be masked, and never remembered."""

    def due(self: Masked, path: Path) -> bool:
        return lie == "fewer sites" and self._plan(path).settled.masked

    monkeypatch.setattr(Masked, "_due", due)
    assert not told(lie, tmp_path).withstood


def test_the_command_shows_all_of_them_and_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "server", "--home", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["lies"]
    assert [line["released"] for line in found] == [[]] * 14
    assert {line["gave_up"] for line in found} == {6}
