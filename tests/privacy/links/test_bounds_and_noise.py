"""Clipped updates are never longer than C; noise has the deviation it says, and is paid for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.chain import COHORT, Passage, Setting
from atoll.core.contracts import Weighting
from atoll.core.errors import JobConflict
from atoll.core.layout import Array, Entry, Layout
from atoll.core.seeds import Seed
from atoll.core.values import Aggregate, Broadcast, Update
from atoll.privacy.dp.calibration import Goal
from atoll.privacy.dp.events import Gaussian, MatrixGaussian
from atoll.privacy.dp.noise import grid_of
from atoll.privacy.links.account import RunAccount
from atoll.privacy.links.clip import BELOW, BOUND, Clip
from atoll.privacy.links.noise import CentralNoise, CorrelatedNoise, LocalNoise, NoiseShares
from atoll.privacy.links.quantise import Quantise
from atoll.privacy.links.share import Share
from atoll.privacy.links.shares import Shares, Target

SIZE = 4000
LAYOUT = Layout.of([Entry("w", (SIZE,))])
ROUND = {COHORT: np.array([5.0]), BOUND: np.array([2.0])}


def passage(bound: float = 1.0, cohort: int = 5) -> Passage:
    told = Broadcast(0, {BOUND: np.array([bound])})
    return Passage("a", 0, 0, told, cohort, Seed(1))


def zeros(count: int = 5) -> Aggregate:
    return Aggregate({"delta": np.zeros(SIZE)}, float(count), float(count), count, 0)


floats = st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4)


@given(floats, floats, st.sampled_from(["l2", "layer", "adaptive"]), st.floats(1e-3, 1e3))
def test_all_vectors_together_are_never_longer_than_the_bound(
    one: list[float], two: list[float], by: str, bound: float
) -> None:
    link = Clip(bound, by, 4, (1, 4))  # type: ignore[arg-type]  # one of three words
    vectors = {"a": np.array(one, np.float32), "b": np.array(two, np.float32)}
    sent = link.client(Update(vectors, 1.0, 1), passage(bound)).vectors
    exact = math.fsum(float(x) ** 2 for name in "ab" for x in sent[name])
    assert exact <= bound * bound * (1 + 1e-15)


@pytest.mark.parametrize(("by", "most"), [("l2", 1.0), ("layer", 1.0), ("adaptive", 50.0)])
def test_a_server_that_tells_a_wide_bound_gets_no_longer_update_than_the_job_allows(
    by: Any, most: float
) -> None:
    """Else the noise that a site adds, which is for the job's bound, would hide nothing."""
    link = Clip(1.0, by, 2, (2,), most=50.0)
    sent = link.client(Update({"delta": np.array([300.0, 400.0])}, 1.0, 1), passage(1e6)).vectors
    assert np.linalg.norm(sent["delta"]) <= most


def test_a_short_update_passes_as_it_is_and_one_more_vector_is_left_alone() -> None:
    vectors = {"delta": np.array([0.3, 0.4], np.float32), "steps": np.array([500.0])}
    sent = Clip(1.0, model=2).client(Update(vectors, 3.0, 3), passage())
    assert sent.vectors["delta"].tolist() == vectors["delta"].tolist()
    assert sent.vectors["steps"].tolist() == [500.0]
    assert sent.weight == 3.0


def test_an_adaptive_bound_moves_to_the_quantile_of_the_norms() -> None:
    link, slots = Clip(0.1, "adaptive", 1, quantile=0.5), {BOUND: np.array([0.1])}
    norms = [1.0, 2.0, 3.0, 4.0, 5.0]
    for _ in range(200):
        bound = float(slots[BOUND][0])
        sent = [link.client(Update({"d": np.array([v])}, 1.0, 1), passage(bound)) for v in norms]
        below = np.sum([u.vectors[BELOW] for u in sent], axis=0)
        total = Aggregate({BELOW: below, "d": np.zeros(1)}, 5.0, 5.0, 5, 0)
        back, changed = link.server(total, slots, 0)
        assert set(back.sums) == {"d"}
        slots = dict(changed)
    assert 2.0 <= float(slots[BOUND][0]) <= 3.5  # between two and three of five are below


