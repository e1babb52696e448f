"""Keys of one round: agreement (X25519), derivation (HKDF-SHA256), sealing (ChaCha20-Poly1305).

No function here draws anything at random: a site's secrets of one attempt all derive from 32 bytes that
its shell took from the operating system.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from atoll.core.errors import AuthError, MissingExtra
from atoll.privacy.secagg.canonical import Part, pack

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = [
    "Pair",
    "derive",
    "keystream",
    "needs_cryptography",
    "open_sealed",
    "seal",
    "signed_by",
    "usable",
]

_NONCE = bytes(12)  # every sealing key is fresh and seals one message
_ANY = bytes(range(32))  # any private half will do to try a public one


def needs_cryptography(error: ImportError) -> MissingExtra:
    """What to raise where the library is not installed."""
    missing = MissingExtra(
        "masked aggregation needs the package 'cryptography'", remedy="pip install 'atoll[node]'"
    )
    missing.__cause__ = error
    return missing


def derive(secret: bytes, label: str, *parts: Part) -> bytes:
    """32 bytes for one purpose: HKDF-SHA256 of ``secret`` with everything else as info.

    Raises:
        MissingExtra: ``cryptography`` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise needs_cryptography(error) from error
    return HKDF(SHA256(), 32, None, pack(label, *parts)).derive(secret)


def keystream(key: bytes, size: int) -> bytes:
    """``size`` bytes of AES-256-CTR under a key that is used for nothing else."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


class Pair:
    """An X25519 key pair made of 32 secret bytes.

    Args:
        secret: the private half; not shown.
    """

    def __init__(self, secret: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
        except ImportError as error:
            raise needs_cryptography(error) from error
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def agreed(self, public: bytes) -> bytes:
        """The secret shared with the holder of ``public``; derive keys from it.

        Raises:
            AuthError: ``public`` is no usable key.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # of another length, or of low order
            raise AuthError("a public key is no usable X25519 key") from error


@lru_cache(maxsize=4096)
def usable(public: bytes) -> bool:
    """Whether a secret can be agreed on with the holder of ``public``; with some keys nobody can."""
    try:
        Pair(_ANY).agreed(public)
    except AuthError:
        return False
    return True


def seal(key: bytes, plain: bytes, bound: bytes) -> bytes:
    """``plain`` encrypted under a key that seals nothing else, bound to ``bound``."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, bound)


def open_sealed(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """What :func:`seal` sealed.

    Raises:
        AuthError: it was sealed with another key, bound to something else, or changed since.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, bound)
    except InvalidTag as error:
        raise AuthError("a sealed share does not open") from error


@lru_cache(maxsize=4096)
def _verifier(public: bytes) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(public)


def signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of ``public`` (raw Ed25519) made ``signature`` on ``message``."""
    from cryptography.exceptions import InvalidSignature

    try:
        _verifier(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
