import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import DataError, JobError
from atoll.core.local import LocalWork, Optimizer, Schedule
from atoll.core.seeds import Seed
from atoll.models.batches import batches, learning_rate, passes, plan


@given(
    rows=st.integers(1, 40),
    size=st.integers(0, 12),
    epochs=st.integers(1, 3),
    drop=st.booleans(),
)
def test_each_epoch_visits_every_row_once_but_those_of_a_dropped_short_batch(
    rows, size, epochs, drop
):
    work = LocalWork(epochs=epochs, batch_size=size, drop_last=drop)
    full = min(size, rows) or rows
    kept = rows - rows % full if drop else rows
    for e in range(epochs):
        seen = np.concatenate([i for epoch, i in batches(rows, work, Seed(1)) if epoch == e])
        assert len(seen) == kept == len(set(seen.tolist()))


def test_order_of_an_epoch_is_the_permutation_of_its_named_seed():
    seed = Seed(3) / "fit"
    got = [i.tolist() for _, i in batches(5, LocalWork(epochs=2, batch_size=2), seed)]
    for e in (0, 1):
        order = (seed / "epoch" / e).generator().permutation(5).tolist()
        assert got[3 * e : 3 * e + 3] == [order[:2], order[2:4], order[4:]]


def test_a_pass_holds_the_rows_of_its_batches_and_no_more():
    work, seed = LocalWork(steps=5, batch_size=2), Seed(3)
    (_, whole, size), (_, part, _) = passes(5, work, seed)
    assert (len(whole), len(part), size) == (5, 4, 2)
    cut = [i for order in (whole, part) for i in np.split(order, range(2, len(order), 2))]
    for mine, (_, index) in zip(cut, batches(5, work, seed), strict=True):
        assert mine.tolist() == index.tolist()


def test_a_batch_of_all_rows_keeps_their_order():
    for size in (0, 4, 9):
        ((_, index),) = batches(4, LocalWork(batch_size=size), Seed(0))
        assert index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"epochs": 0.5, "batch_size": 10}, 2),
        ({"epochs": 0.07, "batch_size": 1}, 2),
        ({"epochs": 2.0, "batch_size": 10}, 6),
        ({"epochs": 9.0, "steps": 7, "batch_size": 10}, 7),
        ({"epochs": 1.0, "batch_size": 10, "drop_last": True}, 2),
        ({"epochs": 1.0, "batch_size": 99, "drop_last": True}, 1),
        ({"epochs": 3.0, "batch_size": 0}, 3),
    ],
)
def test_steps_of_25_rows(fields, steps):
    assert plan(25, LocalWork(**fields)).steps == steps
    assert len(list(batches(25, LocalWork(**fields), Seed(0)))) == steps


def test_rounding_noise_does_not_add_a_step():
    assert 0.07 * 100 > 7
    assert plan(100, LocalWork(epochs=0.07, batch_size=1)).steps == 7


def test_given_steps_run_over_into_further_epochs():
    epochs = [e for e, _ in batches(4, LocalWork(steps=5, batch_size=2), Seed(0))]
    assert epochs == [0, 0, 1, 1, 2]


def test_a_client_without_rows_is_refused():
    with pytest.raises(DataError, match="no rows"):
        plan(0, LocalWork())


def rate(schedule, **at):
    work = LocalWork(optimizer=Optimizer(lr=1.0), schedule=schedule)
    return learning_rate(work, **{"round": 0, "epoch": 0, **at})


def test_schedules_count_rounds_or_epochs_as_told():
    step = Schedule("step", gamma=0.5, every=2)
    assert [rate(step, round=r, epoch=9) for r in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    local = Schedule("step", gamma=0.5, every=1, unit="epoch")
    assert rate(local, round=9, epoch=2) == 0.25
    assert rate(Schedule(), round=9) == 1.0


def test_cosine_falls_from_one_to_its_floor_and_stays():
    cosine = Schedule("cosine", every=4, floor=0.2)
    got = [rate(cosine, round=r) for r in (0, 2, 4, 9)]
    assert got == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_an_unknown_schedule_is_named():
    with pytest.raises(JobError, match="cosine"):
        rate(Schedule("cosin"))