def test_a_share_never_lengthens_and_the_divisor_is_public() -> None:
    link = Share(cap=100.0)
    vector = np.array([0.1, -0.7], np.float32)
    sent = link.client(Update({"d": vector}, 30.0, 30), passage())
    assert sent.vectors["d"] == pytest.approx(0.3 * vector)
    assert (sent.weight, sent.examples) == (1.0, 0)
    full = link.client(Update({"d": vector}, 5000.0, 5000), passage())
    assert full.vectors["d"].tolist() == vector.tolist()
    total = Aggregate({"d": np.ones(2)}, 3.0, 3.0, 3, 0)
    assert link.server(total, {}, 0)[0].weight == 3.0
    assert Share(1.0, expected=12.5).server(total, {}, 0)[0].weight == 12.5


def deviation(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def test_central_noise_has_the_deviation_of_its_event() -> None:
    link = CentralNoise(3.0, Gaussian(3.0))
    noisy = link.server(zeros(), ROUND, 0)[0].sums["delta"]
    assert deviation(noisy) == pytest.approx(6.0, rel=0.06)  # 4000 draws: five sigma are 5.6 %
    again = link.server(zeros(), ROUND, 0)[0].sums["delta"]
    assert not np.array_equal(noisy, again)
    assert link.events() == (Gaussian(3.0),)


def test_a_clients_own_noise_hides_its_update_before_it_leaves() -> None:
    vectors = {name: np.zeros(SIZE, np.float32) for name in ("delta", "control")}
    link = LocalNoise(3.0, bound=0.5)
    sent = link.client(Update(vectors, 1.0, 0), passage(0.5)).vectors
    assert {v.dtype for v in sent.values()} == {np.dtype(np.float32)}
    both = np.concatenate([sent["delta"], sent["control"]])
    assert abs(deviation(both) - 1.5) < 5 * 1.5 / math.sqrt(2 * both.size)
    assert abs(np.corrcoef(sent["delta"], sent["control"])[0, 1]) < 0.1
    assert link.events() == (Gaussian(3.0),)
    again = link.client(Update(vectors, 1.0, 0), passage(0.5)).vectors
    assert not np.array_equal(again["delta"], sent["delta"])


def test_noise_on_a_quantised_sum_covers_what_rounding_adds() -> None:
    coarse = {COHORT: np.array([2.0**30]), BOUND: np.array([2.0])}  # a grid of one step
    link = CentralNoise(1.0, Gaussian(1.0), grid=2.0)
    noisy = link.server(zeros(), coarse, 0)[0].sums["delta"]
    assert deviation(noisy) == pytest.approx(2.0 + math.sqrt(SIZE) * 2.0, rel=0.06)


FOUR = {
    "tree": MatrixGaussian("tree", 1.0, 4),
    "banded": MatrixGaussian("banded", 1.0, 4, 3),
    "blt": MatrixGaussian("blt", 1.0, 4, decays=(0.7,), scales=(0.5,)),
}


@pytest.mark.parametrize("mechanism", FOUR)
def test_correlated_noise_goes_on_from_its_slots_and_ends_with_the_plan(mechanism: str) -> None:
    spec = FOUR[mechanism]
    link, total = CorrelatedNoise(spec, SIZE), np.zeros(SIZE)
    slots = {**ROUND, **link.start(LAYOUT)}
    assert link.tell(slots) == {}  # who knows the noise can take it away
    for number in range(4):
        noisy, changed = link.server(zeros(), slots, number)
        cells = noisy.sums["delta"] / grid_of(spec.deviation * 2.0)
        assert np.array_equal(
            cells, np.rint(cells)
        )  # low bits would tell of the sum before the noise
        slots |= changed
        total += noisy.sums["delta"]
    # The sum of four rounds carries less noise than four independent draws of deviation 2.
    assert 1.5 < deviation(total) < 0.9 * 2.0 * math.sqrt(4)
    with pytest.raises(Exception, match="planned rounds"):
        link.server(zeros(), slots, 4)


@pytest.mark.parametrize("mechanism", FOUR)
def test_a_round_carries_the_noise_of_those_that_were_aborted_before_it(
    mechanism: str, replayed: Callable[..., Any]
) -> None:
    spec = FOUR[mechanism]

    def released(rounds: Sequence[int]) -> list[Array]:
        link = CorrelatedNoise(spec, SIZE, source=replayed())
        slots, made = {**ROUND, **link.start(LAYOUT)}, []
        for number in rounds:
            noisy, changed = link.server(zeros(), slots, number)
            slots |= changed
            made.append(noisy.sums["delta"])
        return made

    every, some = released(range(4)), released([1, 3])
    cell = 1.01 * grid_of(spec.deviation * 2.0)  # each round is rounded once
    np.testing.assert_allclose(some[0], every[0] + every[1], rtol=0, atol=cell)
    np.testing.assert_allclose(some[1], every[2] + every[3], rtol=0, atol=cell)


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian"])
def test_shares_add_up_to_the_noise_that_is_accounted_for(kind: str) -> None:
    shares = Shares(2.0, kind=kind)  # type: ignore[arg-type]  # one of two words
    quantise = Quantise(1.0, SIZE, {"delta": SIZE}, figures=False, shares=shares)
    link = NoiseShares(shares, 1.0, SIZE, SIZE, cohort=5)
    lattice = shares.lattice(5, 1.0, SIZE)
    sums = np.zeros(SIZE, np.int64)
    for _ in range(4):  # the threshold of five
        sent = quantise.client(Update({"delta": np.zeros(SIZE, np.float32)}, 1.0, 1), passage())
        sums += link.client(sent, passage()).vectors["delta"]
    total = Aggregate({"delta": sums}, 4.0, 4.0, 4, 0)
    values = quantise.server(total, ROUND, 0)[0].sums["delta"]
    wanted = lattice.noise.sd * lattice.step
    assert deviation(values) == pytest.approx(wanted, rel=0.06)
    assert wanted >= 2.0  # z times the clip, and what rounding adds
    assert link.short(3, 5)
    assert link.short(4, 5) == ""
    assert 5 * lattice.levels < 2**31


@pytest.mark.parametrize("cohort", [3, 5, 100, 1000])
def test_a_lattice_leaves_ten_deviations_of_room(cohort: int) -> None:
    lattice = Shares(1.0).lattice(cohort, 1.0, 1000)
    room = lattice.levels - 1.0 / lattice.step
    assert room >= 9.9 * lattice.noise.share_sd
    assert cohort * lattice.levels < 2**31


def test_a_ring_too_small_for_the_noise_is_told() -> None:
    with pytest.raises(JobConflict, match="no room"):
        Shares(1.0).lattice(100_000, 1.0, 10**9)


def test_calibrated_shares_keep_their_target_and_hardly_more() -> None:
    shares = Shares(target=Target(Goal(2.0), 10))
    event = shares.lattice(5, 1.0, 100).event(count=10)
    account = RunAccount(event, Goal(), "site")
    assert 1.95 < account.epsilon(1) <= 2.0


def test_vectors_that_no_clip_bounds_cannot_have_noise() -> None:
    sent = {"delta": ((SIZE,), "float32"), "steps": ((1,), "float64")}
    setting = Setting(sent, {}, SIZE, Weighting("uniform"), 5)
    assert [f.message for f in CentralNoise(1.0, Gaussian(1.0)).faults(setting)] == [
        "sends 'steps', which no clip bounds: noise cannot hide it"
    ]


def test_an_account_says_when_another_round_would_pass_the_target() -> None:
    account = RunAccount(Gaussian(10.0), Goal(3.0), "site")
    most = account.most
    assert account.epsilon(most) <= 3.0 < account.epsilon(most + 1)
    assert account.over(most - 1) == ""
    assert "epsilon 3" in account.over(most)
    assert account.epsilon(0) == 0.0
    open_end = RunAccount(Gaussian(10.0), Goal(), "site")
    assert open_end.over(10_000) == ""


def test_an_account_says_when_another_round_would_let_attacks_find_too_many() -> None:
    account = RunAccount(Gaussian(10.0), Goal(found=0.03), "site")
    most = account.most
    assert account.permitted(most) <= 0.03 < account.permitted(most + 1)
    # Phi(Phi^-1(.01) + sqrt(T) / 10) passes .03 between 19 and 20 rounds.
    assert most == 19
    assert account.over(18) == ""
    assert account.over(19).startswith("another round would pass 3 % found at 1 % false positives")
    told = account.spent(19)
    assert told["attack"] == {"found": account.permitted(19), "fpr": 0.01, "target": 0.03}
    assert told["target"] is None
    assert told["epsilon"] == account.epsilon(19) > 0
    assert account.spent(0)["attack"]["found"] == 0.01
    assert "attack" not in RunAccount(Gaussian(10.0), Goal(3.0), "site").spent(19)


def test_correlated_noise_is_paid_for_whole_with_the_first_round() -> None:
    account = RunAccount(MatrixGaussian("tree", 20.0, 8), Goal(), "site")
    assert account.epsilon(1) == account.epsilon(8) > 0
    assert "8 planned rounds" in account.over(8)
