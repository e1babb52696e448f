"""The round loop: aborts, stopping, evaluation, records, and clients that fail."""

import dataclasses
import math

import numpy as np
import pytest
import runtime_clients as rc

from atoll.aggregation.exact import Fold
from atoll.algorithms import ALGORITHMS, FedAsync, FedAvg, Scaffold
from atoll.core.contracts import Outcome, Task
from atoll.core.errors import ClientError, JobError, QuorumError, UpdateRefused
from atoll.core.local import LocalWork
from atoll.core.metrics import Mean
from atoll.core.values import Aggregate
from atoll.runtime.aborts import told_of, way_out
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.client import answer_task, fold_task
from atoll.runtime.clock import Availability, Clock, Delay
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Evaluate, Evaluation, Loop, Next, Stop, Train
from atoll.runtime.schedule import Asynchronous, Synchronous
from atoll.runtime.serial import SerialExecutor

NAMES = list(rc.SIZES)


class Scripted:
    """An executor whose federated loss follows a script and whose updates move nothing."""

    def __init__(self, parts, losses=(), refuse=lambda call: False):
        self.size = parts.trainer.layout.shared.stop
        self.losses, self.refuse = list(losses), refuse
        self.calls, self.evaluations, self.seen = 0, 0, []

    def run(self, tasks, broadcasts, memories):
        self.calls += 1
        self.seen.append(tasks)
        zero = np.zeros(self.size)
        if self.refuse(self.calls):
            outcomes = [Outcome(t.client, "refused", reason="scripted") for t in tasks]
            changed = {t.client: {"control": zero + 9} for t in tasks}
            return Aggregate({}, 0.0, 0.0, 0, 0), outcomes, changed
        outcomes = [Outcome(t.client, "contributed", 1) for t in tasks]
        n = len(tasks)
        return Aggregate({"delta": zero + n}, float(n), float(n), n, n), outcomes, {}

    def evaluate(self, parameters, clients, memories):
        self.evaluations += 1
        return {clients[0]: {"loss": Mean.of(self.losses[self.evaluations - 1], 1)}}

    def close(self):
        pass


def scripted(losses, stop, *, every=1, refuse=lambda call: False, clock=None):
    parts = rc.parts(FedAvg())
    executor = Scripted(parts, losses, refuse)
    rows = []
    loop = Loop(
        parts,
        executor,
        clock=clock or Clock(),
        evaluation=Evaluation(every, None, True),
        stop=stop,
        observers=[rows.append],
    )
    return loop.run(), rows, executor


def serial(parts, **options):
    rows, saved = [], []
    loop = Loop(parts, SerialExecutor(parts), observers=[rows.append], save=saved.append, **options)
    try:
        loop.run()
    except (ClientError, QuorumError) as error:
        return rows, saved, error
    return rows, saved, None


def test_patience_counts_evaluations_without_improvement_and_the_best_model_is_kept():
    losses = [3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 1.7, 0.1]
    end, rows, _ = scripted(losses, Stop(20, "federated.loss", patience=3))
    assert end.status == "stopped early: federated.loss has not improved for 3 evaluations"
    assert len(rows) == 7
    best = end.progress.best
    assert (best.round, best.value) == (4, 1.5)
    assert model_hash(best.parameters) == rows[3]["model_hash"] != rows[4]["model_hash"]


def test_a_gain_below_min_delta_is_no_improvement_but_reaching_the_target_counts():
    stop = Stop(20, "federated.loss", patience=2, min_delta=0.5)
    end, rows, _ = scripted([3.0, 2.6, 2.2, 2.1, 1.9, 0.0], stop)
    assert len(rows) == 5
    assert end.progress.best.value == 2.2
    stop = Stop(20, "federated.loss", min_delta=0.5, target=2.0)
    end, rows, _ = scripted([3.0, 2.2, 2.1, 2.0, 0.0], stop)
    assert end.status == "stopped early: federated.loss reached 2"
    assert (len(rows), end.progress.best.round) == (4, 4)


def test_for_scores_higher_is_better():
    stop = Stop(metric="central.accuracy", target=0.9)
    assert stop.better(0.8, 0.7)
    assert not stop.better(0.7, 0.7)
    assert stop.reached(0.9)
    assert not stop.reached(0.89)
    for name in ("loss", "mse", "mae", "rmse", "log_loss", "worst_error", "Brier"):
        assert Stop(metric=f"federated.{name}").better(0.7, 0.8)


