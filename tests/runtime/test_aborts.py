"""What helps where a round could not commit."""

import pytest

from atoll.runtime.aborts import way_out

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
