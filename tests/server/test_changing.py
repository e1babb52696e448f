"""Another address, another certificate: what the operator changes later, and what stays."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from atoll.core.errors import JobError, NotFound, StorageError
from atoll.server import admin
from atoll.server.admin import Change, Founding
from atoll.server.home import Charter, ServerHome
from atoll.wire.certificates import certificate_fingerprint, create_certificate, server_context

NOW = 1_700_000_000.0


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    admin.found(tmp_path / "s", Founding("Heart study", "atoll.example:8443"), NOW)
    return ServerHome(tmp_path / "s")


def pin(home: ServerHome, charter: Charter) -> bytes:
    server_context(home.certificate(charter), home.key(charter))  # they belong together
    return certificate_fingerprint(home.certificate(charter))


def test_a_renewed_certificate_is_another_one_for_the_same_server(home: ServerHome) -> None:
    before, key = home.charter(), home.identity.read_bytes()
    pins = {pin(home, before)}
    for _ in range(2):
        made = admin.change(home.path, Change(renew=True), NOW)
        assert home.charter() == made
        pins.add(pin(home, made))
        assert home.key(made).stat().st_mode & 0o777 == 0o600
    assert len(pins) == 3
    assert home.identity.read_bytes() == key
    assert (made.address, made.federation) == (before.address, before.federation)


def test_a_certificate_that_is_given_is_taken_over(home: ServerHome, tmp_path: Path) -> None:
    files = tmp_path / "c.pem", tmp_path / "k.pem"
    given = create_certificate(*files, ["atoll.example"], now=NOW)
    made = admin.change(home.path, Change(certificate=files[0], key=files[1]), NOW)
    assert pin(home, made) == given
    files[0].unlink()
    assert pin(home, home.charter()) == given


def test_a_certificate_with_another_s_key_changes_nothing(home: ServerHome, tmp_path: Path) -> None:
    before = home.charter()
    create_certificate(tmp_path / "c.pem", tmp_path / "k.pem", ["x"], now=NOW)
    asked = Change(certificate=tmp_path / "c.pem", key=home.key(before))
    with pytest.raises(StorageError, match="cannot be used"):
        admin.change(home.path, asked, NOW)
    assert home.charter() == before


def test_a_key_with_a_passphrase_is_refused_and_asks_nobody(
    home: ServerHome, tmp_path: Path
) -> None:
    create_certificate(tmp_path / "c.pem", tmp_path / "k.pem", ["x"], now=NOW)
    command = ["openssl", "pkey", "-in", tmp_path / "k.pem", "-aes256", "-passout", "pass:geheim"]
    subprocess.run([*command, "-out", tmp_path / "p.pem"], check=True)
    with pytest.raises(StorageError, match="has a passphrase") as caught:
        admin.change(home.path, Change(certificate=tmp_path / "c.pem", key=tmp_path / "p.pem"), NOW)
    assert "openssl pkey" in caught.value.remedy


@pytest.mark.parametrize(
    ("first", "asked", "address", "listen"),
    [
        ("a.example:1", Change(address="b.example:2"), "b.example:2", "0.0.0.0:2"),
        ("127.0.0.1:1", Change(address="b.example:2"), "b.example:2", "0.0.0.0:2"),
        ("a.example:1", Change(listen="10.0.0.7:3"), "a.example:1", "10.0.0.7:3"),
        (
            "a.example:1",
            Change(address="b.example:2", listen="10.0.0.7:3"),
            "b.example:2",
            "10.0.0.7:3",
        ),
    ],
)
def test_where_a_server_listens_follows_its_address_unless_it_was_said(
    tmp_path: Path, first: str, asked: Change, address: str, listen: str
) -> None:
    admin.found(tmp_path / "s", Founding("x", first), NOW)
    made = admin.change(tmp_path / "s", asked, NOW)
    assert (made.address, made.listen) == (address, listen)


@pytest.mark.parametrize(
    "asked",
    [
        Change(),
        Change(address="nowhere"),
        Change(listen="x"),
        Change(certificate=Path("c.pem")),
        Change(renew=True, certificate=Path("c.pem"), key=Path("k.pem")),
    ],
)
def test_what_makes_no_sense_is_the_command_s_fault(home: ServerHome, asked: Change) -> None:
    before = home.charter()
    with pytest.raises(JobError) as caught:
        admin.change(home.path, asked, NOW)
    assert caught.value.remedy
    assert home.charter() == before


def test_there_has_to_be_a_server(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        admin.change(tmp_path, Change(renew=True), NOW)


def test_an_address_that_is_none_is_the_command_s_fault_and_makes_nothing(tmp_path: Path) -> None:
    for address in ("nowhere", "a.example:0", "https://a.example:1", "a b:1"):
        with pytest.raises(JobError, match=r"no address|no port"):
            admin.found(tmp_path / "s", Founding("x", address), NOW)
    assert not (tmp_path / "s").exists()


def test_a_store_that_a_federation_has_is_not_founded_on_again(
    home: ServerHome, tmp_path: Path
) -> None:
    store = home.store_url(home.charter())
    again = Founding("other", "b.example:1", store=store)
    admin.found(tmp_path / "b", again, NOW)  # nobody was in it yet
    admin.invite(home.path, "north", "site", 1.0, time.time())
    with pytest.raises(StorageError, match="holds a federation already") as caught:
        admin.found(tmp_path / "c", again, NOW)
    assert "empty database" in caught.value.remedy
    assert not (tmp_path / "c" / "identity.pem").exists()
