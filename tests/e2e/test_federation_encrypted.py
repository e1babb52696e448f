"""Encrypted rounds between real processes: the bits of the quantised simulation, kills or not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import table_task
from federation_processes import Federation
from test_federation_masked import QUANTISED, admitted

from atoll.node.run_keys import RunKeys
from atoll.privacy.he.contexts import SecretContext
from atoll.privacy.he.parameters import Parameters

pytest.importorskip("tenseal")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENCRYPTED = "privacy.aggregation='encrypted'"
SITES = 5


def test_an_encrypted_federation_has_the_bits_of_the_quantised_simulation(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", sites=SITES, rounds=3)
    with Federation(tmp_path) as federation:
        admitted(federation, task)
        run = federation.submit(task.job, [*task.settings, ENCRYPTED])
        federation.rounds(run, 1)
        raws = {RunKeys(home.keys).key(run) for home in federation.homes.values()}
        info = federation.wait(run)
        assert (info.status, info.reason) == ("completed", "completed")
        assert info.aggregation == "encrypted: the job says so"
        assert federation.result(run)["model_hash"] == task.simulated(QUANTISED)
        records = federation.records(run)
    (raw,) = raws  # one key at all sites
    assert not secrets_in(raw, federation.folder / "server")
    for record in records:
        assert sorted(record["contributed"]) == sorted(task.sites)
        assert set(record["contributed"].values()) == {0}  # rows are told in total only


def secrets_in(raw: bytes, folder: Path) -> list[Path]:
    """Files below ``folder`` that hold a part of the key which is not in its public half."""
    public = SecretContext(Parameters.exact(SITES), raw).public().raw
    parts = [raw[i : i + 24] for i in range(0, len(raw) - 24, 997)]
    secret = [part for part in parts if part not in public]
    assert len(secret) > 30
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [
        path for path in files for data in [path.read_bytes()] if any(s in data for s in secret)
    ]


def test_server_and_nodes_that_are_killed_in_encrypted_rounds_come_to_the_same_bits(
    tmp_path: Path,
) -> None:
    rounds = 8
    task = table_task(tmp_path / "job", sites=SITES, rounds=rounds, algorithm="scaffold")
    uniform = "algorithm.weights='uniform'"
    with Federation(tmp_path) as federation:
        admitted(federation, task)
        run = federation.submit(task.job, [*task.settings, ENCRYPTED, uniform])
        for number in range(3):
            federation.rounds(run, 1 + 2 * number)
            time.sleep(0.11 * number)
            victims = [federation.server, federation.nodes[list(task.sites)[number]]]
            for victim in victims:
                victim.kill()
            for victim in victims:
                victim.start()
            federation.up()
        info = federation.wait(run)
        assert (info.status, info.reason) == ("completed", "completed")
        assert federation.result(run)["model_hash"] == task.simulated(QUANTISED, uniform)
