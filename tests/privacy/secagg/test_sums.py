"""Sums as numbers: in parts as in one go, in memory that is used again, and the same bits by blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import UpdateRefused
from atoll.core.seeds import Seed
from atoll.privacy.secagg import fixed
from atoll.privacy.secagg.fixed import Rounding, quantised, signed_values
from atoll.privacy.secagg.masks import (
    CHUNK,
    MaskPlan,
    Rooms,
    masked_chunks,
    masked_integers,
    place_in,
    root_of,
    workbench,
)
from atoll.privacy.secagg.sums import LaneSums
from atoll.privacy.secagg.terms import Lane, Member, Occasion, Terms

LANES = (Lane("w", CHUNK + 5), Lane("n", 3, 9.0, 64, 1.0, "refuse"))
TERMS = Terms(
    Occasion("f", "j", 1, 0, "m"),
    tuple(Member(name, name.encode() * 32) for name in "abcde"),
    4,
    LANES,
    1.0,
)
X = {"w": np.linspace(-1.2, 1.2, CHUNK + 5), "n": np.array([1.0, -2.0, 9.0])}
PLAN = MaskPlan((bytes(32), b"1" * 32), (b"2" * 32,))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 200), st.floats(1e-6, 1.0), st.integers(1, 70))
def test_blocks_round_as_one_go_does(seed, size, factor, block):
    rng = np.random.default_rng(seed)
    x = (rng.normal(0, 2, size) * rng.choice([1e-3, 1.0, 50.0], size)).astype(np.float32)
    draws, lane = rng.integers(0, 2**32, size, dtype=np.uint32), Lane("w", size)
    scaled = np.multiply(x, factor, dtype=np.float64) * lane.scale(7)
    ends = lane.levels(7)
    wanted = np.minimum(np.floor(np.clip(scaled, -ends, ends) + draws * 2.0**-32), ends)
    found = np.empty(size, np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed, "BLOCK", block)
        Rounding().put(lane, 7, x, draws, found, factor)
    assert found.tolist() == wanted.astype(np.int64).tolist()


def test_draws_in_parts_are_the_draws_at_once():
    whole = (Seed(3) / "x").generator().integers(0, 2**32, 1001, dtype=np.uint32)
    stream = (Seed(3) / "x").generator()
    parts = [stream.integers(0, 2**32, n, dtype=np.uint32) for n in (1, 500, 499, 1)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_a_masked_input_is_the_same_wherever_it_is_made():
    own = list(masked_chunks(TERMS, PLAN, X, bytes(32)))
    bench = [bytes(c) for c in masked_chunks(TERMS, PLAN, X, bytes(32), workbench())]
    room = Rooms().take(TERMS)
    placed = list(masked_chunks(TERMS, PLAN, X, bytes(32), place_in(room)))
    assert root_of(own) == root_of(bench) == root_of(placed)
    assert room["w"].tobytes() == b"".join(bench[:2])
    clear = {n: quantised(lane, 5, X[n], None) for n, lane in zip("wn", LANES, strict=True)}
    rounded = masked_integers(TERMS, PLAN, clear, workbench())
    assert root_of(rounded) == root_of(masked_chunks(TERMS, PLAN, X, None))


def test_memory_is_used_again_only_where_it_fits_and_nobody_has_it():
    rooms = Rooms()
    one, two = rooms.take(TERMS), rooms.take(TERMS)
    assert one["w"] is not two["w"]
    rooms.give(TERMS, one)
    assert rooms.take(TERMS)["w"] is one["w"]
    rooms.give(TERMS, two)
    other = Terms(TERMS.occasion, TERMS.cohort, 4, (Lane("w", 4),), 1.0)
    assert rooms.take(other)["w"].size == 4


def test_memory_that_another_thread_has_just_taken_is_made_anew():
    class Taken(list):
        """Seen by two threads, and gone when the second one wants it."""

        def pop(self):
            self.clear()
            return super().pop()

    rooms = Rooms()
    rooms.give(TERMS, rooms.take(TERMS))
    rooms._free = Taken(rooms._free)
    assert rooms.take(TERMS)["w"].size == LANES[0].length


@given(st.integers(0, 9), st.integers(0, 9))
def test_parts_of_a_sum_are_parts_of_the_whole(start, stop):
    lanes = {"w": Lane("w", 9, 2.0), "c": Lane("c", 9, 2.0), "few": Lane("few", 2, 4.0, 64, 0.5)}
    integers = {
        "w": np.arange(9, dtype=np.int32) * 12345,
        "c": -np.arange(9, dtype=np.int64),
        "few": np.array([3, -8]),
    }
    sums = LaneSums(lanes, integers, 5, 3, 100.0, model=9)
    assert list(sums) == ["c", "few", "w"]
    for name, lane in lanes.items():
        assert sums[name].tolist() == (signed_values(lane, 5, 3, integers[name]) * 100.0).tolist()
    part = sums.between(slice(start, stop), opened=sums.opened())
    assert part["few"].tolist() == [150.0, -400.0]
    assert part["w"].tolist() == sums["w"][start:stop].tolist()
    assert part["c"].tolist() == sums["c"][start:stop].tolist()


def test_a_sum_beyond_its_sites_is_refused_before_anything_is_made_of_it():
    lane = Lane("w", 2)
    beyond = np.array([0, 2 * lane.levels(5) + 1])
    with pytest.raises(UpdateRefused, match="beyond 2 sites"):
        LaneSums({"w": lane}, {"w": beyond}, 5, 2)
