"""The query log on disk: what a crash leaves, changed rows, and answers that others are mixed into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import Forbidden, StorageError
from atoll.data.query_log import QueryLog, Released

PERSONS = np.arange(60)


def of(count: int, start: int = 0, *, apart: bool = False) -> Released:
    rows = (start <= PERSONS) & (count > PERSONS)
    return Released(("age",), rows, apart=apart)


def ask(log: QueryLog, one: Released) -> None:
    log.admit([one], PERSONS, site="east")


def test_a_torn_line_was_never_answered_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "queries" / "heart.jsonl"
    ask(QueryLog(11, path), of(60))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    again = QueryLog(11, path)
    assert len(again) == 1
    ask(again, of(40))
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 2
    with pytest.raises(Forbidden, match="isolate"):
        ask(QueryLog(11, path), of(58))


def test_a_line_that_was_changed_stops_everything(tmp_path: Path) -> None:
    path = tmp_path / "heart.jsonl"
    ask(QueryLog(11, path), of(60))
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(StorageError, match="cannot be read"):
        QueryLog(11, path)


def test_other_rows_under_the_same_log_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "heart.jsonl"
    ask(QueryLog(11, path, data="monday"), of(60))
    ask(QueryLog(11, path, data="monday"), of(60))
    with pytest.raises(Forbidden, match="have changed since column 'age'"):
        ask(QueryLog(11, path, data="tuesday"), of(60))


@pytest.mark.parametrize("first", [True, False])
def test_a_difference_of_two_masked_sums_is_one_whatever_was_told_in_the_clear(
    tmp_path: Path, first: bool
) -> None:
    path = tmp_path / "heart.jsonl"
    for masked in (first, not first):
        ask(QueryLog(11, path, masked), of(60))
    with pytest.raises(Forbidden, match="isolate"):
        ask(QueryLog(11, path, True), of(55))
    with pytest.raises(Forbidden, match="isolate"):
        ask(QueryLog(11, path, False), of(55))


def test_a_small_set_inside_a_masked_sum_tells_nothing_by_itself(tmp_path: Path) -> None:
    ask(QueryLog(11, tmp_path / "masked.jsonl", True), of(5))
    with pytest.raises(Forbidden, match="isolate"):
        ask(QueryLog(11, tmp_path / "clear.jsonl"), of(5))


def test_a_masked_sum_beside_one_in_the_clear_gives_away_nobody(tmp_path: Path) -> None:
    path = tmp_path / "heart.jsonl"
    ask(QueryLog(11, path, False), of(60))
    ask(QueryLog(11, path, True), of(55))  # the sum of the others is not known
    with pytest.raises(Forbidden, match="isolate"):
        ask(QueryLog(11, path, True), of(60))  # now it would be


def test_sums_that_stay_apart_under_masks_are_compared_as_if_in_the_clear(tmp_path: Path) -> None:
    path = tmp_path / "heart.jsonl"
    ask(QueryLog(11, path, True), of(60))
    ask(QueryLog(11, path, True), of(55, apart=True))  # beside a sum with others in it
    with pytest.raises(Forbidden, match="isolate"):
        ask(QueryLog(11, path, True), of(60, apart=True))


VISITS = np.repeat(np.arange(30), 4)
"""The persons behind rows of whom each has four."""


def visits(rows: np.ndarray, *, columns: tuple[str, ...] = ("age",), study: str = "") -> Released:
    return Released(columns, rows, study=(study, ""))


@pytest.mark.parametrize("left_out", [[7], [4, 5, 6], [2, 9, 14, 17]])
@pytest.mark.parametrize("columns", [("age",), ()])
def test_a_few_persons_rows_are_not_told_by_leaving_out_some_of_each(
    tmp_path: Path, left_out: list[int], columns: tuple[str, ...]
) -> None:
    """The same persons are in both answers, and their difference is of one row, or of a few."""
    path, but = tmp_path / "heart.jsonl", np.ones(len(VISITS), bool)
    QueryLog(11, path).admit([visits(but)], VISITS)
    but[left_out] = False
    with pytest.raises(Forbidden, match="isolate"):
        QueryLog(11, path).admit([visits(but, columns=columns, study="but")], VISITS)


def test_rows_of_many_persons_may_be_left_out_and_looked_at_again(tmp_path: Path) -> None:
    path, every = tmp_path / "heart.jsonl", np.ones(len(VISITS), bool)
    first = np.arange(len(VISITS)) % 4 == 0
    QueryLog(11, path).admit([visits(every)], VISITS)
    QueryLog(11, path).admit([visits(first)], VISITS)
    lines = path.read_bytes()
    QueryLog(11, path).admit([visits(first)], VISITS)
    assert path.read_bytes() == lines
    but = first.copy()
    but[0] = False
    with pytest.raises(Forbidden, match="isolate"):
        QueryLog(11, path).admit([visits(but)], VISITS)


def test_rows_that_two_answers_together_leave_of_one_person_are_not_told() -> None:
    number = np.arange(len(VISITS)) % 4
    log = QueryLog(11)
    log.admit([visits(number == 0), visits(number > 0)], VISITS)
    but = np.ones(len(VISITS), bool)
    but[5] = False  # all rows are the sum of the two above
    with pytest.raises(Forbidden, match="isolate"):
        log.admit([visits(but)], VISITS)