def test_a_metric_that_is_not_a_number_is_never_the_best():
    end, _, _ = scripted([math.nan, 2.0, math.nan, 3.0], Stop(4, "federated.loss", target=0.0))
    assert end.status == "completed"
    assert (end.progress.best.round, end.progress.best.value) == (2, 2.0)


def test_evaluation_happens_every_n_rounds_and_after_the_last():
    _, rows, executor = scripted([1.0] * 9, Stop(8), every=3)
    assert [r["round"] for r in rows if r["federated"]] == [3, 6, 8]
    assert executor.evaluations == 3
    _, rows, executor = scripted([], Stop(5), every=0)
    assert all(r["federated"] is r["central"] is r["sites"] is None for r in rows)
    second = Clock(Delay("constant", 1.0))
    end, rows, _ = scripted([1.0] * 9, Stop(50, seconds=5.0), every=3, clock=second)
    assert end.status == "stopped early: 5 virtual seconds are over"
    assert [r["round"] for r in rows if r["federated"]] == [3, 5]
    assert [r["clock"] for r in rows] == [1.0, 2.0, 3.0, 4.0, 5.0]


class Purse:
    """Pays for so many rounds."""

    attempts = False

    def __init__(self, rounds):
        self.rounds = rounds

    def spent(self, rounds):
        return {}

    def over(self, rounds):
        return "the purse is empty" if rounds >= self.rounds else ""


def test_a_run_that_can_pay_for_no_further_round_evaluates_its_last_model():
    parts = rc.parts(FedAvg())
    parts = dataclasses.replace(parts, chain=dataclasses.replace(parts.chain, account=Purse(4)))
    rows, _, error = serial(parts, evaluation=Evaluation(3, None, True), stop=Stop(8))
    assert error is None
    assert [r["round"] for r in rows if r["federated"]] == [3, 4]
    assert len(rows) == 4


def test_the_coordinator_evaluates_on_rows_of_its_own():
    parts = rc.parts(FedAvg(), held_out=False)
    parts = dataclasses.replace(parts, trainer=parts.trainer.inner)
    parts = dataclasses.replace(parts, trainer=dataclasses.replace(parts.trainer, personal=()))
    central = rc.rows(50, 9)
    rows, saved, _ = serial(parts, evaluation=Evaluation(1, central), stop=Stop(2))
    assert parts.trainer.layout.shared.stop == 4
    found = parts.trainer.evaluate(saved[-1].state.parameters, central)
    assert rows[-1]["central"]["loss"] == found["loss"].value
    assert rows[-1]["federated"] is None


def test_the_coordinator_fills_personal_entries_with_their_initial_values():
    parts, central = rc.parts(FedAvg()), rc.rows(50, 9)
    rows, saved, _ = serial(parts, evaluation=Evaluation(1, central), stop=Stop(2))
    own = parts.trainer.initial(parts.seed / "initial")[3:]
    whole = np.concatenate([saved[-1].state.parameters, own])
    assert rows[-1]["central"]["loss"] == parts.trainer.evaluate(whole, central)["loss"].value


def test_aborted_rounds_change_nothing_and_do_not_wear_out_patience():
    stop = Stop(8, "federated.loss", patience=3)
    end, rows, executor = scripted([1.0] + [2.0] * 7, stop, refuse=lambda call: 2 <= call <= 6)
    assert [r["committed"] for r in rows] == [True] + [False] * 5 + [True] * 2
    assert {r["reason"] for r in rows[1:6]} == {"0 of 10 updates were usable; quorum 1"}
    assert {r["model_hash"] for r in rows[:6]} == {rows[0]["model_hash"]}
    assert [r["version"] for r in rows] == [1, 1, 1, 1, 1, 1, 2, 3]
    assert all(r["missing"] == dict.fromkeys(NAMES, "refused: scripted") for r in rows[1:6])
    assert all(r["contributed"] == {} for r in rows[1:6])
    assert end.progress.memories == {}
    assert (end.progress.aborted, end.progress.waiting) == (0, 2)
    # An attempt more from the same version is another random stream.
    assert [tasks[0].repeat for tasks in executor.seen] == [0, 0, 1, 2, 3, 4, 5, 0]
    assert [tasks[0].version for tasks in executor.seen] == [0, 1, 1, 1, 1, 1, 1, 2]


