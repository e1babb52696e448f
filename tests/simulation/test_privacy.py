"""Private runs stop in time, their noise is the system's, and contradictions are told at once."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_clients as rc
from private_runs import CLIENTS, SIZES, by_row, job, moody, private, run

from atoll import simulate
from atoll.algorithms import FedAsync, FedAvg, FedBuff, FedNova
from atoll.core.contracts import Weighting
from atoll.core.errors import JobConflict
from atoll.core.metrics import RankedScores
from atoll.core.seeds import Seed
from atoll.core.values import Update
from atoll.job.privacy import ClientPrivacy, Privacy, RowPrivacy, with_chain
from atoll.privacy.dp import matrix, noise
from atoll.privacy.dp.accounting import epsilon
from atoll.privacy.dp.events import Gaussian
from atoll.runtime.clock import Clock
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Stop
from atoll.runtime.masked import MaskedExecutor
from atoll.runtime.schedule import Asynchronous, Synchronous


def test_a_run_stops_before_it_would_pass_its_epsilon_and_says_what_it_spent(
    tmp_path: Path,
) -> None:
    settings = {**private(noise_multiplier=8.0, epsilon=2.0), "stop": Stop(50)}
    made = run(out=tmp_path, **settings)
    spent = [entry["epsilon"] for entry in made.ledger]
    assert len(spent) == len(made.rounds) < 50
    assert spent == sorted(spent)
    assert spent[-1] <= 2.0
    assert "would pass epsilon 2" in made.status
    said = json.loads((tmp_path / "manifest.json").read_text())["privacy"]
    assert said["masking"].startswith("off")
    assert said["epsilon"] == spent[-1]
    assert (said["unit"], said["neighbouring"]) == ("site", "add_or_remove")
    assert "for one site (add or remove)" in said["differential privacy"]
    assert "for one site (add or remove)" in (tmp_path / "report.html").read_text()
    again = simulate(job(**settings), CLIENTS, out=tmp_path, resume=True)
    assert len(again.rounds) == len(made.rounds)


def test_calibrated_noise_is_spent_at_the_last_planned_round() -> None:
    made = run(**{**private(epsilon=5.0), "stop": Stop(6)})
    assert made.status == "completed"
    assert 4.9 < made.ledger[-1]["epsilon"] <= 5.0
    assert len(made.ledger) == 6


def test_an_aborted_round_costs_nothing() -> None:
    trainer, clients = moody(b=rc.RAISES, d=rc.RAISES)
    settings = private(noise_multiplier=5.0)
    quorum = Synchronous(quorum=4)
    made = simulate(job(trainer=trainer, schedule=quorum, stop=Stop(3), **settings), clients)
    assert [r["committed"] for r in made.rounds] == [True, False, False]
    assert len(made.ledger) == 1
    assert made.rounds[2]["privacy"]["epsilon"] == made.ledger[0]["epsilon"]


PAIRS = Synchronous(Cohort("uniform", 1, separation=4))
"""One of five clients a round, each at most in every fourth."""


@pytest.mark.parametrize("mechanism", ["gaussian", "tree", "banded", "blt"])
def test_clients_that_rest_need_less_noise_for_the_same_epsilon(mechanism: Any) -> None:
    settings = {**private(epsilon=5.0, mechanism=mechanism), "stop": Stop(9)}
    made = run(**settings, schedule=PAIRS)
    assert 4.9 < made.ledger[-1]["epsilon"] <= 5.0
    (event,) = made.ledger[-1]["events"]
    if mechanism == "gaussian":
        assert event["count"] == 3  # of nine rounds, one client is in three at most
    else:
        assert (event["rounds"], event["participations"], event["separation"]) == (9, 3, 4)
    if mechanism == "banded":
        assert event["bands"] == 4  # as many as there are rounds between two visits
    seen: dict[str, int] = {}
    for number, record in enumerate(made.rounds):
        (client,) = record["contributed"]
        assert number - seen.get(client, -4) >= 4
        seen[client] = number


@pytest.mark.parametrize("mechanism", ["tree", "banded", "blt"])
def test_what_is_kept_of_earlier_noise_survives_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: Any
) -> None:
    """With known draws the run that went on has the bits of the one that was never interrupted."""
    settings = {**private(noise_multiplier=2.0, mechanism=mechanism), "stop": Stop(9)}

    def made(out: Path, ends: tuple[int, ...]) -> Any:
        draws = iter(np.random.default_rng(3).normal(size=(9, 64)))

        def drawn(source: Any, size: int, sd: float) -> Any:
            return sd * next(draws)[:size]

        monkeypatch.setattr(matrix, "gaussian", drawn)
        for end in ends:

            def ended(record: Any, end: int = end) -> None:
                if record["round"] == end:
                    signal.raise_signal(signal.SIGINT)

            parts = job(**settings, schedule=PAIRS)
            found = simulate(parts, CLIENTS, out=out, resume=True, observers=[ended])
        return found

    whole = made(tmp_path / "whole", (10,))
    rest = made(tmp_path / "rest", (3, 7, 10))
    assert rest.status == whole.status == "completed"
    assert rest.model_hash == whole.model_hash
    assert [r["invited"] for r in rest.rounds] == [r["invited"] for r in whole.rounds]


def test_aborted_rounds_are_rest_as_well_and_cost_as_if_they_had_committed() -> None:
    trainer, clients = moody(b=rc.RAISES, d=rc.RAISES)
    settings = private(noise_multiplier=5.0)
    stop = Stop(9, max_aborts=9)
    made = simulate(job(trainer=trainer, schedule=PAIRS, stop=stop, **settings), clients)
    committed = [record["committed"] for record in made.rounds]
    assert not all(committed)
    last = made.rounds[-1]["privacy"]
    assert last["epsilon"] == pytest.approx(epsilon([Gaussian(5.0, count=3)], last["delta"]))


def test_rows_of_a_site_that_rests_cost_the_rounds_that_it_is_in() -> None:
    often = run(**by_row(epsilon=4.0), stop=Stop(8), schedule=Synchronous(Cohort("uniform", 1)))
    seldom = run(**by_row(epsilon=4.0), stop=Stop(8), schedule=PAIRS)
    for made in (often, seldom):
        assert 3.9 < made.ledger[-1]["epsilon"] <= 4.0
    noise = [made.ledger[-1]["events"][0]["noise_multiplier"] for made in (often, seldom)]
    assert noise[1] < 0.7 * noise[0]


@pytest.mark.parametrize(
    "privacy",
    [
        Privacy(clip=0.5, client=ClientPrivacy(1e-6)),
        Privacy("quantised", clip=0.5, client=ClientPrivacy(1e-6)),
        Privacy("masked", clip=0.5, client=ClientPrivacy(1e-6, mechanism="tree")),
        Privacy("masked", clip=0.5, client=ClientPrivacy(1e-6, mechanism="banded")),
        Privacy("masked", clip=0.5, client=ClientPrivacy(1e-3, where="sites")),
        Privacy(
            "masked",
            clip=0.5,
            client=ClientPrivacy(1e-3, where="sites", mechanism="discrete_gaussian"),
        ),
        Privacy(clip=0.5, client=ClientPrivacy(1e-6, where="client")),
        Privacy("masked", clip=0.5, client=ClientPrivacy(1e-6, where="client")),
    ],
    ids=["central", "integers", "tree", "banded", "skellam", "discrete", "local", "masked local"],
)
def test_with_hardly_any_noise_a_private_run_is_the_clipped_one(privacy: Privacy) -> None:
    uniform = Weighting("uniform")
    clipped = run(weighting=uniform, privacy=Privacy(clip=0.5))
    # So little noise that the account has no figure for it: the arithmetic alone is looked at.
    made = simulate(
        job(weighting=uniform, privacy=privacy), CLIENTS, executor=_unaccounted(privacy)
    )
    assert np.abs(made.vector - clipped.vector).max() < 5e-3


def _unaccounted(privacy: Privacy) -> Any:
    from atoll.runtime.serial import SerialExecutor

    return MaskedExecutor if privacy.aggregation == "masked" else SerialExecutor


def test_noise_is_in_the_model_and_never_twice_the_same() -> None:
    settings = {**private(noise_multiplier=1.0), "stop": Stop(1)}
    quiet = run(weighting=Weighting("uniform"), privacy=Privacy(clip=0.5), stop=Stop(1))
    off = [run(**settings).vector - quiet.vector for _ in range(60)]
    # Deviation 0.5 on the sum of five clients.
    assert float(np.std(off)) == pytest.approx(0.1, rel=0.25)


def test_no_seed_reaches_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is drawn from the system's source, in every round: with another source, other noise."""

    def noised(seed: int) -> Any:
        told = np.random.default_rng(seed)

        def fill(self: Any, into: Any) -> None:
            into.reshape(-1).view(np.uint8)[...] = told.integers(0, 256, into.nbytes, np.uint8)

        monkeypatch.setattr(noise.SystemSource, "fill", fill)
        return run(**private(noise_multiplier=1.0)).vector

    first, again, other = noised(1), noised(1), noised(2)
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


