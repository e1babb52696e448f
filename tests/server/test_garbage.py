"""What is deleted when a server starts; how runs keep what they need, tests of the service tell."""

from __future__ import annotations

import pytest

from atoll.server.garbage import needed
from atoll.server.rounds.results import ENDED
from atoll.server.store.contract import RoundRow, RunRow
from atoll.server.store.memory import MemoryStore


def digest(run: str, number: int) -> str:
    return f"{run}{number:03}".ljust(64, "0")


@pytest.mark.parametrize("numbers", [range(1, 41), range(1, 80, 2), [1], []])
def test_of_a_run_that_has_ended_its_newest_checkpoints_are_needed_and_no_other_round_is_read(
    numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = MemoryStore(), list[int]()
    epoch = store.acquire("here", 0.0)
    for run, status in (("a", "completed"), ("b", "open")):
        row = RunRow(run, "heart", "0" * 64, "{}", {}, ("ulm",), "ada", 0.0, status, plan=run * 64)
        store.add_run(epoch, row)
        for number in numbers:
            store.commit_round(epoch, RoundRow(run, number, {}, digest(run, number), "0" * 64))
    rounds = store.rounds

    def counted(run: str, after: int = 0) -> tuple[RoundRow, ...]:
        found = rounds(run, after)
        read.extend(row.number for row in found if run == "a")
        return found

    monkeypatch.setattr(store, "rounds", counted)
    kept = {digest(run, number) for run in "ab" for number in list(numbers)[-2:]}
    assert needed(store, ENDED) == kept | {"b" * 64}
    if list(numbers) == list(range(1, 41)):
        assert read == [39, 40]
