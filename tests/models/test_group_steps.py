"""Which rows a group's clients visit, side by side: the batches of each, and the products they read."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.core.contracts import Examples, Lane
from atoll.core.local import LocalRule, LocalWork, Optimizer, Schedule
from atoll.core.seeds import Seed
from atoll.models.batches import batches, learning_rate
from atoll.models.group_steps import earlier_rows, group_steps


@pytest.mark.parametrize("rows", [1, 9, 10, 11, 35, 60, 61, 130])
@pytest.mark.parametrize("width", [1, 7, 10, 32, 64, 200])
def test_a_row_meets_all_rows_of_earlier_steps(rows: int, width: int) -> None:
    met = np.zeros((rows, rows), bool)
    for here, before in earlier_rows(rows, width):
        assert (
            0 <= before.start < before.stop <= here.start + (before.stop - before.start) <= 2 * rows
        )
        assert here.stop <= rows
        met[here, before] = True
    for row in range(rows):
        assert met[row, : row // width * width].all()


@pytest.mark.parametrize(
    ("sizes", "works"),
    [
        ((25, 25, 25), ({},)),
        ((25, 7, 40), ({},)),
        ((25, 25, 12), ({"epochs": 2.0},)),
        ((30, 30, 30), ({}, {"epochs": 0.5})),
        ((8, 20), ({"batch_size": 0},)),
    ],
)
def test_steps_side_by_side_are_those_of_each_client(sizes, works) -> None:
    optimizer = Optimizer("sgd", lr=0.1)
    schedule = Schedule("step", gamma=0.5, every=1, unit="epoch")
    plans = [
        LocalWork(**{"batch_size": 10, "optimizer": optimizer, "schedule": schedule, **own})
        for own in works
    ]
    lanes = [
        Lane(
            Examples(np.zeros((n, 2), np.float32), np.zeros(n, np.int64)),
            plans[i % len(plans)],
            LocalRule(),
            Seed(3) / i,
            1.0,
        )
        for i, n in enumerate(sizes)
    ]
    made = group_steps(lanes, 4, summed=False)
    for i, lane in enumerate(lanes):
        wanted = list(batches(sizes[i], lane.work, lane.seed))
        assert np.count_nonzero(made.share[:, i, 0]) == len(wanted)
        for t, (epoch, rows) in enumerate(wanted):
            n = len(rows)
            start = t * made.width
            at = np.arange(start, start + n) if made.at is None else made.at[t, i, :n]
            assert made.order[i][at].tolist() == rows.tolist()
            assert made.share[t, i].tolist() == pytest.approx(
                [1 / n] * n + [0.0] * (made.width - n)
            )
            assert made.lr[t, i] == learning_rate(lane.work, round=4, epoch=epoch)
        assert not made.share[len(wanted) :, i].any()
        assert not made.lr[len(wanted) :, i].any()