def test_a_poisson_round_is_divided_by_its_expected_size() -> None:
    settings = private(noise_multiplier=3.0, amplified=True)
    schedule = Synchronous(Cohort("poisson", rate=0.9999))
    made = run(**settings, schedule=schedule, stop=Stop(2))
    assert made.ledger[-1]["events"][0]["sampling"] == 0.9999


def test_sampling_that_may_draw_nobody_is_not_counted_as_hiding_anybody() -> None:
    """An aborted round leaves the model as it was, which no noise hides; the account has no part for that."""
    settings = private(noise_multiplier=3.0, amplified=True)

    def refused(rate: float, quorum: float = 1, clients: int = len(CLIENTS)) -> str:
        rows = next(iter(CLIENTS.values()))
        some = {f"client {i}": rows for i in range(clients)}
        schedule = Synchronous(Cohort("poisson", rate=rate), quorum=quorum)
        with pytest.raises(JobConflict) as caught:
            simulate(job(**settings, schedule=schedule, stop=Stop(2)), some)
        (fault,) = caught.value.faults
        assert fault.place == "privacy.client.amplified"
        return f"{fault.message} {fault.remedy}"

    assert "draw nobody of 4 clients" in refused(0.9, clients=4)
    assert "the chance of one in 2 rounds is 0.002" in refused(0.9, clients=4)  # 2 times .1 ** 3
    told = refused(0.3, clients=40)
    enough = float(told.partition("rounds.rate to ")[2].split()[0])
    assert 2 * (1 - enough) ** 39 <= 1e-7 < 2 * (1.01 - enough) ** 39
    assert "fewer than 20 of 40 clients" in refused(0.5, quorum=20, clients=40)


