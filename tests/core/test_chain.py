"""A chain runs its client halves in order, its server halves in reverse, and tells all faults at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from atoll.core.chain import COHORT, Chain, Passage, Setting
from atoll.core.contracts import Task, Weighting
from atoll.core.errors import Fault
from atoll.core.layout import Array, Entry, Layout
from atoll.core.seeds import Seed
from atoll.core.values import Aggregate, Broadcast, State, Update

LAYOUT = Layout.of([Entry("w", (2,))])


@dataclass(frozen=True)
class Affine:
    """``factor * v + shift`` at the client, undone for a mean at the server; counts its rounds."""

    name: str
    factor: float = 1.0
    shift: float = 0.0
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    complaint: str = ""

    def faults(self, setting: Setting) -> Sequence[Fault]:
        return [Fault(self.name, self.complaint)] if self.complaint else []

    def start(self, layout: Layout) -> Mapping[str, Array]:
        return {f"{self.name}.rounds": np.zeros(1)}

    def tell(self, slots: Mapping[str, Array]) -> Mapping[str, Array]:
        return {f"{self.name}.rounds": slots[f"{self.name}.rounds"]}

    def client(self, update: Update, passage: Passage) -> Update:
        v = update.vectors["delta"] * self.factor + self.shift
        return replace(update, vectors={"delta": v})

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        total = (aggregate.sums["delta"] - self.shift * aggregate.weight) / self.factor
        counted = slots[f"{self.name}.rounds"] + 1
        return replace(aggregate, sums={"delta": total}), {f"{self.name}.rounds": counted}

    def events(self) -> Sequence[Any]:
        return [self.name]


def passed(chain: Chain, *values: float) -> Array:
    state = chain.begun(State.start(np.zeros(2, np.float32), LAYOUT, 3), LAYOUT)
    told = chain.told(Broadcast(0, {"parameters": state.parameters}), state.slots)
    updates = [
        chain.client(Update({"delta": np.full(2, v)}, 1.0, 1), Task("a", 0), told, Seed(1))
        for v in values
    ]
    total = sum(u.vectors["delta"] for u in updates)
    aggregate = Aggregate({"delta": np.asarray(total)}, float(len(values)), 1.0, len(values), 0)
    back, after = chain.server(aggregate, state, 3)
    for link in chain.links:
        assert after.slots[f"{link.name}.rounds"].tolist() == [1.0]
    return back.sums["delta"]


def test_server_halves_undo_client_halves_in_reverse() -> None:
    # 3(2v + 1) + 5 and back: only the reverse order gives the plain sum again.
    chain = Chain((Affine("a", 2.0, 1.0), Affine("b", 3.0, 5.0)), cohort=3)
    assert passed(chain, 1.0, 4.0).tolist() == [5.0, 5.0]


def test_client_halves_run_in_the_order_of_the_list() -> None:
    chain = Chain((Affine("a", shift=1.0), Affine("b", factor=10.0)), cohort=1)
    told = Broadcast(0, {COHORT: np.ones(1)})
    out = chain.client(Update({"delta": np.ones(1)}, 1.0, 1), Task("a", 0), told, Seed(1))
    assert out.vectors["delta"].tolist() == [20.0]


def test_links_public_vectors_and_the_cohort_are_broadcast() -> None:
    chain = Chain((Affine("a"),), cohort=7)
    slots = chain.start(LAYOUT)
    told = chain.told(Broadcast(3, {"parameters": np.zeros(2)}), slots)
    assert sorted(told.vectors) == ["a.rounds", COHORT, "parameters"]
    assert told.vectors[COHORT].tolist() == [7.0]


def test_an_empty_chain_hands_back_the_very_objects() -> None:
    chain, state = Chain(), State.start(np.zeros(2, np.float32), LAYOUT, 3)
    update, told = Update({}, 1.0, 1), Broadcast(0, {})
    aggregate = Aggregate({}, 1.0, 1.0, 1, 1)
    assert chain.client(update, Task("a", 0), told, Seed(1)) is update
    assert chain.told(told, {}) is told
    assert chain.server(aggregate, state, 3) == (aggregate, state)
    assert chain.begun(state, LAYOUT) is state


def test_faults_of_all_links_are_told_together() -> None:
    chain = Chain(
        (
            Affine("noise", needs=frozenset({"bounded norm"}), complaint="no bound"),
            Affine("clip", gives=frozenset({"bounded norm"})),
            Affine("mask", needs=frozenset({"bounded norm", "integers"})),
        )
    )
    setting = Setting({}, {}, 2, Weighting(), 3)
    found = [str(fault) for fault in chain.faults(setting)]
    assert found == [
        "privacy: noise: needs bounded norm, which no link before it gives",
        "noise: no bound",
        "privacy: mask: needs integers, which no link before it gives",
    ]


@pytest.mark.parametrize(
    ("gives", "factor"), [(frozenset(), 0.5), (frozenset({"staleness inside"}), 1.0)]
)
def test_staleness_is_applied_once(gives: frozenset[str], factor: float) -> None:
    assert Chain((Affine("a", gives=gives),)).factor(0.5) == factor


def test_events_of_all_links_are_those_of_a_round() -> None:
    assert Chain((Affine("a"), Affine("b"))).events() == ["a", "b"]
