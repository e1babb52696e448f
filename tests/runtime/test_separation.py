"""Clients that rest between their rounds: the sampler, its limits, and a run that was killed."""

from collections import Counter

import pytest
import runtime_clients as rc
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms import FedAvg
from atoll.core.errors import JobError
from atoll.core.seeds import Seed
from atoll.runtime import checkpoint
from atoll.runtime.clock import Availability, Clock
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Loop, Stop
from atoll.runtime.pace import Pace, Population
from atoll.runtime.schedule import Synchronous, Turns, check_schedule, turns_of
from atoll.runtime.serial import SerialExecutor

JOB = "cd" * 32


def invited(schedule, names, rounds, seed=5, pace=None):
    """Who is invited, round by round, and the schedule's memory after each of them."""
    people = Population(names, lambda _: 10, Seed(seed), Clock())
    pace, cohorts, paces = pace or Pace(), [], []
    for version in range(rounds):
        plan, pace = schedule.plan(pace, version, people, lambda tau: 1.0)
        cohorts.append(plan.invited)
        paces.append(pace)
    return cohorts, paces


def names(count):
    return [f"c{i:02d}" for i in range(count)]


@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_nobody_is_asked_twice_within_the_separation(data, size, apart, weighted):
    people = names(size * apart + data.draw(st.integers(0, 5)))
    weights = {name: 1.0 + i for i, name in enumerate(people)} if weighted else {}
    rule = Cohort("weighted" if weighted else "uniform", size, 1.0, weights, apart)
    schedule = Synchronous(rule)
    assert schedule.faults(len(people)) == []
    rounds = 3 * apart + 1
    cohorts, _ = invited(schedule, people, rounds)
    last, visits = {}, Counter()
    for number, cohort in enumerate(cohorts):
        assert len(set(cohort)) == size
        assert list(cohort) == sorted(cohort)
        for client in cohort:
            assert number - last.get(client, -apart) >= apart
            last[client] = number
            visits[client] += 1
    assert max(visits.values()) <= turns_of(schedule, rounds).visits


def test_everybody_who_has_rested_is_as_likely_as_any_other():
    schedule, people = Synchronous(Cohort("uniform", 3, separation=2)), names(12)
    second = Counter()
    for seed in range(600):
        first, then = invited(schedule, people, 2, seed)[0]
        second.update(then)
        assert not set(first) & set(then)
    # Each is in the first round with 1/4, and else in the second with 3 of 9: 1/4 again.
    assert all(abs(second[name] - 150) < 5 * (600 * 3 / 16) ** 0.5 for name in people)


def test_without_separation_cohorts_are_what_they_were():
    people = names(9)
    plain = Cohort("uniform", 4)
    assert invited(Synchronous(plain), people, 3)[1][-1].resting == ()
    assert plain.draw(people, Seed(1)) == Cohort("uniform", 4, separation=3).draw(people, Seed(1))


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (
            Synchronous(Cohort("uniform", 4, separation=3)),
            "4 clients a round, each at most once in 3 rounds, take 12 clients, and there are 10",
        ),
        (Synchronous(Cohort("uniform", 3, separation=3), 0.3), "take 12 clients"),
        (
            Synchronous(Cohort("weighted", 1, 1.0, {"c00": 1.0}, 2)),
            "take 2 clients, and there are 1",
        ),
        (Synchronous(Cohort(separation=2)), "fixed size, not 'all'"),
        (Synchronous(Cohort("poisson", rate=0.1, separation=2)), "fixed size, not 'poisson'"),
    ],
)
def test_a_federation_too_small_for_its_pauses_is_told_before_the_first_round(schedule, reason):
    with pytest.raises(JobError, match=reason):
        check_schedule(schedule, 10)


def test_too_few_who_have_rested_are_an_error_and_no_smaller_round():
    rule, people = Cohort("uniform", 2, separation=2), names(3)
    with pytest.raises(JobError, match="1 clients have rested for 1 rounds, and a round asks 2"):
        rule.draw(people, Seed(0), resting=["c00", "c02"])
    weighted = Cohort("weighted", 1, 1.0, {"c00": 1.0}, 2)
    with pytest.raises(JobError, match="0 clients have rested"):
        weighted.draw(people, Seed(0), resting=["c00"])


def test_a_schedule_read_back_from_a_file_asks_the_same_clients():
    schedule, people = Synchronous(Cohort("uniform", 2, separation=4), 0.5), names(13)
    whole, paces = invited(schedule, people, 9)
    for at in range(9):
        pace = Pace.from_plain(paces[at].to_plain())
        assert pace == paces[at]
        assert invited(schedule, people, 8 - at, pace=pace)[0] == whole[at + 1 :]


def test_files_from_before_there_were_pauses_are_read():
    plain = Pace(attempts=3).to_plain()
    del plain["resting"]
    assert Pace.from_plain(plain) == Pace(attempts=3)


@pytest.mark.parametrize(
    ("rounds", "apart", "visits"), [(10, 4, 3), (8, 4, 2), (1, 4, 1), (9, 1, 9)]
)
def test_a_client_is_in_one_round_of_each_stretch(rounds, apart, visits):
    schedule = Synchronous(Cohort("uniform", 1, separation=apart))
    assert turns_of(schedule, rounds) == Turns(rounds, visits, apart)


def test_a_run_killed_at_any_round_goes_on_with_the_same_cohorts_to_the_same_bits(tmp_path):
    """Half the clients cannot be reached, so some rounds are aborted: these count as rest, too."""
    schedule = Synchronous(Cohort("uniform", 2, separation=3), quorum=2)
    parts, rows, files = rc.parts(FedAvg()), [], []

    def loop(into, save=lambda progress: None):
        clock = Clock(availability=Availability(0.6))
        serial = SerialExecutor(parts)
        observers = [lambda record: into.append((record["invited"], record["model_hash"]))]
        return Loop(
            parts,
            serial,
            schedule=schedule,
            clock=clock,
            stop=Stop(10, max_aborts=20),
            observers=observers,
            save=save,
        )

    def save(progress):
        files.append(checkpoint.write(tmp_path / str(progress.rounds), progress, JOB, {}))

    whole = loop(rows, save).run().progress
    assert 0 < whole.state.round < 10
    for at, file in enumerate(files, start=1):
        again = []
        loop(again).run(checkpoint.read(file, JOB)[0])
        assert again == rows[at:]
    for near in zip(rows, rows[1:], rows[2:], strict=False):
        asked = [client for cohort, _ in near for client in cohort]
        assert len(asked) == len(set(asked))
