"""What helps where a round could not commit."""

import pytest

from atoll.runtime.aborts import ended, way_out

RULE = "refused: its rule\n  next: set privacy.aggregation = 'masked'"
ROWS = "failed: column 'days' does not fit"
MASKED, MEND = "set privacy.aggregation = 'masked'", "mend the job's code, or these clients' rows"


@pytest.mark.parametrize(
    ("reasons", "steps"),
    [
        ([RULE, RULE], [MASKED]),
        ([ROWS, ROWS], [MEND]),
        ([ROWS, RULE], [MASKED, MEND]),
        ([RULE, "lost"], ["start it again: each site has to answer"]),
        ([], ["start it again: each site has to answer"]),
    ],
)
def test_what_helps_is_what_every_missing_site_needs(reasons, steps):
    last = {"missing": {f"site-{i}": why for i, why in enumerate(reasons)}}
    found = way_out(last, everybody=True)
    assert all(step in found for step in steps)
    assert found.count(";") == len(steps) - 1
    assert ("start it again: each" in found) == (steps[0].startswith("start"))


def test_a_single_round_is_not_called_rounds_in_a_row():
    last = {"missing": {"bern": RULE}, "reason": "1 of 2"}
    told = "1 of 2 (bern refused: its rule)"
    assert ended(1, last) == f"a round could not commit: {told}"
    assert ended(1, last, everybody=True) == (
        f"a round could not commit, as not every site has answered: {told}"
    )
    assert ended(2, last) == f"2 rounds in a row could not commit; the last: {told}"
    assert ended(1, {}, everybody=True) == "a round could not commit"
