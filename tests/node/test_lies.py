"""A server that lies over the wire: no site releases a share, and a site that does not check is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.main import main
from atoll.core.errors import MissingExtra
from atoll.job.buffered import Starts
from atoll.node.lies import of_ciphers as lies_of_ciphers
from atoll.node.lies import stage as lying
from atoll.node.lies import told as lies
from atoll.node.lies.cast import SITES
from atoll.node.lies.of_ciphers import CIPHER_LIES
from atoll.node.lies.told import LIES, told
from atoll.node.policy import steward
from atoll.node.policy.pricing import Facts
from atoll.node.settings import Masking, Settings
from atoll.node.sums import buffers, masking
from atoll.node.sums.masking import Masked
from atoll.node.sums.trained import Trained
from atoll.privacy.he import contexts
from atoll.privacy.secagg import ledger
from atoll.privacy.secagg import session as sessions
from atoll.wire import disk


@pytest.mark.parametrize("lie", LIES)
def test_every_site_gives_up_and_releases_nothing(lie: str, tmp_path: Path) -> None:
    found = told(lie, tmp_path)
    assert found.released == ()
    assert found.withstood, found.refused


def test_there_are_twenty_seven_lies() -> None:
    assert len(LIES) == 27


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here."""
    monkeypatch.setattr(disk, "_sync", lambda path: None)


@pytest.mark.parametrize("lie", ["another factor", "another plan"])
def test_a_node_that_does_what_it_is_told_to_whatever_the_others_are_is_noticed(
    lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was when terms said nothing of that: all six committed themselves and shared their keys."""
    for module in (lying, masking):
        monkeypatch.setattr(module, "work_mark", lambda task, buffered: "one")
    monkeypatch.setattr(buffers.Buffers, "approved", lambda self, plan, shown, apart: "")
    assert told(lie, tmp_path).refused == {}


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


@pytest.mark.parametrize("lie", ["small buffer", "version of its own", "faded others"])
def test_a_node_that_does_not_look_at_the_buffer_is_noticed(
    lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "starts_faults", lambda *given: [])
    assert not told(lie, tmp_path, Settings(masking=Masking(smallest=3))).withstood


def test_a_node_whose_update_counts_a_thousand_times_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers.Buffers, "approved", lambda self, plan, shown, apart: "")
    assert not told("larger factor", tmp_path).withstood


def test_a_node_that_has_its_update_count_as_the_server_likes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def approved(self: Any, plan: Any, shown: buffers.Shown, apart: int) -> str:
        return Starts.from_plain(shown.raw).mark

    monkeypatch.setattr(buffers.Buffers, "approved", approved)
    assert not told("another weight", tmp_path).withstood


def test_a_node_that_gives_an_update_twice_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_spent", lambda records, record: "")
    monkeypatch.setattr(ledger, "_too_near", lambda records, record, apart: "")
    assert not told("update in two sums", tmp_path).withstood


def test_a_node_that_starts_from_any_of_its_memories_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_other_memory", lambda records, record: "")
    assert told("another memory", tmp_path).released == SITES


def test_a_node_whose_refusal_says_how_large_its_values_are_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All values are below the bound of the terms, which is not the job's, and so all would have gone on."""
    monkeypatch.setattr(Trained, "lane_faults", lambda self, done, terms: "")
    assert told("bound as question", tmp_path).released == SITES


def test_a_node_that_does_not_look_for_what_its_ledger_will_find_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer leaves under a name of which the ledger knows nothing; the charge is given back later."""
    monkeypatch.setattr(steward, "_check_name", lambda task: None)
    assert told("unpaid name", tmp_path).released == SITES


def test_a_node_that_pays_by_the_rows_of_another_plan_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        steward.Steward, "_known", lambda self, task: self._facts.get(task.run, Facts())
    )
    assert told("other rows", tmp_path).released == SITES


def test_the_command_shows_all_of_them_and_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lies_of_ciphers, "CIPHER_LIES", dict(list(CIPHER_LIES.items())[:2]))
    assert main(["audit", "server", "--home", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["lies"]
    assert {line["rounds"] for line in found} == {"masked", "encrypted"}
    assert [line["released"] for line in found] == [[]] * 29
    assert {line["gave_up"] for line in found} == {6}


def test_without_tenseal_the_command_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed() -> None:
        raise MissingExtra("encrypted aggregation needs TenSEAL", remedy="pip install 'atoll[he]'")

    monkeypatch.setattr(contexts, "installed", installed)
    monkeypatch.setattr(lies, "LIES", {"in clear": LIES["in clear"]})
    assert main(["audit", "server", "--home", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert [line["lie"] for line in json.loads(said.out)["lies"]] == ["in clear"]
    assert "left out" in said.err