def test_too_many_aborts_in_a_row_end_the_run():
    with pytest.raises(QuorumError, match="3 rounds in a row") as caught:
        scripted([1.0] * 20, Stop(20, max_aborts=3), refuse=lambda call: call % 4 != 1)
    assert "lower the learning rate" in caught.value.remedy
    assert "scale_target" in caught.value.remedy
    last = {
        "missing": {"ulm": "refused: at ulm: its rule\n  next: ask for masks"},
        "reason": "0 of 1",
    }
    assert told_of(last) == "; the last: 0 of 1 (ulm refused: its rule)"
    assert way_out(last) == "ask for masks"
    gone = {"missing": {"ulm": "dropped: no word"}}
    assert "quorum" in way_out(gone)
    assert "start it again" in way_out(gone, everybody=True)
    broken = {"missing": {"ulm": "failed: ValueError (mine.py:5 in fit)"}}
    assert "mend the job's code" in way_out(broken, everybody=True)
    assert "quorum" in way_out({"missing": {**gone["missing"], "bern": "failed: ValueError"}})
    end, rows, _ = scripted([1.0] * 20, Stop(12, max_aborts=3), refuse=lambda call: call % 3 != 1)
    assert end.status == "completed"
    assert sum(r["committed"] for r in rows) == 4


def test_a_quorum_that_time_denies_ends_the_run_too():
    parts = rc.parts(Scaffold())
    clock = Clock(Delay("constant", 1.0), Availability(0.5))
    rows, saved, error = serial(
        parts, schedule=Synchronous(quorum=10), clock=clock, stop=Stop(50, max_aborts=4)
    )
    assert isinstance(error, QuorumError)
    assert len(rows) == 4
    assert all("quorum 10" in r["reason"] for r in rows)
    assert saved[-1].state.round == 0
    assert not saved[-1].memories
    assert saved[-1].aborted == 4


@pytest.mark.parametrize("name", ALGORITHMS)
def test_when_every_client_fails_the_first_is_named(name):
    clients = rc.federation(rc.SIZES, dict.fromkeys(rc.SIZES, rc.RAISES))
    rows, saved, error = serial(rc.parts(ALGORITHMS[name](), clients), stop=Stop(3))
    assert isinstance(error, ClientError)
    assert error.site == "c0"
    assert "all 10 clients of the round failed; the first: ValueError: this client is out" in str(
        error
    )
    assert "runtime_clients.py" in str(error)
    assert not rows
    assert not saved


def test_one_failing_client_does_not_end_an_asynchronous_run():
    clients = rc.federation(rc.SIZES, {"c4": rc.RAISES})
    clock = Clock(Delay("constant", 1.0))
    rows, _, error = serial(
        rc.parts(FedAsync(), clients),
        schedule=Asynchronous(),
        clock=clock,
        stop=Stop(25, max_aborts=2),
    )
    assert error is None
    aborted = [r for r in rows if not r["committed"]]
    assert [r["round"] for r in aborted] == [5, 15, 25]  # the fifth of ten, wave after wave
    assert all(r["reason"].startswith("c4 failed: ValueError") for r in aborted)
    alone = rc.parts(FedAsync(), rc.federation({"c4": 5}, {"c4": rc.RAISES}))
    _, _, error = serial(alone, schedule=Asynchronous(), stop=Stop(5))
    assert isinstance(error, ClientError)


def test_a_round_goes_on_without_the_bad_and_names_them():
    moods = {"c1": rc.RAISES, "c2": rc.WILD}
    parts = rc.parts(Scaffold(), rc.federation(rc.SIZES, moods), scale=np.nan)
    rows, saved, error = serial(parts, stop=Stop(2), schedule=Synchronous(quorum=8))
    assert error is None
    for row in rows:
        assert set(row["missing"]) == {"c1", "c2"}
        assert row["missing"]["c1"].startswith("failed: ValueError: this client is out of luck (")
        assert "not finite" in row["missing"]["c2"]
        assert row["contributed"] == {c: n for c, n in rc.SIZES.items() if c not in moods}
    assert set(saved[-1].memories) == set(rc.SIZES) - set(moods)
    _, _, error = serial(parts, stop=Stop(20, max_aborts=2), schedule=Synchronous(quorum=9))
    assert isinstance(error, QuorumError)


