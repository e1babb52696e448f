"""The rule of a site, and the log of what it has answered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import DataError, Forbidden
from atoll.data.disclosure import Disclosure, persons_of
from atoll.data.query_log import QueryLog, Released
from atoll.data.table import Table


def chosen(*ranges, n=100):
    rows = np.zeros(n, bool)
    for low, high in ranges:
        rows[low:high] = True
    return rows


def asked(log, *selections, column="age", n=100):
    for rows in selections:
        log.admit([Released((column,), rows)], np.arange(n))


def test_the_same_question_may_be_asked_again():
    log = QueryLog()
    asked(log, chosen((0, 60)), chosen((0, 60)))
    assert len(log) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([(0, 100)], [(1, 100)]),
        ([(1, 100)], [(0, 100)]),
        ([(0, 100)], [(10, 100)]),
        ([(0, 50)], [(45, 100)]),
    ],
)
def test_a_difference_of_few_is_refused_only_where_it_can_be_taken(first, second):
    log = QueryLog()
    asked(log, chosen(*first))
    if second == [(45, 100)]:  # five in common, but 45 and 50 apart: no combination leaves the five
        asked(log, chosen(*second))
        return
    with pytest.raises(Forbidden):
        asked(log, chosen(*second))
    assert len(log) == 1


def test_a_difference_of_the_minimum_is_answered():
    asked(QueryLog(), chosen((0, 100)), chosen((11, 100)))


def test_three_questions_that_leave_one_person_together_are_refused():
    log = QueryLog()
    asked(log, chosen((0, 40)), chosen((40, 99)))
    with pytest.raises(Forbidden):
        asked(log, chosen((0, 100)))


def test_columns_are_looked_at_one_by_one():
    log = QueryLog()
    asked(log, chosen((0, 100)))
    asked(log, chosen((1, 100)), column="height")


def test_persons_count_and_not_rows():
    log, visits = QueryLog(), np.arange(100) // 10
    log.admit([Released(("age",), np.ones(100, bool))], np.arange(100) // 2)
    with pytest.raises(Forbidden):
        QueryLog().admit([Released(("age",), np.ones(100, bool))], visits)


def test_a_person_is_one_however_blanks_stand_around_the_name():
    names = ["p1", " p1", "p1 ", 7, "7", 7.0, "p2"]
    assert persons_of(Table.of({"id": names}), "id").tolist() == [1, 1, 1, 0, 0, 0, 2]
    assert Disclosure(3, person="id").count(Table.of({"id": names})) == 3


def test_nothing_is_noted_where_one_of_several_sets_is_refused():
    log = QueryLog()
    with pytest.raises(Forbidden):
        log.admit(
            [Released(("age",), chosen((0, 100))), Released(("age",), chosen((3, 100)))],
            np.arange(100),
        )
    log.admit([Released(("age",), chosen((0, 100)))], np.arange(100), dry=True)
    assert len(log) == 0


@settings(max_examples=60)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=6))
def test_whatever_the_log_lets_pass_tells_of_no_single_person(patterns):
    # Six blocks: one person, three, and four blocks of twenty.
    sizes = (1, 3, 20, 20, 20, 20)
    blocks = np.repeat(np.arange(6), sizes)
    log = QueryLog(minimum=11)
    passed = []
    for pattern in patterns:
        rows = np.array(pattern)[blocks]
        if not rows.any():
            continue
        try:
            log.admit([Released(("age",), rows)], np.arange(len(blocks)))
        except Forbidden:
            continue
        passed.append(pattern)
    if not passed:
        return
    matrix = np.array(passed, np.float64)
    for block in (0, 1):
        unit = np.eye(6)[block]
        rank = np.linalg.matrix_rank(matrix)
        assert np.linalg.matrix_rank(np.vstack([matrix, unit])) == rank + 1


def test_cells_of_one_table_may_be_small_and_those_of_two_may_not_nearly_agree():
    log, persons = QueryLog(), np.arange(100)
    log.admit([Released(("age",), chosen((0, 3)), "by sex")], persons)
    log.admit([Released(("age",), chosen((3, 60)), "by sex")], persons)
    with pytest.raises(Forbidden):
        log.admit([Released(("age",), chosen((3, 64)), "by arm")], persons)


def test_a_rule_names_what_it_needs():
    with pytest.raises(DataError, match="minimum of 0"):
        Disclosure(0)
    with pytest.raises(DataError, match="names no person"):
        persons_of(Table.of({"id": ["a", None]}), "id")
    with pytest.raises(Forbidden, match="fewer than 11 persons") as caught:
        Disclosure().enough(Table.of({"x": range(10)}), "bern")
    assert caught.value.site == "bern"
    Disclosure(masked=True).enough(Table.of({"x": range(10)}), "bern")


def test_quantiles_need_records_on_either_side():
    rule = Disclosure(11)
    assert not rule.quantile_faults(110, [0.1, 0.9])
    assert len(rule.quantile_faults(109, [0.1, 0.9])) == 2
    assert len(rule.quantile_faults(1000, [0.0, 1.0])) == 2
    assert not Disclosure(11, extremes=True).quantile_faults(1000, [0.0, 1.0])
    assert not Disclosure(1).quantile_faults(3, [0.0, 0.5, 1.0])
