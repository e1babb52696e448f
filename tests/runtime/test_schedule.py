"""Virtual time: closed forms of identity 8, over-selection, deadlines, quorum, asynchrony."""

import math
from collections import Counter

import numpy as np
import pytest

from atoll.core.errors import DataError, JobError
from atoll.core.seeds import Seed
from atoll.runtime.clock import Availability, Clock, Delay, read_intervals, read_seconds
from atoll.runtime.cohort import Cohort
from atoll.runtime.pace import Pace, Population
from atoll.runtime.schedule import (
    Asynchronous,
    Plan,
    Synchronous,
    check_schedule,
)


def people(n: int, clock: Clock | None = None, examples: int = 10) -> Population:
    names = [f"c{i:04d}" for i in range(n)]
    return Population(names, lambda _: examples, Seed(5), clock or Clock())


def plans(schedule, population: Population, steps: int) -> list[Plan]:
    pace, made = Pace(), []
    for version in range(steps):
        plan, pace = schedule.plan(pace, version, population, lambda tau: (1 + tau) ** -0.5)
        assert Pace.from_plain(pace.to_plain()) == pace
        made.append(plan)
    return made


@pytest.mark.parametrize(
    ("kind", "n", "expected"),
    [
        ("exponential", 10, 2.9290),
        ("exponential", 100, 5.1874),
        ("exponential", 1000, 7.4855),
        ("half_normal", 10, 1.881),
        ("half_normal", 100, 2.745),
        ("half_normal", 1000, 3.431),
    ],
)
def test_a_synchronous_round_lasts_as_long_as_the_slowest_client(kind, n, expected):
    rounds = {10: 3000, 100: 600, 1000: 60}[n]
    made = plans(Synchronous(), people(n, Clock(Delay(kind, 1.0))), rounds)
    lengths = np.diff([0.0, *(p.clock for p in made)])
    error = lengths.std(ddof=1) / math.sqrt(rounds)
    assert abs(lengths.mean() - expected) <= 4 * error + 5e-4


@pytest.mark.parametrize(("kind", "mean"), [("exponential", 1.0), ("half_normal", 0.7979)])
def test_asynchronous_throughput_is_concurrency_over_mean_delay(kind, mean):
    n, steps = 50, 3000
    made = plans(Asynchronous(), people(n, Clock(Delay(kind, 1.0))), steps)
    rate = (steps - n) / (made[-1].clock - made[n - 1].clock)
    assert rate == pytest.approx(n / mean, rel=0.05)


def test_staleness_of_equal_constant_delays_settles_at_n_minus_one():
    n = 7
    made = plans(Asynchronous(), people(n, Clock(Delay("constant", 1.0))), 40)
    taus = [next(iter(p.staleness.values())) for p in made]
    assert taus == list(range(n)) + [n - 1] * (40 - n)
    assert made[n].clock == 2.0
    assert made[n].tasks[0].scale == pytest.approx(n**-0.5)


def test_zero_delay_and_a_full_buffer_are_synchronous():
    n = 6
    async_plans = plans(Asynchronous(buffer=n), people(n), 5)
    sync_plans = plans(Synchronous(), people(n), 5)
    for a, s in zip(async_plans, sync_plans, strict=True):
        assert [(t.client, t.version, t.scale) for t in a.tasks] == [
            (t.client, t.version, t.scale) for t in s.tasks
        ]
        assert all(t.repeat == 0 for t in a.tasks)


def test_no_client_counts_twice_in_a_step_and_none_works_twice_at_once():
    clock = Clock(Delay("log_normal", 1.0, sigma=2.0), dropout=0.1)
    seen: set[tuple[str, int, int]] = set()
    for plan in plans(Asynchronous(buffer=10, concurrency=20), people(40, clock), 300):
        clients = [t.client for t in plan.tasks]
        assert len(set(clients)) == len(clients) == 10
        for task in plan.tasks:
            assert (task.client, task.version, task.repeat) not in seen
            seen.add((task.client, task.version, task.repeat))


def test_over_selection_keeps_the_first_to_arrive_and_names_the_surplus():
    schedule = Synchronous(Cohort("uniform", 10), over_selection=0.5)
    (plan,) = plans(schedule, people(100, Clock(Delay("exponential", 1.0))), 1)
    assert len(plan.invited) == 15
    assert len(plan.tasks) == 10
    assert {status for status, _ in plan.missing.values()} == {"surplus"}
    plain = plans(Synchronous(Cohort("uniform", 10)), people(100), 1)[0]
    assert len(plain.invited) == 10