def test_a_record_holds_what_the_reference_says():
    parts = rc.parts(FedAvg())
    clock = Clock(Delay("constant", 2.0), dropout=0.4)
    rows, saved, _ = serial(
        parts,
        schedule=Synchronous(Cohort("uniform", 6)),
        clock=clock,
        evaluation=Evaluation(2, rc.rows(9, 4), False),
        stop=Stop(4),
    )
    for number, (row, progress) in enumerate(zip(rows, saved, strict=True), start=1):
        assert row.keys() == {
            *("round", "version", "clock", "seconds", "committed", "reason", "invited"),
            *("contributed", "missing", "staleness", "model_hash", "train", "central"),
            *("federated", "sites"),
        }
        assert (row["round"], row["version"]) == (number, progress.state.round)
        assert len(row["invited"]) == 6
        assert set(row["contributed"]) | set(row["missing"]) == set(row["invited"])
        assert not set(row["contributed"]) & set(row["missing"])
        assert row["model_hash"] == model_hash(progress.state.parameters)
        assert row["seconds"] > 0
        assert row["train"]["loss"] > 0
        assert (row["central"] is None) == bool(number % 2)
    assert rows[-1]["clock"] == saved[-1].pace.clock == 8.0
    assert saved[-1].seconds == pytest.approx(sum(r["seconds"] for r in rows))


def test_an_interruption_ends_the_run_after_the_round_in_flight():
    answers = iter([False, False, True])
    parts = rc.parts(FedAvg())
    saved = []
    end = Loop(
        parts,
        SerialExecutor(parts),
        stop=Stop(9),
        save=saved.append,
        interrupted=lambda: next(answers),
    ).run()
    assert (end.status, end.progress.rounds) == ("interrupted", 3)
    assert saved[-1] is end.progress
    end = Loop(parts, SerialExecutor(parts), stop=Stop(1), interrupted=lambda: True).run()
    assert end.status == "completed"


def test_an_impossible_schedule_is_refused_before_the_first_round():
    parts = rc.parts(FedAvg())
    with pytest.raises(JobError, match="cohort of 11 from a federation of 10"):
        Loop(parts, SerialExecutor(parts), Synchronous(Cohort("uniform", 11))).run()


def drive(loop, executor, progress=None, *, deaf=(), calls=None):
    """Answer a loop's calls as an executor would; ``deaf`` clients do not answer evaluations."""
    steps, answer = loop.play(progress), None
    while True:
        try:
            call = steps.send(answer)
        except StopIteration as end:
            return end.value
        if calls is not None:
            calls.append(call)
        if isinstance(call, Next):
            answer = call.planned()
        elif isinstance(call, Train):
            answer = executor.run(call.tasks, call.broadcasts, call.memories)
        else:
            asked = [c for c in call.clients if c not in deaf]
            answer = executor.evaluate(call.broadcast, asked, call.memories)


def looped(parts, **options):
    rows, saved = [], []
    loop = Loop(
        parts,
        evaluation=Evaluation(1, None, True),
        observers=[rows.append],
        save=saved.append,
        **options,
    )
    return loop, rows, saved


def test_whoever_answers_the_calls_the_run_is_the_same():
    parts, clock = rc.parts(Scaffold()), Clock(Delay("exponential", 1.0), dropout=0.2)
    for schedule in (Synchronous(Cohort("uniform", 4)), Asynchronous(buffer=3)):
        options = {"schedule": schedule, "clock": clock, "stop": Stop(4)}
        loop, rows, _ = looped(parts, **options)
        calls = []
        end = drive(loop, SerialExecutor(parts), calls=calls)
        kinds = [type(c) for c in calls]
        assert kinds == [Next, Train, Evaluate] * 4
        assert [c.number for c in calls] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
        loop, again, _ = looped(parts, **options)
        loop = dataclasses.replace(loop, executor=SerialExecutor(parts))
        assert model_hash(loop.run().progress.state.parameters) == rows[-1]["model_hash"]
        for row, other in zip(rows, again, strict=True):
            assert {**row, "seconds": 0} == {**other, "seconds": 0}
        assert end.status == "completed"


