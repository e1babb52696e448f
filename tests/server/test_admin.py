"""What the operator does: found, invite, look, revoke."""

from __future__ import annotations

import contextlib
import hashlib
import stat
import time
from pathlib import Path

import pytest

from atoll.core.errors import (
    AuthError,
    JobError,
    NotFound,
    StateError,
    StorageError,
    WireError,
)
from atoll.server import admin
from atoll.server.admin import Founding
from atoll.server.home import ServerHome
from atoll.server.store.contract import Invite
from atoll.server.store.opening import open_store
from atoll.wire.certificates import certificate_fingerprint, server_context
from atoll.wire.codes import read_code
from atoll.wire.identity import Identity

NOW = 1_700_000_000.0


@pytest.fixture
def home(tmp_path):
    admin.found(tmp_path / "s", Founding("Heart study", "atoll.example:8443"), NOW)
    return tmp_path / "s"


def joined(home, name, role="site"):
    """Let a newcomer in as the running server would."""
    code = read_code(admin.invite(home, name, role, 1.0, NOW))
    store = open_store(ServerHome(home).store_url(ServerHome(home).charter()))
    try:
        digest = hashlib.sha256(code.secret).hexdigest()
        return store.join(digest, "", Identity.fresh().public_bytes, NOW)
    finally:
        store.close()


def test_founding_makes_a_private_folder_with_keys_certificate_and_store(home):
    charter = ServerHome(home).charter()
    assert charter.federation.startswith("heart-study-")
    assert (charter.address, charter.listen) == ("atoll.example:8443", "0.0.0.0:8443")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for secret in ("identity.pem", "tls/key.pem", "metrics.token", "server.json"):
        assert stat.S_IMODE((home / secret).stat().st_mode) == 0o600, secret
    server_context(home / "tls" / "cert.pem", home / "tls" / "key.pem")
    assert admin.overview(home, NOW).epoch == 0


def test_two_federations_of_one_name_are_two(tmp_path):
    made = {admin.found(tmp_path / n, Founding("x"), NOW).federation for n in "ab"}
    assert len(made) == 2


@pytest.mark.parametrize(
    ("address", "listen"),
    [
        ("127.0.0.1:7443", "127.0.0.1:7443"),
        ("localhost:7443", "localhost:7443"),
        ("[::1]:7443", "[::1]:7443"),
        ("10.1.2.3:443", "0.0.0.0:443"),
        ("a.example:443", "0.0.0.0:443"),
    ],
)
def test_a_loopback_address_is_listened_on_alone(tmp_path, address, listen):
    assert admin.found(tmp_path / "s", Founding(address=address), NOW).listen == listen


@pytest.mark.parametrize(
    "asked",
    [
        Founding(address="nowhere"),
        Founding(address="a.example:0"),
        Founding(listen="x:y"),
        Founding(name="a/b"),
        Founding(name=""),
        Founding(key=Path("key.pem")),
        Founding(store="mysql://x/y"),
    ],
)
def test_what_makes_no_sense_founds_nothing(tmp_path, asked):
    with pytest.raises((JobError, WireError, StorageError)):
        admin.found(tmp_path / "s", asked, NOW)
    assert not (tmp_path / "s" / "server.json").exists()


def test_a_folder_holds_one_server(home):
    with pytest.raises(StorageError, match="already"):
        admin.found(home, Founding(), NOW)


def test_a_folder_without_a_server_is_told_so(tmp_path):
    for act in (
        lambda: admin.invite(tmp_path, "ulm", "site", 1.0, NOW),
        lambda: admin.revoke(tmp_path, "ulm", NOW),
        lambda: admin.overview(tmp_path, NOW),
    ):
        with pytest.raises(NotFound, match="no server in"):
            act()


def test_a_damaged_charter_is_told_so(home):
    (home / "server.json").write_text('{"name": "x"}')
    with pytest.raises(StorageError, match="damaged"):
        ServerHome(home).charter()


def test_a_code_holds_address_certificate_and_a_secret_of_which_only_the_hash_is_kept(home):
    code = read_code(admin.invite(home, "ulm", "site", 7.0, NOW))
    assert code.address == "atoll.example:8443"
    assert code.certificate == certificate_fingerprint(home / "tls" / "cert.pem")
    assert code.secret not in (home / "atoll.db").read_bytes()
    assert code.secret.hex().encode() not in (home / "atoll.db").read_bytes()
    [waiting] = admin.overview(home, NOW).open_invites
    assert (waiting.name, waiting.role, waiting.expires) == ("ulm", "site", NOW + 7 * 86_400)
    assert admin.overview(home, NOW + 8 * 86_400).open_invites == ()


def test_every_code_is_another(home):
    codes = {admin.invite(home, "ulm", "site", 1.0, NOW) for _ in range(3)}
    assert len(codes) == 3


