"""Masked runs end in the bits of quantised ones, and show nothing but sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_clients as rc
from private_runs import CLIENTS, SIZES, aggregated, job, moody, run, shown

from atoll import simulate
from atoll.algorithms import ALGORITHMS, FedBuff, Scaffold
from atoll.core.contracts import Weighting
from atoll.core.errors import JobConflict
from atoll.job.privacy import Privacy, lanes_of
from atoll.models.linear import LinearTrainer
from atoll.runtime.client import Parts
from atoll.runtime.clock import Clock, Delay
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Stop
from atoll.runtime.masked import MaskedExecutor
from atoll.runtime.schedule import Asynchronous, Synchronous


@pytest.mark.parametrize("name", ALGORITHMS)
def test_masks_change_no_bit_and_integers_little(name: str) -> None:
    method = ALGORITHMS[name]()
    weights = Weighting("uniform" if name == "feddyn" else "examples")
    plain, whole, masked = (
        simulate(aggregated(how, algorithm=method, weighting=weights), CLIENTS)
        for how in ("plain", "quantised", "masked")
    )
    assert masked.model_hash == whole.model_hash
    assert shown(masked) == shown(whole)
    assert np.abs(masked.vector - plain.vector).max() < 1e-5
    assert masked.rounds[-1]["train"]["loss"] == pytest.approx(plain.rounds[-1]["train"]["loss"])


@pytest.mark.parametrize("settings", [{}, {"algorithm": Scaffold()}], ids=["fedavg", "scaffold"])
def test_integers_have_the_same_bits_in_worker_processes(settings: dict[str, Any]) -> None:
    alone = simulate(aggregated("quantised", **settings), CLIENTS)
    many = simulate(aggregated("quantised", **settings), CLIENTS, executor="processes", workers=2)
    assert many.model_hash == alone.model_hash
    assert shown(many) == shown(alone)


def test_a_buffer_of_an_asynchronous_run_is_a_cohort() -> None:
    settings = {
        "algorithm": FedBuff(),
        "schedule": Asynchronous(buffer=3),
        "clock": Clock(Delay("half_normal", 1.0)),
        "stop": Stop(6),
    }
    plain, whole, masked = (
        simulate(aggregated(how, **settings), CLIENTS) for how in ("plain", "quantised", "masked")
    )
    assert max(r["staleness"]["max"] for r in masked.rounds) > 0
    assert masked.model_hash == whole.model_hash
    assert np.abs(masked.vector - plain.vector).max() < 1e-5


def test_personal_parts_stay_home_and_are_what_they_were() -> None:
    trainer = LinearTrainer("logistic", rc.FEATURES, personal=("intercept",))
    plain, masked = (
        simulate(aggregated(how, trainer=trainer), CLIENTS) for how in ("plain", "masked")
    )
    for client, memory in plain.progress.memories.items():
        assert masked.progress.memories[client]["personal"] == pytest.approx(
            memory["personal"], abs=1e-5
        )


def test_nothing_in_the_records_tells_a_client_s_rows() -> None:
    last = run().rounds[-1]
    assert last["contributed"] == dict.fromkeys(SIZES, 0)
    assert last["privacy"]["rows"] == sum(SIZES.values())
    plain = simulate(aggregated("plain"), CLIENTS)
    assert plain.rounds[-1]["contributed"] == SIZES


def test_a_masked_run_goes_on_after_a_break_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"algorithm": Scaffold(), "privacy": Privacy("masked", clip=0.3, clip_by="adaptive")}
    settings["weighting"] = Weighting("uniform")
    whole = simulate(job(**settings), CLIENTS)
    first: list[Any] = []

    def halt(record: Any) -> None:
        first.append(record)
        if len(first) == 2:
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        simulate(job(**settings), CLIENTS, out=tmp_path, observers=[halt])
    again = simulate(job(**settings), CLIENTS, out=tmp_path, resume=True)
    assert again.model_hash == whole.model_hash
    assert again.progress.state.slots["clip.bound"] == whole.progress.state.slots["clip.bound"]
    assert len(again.rounds) == 4


def test_who_fails_drops_out_and_the_sum_is_that_of_the_others() -> None:
    trainer, clients = moody(b=rc.RAISES)
    whole, masked = (
        simulate(aggregated(how, trainer=trainer), clients) for how in ("quantised", "masked")
    )
    assert "out of luck" in masked.rounds[-1]["missing"]["b"]
    assert sorted(masked.rounds[-1]["contributed"]) == ["a", "c", "d", "e"]
    assert masked.model_hash == whole.model_hash


def test_below_the_threshold_no_sum_is_opened_and_the_record_says_why() -> None:
    trainer, clients = moody(b=rc.RAISES, d=rc.RAISES)
    made = simulate(job(trainer=trainer, stop=Stop(3)), clients)
    assert [r["committed"] for r in made.rounds] == [True, False, False]
    assert made.rounds[1]["reason"] == ("masked aggregation: 3 of 5 clients stayed, threshold 4")
    assert made.rounds[1]["model_hash"] == made.rounds[0]["model_hash"]
    lower = Privacy("masked", threshold=3)
    assert simulate(job(trainer=trainer, privacy=lower), clients).rounds[1]["committed"]


def test_two_clients_are_never_masked() -> None:
    cohort = Synchronous(Cohort("poisson", rate=0.4))
    made = run(
        schedule=cohort, stop=Stop(12, max_aborts=12), privacy=Privacy("masked", threshold=3)
    )
    small = [r for r in made.rounds if 0 < len(r["invited"]) < 3]
    assert small
    assert all("3 are the fewest" in r["reason"] for r in small)


def test_the_server_s_view_is_uniform_whatever_clients_send() -> None:
    """Each masked word is as likely as any other, though all inputs are the same."""
    from atoll.privacy.secagg import inprocess

    seen: list[bytes] = []
    real = inprocess.Guest.hear

    def listening(guest: Any, event: Any, terms: Any) -> Any:
        words = real(guest, event, terms)
        seen.extend(bytes(chunk) for chunk in guest.chunks)
        return words

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inprocess.Guest, "hear", listening)
        trainer = LinearTrainer("logistic", 2000)
        rows = {
            c: rc.Examples(np.zeros((n, 2000)), np.zeros(n, np.int64)) for c, n in SIZES.items()
        }
        simulate(job(trainer=trainer, stop=Stop(1)), rows)
    counts = np.bincount(np.frombuffer(b"".join(set(seen)), np.uint8), minlength=256)
    expected = counts.sum() / 256
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert counts.sum() > 30_000
    assert chi < 380  # 255 degrees of freedom: one run in 10^6 is above


def test_the_lanes_of_a_run_are_those_of_its_updates() -> None:
    seen: list[Parts] = []

    def watched(parts: Parts) -> MaskedExecutor:
        seen.append(parts)
        return MaskedExecutor(parts)

    run(executor=watched, algorithm=Scaffold())
    names = [lane.name for lane in lanes_of(seen[0])]
    assert names[:5] == ["control", "delta", "weight", "scaled", "examples"]
    assert all(lane.step == 1.0 for lane in lanes_of(seen[0]))
    assert lanes_of(replace(seen[0], chain=type(seen[0].chain)())) == ()


def test_a_masked_simulation_says_that_it_runs_in_one_process() -> None:
    with pytest.raises(JobConflict, match="one process") as caught:
        run(executor="processes")
    assert "quantised" in caught.value.remedy
