"""Files for a run's first checkpoints are made early, and only where they are worth it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from atoll.core.layout import Entry, Layout
from atoll.core.values import State
from atoll.runtime.checkpoint import Progress
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.rounds.ahead import foreseen


class Asked(FolderBlobs):
    """Notes what is foreseen."""

    def foresee(self, size: int, count: int) -> None:
        self.asked = size, count
        self.made.set()


@pytest.fixture
def blobs(tmp_path) -> Asked:
    found = Asked(tmp_path)
    found.made = threading.Event()
    return found


def progress(values: int, rounds: int) -> Progress:
    vector = np.zeros(values, np.float32)
    layout = Layout.of([Entry("w", (values,), "float32")])
    state = State.start(vector, layout, 3)
    return Progress(state, rounds=rounds)


@pytest.mark.parametrize(("done", "count"), [(0, 3), (8, 2), (9, 1)])
def test_as_many_as_are_not_written_over_another(blobs: Asked, done: int, count: int) -> None:
    given = progress(4 << 20, done)
    assert foreseen(blobs, given, 10) is given
    assert blobs.made.wait(30)
    size, number = blobs.asked
    assert number == count
    assert 16 << 20 < size <= 17 << 20


@pytest.mark.parametrize(("values", "done"), [(1000, 0), (4 << 20, 10)])
def test_none_for_a_small_model_or_at_the_end(blobs: Asked, values: int, done: int) -> None:
    foreseen(blobs, progress(values, done), 10)
    assert not blobs.made.wait(0.2)
