"""Long transfers over lines that break, and what a large model costs the server."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import own_task
from federation_measures import MIB, cut_upload, on_a_breaking_line, server_growth
from federation_network import Passing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHUNK = 4 * MIB


def test_cut_upload_sends_no_more_than_a_chunk_again(tmp_path: Path) -> None:
    found = cut_upload(tmp_path, 48 * MIB + 17, 6, random.Random(1))
    assert found.whole
    assert found.cuts >= 4
    assert 0 < found.sent_again <= found.cuts * CHUNK


def test_run_over_a_line_that_breaks_all_the_time_ends_in_the_same_bits(tmp_path: Path) -> None:
    task = own_task(tmp_path / "job", 2, 3, size=3_000_000)
    cuts: list[int] = []
    with on_a_breaking_line(tmp_path, cuts) as (federation, line):
        federation.admit(task.sites)
        run = federation.submit(task.job)
        rng = random.Random(2)
        planned = sorted(rng.randrange(60 * MIB) for _ in range(10))
        cuts += [line.passed + cut for cut in planned]
        info = federation.wait(run)
        assert info.reason == "completed", info
        assert len(cuts) <= 6  # the others have come to pass
        assert isinstance(line, Passing)
        assert federation.result(run)["model_hash"] == task.simulated()


def test_server_holds_a_few_models_whatever_the_number_of_sites(tmp_path: Path) -> None:
    found = server_growth(tmp_path, sites=5, values=12_000_000, rounds=2)
    assert (
        found["anonymous"] <= 5
    )  # of 48 MB; chunks under way count for more than with large models