class Ranked(FedAvg):
    """Sends the score of every row."""

    def client(self, broadcast: Any, memory: Any, work: Any) -> Any:
        update, kept = super().client(broadcast, memory, work)
        scores = RankedScores.of(np.array([0, 1]), np.array([0.1, 0.9]))
        return Update(update.vectors, update.weight, update.examples, {"auc": scores}), kept


class Median(FedAvg):
    """A rule that looks at single updates."""

    additive = False


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no bound, no noise, weights without a cap": (
        {"privacy": Privacy(client=ClientPrivacy())},
        ["privacy.clip", "privacy.client", "algorithm.weights"],
    ),
    "amplification without a sampler": (
        {**private(noise_multiplier=1.0, amplified=True)},
        ["privacy.client.amplified"],
    ),
    "noise of sites in the clear": (
        {**private(noise_multiplier=1.0, where="sites")},
        ["privacy.client.where"],
    ),
    "the wrong noise, and a bound that moves": (
        {
            "weighting": Weighting("uniform"),
            "privacy": Privacy(
                "masked",
                clip=1.0,
                clip_by="adaptive",
                client=ClientPrivacy(1.0, where="sites", mechanism="tree", amplified=True),
            ),
        },
        ["privacy.client.amplified", "privacy.client.mechanism", "privacy.clip_by"],
    ),
    "a bound that moves while updates are under way": (
        {
            "weighting": Weighting("uniform"),
            "schedule": Asynchronous(3),
            "algorithm": FedBuff(exponent=0.0),
            "privacy": Privacy(clip=1.0, clip_by="adaptive", client=ClientPrivacy(1.0)),
        },
        ["privacy.clip_by"],
    ),
    "noise of which no round can be paid": (
        private(noise_multiplier=0.5, epsilon=1.0),
        ["privacy.client.noise_multiplier"],
    ),
    "noise that lets an attack find more": (
        by_row(noise_multiplier=0.5, found=0.02),
        ["privacy.record.noise_multiplier"],
    ),
    "a robust rule and scores of rows": ({"algorithm": Median()}, ["algorithm"]),
    "scores of rows": ({"algorithm": Ranked()}, ["metric 'auc'"]),
    "a quorum that cannot be opened": (
        {"schedule": Synchronous(quorum=2)},
        ["rounds.quorum"],
    ),
    "a threshold that is none": (
        {"privacy": Privacy("masked", threshold=2, degree=3)},
        ["privacy.threshold", "privacy.degree"],
    ),
    "a cohort of two": (
        {"schedule": Synchronous(Cohort("uniform", 2))},
        ["privacy.aggregation"],
    ),
    "steps of single updates": (
        {"schedule": Asynchronous(), "algorithm": FedAsync()},
        ["rounds.mode"],
    ),
    "a clip of whole models": (
        {"privacy": Privacy(clip=1.0), "schedule": Asynchronous(), "algorithm": FedAsync()},
        ["privacy.clip"],
    ),
    "noise on a vector that no clip bounds": (
        {**private(noise_multiplier=1.0), "algorithm": FedNova()},
        ["algorithm"],
    ),
    "sampling that hides nobody": (
        private(noise_multiplier=1.0, where="client", amplified=True),
        ["privacy.client.amplified"],
    ),
    "noise of a client that is none": (
        private(noise_multiplier=1.0, where="client", mechanism="banded"),
        ["privacy.client.mechanism"],
    ),
    "figures outside epsilon": (
        {**private(noise_multiplier=1.0), "federated": True},
        ["evaluation.federated"],
    ),
}


