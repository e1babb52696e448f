"""What a node does with the tasks of an encrypted job beside an honest server's: nothing leaves in clear."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_federation import asked

from atoll.core.errors import StateError
from atoll.node.run_keys import RunKeys
from atoll.wire.frames import encode

ENCRYPTED = {"privacy": {"aggregation": "encrypted"}}


@pytest.mark.parametrize("kind", ["sums", "train", "evaluate"])
def test_what_an_encrypted_job_adds_up_does_not_leave_without_a_message_of_the_protocol(
    tmp_path: Path, kind: str
) -> None:
    """A server that leaves out the protocol would see what a single site sends."""
    model = None if kind == "sums" else encode({}, {})
    body, arrays = asked(tmp_path, ENCRYPTED, kind, model)
    assert body.status in ("failed", "refused")
    assert not arrays
    assert "came without a message of the protocol" in body.reason


@pytest.mark.parametrize("kind", ["greet", "deal", "take", "open"])
def test_steps_of_encryption_for_a_job_that_is_not_encrypted_are_refused(
    tmp_path: Path, kind: str
) -> None:
    body, arrays = asked(tmp_path, {}, kind, encode({}, {}))
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
