"""A site's rules at the moments of a task: refused by name, paid for before, counted when it leaves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_federation as ff
import pytest
from journals import KEY

from atoll.core.errors import PolicyError, StateError, StorageError
from atoll.job.load import parse_job
from atoll.node.home import Home
from atoll.node.policy.budgets import Budgets
from atoll.node.policy.ledger import Limit
from atoll.node.policy.ledger_file import Ledger
from atoll.node.policy.pricing import Cost, Facts, price
from atoll.node.policy.steward import Asked, Steward, charged
from atoll.node.settings import Policy
from atoll.node.spool import Spool
from atoll.runtime.schedule import Turns
from atoll.wire.frames import encode
from atoll.wire.messages import BlobRef, ResultBody, TaskBody

ONE = ({"kind": "stated", "epsilon": 1.0, "delta": 0.0, "count": 1},)


def added(events: Any, delta: float, neighbouring: str) -> float:
    return float(sum(event["epsilon"] * event["count"] for event in events))


def spec(aggregation: str = "plain", job: str = "ab" * 32) -> Any:
    privacy = SimpleNamespace(aggregation=aggregation, client=None)
    return SimpleNamespace(privacy=privacy, hash=lambda: job)


def asked(job: Any = None, dataset: str = "heart", by: str = "ana") -> Asked:
    return Asked(job or spec(), dataset, by)


def task(number: int = 0, kind: str = "train", run: str = "r1", attempt: str = "") -> TaskBody:
    plan = BlobRef(sha256="0" * 64, size=1)
    name = f"{run}.{kind}.{number}{attempt}.east"
    return TaskBody(id=name, run=run, kind=kind, number=number, client="east", plan=plan)  # type: ignore[arg-type]


class Place:
    """A site's folder with a steward; ``cost`` is what a round of any job costs."""

    def __init__(self, folder: Path, policy: Policy | None = None, limit: float = 0.0) -> None:
        self.home = Home(folder)
        self.home.make()
        self.policy = policy or Policy()
        self.cost: list[Cost] = [Cost("record", ONE)]
        self.facts: list[Facts] = []
        if limit:
            Budgets(self.home.budgets).set(Limit("heart", limit, 1e-5))
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(self.home.ledger, KEY, epsilon=added)
        self.steward = Steward(self.home, self.policy, self.ledger, self.price)

    def price(self, spec: Any, facts: Facts) -> list[Cost]:
        self.facts.append(facts)
        return self.cost

    @property
    def states(self) -> list[str]:
        return [entry.state for entry in self.ledger.entries]


@pytest.mark.parametrize(
    "told", ['["r1"]', '{"r1": 5}', '{"r1": {"cells": 1}}', '{"r1": {"rows": "4"}}']
)
def test_damaged_facts_of_a_run_are_told_in_words(tmp_path: Path, told: str) -> None:
    place = Place(tmp_path)
    place.home.ledger.with_name("facts.json").write_text(told)
    with pytest.raises(StorageError, match=r"facts\.json is damaged"):
        place.start()


def test_a_round_is_paid_for_counted_and_closed(tmp_path: Path) -> None:
    place = Place(tmp_path, limit=2.0)
    for number in range(2):
        place.steward.admit(task(number), asked())
        place.steward.leave(charged(task(number)), "a" * 64)
        place.steward.settle(charged(task(number)))
    assert place.states == ["settled", "settled"]
    with pytest.raises(PolicyError, match=r"epsilon 0\.00 left of epsilon 2"):
        place.steward.admit(task(0, run="r2"), asked(by="ben"))
    with pytest.raises(PolicyError, match=r"epsilon 0\.00 left of epsilon 2"):
        place.steward.admit(task(0, kind="survey", run="r2"), asked(by="ben"))  # before any work
    place.steward.admit(task(0, run="r2"), asked(dataset="lung"))