@pytest.mark.parametrize(
    ("name", "days"), [("", 1), (" ulm", 1), ("a/b", 1), ("ulm", 0), ("ulm", 999)]
)
def test_an_invitation_that_makes_no_sense_is_refused(home, name, days):
    with pytest.raises(JobError):
        admin.invite(home, name, "site", days, NOW)


def test_a_member_s_name_is_not_given_twice(home):
    joined(home, "ulm")
    with pytest.raises(StateError, match="ulm"):
        admin.invite(home, "ulm", "site", 1.0, NOW)


@pytest.mark.parametrize(
    "name",
    [
        "h\N{CYRILLIC SMALL LETTER O}spital-a",
        "H\N{GREEK SMALL LETTER OMICRON}spital-\N{CYRILLIC CAPITAL LETTER A}",
        "hospita1-a",
        "h0spital-a",
        "hospital\N{EN DASH}a",
        "hospital\N{MINUS SIGN}a",
        "Hospital -a",
    ],
)
def test_a_name_that_only_looks_like_a_member_s_is_refused(home, name):
    joined(home, "hospital-a")
    with pytest.raises(StateError, match="written almost as 'hospital-a'"):
        admin.invite(home, name, "site", 1.0, NOW)
    assert admin.invite(home, "hospital-b", "site", 1.0, NOW)
    assert admin.invite(home, "Больница 2", "site", 1.0, NOW)


def test_a_revoked_member_stays_listed_and_can_be_invited_anew(home):
    joined(home, "ulm")
    assert admin.revoke(home, "ulm", NOW) == 0
    with pytest.raises(StateError, match="before"):
        admin.revoke(home, "ulm", NOW)
    with pytest.raises(NotFound):
        admin.revoke(home, "bern", NOW)
    second = joined(home, "ulm")
    listed = [(m.name, m.status) for m in admin.overview(home, NOW).members]
    assert listed == [("ulm", "revoked"), ("ulm", "active")]
    assert second.status == "active"


def test_a_code_that_was_not_used_is_withdrawn_with_the_name(home):
    """A second code that was made for a member would have let whoever holds it come in its place."""
    joined(home, "ulm")
    admin.invite(home, "ulm2", "site", 1.0, NOW)  # before anybody has joined under it
    store = open_store(ServerHome(home).store_url(ServerHome(home).charter()))
    with contextlib.closing(store):
        store.add_invite(Invite("ef" * 32, "bern", "site", NOW + 1))
        store.add_invite(Invite("cd" * 32, "bern", "site", NOW + 1))
        store.join("cd" * 32, "", bytes(32), NOW)
        assert [admin.revoke(home, name, NOW) for name in ("ulm2", "bern")] == [1, 1]
        with pytest.raises(AuthError, match="not known"):
            store.join("ef" * 32, "", bytes([1]) * 32, NOW)
    assert admin.overview(home, NOW).open_invites == ()
    admin.invite(home, "bern", "site", 1.0, NOW)
    assert admin.revoke(home, "bern", NOW) == 1  # the member was revoked before


def test_the_log_says_who_was_invited_and_revoked(home):
    joined(home, "ulm")
    admin.revoke(home, "ulm", NOW)
    assert [(e.kind, e.site) for e in admin.overview(home, NOW).alarms] == [
        ("invited", "ulm"),
        ("revoked", "ulm"),
    ]


def test_what_was_left_by_a_killed_server_is_not_taken_for_a_running_one(home):
    ServerHome(home).tell({"pid": 1, "port": 1, "epoch": 1, "listen": "", "since": time.time()})
    assert admin.overview(home, NOW).running is None
    with ServerHome(home).locked():
        assert admin.overview(home, NOW).running["port"] == 1


def test_founding_that_failed_at_the_database_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "server"
    with pytest.raises(StorageError):
        admin.found(path, Founding(store=f"postgresql://u:p@/x?host={tmp_path}"), time.time())
    assert admin.found(path, Founding(), time.time()).federation


def test_a_server_from_a_backup_goes_on_behind_what_sites_have_seen(home):
    assert admin.restored(home, 17, NOW) == 18
    assert admin.overview(home, NOW).epoch == 18
    assert admin.overview(home, NOW).alarms[-1].kind == "restored"
    with pytest.raises(StateError, match="in its epoch 18 already"):
        admin.restored(home, 17, NOW)
    assert (
        admin.restored(home, 18, NOW) == 19
    )  # a copy of the last start: ids are given anew all the same


def test_a_server_that_runs_is_not_told_to_be_a_backup(home, tmp_path):
    with ServerHome(home).locked(), pytest.raises(StorageError, match="another server runs"):
        admin.restored(home, 17, NOW)
    with pytest.raises(NotFound, match="no server in"):
        admin.restored(tmp_path / "none", 17, NOW)
    assert not (tmp_path / "none").exists()
