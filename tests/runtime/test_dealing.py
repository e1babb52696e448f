"""The bookkeeping of a round: every item counts once, whoever is lost and whenever."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.runtime.dealing import Dealing, Merge, Run, Take


class Hands:
    """Workers that do what they are told and write down what their sums hold, twice if told twice."""

    def __init__(self, dealing, nodes):
        self.dealing, self.sums, self.doing, self.taken = dealing, {}, {}, None
        self.number = 0
        for node in nodes:
            self.join(node)

    def join(self, node):
        self.number += 1
        self.sums[self.number] = []
        self.dealing.join(self.number, node)

    def begin(self):
        self.doing |= {step.worker: step for step in self.dealing.steps()}

    def end(self, worker):
        step = self.doing.pop(worker)
        if worker not in self.sums:  # it went while it gave, to one that went as well
            self.dealing.lost(worker)
            return
        match step:
            case Run(items=items, fresh=fresh):
                self.sums[worker] = [*([] if fresh else self.sums[worker]), *items]
            case Merge(source=source):
                if source not in self.sums:  # it went while it gave
                    self.dealing.lost(self.dealing.refused(worker))
                    return
                self.sums[worker] = self.sums[worker] + self.sums[source]
            case Take():
                self.taken = self.sums[worker]
        self.dealing.ended(worker)
        assert (
            sorted(self.sums[worker]) == sorted(self.dealing.held(worker)) or not self.dealing._sums
        )

    def lose(self, worker):
        del self.sums[worker]
        giving = any(isinstance(s, Merge) and s.source == worker for s in self.doing.values())
        self.doing.pop(worker, None)
        if not giving:  # else nobody knows before the merge fails
            self.dealing.lost(worker)


@given(
    items=st.integers(0, 40),
    nodes=st.lists(st.sampled_from("abc"), min_size=1, max_size=6),
    losses=st.integers(0, 12),
    seed=st.integers(0, 2**32),
)
def test_every_item_is_handed_over_once_whoever_is_lost(items, nodes, losses, seed):
    rng = random.Random(seed)
    dealing = Dealing(items, sums=True)
    hands = Hands(dealing, nodes)
    for _ in range(2000):
        hands.begin()
        if dealing.finished:
            break
        if hands.sums and losses and rng.random() < 0.3:
            losses -= 1
            hands.lose(rng.choice(sorted(hands.sums)))
            if rng.random() < 0.7 or not hands.sums:
                hands.join(rng.choice("abc"))
        elif hands.doing:
            hands.end(rng.choice(sorted(hands.doing)))
        else:
            hands.join("a")
    assert dealing.finished
    assert sorted(hands.taken or []) == list(range(items))


@given(items=st.integers(1, 40), workers=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_without_sums_only_what_was_under_way_is_done_again(items, workers, seed):
    rng = random.Random(seed)
    dealing, over, again = Dealing(items, sums=False), [], []
    for worker in range(workers):
        dealing.join(worker, "a")
    doing = {}
    while not dealing.finished:
        doing |= {step.worker: step for step in dealing.steps()}
        worker = rng.choice(sorted(doing))
        step = doing.pop(worker)
        if rng.random() < 0.2:
            again += dealing.lost(worker)
            dealing.join(workers := workers + 1, "a")
        else:
            dealing.ended(worker)
            over += step.items
    assert sorted(over) == list(range(items))
    assert sum(dealing.strikes) == len(again)


def test_chunks_shrink_and_the_dearest_go_first():
    dealing = Dealing(16, sums=False)
    dealing.join(1, "a")
    dealing.join(2, "a")
    sizes = [len(step.items) for step in dealing.steps()]
    assert sizes == [4, 3]
    dealing.ended(1)
    (step,) = dealing.steps()
    assert step.items == (7, 8)


def test_what_a_worker_was_lost_with_is_dealt_alone():
    dealing = Dealing(8, sums=False)
    dealing.join(1, "a")
    (step,) = dealing.steps()
    assert dealing.lost(1) == step.items == (0, 1, 2, 3)
    dealing.join(2, "a")
    for item in (0, 1, 2, 3):
        (step,) = dealing.steps()
        assert step.items == (item,)
        dealing.ended(2)
    (step,) = dealing.steps()
    assert step.items == (4, 5)
    assert dealing.strikes == [1, 1, 1, 1, 0, 0, 0, 0]


def test_sums_are_merged_within_a_node_before_they_leave_it():
    dealing = Dealing(4, sums=True)
    for worker, node in enumerate("aabb"):
        dealing.join(worker, node)
    first = list(dealing.steps())
    assert [s.worker for s in first] == [0, 1, 2, 3]
    for worker in range(4):
        dealing.ended(worker)
    assert list(dealing.steps()) == [Merge(0, 1), Merge(2, 3)]
    dealing.ended(0)
    assert list(dealing.steps()) == []  # the other node is not done
    dealing.ended(2)
    assert list(dealing.steps()) == [Merge(0, 2)]
    dealing.ended(0)
    assert list(dealing.steps()) == [Take(0)]
    assert dealing.held(0) == {0, 1, 2, 3}


def test_a_lost_sum_is_done_again_but_not_one_that_was_only_given_from():
    dealing = Dealing(3, sums=True)
    for worker in range(3):
        dealing.join(worker, "a")
    assert len(list(dealing.steps())) == 3
    dealing.ended(0)
    dealing.ended(1)
    assert list(dealing.steps()) == [Merge(0, 1)]
    assert dealing.lost(0) == ()
    assert dealing.held(1) == {1}
    assert list(dealing.steps()) == [Run(1, (0,), fresh=False)]
    dealing.ended(1)
    assert dealing.held(1) == {0, 1}


@pytest.mark.parametrize("sums", [True, False])
def test_a_round_of_nothing_is_over_at_once(sums):
    dealing = Dealing(0, sums=sums)
    dealing.join(1, "a")
    assert dealing.finished
    assert list(dealing.steps()) == []