def test_local_noise_costs_what_an_exchanged_update_does_and_aborted_rounds_too() -> None:
    trainer, clients = moody(b=rc.RAISES, d=rc.RAISES)
    settings = private(noise_multiplier=20.0, where="client")
    quorum = Synchronous(quorum=4)
    made = simulate(job(trainer=trainer, schedule=quorum, stop=Stop(3), **settings), clients)
    assert [r["committed"] for r in made.rounds] == [True, False, False]
    last = made.rounds[-1]["privacy"]
    assert last["epsilon"] == pytest.approx(
        epsilon([Gaussian(20.0, count=3)], last["delta"], "replace")
    )
    assert last["epsilon"] > epsilon([Gaussian(20.0, count=3)], last["delta"])
    assert (last["unit"], last["neighbouring"]) == ("site", "replace")


@pytest.mark.parametrize("aggregation", ["plain", "masked"])
def test_local_noise_is_calibrated_to_the_planned_rounds(aggregation: Any) -> None:
    hidden = ClientPrivacy(epsilon=5.0, where="client")
    section = Privacy(aggregation, clip=0.5, client=hidden)
    made = run(weighting=Weighting("uniform"), privacy=section)
    assert made.status == "completed"
    assert 4.9 < made.ledger[-1]["epsilon"] <= 5.0


