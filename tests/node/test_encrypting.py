"""What a node does with the tasks of an encrypted job beside an honest server's: nothing leaves in clear."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_federation import Deployed, FakeServer, Running, job_tables, node_at, table_text

from atoll.core.errors import StateError
from atoll.data.readers import read_table
from atoll.job import deployed
from atoll.job.load import parse_job
from atoll.node.run_keys import RunKeys
from atoll.wire.frames import encode

ENCRYPTED = {"aggregation": "encrypted"}


@pytest.mark.parametrize("kind", ["sums", "train", "evaluate"])
def test_what_an_encrypted_job_adds_up_does_not_leave_without_a_message_of_the_protocol(
    tmp_path: Path, kind: str
) -> None:
    """A server that leaves out the protocol would see what a single site sends."""
    server = FakeServer()
    spec = parse_job(job_tables(privacy=ENCRYPTED, algorithm={"name": "fedavg"}))
    (tmp_path / "east.csv").write_text(table_text(1))
    run = Deployed(spec, {"east": server}, tmp_path)
    rows = read_table(tmp_path / "east.csv")
    run.schema = deployed.agree(spec, {"east": deployed.survey(spec, "east", rows)})
    run.sums = dict(deployed.column_sums_at(spec, run.schema, "east", rows).vectors)
    model = None if kind == "sums" else encode({}, {})
    with Running(node_at(tmp_path, "east", server, table_text(1))):
        task = server.offer(run.task(kind, "east", broadcast=model))
        body, arrays = server.result(task.id)
    assert body.status in ("failed", "refused")
    assert not arrays
    assert "came without a message of the protocol" in body.reason


@pytest.mark.parametrize("kind", ["greet", "deal", "take", "open"])
def test_steps_of_encryption_for_a_job_that_is_not_encrypted_are_refused(
    tmp_path: Path, kind: str
) -> None:
    server = FakeServer()
    spec = parse_job(job_tables(algorithm={"name": "fedavg"}))
    run = Deployed(spec, {"east": server}, tmp_path)
    with Running(node_at(tmp_path, "east", server, table_text(1))):
        task = server.offer(run.task(kind, "east", broadcast=encode({}, {})))
        body, arrays = server.result(task.id)
    assert body.status in ("failed", "refused")
    assert not arrays


def test_secrets_of_a_run_are_the_owner_s_alone_survive_and_go_with_it(tmp_path: Path) -> None:
    keys = RunKeys(tmp_path / "keys")
    seed = keys.seed("heart-1")
    assert len(seed) == 32
    assert RunKeys(tmp_path / "keys").seed("heart-1") == seed != keys.seed("heart-2")
    with pytest.raises(StateError, match="does not have the key"):
        keys.key("heart-1")
    keys.keep("heart-1", b"secret")
    assert RunKeys(tmp_path / "keys").key("heart-1") == b"secret"
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0
    second = keys.seed("heart-2")
    keys.drop("heart-1")
    assert not keys.has("heart-1")
    assert keys.seed("heart-1") != seed
    assert keys.seed("heart-2") == second