@pytest.mark.parametrize(
    ("size", "extra", "invited"), [(10, 0.1, 11), (50, 0.1, 55), (20, 0.3, 26), (3, 0.3, 4)]
)
def test_a_share_is_of_the_decimal_that_was_written(size, extra, invited):
    rule = Synchronous(Cohort("uniform", size), over_selection=extra)
    assert len(plans(rule, people(100), 1)[0].invited) == invited  # 10 * 1.1 is above 11 in floats


def test_a_quorum_of_a_share_is_not_one_too_many():
    (plan,) = plans(Synchronous(quorum=0.55), people(100), 1)
    assert plan.quorum == 55


def test_a_deadline_names_the_late_and_ends_the_round():
    schedule = Synchronous(deadline=0.5, quorum=1)
    for plan in plans(schedule, people(30, Clock(Delay("exponential", 1.0))), 5):
        late = [c for c, (status, _) in plan.missing.items() if status == "late"]
        assert late
        assert len(late) + len(plan.tasks) == 30
    assert plan.clock == pytest.approx(2.5)


def test_below_the_quorum_the_round_is_aborted_with_its_reason():
    schedule = Synchronous(deadline=0.1, quorum=0.9)
    (plan,) = plans(schedule, people(30, Clock(Delay("exponential", 1.0))), 1)
    assert not plan.tasks
    assert "quorum 27" in plan.abort
    assert plan.clock == 0.1


def test_dropout_and_availability_happen_at_their_rates():
    clock = Clock(Delay("constant", 1.0), Availability(0.8), dropout=0.25)
    counts: Counter[str] = Counter()
    for plan in plans(Synchronous(), people(100, clock), 50):
        counts.update(status for status, _ in plan.missing.values())
        counts["contributed"] += len(plan.tasks)
    total = sum(counts.values())
    assert counts["unavailable"] / total == pytest.approx(0.2, abs=0.02)
    assert counts["dropped"] / total == pytest.approx(0.8 * 0.25, abs=0.02)


def test_partial_work_shortens_a_task():
    clock = Clock(Delay("constant", 1.0), partial=1.0, partial_low=0.25)
    (plan,) = plans(Synchronous(), people(50, clock), 1)
    fractions = [t.fraction for t in plan.tasks]
    assert 0.25 <= min(fractions) < 0.35
    assert plan.clock == max(fractions)


def test_traces_come_from_files(tmp_path):
    durations = tmp_path / "durations.csv"
    durations.write_text("client,seconds\nc0000,2\nc0001,5\nc0000,3\n")
    spans = tmp_path / "spans.csv"
    spans.write_text("client,start,end\nc0000,0,10\nc0001,4,10\n")
    clock = Clock(
        Delay("trace", trace=read_seconds(durations)),
        Availability(intervals=read_intervals(spans)),
    )
    first, second = plans(Synchronous(), people(2, clock), 2)
    assert list(first.missing) == ["c0001"]
    assert first.clock == 2.0
    assert list(second.missing) == ["c0001"]
    assert second.clock == 5.0


