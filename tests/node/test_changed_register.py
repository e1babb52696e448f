"""What a steward says of a dataset while a run goes on counts from the run's next task on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fake_federation as ff
import pytest

from atoll.node.agent import Agent
from atoll.node.datasets import Datasets


class Place:
    """A site in the middle of a run."""

    def __init__(self, folder: Path, agent: Agent, server: ff.FakeServer, solo: ff.Solo) -> None:
        self.folder, self.register = folder, Datasets(folder / "east" / "datasets.toml")
        self._agent, self._server, self._solo = agent, server, solo

    @property
    def worker(self) -> Path:
        """The process that has the rows."""
        return Path(f"/proc/{self._agent._runs['r1'].state()['worker']}")

    def answer(self) -> tuple[str, str]:
        """What becomes of another task."""
        body, _ = self._server.result(self._solo.train().id)
        return body.status, body.reason


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    server = ff.FakeServer()
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1))) as agent:
        made = Place(tmp_path, agent, server, ff.Solo(server, tmp_path))
        assert made.answer()[0] == "done"
        yield made


def test_a_dataset_that_is_taken_away_is_read_no_more(place: Place) -> None:
    before = place.worker
    place.register.remove("sites")
    status, reason = place.answer()
    assert (status, "no dataset 'sites' is registered" in reason) == ("failed", True)
    ff.eventually(lambda: not before.exists())  # and nobody has its rows
    place.register.add("sites", place.folder / "east.csv")
    assert place.answer()[0] == "done"


def test_a_rule_that_is_made_stricter_holds(place: Place) -> None:
    known = place.register.get("sites")
    place.register.govern("sites", replace(known.rule, minimum=1000, training="strict"))
    status, reason = place.answer()
    assert (status, "fewer than 1000" in reason) == ("refused", True)


def test_a_file_that_was_moved_is_found(place: Place) -> None:
    moved = place.folder / "elsewhere.csv"
    (place.folder / "east.csv").rename(moved)
    place.register.add("sites", moved)
    assert place.answer() == ("done", "")