def test_a_run_that_goes_on_from_any_save_makes_the_same_calls_and_ends_in_the_same_bits():
    parts = rc.parts(Scaffold())
    loop, rows, saved = looped(parts, schedule=Asynchronous(buffer=3), stop=Stop(4))
    calls = []
    drive(loop, SerialExecutor(parts), calls=calls)
    for ended, progress in enumerate(saved, start=1):
        loop, after, _ = looped(parts, schedule=Asynchronous(buffer=3), stop=Stop(4))
        resumed = []
        drive(loop, SerialExecutor(parts), progress, calls=resumed)
        assert [r["model_hash"] for r in after] == [r["model_hash"] for r in rows[ended:]]
        wanted = [c.tasks for c in calls[3 * ended :] if isinstance(c, Train)]
        assert [c.tasks for c in resumed if isinstance(c, Train)] == wanted


def test_a_client_that_does_not_answer_an_evaluation_is_shown_without_figures():
    parts = rc.parts(FedAvg())
    loop, rows, _ = looped(parts, stop=Stop(1))
    drive(loop, SerialExecutor(parts), deaf=("c1", "c2"))
    assert rows[0]["sites"]["c1"] == rows[0]["sites"]["c2"] == {}
    assert list(rows[0]["sites"]) == NAMES
    others = [c for c in NAMES if c not in ("c1", "c2")]
    loop, alone, _ = looped(
        dataclasses.replace(parts, held_out={c: parts.held_out[c] for c in others}), stop=Stop(1)
    )
    drive(loop, SerialExecutor(parts))
    assert rows[0]["federated"] == alone[0]["federated"]
    loop, none, _ = looped(parts, stop=Stop(1))
    assert drive(loop, SerialExecutor(parts), deaf=NAMES).status == "completed"
    assert none[0]["federated"] is None


def test_a_run_without_executor_says_who_must_drive_it():
    with pytest.raises(JobError, match="no executor"):
        Loop(rc.parts(FedAvg())).run()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_answer_folded_elsewhere_is_what_an_executor_folds(name):
    """What a node sends and its server folds: the bits of a task run in one place."""
    parts = rc.parts(ALGORITHMS[name]())
    start = Loop(parts).start().state
    steps = Loop(parts).play()
    call = steps.send(None)
    plan, pace = call.planned()
    tasks = plan.tasks
    broadcasts = steps.send((plan, pace)).broadcasts
    here, there = Fold(len(tasks)), Fold(len(tasks))
    for task in tasks:
        outcome, kept = fold_task(parts, task, broadcasts[0], {}, here)
        update, memory = answer_task(parts, task, broadcasts[0], {})
        there.add(update, task.scale)
        assert outcome.examples == update.examples
        assert {n: v.tobytes() for n, v in (kept or {}).items()} == {
            n: v.tobytes() for n, v in memory.items()
        }
    ends = [parts.algorithm.server(start, f.aggregate()).parameters for f in (here, there)]
    assert ends[0].tobytes() == ends[1].tobytes()


def test_a_memory_that_is_not_finite_is_refused_before_it_is_sent():
    parts = rc.parts(Scaffold(), rc.federation(rc.SIZES, {"c2": rc.WILD}), scale=np.nan)
    steps = Loop(parts).play()
    plan, pace = steps.send(None).planned()
    broadcast = steps.send((plan, pace)).broadcasts[0]
    with pytest.raises(UpdateRefused, match="is not finite"):
        answer_task(parts, plan.tasks[2], broadcast, {})


def test_a_share_of_local_work_is_not_checked_again(monkeypatch):
    """It was, by every client that does a part of its work: longer than a step of a small model."""
    clients = rc.federation(rc.SIZES)
    made = dataclasses.replace(rc.parts(FedAvg(), clients), local=LocalWork(epochs=2.0, steps=5))
    monkeypatch.setattr(LocalWork, "__post_init__", lambda self: pytest.fail("checked again"))
    share = made.work(Task("c1", 0, fraction=0.5)).local
    assert (share.epochs, share.steps, share.batch_size) == (1.0, 2, made.local.batch_size)
    assert made.work(Task("c1", 0, fraction=0.01)).local.steps == 1