def test_every_client_has_its_own_noise_and_the_sum_carries_all_of_it() -> None:
    section = Privacy(clip=0.5, client=ClientPrivacy(400.0, where="client"))
    settings: dict[str, Any] = {"weighting": Weighting("uniform"), "stop": Stop(1)}
    made = [run(privacy=section, **settings).vector for _ in range(30)]
    sd = 400.0 * 0.5 / np.sqrt(len(CLIENTS))
    draws = np.concatenate(made)
    assert abs(draws.std() - sd) < 6 * sd / np.sqrt(2 * draws.size)


@pytest.mark.parametrize(("settings", "places"), WRONG.values(), ids=list(WRONG))
def test_what_contradicts_itself_is_told_at_once_with_ways_out(
    settings: dict[str, Any], places: list[str]
) -> None:
    with pytest.raises(JobConflict) as caught:
        run(**settings)
    found = {fault.place for fault in caught.value.faults}
    assert set(places) <= found
    assert all(fault.remedy for fault in caught.value.faults)


def test_one_client_moves_a_clipped_model_by_no_more_than_its_bound() -> None:
    trainer, clients = moody(a=rc.WILD)
    wild = replace(trainer, scale=1e6)
    free, held = (
        simulate(job(trainer=wild, privacy=how, stop=Stop(2)), clients)
        for how in (Privacy(), Privacy(clip=0.01))
    )
    start = wild.initial(Seed(0) / "initial")
    assert np.linalg.norm(free.vector - start) > 1.0
    assert np.linalg.norm(held.vector - start) <= 2 * 0.01 * 1.0001


def test_record_level_noise_is_the_trainers_and_its_account_is_the_dearest_site_s() -> None:
    made = run(**by_row(noise_multiplier=2.0))
    assert type(made.trainer).__name__ == "PrivateLinearTrainer"
    last = made.ledger[-1]
    # Client d has 12 rows: batches of 8 are two thirds of them, the largest share of all.
    assert last["events"][0]["sampling"] == pytest.approx(8 / 12)
    assert last["unit"] == "record"
    assert made.rounds[-1]["contributed"] == SIZES


def test_record_level_noise_is_calibrated_at_every_site_and_stops_the_run() -> None:
    made = run(**by_row(epsilon=4.0), stop=Stop(5))
    assert made.status == "completed"
    assert 3.9 < made.ledger[-1]["epsilon"] <= 4.0
    early = run(**by_row(epsilon=4.0, noise_multiplier=2.0), stop=Stop(50))
    assert "would pass epsilon 4" in early.status
    assert early.ledger[-1]["epsilon"] <= 4.0


@pytest.mark.parametrize("unit", ["record", "site"])
def test_a_run_keeps_to_what_an_attack_may_find_and_says_it(unit: str, tmp_path: Path) -> None:
    made = by_row if unit == "record" else private
    planned = run(**{**made(found=0.04), "stop": Stop(4)}, out=tmp_path)
    assert planned.status == "completed"
    told = planned.ledger[-1]
    assert 0.0398 < told["attack"]["found"] <= 0.04
    assert told["attack"]["found"] > planned.ledger[0]["attack"]["found"] > 0.01
    assert told["epsilon"] > 0
    said = json.loads((tmp_path / "manifest.json").read_text())["privacy"]
    assert said["membership attacks"].startswith("find at most 4.00 % of the members")
    assert f"for one {unit}" in said["differential privacy"]
    assert "find at most 4.00 %" in (tmp_path / "report.html").read_text()
    early = run(**{**made(found=0.04, noise_multiplier=6.0), "stop": Stop(40)})
    assert "would pass 4 % found at 1 % false positives" in early.status
    assert 0.03 < early.ledger[-1]["attack"]["found"] <= 0.04


