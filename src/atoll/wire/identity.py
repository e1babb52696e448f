"""Who one is: an Ed25519 key that never leaves the machine it was made on.

A site or researcher makes its key when it joins; the federation pins the public half. The key file
(PEM, PKCS 8) may be read by its owner alone, and is refused when others may read it too.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.core.errors import AuthError, MissingExtra, StorageError
from atoll.wire.frames import sync_folder
from atoll.wire.trouble import remedy_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = ["Identity", "check_signature", "fingerprint_of", "spoken"]


def needs_cryptography(error: ImportError) -> MissingExtra:
    """What to raise where the library is not installed."""
    missing = MissingExtra(
        "a deployment needs the package 'cryptography'", remedy="pip install 'atoll[node]'"
    )
    missing.__cause__ = error
    return missing


def fingerprint_of(public: bytes) -> str:
    """SHA-256 of a raw public key, in hex."""
    return hashlib.sha256(public).hexdigest()


def spoken(fingerprint: str) -> str:
    """A fingerprint in groups of four, for reading it out by telephone.

    >>> spoken("3f2a91bc" * 2)
    '3f2a 91bc 3f2a 91bc'
    """
    return " ".join(fingerprint[i : i + 4] for i in range(0, len(fingerprint), 4))


@dataclass(frozen=True, eq=False)
class Identity:
    """A private key and its names.

    Args:
        key: the private key; not shown.
        public_bytes: the raw public key, 32 bytes.
        fingerprint: its SHA-256 in hex, the ``keyid`` of every signature.
    """

    key: Ed25519PrivateKey = field(repr=False)
    public_bytes: bytes = field(init=False, repr=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        public = self.key.public_key().public_bytes_raw()
        object.__setattr__(self, "public_bytes", public)
        object.__setattr__(self, "fingerprint", fingerprint_of(public))

    @classmethod
    def fresh(cls) -> Identity:
        """A new key from the system's random source, in memory only.

        Raises:
            MissingExtra: ``cryptography`` is not installed.
        """
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError as error:
            raise needs_cryptography(error) from error
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, path: Path) -> Identity:
        """Make a new key and keep it in ``path``, readable by the owner alone.

        Raises:
            StorageError: the file exists, or cannot be written.
            MissingExtra: ``cryptography`` is not installed.
        """
        made = cls.fresh()
        write_secret(path, made._pem())
        return made

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the key in ``path``.

        Raises:
            StorageError: it cannot be read.
            AuthError: others may read it, or it is no Ed25519 key.
            MissingExtra: ``cryptography`` is not installed.
        """
        try:
            from cryptography.exceptions import UnsupportedAlgorithm
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        except ImportError as error:
            raise needs_cryptography(error) from error
        pem = read_secret(path)
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise AuthError(f"{path} holds no private key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise AuthError(f"{path} holds a key that is not Ed25519")
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message``, 64 bytes."""
        return self.key.sign(message)

    def _pem(self) -> bytes:
        from cryptography.hazmat.primitives import serialization as s

        return self.key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def write_secret(path: Path, secret: bytes) -> None:
    """Write a new file that its owner alone may read, durably.

    Raises:
        StorageError: it exists, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(secret)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError as error:
        raise StorageError(
            f"there is a key in {path} already", remedy="keep it, or move it away first"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}", remedy=remedy_of(error)
        ) from error


def read_secret(path: Path) -> bytes:
    """Read a file that its owner alone may read.

    Raises:
        StorageError: it cannot be read.
        AuthError: others may read or write it too.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise AuthError(
                    f"{path} may be read by others (mode {mode:04o})", remedy=f"chmod 600 {path}"
                )
            return file.read(1 << 16)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}",
            remedy=remedy_of(error, reading=True) or "restore it from a backup",
        ) from error


@lru_cache(maxsize=4096)
def _public(raw: bytes) -> Ed25519PublicKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise needs_cryptography(error) from error
    return Ed25519PublicKey.from_public_bytes(raw)


@lru_cache(maxsize=1)
def _invalid() -> type[Exception]:
    from cryptography.exceptions import InvalidSignature

    return InvalidSignature


def check_signature(public: bytes, signature: bytes, message: bytes) -> None:
    """Refuse a signature that ``public`` (raw, 32 bytes) did not make on ``message``.

    Raises:
        AuthError: wrong, or no key at all.
    """
    try:
        key = _public(public)
    except ValueError as error:
        raise AuthError("a public key has 32 bytes") from error
    try:
        key.verify(signature, message)
    except _invalid() as error:
        raise AuthError("the signature is wrong") from error
