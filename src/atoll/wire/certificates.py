"""TLS 1.3 with one pinned certificate: the server makes its own, a member knows its fingerprint.

A certificate that is known in full by its SHA-256 needs no authority that vouches for it, and no
authority can vouch for another in its place. Names and dates in it are therefore not looked at.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.core.errors import AuthError, StorageError
from atoll.wire.disk import RealDisk, keep
from atoll.wire.identity import needs_cryptography, spoken, write_secret
from atoll.wire.sealed import Sealed, SealedSocket
from atoll.wire.trouble import remedy_of

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = [
    "certificate_fingerprint",
    "client_context",
    "create_certificate",
    "secure",
    "server_context",
]

_GREETING = 60.0
"""Seconds without a byte that a handshake may take where the socket has no limit of its own."""


def create_certificate(
    certificate: Path, key: Path, names: Sequence[str], *, now: float, days: int = 3650
) -> bytes:
    """Make an EC P-256 key and a certificate signed by itself; both are PEM files.

    Args:
        certificate: where to write it.
        key: where to write the private key, readable by its owner alone.
        names: host names and IP addresses of the server.
        now: seconds since 1970; valid from the day before, as clocks differ.
        days: how long it is valid.

    Returns:
        the certificate's SHA-256, 32 bytes.

    Raises:
        StorageError: the key exists, or a file cannot be written.
        MissingExtra: ``cryptography`` is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise needs_cryptography(error) from error
    private = ec.generate_private_key(ec.SECP256R1())
    made = _self_signed(private, names, now, days)
    pem = private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    write_secret(key, pem)
    disk = RealDisk()
    disk.make_folder(certificate.parent)
    keep(disk, certificate, [made.public_bytes(s.Encoding.PEM)])
    return certificate_fingerprint(certificate)


def _self_signed(
    private: EllipticCurvePrivateKey, names: Sequence[str], now: float, days: int
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    start = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(days=1)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Atoll server")])
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    return (
        x509.CertificateBuilder(subject, subject, private.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(usage, True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(private, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def certificate_fingerprint(path: Path) -> bytes:
    """SHA-256 of the first certificate in a PEM file, 32 bytes.

    Raises:
        StorageError: it cannot be read, or holds none.
    """
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        first = begin + text.split(begin, 1)[1].split(end, 1)[0] + end
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).digest()
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}", remedy=remedy_of(error, reading=True)
        ) from error
    except (IndexError, ValueError) as error:
        raise StorageError(
            f"{path} holds no certificate in PEM form",
            remedy="give one that begins with -----BEGIN CERTIFICATE-----, or restore it from a backup",
        ) from error


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 and nothing older, with the given certificate.

    Raises:
        StorageError: the files cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a connection is kept or made anew; nothing is resumed
    try:
        context.load_cert_chain(certificate, key, _no_passphrase)
    except (OSError, ssl.SSLError) as error:
        raise StorageError(
            f"{certificate} and {key} cannot be used: {error}",
            remedy="give a certificate and its own private key, both in PEM form",
        ) from error
    return context


def _no_passphrase() -> str:
    """Asked for only where the key has one; by itself OpenSSL would wait for somebody who types it."""
    raise StorageError(
        "the private key has a passphrase, and a server starts with nobody there to type it",
        remedy="take it off (openssl pkey -in KEY -out PLAIN) and give that file, readable by its owner alone",
    )


def client_context() -> ssl.SSLContext:
    """TLS 1.3 and nothing older; whom it speaks to is for :func:`secure` to check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def secure(
    plain: socket.socket, host: str, certificate: bytes, context: ssl.SSLContext
) -> SealedSocket:
    """Speak TLS on ``plain`` with the holder of one certificate; nothing is sent to any other.

    Args:
        plain: connected; its timeout holds for the handshake. It is closed when this fails.
        host: the server's name.
        certificate: SHA-256 of its certificate, 32 bytes.
        context: from :func:`client_context`.

    Raises:
        AuthError: another certificate.
        OSError: no handshake (:class:`ssl.SSLError`), or the connection broke.
    """
    seconds = plain.gettimeout() or _GREETING
    try:
        sealed = Sealed(plain, context, host)
        sealed.greet(seconds)
        line = SealedSocket(sealed, seconds)
        found = hashlib.sha256(line.certificate()).digest()
        if found != certificate:
            raise AuthError(
                f"{host} showed another certificate: {spoken(found.hex())}",
                remedy=f"expected {spoken(certificate.hex())}; "
                "ask whoever runs the server. One that was renewed is taken over with: "
                "atoll node server --certificate",
            )
    except BaseException:
        plain.close()
        raise
    return line
