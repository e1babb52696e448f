"""Figures of held-out rows with noise are paid for at the site, one evaluation at a time, whoever asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_federation import job_tables
from journals import KEY

from atoll.core.errors import PolicyError, StateError
from atoll.job.load import parse_job
from atoll.node.home import Home
from atoll.node.policy.budgets import Budgets
from atoll.node.policy.ledger import Limit, composed_epsilon
from atoll.node.policy.ledger_file import Ledger
from atoll.node.policy.pricing import Facts, price
from atoll.node.policy.steward import Asked, Steward, charged
from atoll.node.settings import Policy
from atoll.node.spool import Spool
from atoll.privacy.dp.events import Gaussian, to_plain
from atoll.wire.frames import encode
from atoll.wire.messages import BlobRef, ResultBody, TaskBody

Z = 8.0
EVALUATED = to_plain(Gaussian(Z, 1.0, 1))


MASKED = {
    "aggregation": "masked",
    "record": {"noise_multiplier": 2.0},
    "metrics": {"noise_multiplier": Z},
}


def spec(**metrics: Any) -> Any:
    privacy = {"record": {"noise_multiplier": 2.0}, "metrics": {"noise_multiplier": Z, **metrics}}
    return parse_job(job_tables(privacy=privacy, algorithm={"name": "fedavg"}))


def task(number: int = 1, kind: str = "evaluate", model: str = "-c0ffee12") -> TaskBody:
    plan = BlobRef(sha256="0" * 64, size=1)
    name = f"r1.{kind}.{number}{model if kind == 'evaluate' else ''}.east"
    return TaskBody(id=name, run="r1", kind=kind, number=number, client="east", plan=plan)  # type: ignore[arg-type]


class Place:
    def __init__(self, folder: Path, policy: Policy | None = None, limit: float = 0.0) -> None:
        self.home, self.policy = Home(folder), policy or Policy()
        self.home.make()
        if limit:
            Budgets(self.home.budgets).set(Limit("heart", limit, 1e-5))
        self.asked = Asked(spec(), "heart", "ana")
        self.start()

    def start(self) -> None:
        """The node starts, with what its disk holds."""
        self.ledger = Ledger(self.home.ledger, KEY)
        self.steward = Steward(self.home, self.policy, self.ledger)
        self.spool = Spool(self.home.spool)

    def prepared(self) -> None:
        self.steward.admit(task(0, "ready"), self.asked)
        done = ResultBody(task="t", status="done", answer={"rows": 50})
        self.steward.note(task(0, "ready"), done)

    def answered(self, of: TaskBody) -> None:
        body = ResultBody(task=of.id, status="done").model_dump()
        raw = encode(body, {"figure": np.array([0.5])})
        self.steward.leaving(self.spool.finish("r1", of.id, raw))


def spent(place: Place) -> list[tuple[str, str]]:
    return [(e.charge.task, e.state) for e in place.ledger.entries]


def test_what_rounds_cost_is_told_by_the_plan_by_which_the_site_made_itself_ready(
    tmp_path: Path,
) -> None:
    """By another plan it may train on fewer rows, each of which is in more steps then."""
    place = Place(tmp_path)
    place.prepared()
    other = BlobRef(sha256="1" * 64, size=1)
    for _ in range(2):
        with pytest.raises(PolicyError, match="has not prepared the run"):
            place.steward.admit(task(0, "train").model_copy(update={"plan": other}), place.asked)
        place.start()
    assert spent(place) == []
    again = task(0, "ready").model_copy(update={"plan": other})
    place.steward.note(again, ResultBody(task="t", status="done", answer={"rows": 5}))
    with pytest.raises(PolicyError, match="has not prepared the run"):
        place.steward.admit(task(0, "train"), place.asked)
    place.steward.admit(task(0, "train").model_copy(update={"plan": other}), place.asked)
    (sampled,) = place.ledger.entries[0].charge.events
    assert sampled == (price(spec(), Facts(rows=5))[0].events or ())[0]


def test_one_evaluation_is_one_event_of_the_job_s_noise() -> None:
    (cost,) = price(spec(), Facts(rows=50))
    assert cost.figures == (EVALUATED,)
    assert len(cost.events or ()) == 1
    assert cost.events != cost.figures


def test_an_evaluation_is_reserved_counted_and_settled_beside_its_round(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.prepared()
    place.steward.admit(task(0, "train"), place.asked)
    place.steward.admit(task(1), place.asked)
    assert spent(place) == [("r1.train.0.east", "reserved"), ("r1.evaluate.1.east", "reserved")]
    assert place.ledger.entries[1].charge.events == (EVALUATED,)
    place.answered(task(1))
    assert spent(place)[1] == ("r1.evaluate.1.east", "released")
    place.steward.settle(task(1).id)
    assert spent(place)[1] == ("r1.evaluate.1.east", "settled")


def test_what_was_never_sent_is_given_back_and_what_was_is_kept_after_a_stop(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    place.prepared()
    for number in (1, 2):
        place.steward.admit(task(number), place.asked)
    place.answered(task(1))
    place.start()
    for number in (1, 2):
        place.steward.settle(task(number).id)
    assert [state for _, state in spent(place)] == ["settled", "returned"]
    place.answered(task(1))  # the same bytes again: nothing new is told
    with pytest.raises(StateError):
        place.steward.leave(charged(task(1)), "0" * 64)  # other figures of the same evaluation


def test_an_evaluation_that_was_kept_and_not_sent_when_the_node_died_is_sent_and_counted(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    place.prepared()
    place.steward.admit(task(1), place.asked)
    raw = encode(ResultBody(task=task(1).id, status="done").model_dump(), {})
    place.spool.finish("r1", task(1).id, raw)
    place.start()
    place.steward.begin({held.task for held in place.spool.results})
    assert spent(place) == [("r1.evaluate.1.east", "reserved")]
    (held,) = place.spool.results
    place.steward.leaving(held)
    assert spent(place) == [("r1.evaluate.1.east", "released")]


def test_an_evaluation_under_another_s_name_is_refused_before_any_work(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.prepared()
    for name in ("r1.evaluate.1-model.east", "r1.evaluate.2-c0ffee12.east", "r1.evaluate.1.west"):
        with pytest.raises(PolicyError, match="does not have the name"):
            place.steward.admit(task(1).model_copy(update={"id": name}), place.asked)
    assert spent(place) == []


def test_figures_under_masks_are_counted_by_what_is_hidden_and_then_leave(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.prepared()
    hidden = parse_job({**job_tables(algorithm={"name": "fedavg"}), "privacy": MASKED})
    place.asked = Asked(hidden, "heart", "ana", sites=6)
    body = task(1, model="-0-c0ffee12").model_copy(update={"about": "evaluate"})
    place.steward.admit(body, place.asked)
    place.steward.leave(charged(body), "a" * 64)  # of the integers
    place.answered(body)  # with masks on, under which they have another digest
    assert spent(place) == [("r1.evaluate.1.east", "released")]


def test_a_second_evaluation_of_a_round_with_another_model_is_refused(tmp_path: Path) -> None:
    """Else a server could ask as often as it likes, and average the noise away."""
    place = Place(tmp_path)
    place.prepared()
    place.steward.admit(task(1), place.asked)
    place.answered(task(1))
    with pytest.raises(PolicyError, match="would cost twice"):
        place.steward.admit(task(1, model="-beefcafe"), place.asked)


def test_a_site_s_limit_ends_evaluations_whatever_the_job_planned(tmp_path: Path) -> None:
    two = composed_epsilon([to_plain(Gaussian(Z, 1.0, 2))], 1e-5, "add_or_remove")
    place = Place(tmp_path, limit=two + 1e-6)
    place.prepared()
    for number in (1, 2):
        place.steward.admit(task(number), place.asked)
    with pytest.raises(PolicyError, match="left"):
        place.steward.admit(task(3), place.asked)


def test_more_evaluations_than_the_job_plans_are_refused_without_any_limit(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.prepared()
    for number in (1, 2, 3):
        place.steward.admit(task(number), place.asked)
    with pytest.raises(PolicyError, match="3 of 3 rounds"):
        place.steward.admit(task(4), place.asked)


def test_a_site_that_lets_no_open_figures_out_lets_these_out(tmp_path: Path) -> None:
    place = Place(tmp_path, Policy(private="all", open_figures=False))
    place.prepared()
    place.steward.admit(task(1), place.asked)
    bare = parse_job(
        job_tables(
            privacy={"record": {"noise_multiplier": 2.0, "open_metrics": True}},
            algorithm={"name": "fedavg"},
        )
    )
    with pytest.raises(PolicyError) as refused:
        place.steward.admit(task(2), Asked(bare, "heart", "ana"))
    assert "metrics of dataset" in str(refused.value)


def test_masked_and_plain_evaluations_are_charged_under_one_name() -> None:
    plain = task(3)
    masked = plain.model_copy(update={"id": "r1.evaluate.3-0-c0ffee12.east", "about": "evaluate"})
    step = masked.model_copy(update={"kind": "commit"})
    assert {charged(plain), charged(masked), charged(step)} == {"r1.evaluate.3.east"}
    assert charged(task(3, "train")) == "r1.train.3.east"
