"""Identities: made once, kept from others, and known by their fingerprint."""

import hashlib
import os

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec

from atoll.core.errors import AuthError, StorageError
from atoll.wire.identity import Identity, check_signature, fingerprint_of, spoken


def test_a_key_is_made_for_its_owner_alone_and_found_again(tmp_path):
    old = os.umask(0)
    try:
        made = Identity.create(tmp_path / "home" / "identity.pem")
    finally:
        os.umask(old)
    path = tmp_path / "home" / "identity.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    found = Identity.load(path)
    assert found.public_bytes == made.public_bytes
    assert found.fingerprint == made.fingerprint == hashlib.sha256(made.public_bytes).hexdigest()
    check_signature(made.public_bytes, found.sign(b"x"), b"x")


def test_a_key_is_never_written_over(tmp_path):
    made = Identity.create(tmp_path / "identity.pem")
    with pytest.raises(StorageError, match=r"a key in .* already"):
        Identity.create(tmp_path / "identity.pem")
    assert Identity.load(tmp_path / "identity.pem").fingerprint == made.fingerprint


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    path = tmp_path / "identity.pem"
    Identity.create(path)
    path.chmod(mode)
    with pytest.raises(AuthError, match=f"mode 0{mode:o}") as caught:
        Identity.load(path)
    assert caught.value.remedy == f"chmod 600 {path}"


def test_a_file_that_holds_no_ed25519_key_is_refused(tmp_path):
    path = tmp_path / "identity.pem"
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    for raw, told in (
        (b"nonsense", "no private key"),
        (b"", "no private key"),
        (pem, "not Ed25519"),
    ):
        path.write_bytes(raw)
        path.chmod(0o600)
        with pytest.raises(AuthError, match=told):
            Identity.load(path)
    with pytest.raises(StorageError, match="cannot be read"):
        Identity.load(tmp_path / "missing.pem")


def test_a_fingerprint_reads_in_groups_of_four():
    whole = fingerprint_of(b"\0" * 32)
    assert spoken(whole).split() == [whole[i : i + 4] for i in range(0, 64, 4)]


def test_a_key_is_not_shown():
    made = Identity.fresh()
    assert repr(made) == f"Identity(fingerprint={made.fingerprint!r})"


def test_another_s_signature_or_another_message_is_refused():
    a, b = Identity.fresh(), Identity.fresh()
    signature = a.sign(b"message")
    check_signature(a.public_bytes, signature, b"message")
    for public, sig, text in (
        (b.public_bytes, signature, b"message"),
        (a.public_bytes, signature, b"messagf"),
        (a.public_bytes, signature[:-1], b"message"),
        (a.public_bytes, b"", b"message"),
        (a.public_bytes[:-1], signature, b"message"),
    ):
        with pytest.raises(AuthError):
            check_signature(public, sig, text)
