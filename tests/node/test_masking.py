"""What a node does with the tasks of a masked job beside an honest server's: nothing leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fake_federation import Deployed, FakeServer, Running, job_tables, node_at, table_text

from atoll.core.errors import AuthError, StorageError
from atoll.data.readers import read_table
from atoll.job import deployed
from atoll.job.load import parse_job
from atoll.node.peers import Peers
from atoll.privacy.secagg.terms import Member
from atoll.wire.frames import encode


def test_a_plain_training_task_of_a_masked_job_is_not_answered_with_integers(
    tmp_path: Path,
) -> None:
    """A server that leaves out the protocol would see what a single site sends."""
    server, privacy = FakeServer(), {"aggregation": "masked"}
    spec = parse_job(job_tables(privacy=privacy, algorithm={"name": "fedavg"}))
    (tmp_path / "east.csv").write_text(table_text(1))
    run = Deployed(spec, {"east": server}, tmp_path)
    rows = read_table(tmp_path / "east.csv")
    run.schema = deployed.agree(spec, {"east": deployed.survey(spec, "east", rows)})
    run.sums = dict(deployed.column_sums_at(spec, run.schema, "east", rows).vectors)
    with Running(node_at(tmp_path, "east", server, table_text(1))):
        task = server.offer(run.task("train", "east", broadcast=encode({}, {})))
        body, arrays = server.result(task.id)
    assert body.status in ("failed", "refused")
    assert not arrays


def test_a_message_of_the_protocol_for_a_job_that_is_not_masked_is_refused(tmp_path: Path) -> None:
    server = FakeServer()
    spec = parse_job(job_tables(algorithm={"name": "fedavg"}))
    run = Deployed(spec, {"east": server}, tmp_path)
    with Running(node_at(tmp_path, "east", server, table_text(1))):
        task = server.offer(run.task("commit", "east", broadcast=encode({}, {})))
        body, _ = server.result(task.id)
    assert body.status in ("failed", "refused")


def test_a_key_that_has_changed_is_refused_until_somebody_says_that_it_is_right(
    tmp_path: Path,
) -> None:
    peers = Peers(tmp_path / "peers.json")
    assert peers.pin({"east": "a" * 64, "west": "b" * 64}) == ["east", "west"]
    with pytest.raises(AuthError, match="west: another key"):
        peers.pin({"west": "c" * 64, "north": "d" * 64})
    assert peers.all() == {"east": "a" * 64, "west": "b" * 64}
    assert peers.pin({"west": "c" * 64}, again=["west"]) == ["west"]
    assert peers.all()["west"] == "c" * 64


def test_only_keys_with_the_pinned_fingerprint_count(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "peers.json")
    known, other = Member("east", b"k" * 32), Member("west", b"o" * 32)
    assert peers.keys([known, other]) == {}
    peers.pin({"east": hashlib.sha256(known.key).hexdigest(), "west": "0" * 64})
    assert peers.keys([known, other]) == {"east": known.key}


def test_a_damaged_file_of_pins_is_told(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text('{"east": 3}')
    with pytest.raises(StorageError, match="damaged"):
        Peers(path).all()