def test_a_job_without_noise_is_refused_where_a_dataset_has_a_limit(tmp_path: Path) -> None:
    place = Place(tmp_path, limit=2.0)
    place.cost = []
    for kind in ("survey", "train", "evaluate"):
        with pytest.raises(PolicyError, match=r"policy\.private: dataset 'heart' \(epsilon 2 at"):
            place.steward.admit(task(kind=kind), asked())
    place.steward.admit(task(), asked(dataset="lung"))
    assert place.states == []


@pytest.mark.parametrize(
    ("private", "dataset", "refused"),
    [
        ("limited", "heart", True),
        ("limited", "lung", False),
        ("all", "lung", True),
        ("none", "heart", False),
    ],
)
def test_the_policy_says_which_datasets_want_noise(
    tmp_path: Path, private: Any, dataset: str, refused: bool
) -> None:
    place = Place(tmp_path, Policy(private=private), limit=2.0)
    place.cost = []
    if refused:
        with pytest.raises(PolicyError, match=r"policy\.private"):
            place.steward.admit(task(), asked(dataset=dataset))
    else:
        place.steward.admit(task(), asked(dataset=dataset))


def test_noise_that_the_server_adds_counts_only_where_the_policy_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path / "no", limit=2.0)
    place.cost = [Cost("site", ONE, at_server=True)]
    with pytest.raises(PolicyError, match=r"policy\.server_noise"):
        place.steward.admit(task(), asked())
    place = Place(tmp_path / "yes", Policy(server_noise=True), limit=2.0)
    place.cost = [Cost("site", ONE, at_server=True)]
    place.steward.admit(task(), asked())
    assert place.states == ["reserved"]


def test_updates_in_clear_are_refused_where_the_policy_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path, Policy(unmasked=False))
    for aggregation in ("plain", "quantised"):
        with pytest.raises(PolicyError, match=r"policy\.unmasked"):
            place.steward.admit(task(kind="survey"), asked(spec(aggregation)))
    with pytest.raises(
        PolicyError, match="encrypted, under a key that every site has, and not masked"
    ):
        place.steward.admit(task(kind="survey"), asked(spec("encrypted")))
    place.steward.admit(task(kind="survey"), asked(spec("masked")))


def test_a_job_that_begins_at_a_given_model_is_told_of_and_refused_where_the_policy_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = spec()
    job.model = SimpleNamespace(start="c" * 64)
    with caplog.at_level("INFO", logger="atoll.node"):
        Place(tmp_path / "yes").steward.admit(task(kind="survey"), asked(job))
    assert f"r1 of ana begins at a model that came with it, sha256 {'c' * 64}" in caplog.text
    place = Place(tmp_path / "no", Policy(starts=False))
    for kind in ("survey", "ready", "train", "evaluate"):
        with pytest.raises(PolicyError, match=r"policy\.starts.*c{64}"):
            place.steward.admit(task(kind=kind), asked(job))
    place.steward.admit(task(kind="survey", run="r2"), asked())


def test_all_tries_of_a_masked_round_are_one_release(tmp_path: Path) -> None:
    place = Place(tmp_path, limit=2.0)
    first, second = task(attempt=".0"), task(attempt=".1")
    assert first.id != second.id
    assert charged(first) == charged(second)
    for each in (first, second):
        place.steward.admit(each, asked(spec("masked")))
    place.steward.leave(charged(first), "a" * 64)
    place.steward.leave(charged(second), "a" * 64)  # the same integers under other masks
    with pytest.raises(StateError, match="another answer"):
        place.steward.leave(charged(second), "b" * 64)
    assert place.states == ["released"]


def test_a_task_under_another_s_name_is_refused_before_any_work(tmp_path: Path) -> None:
    """Its answer would leave as that of a task that nobody paid for, and the charge be given back."""
    place = Place(tmp_path, limit=2.0)
    for name in ("r1.train.7.east", "r1.survey.0.east", "r1.train.0.0.east", "x"):
        with pytest.raises(PolicyError, match="does not have the name"):
            place.steward.admit(task(0).model_copy(update={"id": name}), asked())
    assert place.states == []


