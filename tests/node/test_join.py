"""Joining and leaving: one command with a code; the key is made here and only its public half leaves."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from atoll.core.errors import (
    AuthError,
    Busy,
    Forbidden,
    StateError,
    StorageError,
    Unreachable,
    WireError,
)
from atoll.node.home import Home
from atoll.node.join import join, leave, opened, trusted
from atoll.node.run_keys import RunKeys
from atoll.node.settings import Settings
from atoll.node.spool import Spool
from atoll.wire.codes import Invitation, encode_code
from atoll.wire.frames import encode
from atoll.wire.identity import Identity
from atoll.wire.messages import JoinBody, JoinReply

INVITATION = Invitation("atoll.example:7443", b"\1" * 32, b"\2" * 16)
CODE = encode_code(INVITATION)


class Gatehouse:
    """Makes channels to a server that admits whoever knows the secret, once."""

    def __init__(self, role: str = "site", federation: str = "lagoon") -> None:
        self.role, self.federation = role, federation
        self.keys: list[str] = []
        self.dialled: list[tuple[Any, ...]] = []
        self.lost = 0
        self.busy = 0
        self.left = 0
        self.refusal: Exception | None = None

    def __call__(
        self, address: str, pin: Any, identity: Identity, federation: str, *, proxy: str | None
    ) -> Gatehouse:
        self.dialled.append((address, pin.certificate, pin.server_key, federation, proxy))
        self.identity = identity
        return self

    def json(self, method: str, path: str, message: JoinBody, reply: Any) -> JoinReply:
        assert (method, path) == ("POST", "/v1/join")
        assert message.key == self.identity.public_bytes.hex()
        assert message.secret == INVITATION.secret.hex()
        if self.busy:
            self.busy -= 1
            raise Busy("too many requests from 192.0.2.7")
        if self.keys and message.key not in self.keys:
            raise AuthError("this code was used", remedy="ask for a new one")
        self.keys.append(message.key)
        if len(self.keys) <= self.lost:
            raise Unreachable("the answer was lost")
        return JoinReply(
            federation=self.federation,
            name="east",
            role=self.role,  # type: ignore[arg-type]  # checked by pydantic
            server_key="cd" * 32,
        )

    def call(self, method: str, path: str, **_: Any) -> None:
        assert (method, path) == ("POST", "/v1/leave")
        if self.refusal:
            raise self.refusal
        self.left += 1

    def close(self) -> None:
        """Nothing to close."""


def test_joining_makes_a_key_and_keeps_what_the_server_said(tmp_path: Path) -> None:
    home, gate = Home(tmp_path), Gatehouse()
    made = join(home, CODE, proxy="http://proxy:3128", dial=gate)
    assert (made.federation, made.site, made.server) == ("lagoon", "east", "atoll.example:7443")
    assert gate.dialled == [("atoll.example:7443", b"\1" * 32, None, "join", "http://proxy:3128")]
    assert home.joined() == made
    assert home.identity.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" in home.identity.read_bytes()
    opened(home, Settings(), dial=gate)
    assert gate.dialled[-1] == (
        "atoll.example:7443",
        b"\1" * 32,
        bytes.fromhex("cd" * 32),
        "lagoon",
        None,
    )


def test_a_lost_answer_is_asked_for_again_with_the_same_key(tmp_path: Path) -> None:
    home, gate = Home(tmp_path), Gatehouse()
    gate.lost = 1
    with pytest.raises(Unreachable):
        join(home, CODE, dial=gate)
    assert not home.federation.exists()
    join(home, CODE, dial=gate)
    assert len(set(gate.keys)) == 1


def test_who_joins_in_a_crowd_waits_for_its_turn_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, slept = Gatehouse(), [0.0]
    gate.busy = 20
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    with caplog.at_level(logging.WARNING, "atoll.wire"):
        assert join(Home(tmp_path / "a"), CODE, dial=gate).site == "east"
    assert all(2.0 <= pause <= 6.0 for pause in slept[1:])
    assert [record.getMessage() for record in caplog.records] == [
        "many join from this address at once, and the server takes them one after the other: "
        "trying again for 3 minutes"
    ]
    gate.busy = 1_000_000
    before = sum(slept)
    with pytest.raises(Busy):
        join(Home(tmp_path / "b"), CODE, dial=gate)
    assert 170.0 <= sum(slept) - before <= 180.0


def test_a_used_code_is_refused_with_the_remedy(tmp_path: Path) -> None:
    gate = Gatehouse()
    join(Home(tmp_path / "a"), CODE, dial=gate)
    with pytest.raises(AuthError, match="ask for a new one"):
        join(Home(tmp_path / "b"), CODE, dial=gate)
    assert not Home(tmp_path / "b").federation.exists()


def test_a_mistyped_code_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    wrong = CODE[:20] + ("7" if CODE[20] != "7" else "8") + CODE[21:]
    with pytest.raises(WireError):
        join(Home(tmp_path / "node"), wrong, dial=Gatehouse())
    assert not (tmp_path / "node").exists()


def test_a_node_belongs_to_one_federation(tmp_path: Path) -> None:
    join(Home(tmp_path), CODE, dial=Gatehouse())
    with pytest.raises(StateError, match="'east' of the federation"):
        join(Home(tmp_path), CODE, dial=Gatehouse())


def test_a_researcher_s_code_is_not_for_a_node(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="researcher"):
        join(Home(tmp_path), CODE, dial=Gatehouse("researcher"))
    assert not Home(tmp_path).federation.exists()


@pytest.mark.parametrize("refusal", [None, Forbidden("it has left already")])
def test_leaving_keeps_the_key_and_allows_to_join_again(
    tmp_path: Path, refusal: Exception | None
) -> None:
    home, gate = Home(tmp_path), Gatehouse()
    join(home, CODE, dial=gate)
    before = home.identity.read_bytes()
    gate.refusal = refusal
    leave(home, Settings(), dial=gate)
    assert not home.federation.exists()
    join(home, CODE, dial=gate)
    assert home.identity.read_bytes() == before


def test_what_is_left_of_one_federation_s_runs_does_not_go_to_another(tmp_path: Path) -> None:
    home, gate = Home(tmp_path), Gatehouse()
    join(home, CODE, dial=gate)
    result = encode({"task": "r1.train.3.east", "status": "done"})
    Spool(home.spool).finish("r1", "r1.train.3.east", result)
    RunKeys(home.keys).seed("r1")
    leave(home, Settings(), dial=gate)
    join(home, CODE, dial=gate)  # the same one again: its run may still be there
    assert [held.task for held in Spool(home.spool).results] == ["r1.train.3.east"]
    leave(home, Settings(), tell=False, dial=gate)
    join(home, CODE, dial=Gatehouse(federation="reef"))
    assert Spool(home.spool).results == ()
    assert not home.keys.exists()


def test_leaving_changes_nothing_when_the_server_is_not_told(tmp_path: Path) -> None:
    home, gate = Home(tmp_path), Gatehouse()
    join(home, CODE, dial=gate)
    gate.refusal = Unreachable("away")
    with pytest.raises(Unreachable):
        leave(home, Settings(), dial=gate)
    assert home.joined().site == "east"


def test_a_running_node_does_not_leave(tmp_path: Path) -> None:
    home, gate = Home(tmp_path), Gatehouse()
    join(home, CODE, dial=gate)
    with home.locked(), pytest.raises(StorageError, match="another node runs"):
        leave(home, Settings(), dial=gate)
    assert gate.left == 0


def test_a_new_key_beside_the_old_ledger_is_told_before_the_code_is_used(tmp_path: Path) -> None:
    home, gate = Home(tmp_path), Gatehouse()
    trusted(home, join(home, CODE, dial=gate))  # which begins the book of masked rounds
    leave(home, Settings(), dial=gate)
    home.identity.unlink()
    used = len(gate.keys)
    with pytest.raises(StateError, match="ledger is damaged, or was signed with another key"):
        join(home, CODE, dial=gate)
    assert len(gate.keys) == used
    home.ledger.parent.rename(tmp_path / "ledger of the first key")
    with pytest.raises(StateError, match="audit is damaged, or was signed with another key"):
        join(home, CODE, dial=gate)
    home.audit.rename(tmp_path / "audit log of the first key")
    gate.keys.clear()  # another code
    trusted(home, join(home, CODE, dial=gate))