@pytest.mark.parametrize(
    "text", ["client\nx\n", "client,seconds\nx,soon\n", "client,seconds\nx,-1\n"]
)
def test_a_broken_trace_names_its_line(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"t\.csv"):
        read_seconds(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_seconds(tmp_path / "none.csv")


def test_cohorts_are_drawn_from_their_seed():
    clients = [f"c{i}" for i in range(50)]
    weights = {"c1": 5.0, "c2": 1.0, "c3": 1.0}
    for rule in (
        Cohort("uniform", 5),
        Cohort("poisson", rate=0.2),
        Cohort("weighted", 2, weights=weights),
    ):
        a, b = (rule.draw(clients, Seed(1) / "round" / 3) for _ in range(2))
        assert a == b
        assert len(set(a)) == len(a)
        assert rule.draw(clients, Seed(2) / "round" / 3) != a or rule.kind == "weighted"
    hits: Counter[str] = Counter()
    for r in range(2000):
        hits.update(Cohort("weighted", 1, weights=weights).draw(clients, Seed(0) / r))
    assert hits["c1"] / 2000 == pytest.approx(5 / 7, abs=0.04)
    assert set(hits) == {"c1", "c2", "c3"}
    sizes = [len(Cohort("poisson", rate=0.2).draw(clients, Seed(0) / r)) for r in range(500)]
    assert np.mean(sizes) == pytest.approx(10, abs=0.5)
    assert np.var(sizes) == pytest.approx(8, rel=0.25)


def test_a_poisson_cohort_is_as_large_as_coins_make_it_and_favours_nobody():
    clients = [f"c{i}" for i in range(20)]
    rule, hits = Cohort("poisson", rate=0.3), Counter[str]()
    pairs = 0
    for r in range(4000):
        drawn = rule.draw(clients, Seed(0) / r)
        assert list(drawn) == sorted(drawn, key=clients.index)
        hits.update(drawn)
        pairs += {"c3", "c11"} <= set(drawn)
    assert all(abs(hits[c] / 4000 - 0.3) < 0.03 for c in clients)
    assert pairs / 4000 == pytest.approx(0.09, abs=0.02)  # independent: .3 * .3
    assert rule.draw(clients, Seed(0)) != clients
    assert Cohort("poisson", rate=1.0).draw(clients, Seed(0)) == tuple(clients)


def test_idle_clients_are_dispatched_uniformly():
    rule = Asynchronous(buffer=1, concurrency=3)
    starts: Counter[str] = Counter()
    for seed in range(400):
        population = Population([f"c{i}" for i in range(9)], lambda _: 1, Seed(seed), Clock())
        plan, _ = rule.plan(Pace(), 0, population, lambda tau: 1.0)
        assert len(set(plan.invited)) == len(plan.invited)
        starts.update(plan.invited[:3])
    assert all(abs(n / 400 - 3 / 9) < 0.09 for n in starts.values())
    assert len(starts) == 9


def test_rows_are_counted_only_where_they_matter():
    def never(client):
        raise AssertionError(client)

    names = [f"c{i}" for i in range(5)]
    for schedule in (Synchronous(), Asynchronous(buffer=2)):
        population = Population(names, never, Seed(5), Clock(Delay("exponential", 1.0)))
        assert plans(schedule, population, 2)
    per_row = Population(
        names, lambda _: 7, Seed(5), Clock(Delay("constant", 2.0, per_example=True))
    )
    assert plans(Synchronous(), per_row, 1)[0].clock == 14.0


def test_impossible_schedules_are_refused_with_every_fault():
    with pytest.raises(JobError, match="cohort of 20 from a federation of 5"):
        check_schedule(Synchronous(Cohort("uniform", 20)), 5)
    with pytest.raises(JobError, match=r"quorum 9.*"):
        check_schedule(Synchronous(quorum=9), 5)
    with pytest.raises(JobError, match=r"quorum: 2\.5 is neither a whole number"):
        Synchronous(quorum=2.5)
    with pytest.raises(JobError, match="count twice"):
        check_schedule(Asynchronous(buffer=6), 5)
    with pytest.raises(JobError, match=r"scale.*sigma|2 faults"):
        Delay("constant", -1.0, math.nan)


def test_where_nobody_can_be_reached_time_goes_on_until_somebody_can():
    spans = {"c0000": ((0.0, 2.0), (50.0, 60.0)), "c0001": ((0.0, 2.0), (70.0, 80.0))}
    clock = Clock(Delay("constant", 1.5), Availability(intervals=spans))
    found = plans(Synchronous(), people(2, clock), 5)
    assert [len(plan.tasks) for plan in found] == [2, 2, 0, 1, 1]
    assert [plan.clock for plan in found] == [1.5, 3.0, 50.0, 51.5, 53.0]
    late = Availability(intervals={"c0000": ((0.0, 0.2), (0.9, 2.0))})  # 0.2 + (0.9 - 0.2) < 0.9
    found = plans(Synchronous(), people(1, Clock(Delay("constant", 0.2), late)), 3)
    assert [plan.clock for plan in found] == [0.2, 0.9, 0.9 + 0.2]


def test_when_nobody_will_ever_come_the_step_is_aborted():
    clock = Clock(Delay("constant", 1.0), Availability(intervals={}))
    (plan,) = plans(Asynchronous(), people(3, clock), 1)
    assert plan.abort
    (plan,) = plans(Synchronous(), people(3, clock), 1)
    assert plan.abort


def test_who_is_always_there_is_planned_like_one_whose_trace_says_so():
    always = {f"c{i:04d}": ((0.0, math.inf),) for i in range(9)}
    asked = Clock(Delay(scale=2.0), Availability(intervals=always))
    rule = Synchronous(Cohort("uniform", 3), over_selection=0.5, deadline=9.0)
    assert Clock(Delay(scale=2.0)).still
    assert not asked.still
    plans = [rule.plan(Pace(), 4, people(9, c), lambda t: 1.0) for c in (Clock(asked.delay), asked)]
    assert plans[0] == plans[1]
    assert len(plans[0][0].tasks) == 3