def test_a_round_that_never_ended_is_given_back_when_the_next_one_begins(tmp_path: Path) -> None:
    place = Place(tmp_path, limit=2.0)
    for number in range(5):
        place.steward.admit(task(number), asked())
    assert place.states == ["returned"] * 4 + ["reserved"]
    place.steward.end("r1")
    assert place.states == ["returned"] * 5


def test_the_finest_unit_that_covers_every_limit_is_charged(tmp_path: Path) -> None:
    place = Place(tmp_path, limit=5.0)
    place.cost = [Cost("site", ONE), Cost("record", ONE)]
    place.steward.admit(task(0), asked())
    place.steward.leave(charged(task(0)), "a" * 64)
    Budgets(place.home.budgets).set(Limit("heart", 5.0, 1e-5, "person"))
    with pytest.raises(
        PolicyError, match="to infinity"
    ):  # a record's cost says nothing of a person
        place.steward.admit(task(1), asked())
    place.steward.admit(task(1), asked(dataset="lung"))
    assert [e.charge.unit for e in place.ledger.entries] == ["record", "record"]


def test_what_costs_depend_on_is_remembered_from_the_preparation_on(tmp_path: Path) -> None:
    place = Place(tmp_path)
    ready = task(kind="ready")
    answer = ResultBody(task=ready.id, status="done", answer={"rows": 120})
    place.cost, cost = [], place.cost
    place.steward.admit(ready, asked())
    place.steward.note(ready, answer, 17)  # of a job that costs nothing, nothing is kept
    assert not place.home.ledger.with_name("facts.json").exists()
    place.cost, place.facts = cost, []
    place.steward.admit(ready, asked())
    place.steward.note(ready, answer, 17)
    place.steward.note(task(), ResultBody(task=task().id, status="done", answer={"rows": 3}))
    place.start()
    place.steward.admit(task(), asked(), 6)
    place.steward.admit(task(run="r2"), asked())
    plan = "0" * 64
    assert place.facts == [Facts(plan=plan), Facts(120, 17, 6, plan), Facts(plan=plan)]
    place.steward.end("r1")
    place.start()
    place.steward.admit(task(1), asked())
    assert place.facts[-1] == Facts(plan=plan)


def test_figures_without_noise_do_not_leave_a_limited_dataset(tmp_path: Path) -> None:
    place = Place(tmp_path / "no", limit=2.0)
    for kind in ("sums", "evaluate"):
        with pytest.raises(PolicyError, match=r"policy\.open_figures"):
            place.steward.admit(task(kind=kind), asked())
        place.steward.admit(task(kind=kind), asked(dataset="lung"))
    for kind in ("survey", "ready"):
        place.steward.admit(task(kind=kind), asked())
    place = Place(tmp_path / "yes", Policy(open_figures=True), limit=2.0)
    place.steward.admit(task(kind="evaluate"), asked())
    assert place.states == []


def test_a_round_whose_cost_cannot_be_told_does_not_begin(tmp_path: Path) -> None:
    place = Place(tmp_path, limit=2.0)
    place.cost = [Cost("site", None)]
    place.steward.admit(task(kind="survey"), asked())
    with pytest.raises(PolicyError, match="cannot be told"):
        place.steward.admit(task(), asked())


@pytest.mark.parametrize(
    ("client", "facts", "unit", "kind", "at_server"),
    [
        ({"noise_multiplier": 2.0}, Facts(), "site", "gaussian", True),
        ({"noise_multiplier": 2.0, "mechanism": "tree"}, Facts(), "site", "matrix_gaussian", True),
        ({"noise_multiplier": 2.0, "where": "client"}, Facts(), "site", "gaussian", False),
        ({"noise_multiplier": 2.0, "where": "sites"}, Facts(), "site", None, False),
        (
            {"noise_multiplier": 2.0, "where": "sites"},
            Facts(values=10, cohort=6),
            "site",
            "skellam",
            False,
        ),
    ],
)
def test_a_job_s_noise_at_the_sites_has_a_price(
    client: dict[str, Any], facts: Facts, unit: str, kind: str | None, at_server: bool
) -> None:
    privacy = {"clip": 1.0, "client": client}
    if client.get("where") == "sites":
        privacy["aggregation"] = "masked"
    (cost,) = price(parse_job(ff.job_tables(privacy=privacy, algorithm={"name": "fedavg"})), facts)
    assert (cost.unit, cost.at_server) == (unit, at_server)
    assert (cost.events and cost.events[0]["kind"]) == kind
    assert price(parse_job(ff.job_tables()), facts) == []