@pytest.mark.parametrize("unit", ["record", "client"])
def test_figures_that_are_allowed_outside_epsilon_stand_in_every_statement(unit: str) -> None:
    settings = private(noise_multiplier=5.0, open_metrics=True)
    said = "federated evaluation"
    if unit == "record":
        settings = by_row(noise_multiplier=2.0, open_metrics=True)
        said = "figures of held-out rows"
    made = run(**settings, federated=True)
    assert all(entry["outside"] == [said] for entry in made.ledger)
    assert len(made.ledger) == 4


def test_no_model_is_chosen_by_figures_of_private_rows() -> None:
    with pytest.raises(JobConflict) as caught:
        run(**by_row(noise_multiplier=2.0), federated=True, stop=Stop(4, metric="federated.loss"))
    assert "evaluation.federated" in {fault.place for fault in caught.value.faults}


def test_aborted_rounds_of_record_level_training_cost_as_well() -> None:
    trainer, clients = moody(b=rc.RAISES, d=rc.RAISES)
    quorum = Synchronous(quorum=4)
    settings = {**by_row(noise_multiplier=4.0), "schedule": quorum, "stop": Stop(3)}
    with pytest.raises(JobConflict, match="private form"):
        simulate(job(trainer=trainer, **settings), clients)
    clock = Clock(dropout=0.3)
    made = run(**{**settings, "clock": clock, "stop": Stop(6)})
    spent = [r["privacy"]["rounds"] for r in made.rounds]
    assert spent == [1, 2, 3, 4, 5, 6]
    assert not all(r["committed"] for r in made.rounds)


def test_masks_and_record_level_noise_go_together() -> None:
    settings = by_row(noise_multiplier=1.0)
    settings["privacy"] = replace(settings["privacy"], aggregation="masked")
    made = run(**settings)
    assert made.manifest["privacy"]["masking"].startswith("on")
    assert "for one record" in made.manifest["privacy"]["differential privacy"]


def test_two_units_of_privacy_in_one_run_are_refused() -> None:
    both = Privacy(clip=1.0, client=ClientPrivacy(1.0), record=RowPrivacy(1.0, 1.0))
    with pytest.raises(JobConflict) as caught:
        run(weighting=Weighting("uniform"), privacy=both)
    assert [fault.place for fault in caught.value.faults] == ["privacy.record"]


def test_a_module_that_mixes_rows_is_refused_with_every_reason() -> None:
    torch = pytest.importorskip("torch")
    from atoll.models.torch.adapter import TorchTrainer

    def mixing() -> Any:
        return torch.nn.Sequential(
            torch.nn.Linear(rc.FEATURES, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
        )

    clients = {c: rc.Examples(e.features.astype(np.float32), e.targets) for c, e in CLIENTS.items()}
    with pytest.raises(JobConflict, match="BatchNorm"):
        simulate(job(trainer=TorchTrainer(mixing), **by_row(noise_multiplier=1.0)), clients)


def test_noise_is_added_even_where_there_is_one_client_only() -> None:
    alone = {"a": CLIENTS["a"]}
    quiet = run(alone, weighting=Weighting("uniform"), privacy=Privacy(clip=0.5), stop=Stop(1))
    noisy = run(alone, **{**private(noise_multiplier=1.0), "stop": Stop(1)})
    assert noisy.model_hash != quiet.model_hash
    assert noisy.ledger


def test_a_site_of_a_deployment_has_the_client_halves_and_no_noise_of_the_server() -> None:
    parts = rc.parts(FedAvg(), {"a": CLIENTS["a"]}, personal=())
    section = Privacy("quantised", clip=0.5, client=ClientPrivacy(epsilon=1.0))
    made, found = with_chain(section, parts, Synchronous(), 5, site=True)
    assert [link.name for link in made.chain.links] == ["clip", "share", "quantise"]
    assert found == []
    assert made.chain.account is None
