"""A server that has moved or renewed its certificate, and one that is gone for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atoll.core.errors import AuthError, StorageError, Unreachable
from atoll.node.home import Federation, Home
from atoll.node.join import leave, move
from atoll.node.settings import Settings
from atoll.wire.codes import read_fingerprint
from atoll.wire.identity import Identity
from atoll.wire.messages import MembersReply

KNOWN = Federation("lagoon-1", "east", "old.example:7443", "ab" * 32, "cd" * 32, 1.5)
RENEWED = "ef" * 32


class Elsewhere:
    """Makes channels to a server that is at one address with one certificate, and signs with its key."""

    def __init__(self, address: str, pin: str) -> None:
        self.address, self.pin = address, bytes.fromhex(pin)
        self.asked = 0

    def __call__(
        self, address: str, pin: Any, identity: Identity, federation: str, *, proxy: str | None
    ) -> Elsewhere:
        assert (pin.server_key.hex(), federation) == (KNOWN.server_key, KNOWN.federation)
        if address != self.address:
            raise Unreachable(f"{address} cannot be reached")
        if pin.certificate != self.pin:
            raise AuthError("it showed another certificate")
        return self

    def call(self, method: str, path: str, **_: Any) -> Any:
        assert (method, path) == ("GET", "/v1/federation")
        self.asked += 1

        class Reply:
            body = (
                MembersReply(federation="lagoon-1", server="0" * 64, members=[])
                .model_dump_json()
                .encode()
            )

        return Reply()

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "node")
    made.join(KNOWN)
    Identity.create(made.identity)
    made.epoch.write_text('{"epoch": 7}\n')
    return made


def test_a_site_follows_its_server_and_keeps_all_else(home: Home) -> None:
    server = Elsewhere("new.example:7443", RENEWED)
    made = move(home, Settings(), address="new.example:7443", certificate=RENEWED, dial=server)
    assert (made.server, made.pin, made.server_key) == ("new.example:7443", RENEWED, "cd" * 32)
    assert home.joined() == made
    assert (made.site, made.federation, made.joined) == ("east", "lagoon-1", 1.5)
    assert home.epoch.exists()  # of the same server: an older epoch is still not obeyed
    assert server.asked == 1


@pytest.mark.parametrize(
    ("server", "error"),
    [
        (Elsewhere("old.example:7443", "11" * 32), AuthError),
        (Elsewhere("other.example:7443", RENEWED), Unreachable),
    ],
)
def test_nothing_changes_before_the_server_has_answered_there(
    home: Home, server: Elsewhere, error: type[Exception]
) -> None:
    with pytest.raises(error):
        move(home, Settings(), certificate=RENEWED, dial=server)
    assert home.joined() == KNOWN


def test_a_running_node_is_stopped_first(home: Home) -> None:
    with home.locked(), pytest.raises(StorageError, match="another node runs"):
        move(home, Settings(), certificate=RENEWED, dial=Elsewhere("old.example:7443", RENEWED))
    assert home.joined() == KNOWN


def test_a_server_that_is_gone_for_good_can_be_left_without_it(home: Home) -> None:
    gone = Elsewhere("nowhere.example:1", RENEWED)
    with pytest.raises(Unreachable):
        leave(home, Settings(), dial=gone)
    assert home.joined() == KNOWN
    assert leave(home, Settings(), tell=False, dial=gone) == KNOWN
    assert not home.federation.exists()
    assert home.identity.exists()


@pytest.mark.parametrize("text", ["ab" * 31, "xy" * 32, "", "ab:" * 31, "ab" * 33])
def test_a_fingerprint_that_is_cut_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="no fingerprint") as caught:
        read_fingerprint(text)
    assert "atoll server status" in str(caught.value)