RESTING = {"count": 9, "cohort": "uniform", "size": 1, "separation": 4}


def test_a_job_whose_sites_rest_says_so_in_its_price() -> None:
    banded = {"epsilon": 3.0, "mechanism": "banded"}
    tables = ff.job_tables(privacy={"clip": 1.0, "client": banded}, algorithm={"name": "fedavg"})
    (cost,) = price(parse_job({**tables, "rounds": RESTING}), Facts())
    assert cost.turns == Turns(rounds=9, visits=3, separation=4)
    event = (cost.events or ({},))[0]
    assert (event["participations"], event["separation"], event["bands"]) == (3, 4, 4)
    record = ff.job_tables(privacy={"record": {"epsilon": 3.0}}, algorithm={"name": "fedavg"})
    (rested,) = price(parse_job({**record, "rounds": RESTING}), Facts(rows=40))
    (each,) = price(parse_job({**record, "rounds": {"count": 3}}), Facts(rows=40))
    assert rested.events == each.events  # as much noise as for the three rounds it may be in
    assert (rested.turns, each.turns) == (Turns(9, 3, 4), Turns(3, 3, 1))


def test_a_server_that_asks_a_site_sooner_than_the_job_says_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, limit=100.0)
    place.cost = [Cost("record", ONE, turns=Turns(rounds=9, visits=3, separation=4))]
    place.steward.admit(task(1), asked())
    place.steward.leave(charged(task(1)), "a" * 64)
    with pytest.raises(PolicyError, match="3 of 9 rounds, 4 apart"):
        place.steward.admit(task(2), asked())
    place.start()  # nor after a restart
    with pytest.raises(PolicyError, match="4 apart"):
        place.steward.admit(task(4), asked())
    place.steward.admit(task(5), asked())


def test_a_round_of_dp_sgd_costs_as_many_steps_as_the_site_s_rows_make() -> None:
    record = {"noise_multiplier": 1.5, "clip": 1.0}
    spec = parse_job(ff.job_tables(privacy={"record": record}, algorithm={"name": "fedavg"}))
    (unknown,) = price(spec, Facts())
    assert (unknown.unit, unknown.events) == ("record", None)
    (cost,) = price(spec, Facts(rows=40))  # batches of 8: five steps an epoch
    assert cost.events == (
        {"kind": "gaussian", "noise_multiplier": 1.5, "sampling": 0.2, "count": 5},
    )
    assert not cost.at_server


def test_a_failure_costs_nothing_and_a_result_from_the_spool_is_counted_once(
    tmp_path: Path,
) -> None:
    place, spool = Place(tmp_path, limit=2.0), Spool(tmp_path / "spool")
    held = {}
    for number, status in enumerate(("failed", "done")):
        name = task(number).id
        body = ResultBody(task=name, status=status).model_dump()  # type: ignore[arg-type]
        place.steward.admit(task(number), asked())
        held[status] = spool.finish("r1", name, encode(body))
        for _ in range(2):
            place.steward.leaving(held[status])
    assert place.states == ["returned", "released"]
    place.start()
    place.steward.begin({h.task for h in held.values()})
    place.steward.leaving(held["done"])
    place.steward.leaving(held["failed"])
    assert place.states == ["returned", "released"]


def test_the_server_is_told_nothing_while_the_ledger_is_empty(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.steward.tell() == ""
    place.steward.admit(task(), asked())
    assert place.steward.tell() == str(place.ledger.head)
    place.steward.see(place.steward.tell())
    assert place.ledger.trouble == ""
