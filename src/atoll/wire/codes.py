"""Join codes: all that a new member needs, in one line that survives being copied by hand.

A code holds the server's address, the fingerprint of its certificate and a one-time secret::

    atoll-XXXXX-XXXXX-...

Each group is four digits of base 32 (Crockford's: no I, L, O, U; case and look-alikes do not matter)
and one check digit (Luhn's, modulo 32, started at the group's number), so that a slip is told by the
group it is in. A checksum over everything finds what is missing or mixed from two codes. Neither is
a protection against forgery: the secret is.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field

from atoll.core.errors import WireError

__all__ = ["Invitation", "encode_code", "read_code", "read_fingerprint", "split_address"]

_STANDARD = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TO_DIGITS = str.maketrans(_STANDARD, _DIGITS)
_TO_STANDARD = str.maketrans(_DIGITS, _STANDARD)
_LOOK_ALIKES = str.maketrans("OIL", "011")

_VERSION = 1
_DATA = 4
_SUM = 3
_LEAST = 1 + 32 + 16 + 1 + _SUM
_MOST_LETTERS = 1000
_HOST = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})")


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of ``host:port``.

    Raises:
        WireError: it is none.

    >>> split_address("atoll.example.org:8443"), split_address("[::1]:8443")
    (('atoll.example.org', 8443), ('::1', 8443))
    """
    host, _, port = address.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise WireError(f"{address!r:.80} is no address", remedy="write host:port")
    if not 0 < int(port) < 65_536:
        raise WireError(f"{port} is no port", remedy="write a number from 1 to 65535")
    return host.strip("[]"), int(port)


def read_fingerprint(text: str) -> str:
    """The fingerprint of a certificate as a person gives it, 64 digits in hex; blanks and colons do not matter.

    Raises:
        WireError: it is none.

    >>> read_fingerprint("AB12 " * 16) == "ab12" * 16
    True
    """
    plain = re.sub(r"[\s:]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise WireError(
            f"{text!r:.100} is no fingerprint of a certificate",
            remedy="copy all 16 groups, as atoll server status shows them at the server",
        )
    return plain


@dataclass(frozen=True)
class Invitation:
    """What a join code says.

    Args:
        address: of the server, ``host:port``.
        certificate: SHA-256 of its certificate, 32 bytes.
        secret: works once, 16 bytes; not shown.

    Raises:
        WireError: a part is not as described.
    """

    address: str
    certificate: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        split_address(self.address)
        if len(self.certificate) != 32 or len(self.secret) != 16:
            raise WireError("an invitation holds a fingerprint of 32 bytes and a secret of 16")
        if len(self.address) > 255:
            raise WireError("an address has at most 255 letters")


def _check_digit(data: str, group: int) -> str:
    total = group % 32
    for place, letter in enumerate(reversed(data)):
        value = _DIGITS.index(letter) * (2 - place % 2)
        total += value // 32 + value % 32
    return _DIGITS[-total % 32]


def encode_code(invitation: Invitation) -> str:
    """The code to hand over.

    >>> code = encode_code(Invitation("a.example:8443", bytes(32), bytes(16)))
    >>> code[:24], read_code(code.lower().replace("-", " ")).address
    ('atoll-0400Q-0000Y-0000X-', 'a.example:8443')
    """
    address = invitation.address.encode("ascii")
    raw = bytes([_VERSION]) + invitation.certificate + invitation.secret
    raw += bytes([len(address)]) + address
    raw += bytes(-(len(raw) + _SUM) % 5)  # five bytes are eight digits are two groups
    raw += hashlib.sha256(raw).digest()[:_SUM]
    digits = base64.b32encode(raw).decode().translate(_TO_DIGITS)
    groups = [digits[i : i + _DATA] for i in range(0, len(digits), _DATA)]
    return "-".join(["atoll", *(data + _check_digit(data, n) for n, data in enumerate(groups, 1))])


def _letters(text: str) -> str:
    """The code's digits without blanks, dashes and prefix."""
    if len(text) > _MOST_LETTERS:
        raise WireError("this is no join code: it is too long")
    plain = re.sub(r"[\s-]", "", text).upper()
    if not plain.startswith("ATOLL"):
        raise WireError("a join code begins with 'atoll-'", remedy="copy the whole line")
    plain = plain.removeprefix("ATOLL").translate(_LOOK_ALIKES)
    for at, letter in enumerate(plain):
        if letter not in _DIGITS:
            group = at // (_DATA + 1) + 1
            raise WireError(f"the code has a {letter!r} in group {group}, which no code has")
    return plain


def read_code(text: str) -> Invitation:
    """What a join code says; case, blanks and dashes do not matter.

    Raises:
        WireError: a slip, told by its group; or a code that is incomplete or of a newer version.
    """
    plain, width = _letters(text), _DATA + 1
    groups = [plain[i : i + width] for i in range(0, len(plain), width)]
    for n, group in enumerate(groups, 1):
        if len(group) == width and _check_digit(group[:_DATA], n) != group[_DATA]:
            raise WireError(
                f"group {n} of the code ({group}) has a slip in it",
                remedy=f"compare group {n}, and whether one before it is missing or doubled",
            )
    digits = "".join(group[:_DATA] for group in groups).translate(_TO_STANDARD)
    raw = base64.b32decode(digits) if len(plain) % (2 * width) == 0 else b""
    if len(raw) < _LEAST or raw[-_SUM:] != hashlib.sha256(raw[:-_SUM]).digest()[:_SUM]:
        raise WireError("the code is incomplete, or mixed from two", remedy="copy it once more")
    if raw[0] != _VERSION:
        raise WireError(f"the code is of version {raw[0]}", remedy="install a newer Atoll")
    address = raw[50 : 50 + raw[49]].decode("ascii", "replace")
    return Invitation(address, raw[1:33], raw[33:49])
