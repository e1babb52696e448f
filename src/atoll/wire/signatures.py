"""Signed messages: HTTP Message Signatures (RFC 9421) with Content-Digest (RFC 9530), Ed25519.

One strict profile and nothing else. A request's signature covers method, path, query, the digest of
the body, and who it is for and when::

    Content-Digest: sha-256=:<base64>:
    Atoll-Federation: <id>
    Atoll-Epoch: <of the server's present start>
    Atoll-Sequence: <counts up within the epoch>
    Signature-Input: atoll=("@method" "@path" "@query" "content-digest" "atoll-federation"
        "atoll-epoch" "atoll-sequence");created=<unix time>;keyid="<hex>";alg="ed25519";tag="atoll"
    Signature: atoll=:<base64>:

An answer's covers its status, the digest of its body, the request's sequence number and, as
``Atoll-Answers``, the SHA-256 of the request's signature: no answer passes for another's.

Whatever deviates by a letter is refused: the base of the signature is built from text that a pattern
has matched in full, so that there is nothing to interpret. References: RFC 9421 sections 2, 3.1, 3.2
and 3.3.6; RFC 9530 section 2; the window as in RFC 4303 section 3.4.3.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from atoll.core.errors import AuthError
from atoll.wire.identity import Identity, check_signature, fingerprint_of

__all__ = [
    "Claim",
    "Window",
    "digest_of",
    "read_request",
    "sign_request",
    "sign_response",
    "signature_in",
    "verify",
    "verify_response",
]

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header fields by name, or as a list when a name may come more than once."""

_REQUEST = (
    '("@method" "@path" "@query" "content-digest"'
    ' "atoll-federation" "atoll-epoch" "atoll-sequence")'
)
_RESPONSE = '("@status" "content-digest" "atoll-sequence" "atoll-answers")'

_PARAMETERS = r';created=(\d{1,12});keyid="([0-9a-f]{64})";alg="ed25519";tag="atoll"'
_REQUEST_INPUT = re.compile(f"atoll=({re.escape(_REQUEST)}{_PARAMETERS})", re.ASCII)
_RESPONSE_INPUT = re.compile(f"atoll=({re.escape(_RESPONSE)}{_PARAMETERS})", re.ASCII)
_SIGNATURE = re.compile(r"atoll=:([A-Za-z0-9+/]{86}==):")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_FEDERATION = re.compile(r"[!-~]{1,200}")
_METHOD = re.compile(r"[A-Z]{1,16}")
_PATH = re.compile(r"/[!-~]{0,4000}")
_QUERY = re.compile(r"[!-~]{0,8000}")
_HASH = re.compile(r"[0-9a-f]{64}")

_REQUEST_FIELDS = (
    "content-digest",
    "atoll-federation",
    "atoll-epoch",
    "atoll-sequence",
    "signature-input",
    "signature",
)
_RESPONSE_FIELDS = (
    "content-digest",
    "atoll-sequence",
    "atoll-answers",
    "signature-input",
    "signature",
)


@dataclass(frozen=True)
class Claim:
    """What a request says of itself; nothing of it is true before :func:`verify`.

    Args:
        keyid: fingerprint of the key that is said to have signed.
        federation: whom it is for.
        epoch: of the server.
        sequence: the sender's number in this epoch.
        created: when, in seconds since 1970.
        digest: SHA-256 that the body must have, 32 bytes.
        base: what was signed.
        signature: 64 bytes.
    """

    keyid: str
    federation: str
    epoch: int
    sequence: int
    created: int
    digest: bytes
    base: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def digest_of(body: bytes | memoryview) -> bytes:
    """SHA-256 of a body, 32 bytes."""
    return hashlib.sha256(body).digest()


def _base64(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).decode()


def _digest_field(digest: bytes) -> str:
    return f"sha-256=:{_base64(digest)}:"


def _fields(headers: Headers, wanted: tuple[str, ...]) -> list[str]:
    found: dict[str, str] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        lower = name.lower()
        if lower in wanted:
            if lower in found:
                raise AuthError(f"the header {lower} comes twice")
            found[lower] = value
    if len(found) < len(wanted):
        missing = next(name for name in wanted if name not in found)
        raise AuthError(f"the header {missing} is missing", remedy="sign every message")
    return [found[name] for name in wanted]


def _match(pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
    if (match := pattern.fullmatch(text)) is None:
        raise AuthError(f"the {what} is not as a signed message has it")
    return match


def _request_base(
    method: str, path: str, query: str, rest: tuple[str, str, str, str, str]
) -> bytes:
    digest, federation, epoch, sequence, parameters = rest
    return (
        f'"@method": {method}\n"@path": {path}\n"@query": ?{query}\n'
        f'"content-digest": {digest}\n"atoll-federation": {federation}\n'
        f'"atoll-epoch": {epoch}\n"atoll-sequence": {sequence}\n'
        f'"@signature-params": {parameters}'
    ).encode("ascii")


def _response_base(status: int, digest: str, sequence: str, answers: str, parameters: str) -> bytes:
    return (
        f'"@status": {status:03d}\n"content-digest": {digest}\n"atoll-sequence": {sequence}\n'
        f'"atoll-answers": {answers}\n"@signature-params": {parameters}'
    ).encode("ascii")


def _parameters(covered: str, created: int, keyid: str) -> str:
    return f'{covered};created={created};keyid="{keyid}";alg="ed25519";tag="atoll"'


def sign_request(
    key: Identity,
    *,
    method: str,
    path: str,
    query: str,
    body_digest: bytes,
    federation: str,
    epoch: int,
    sequence: int,
    created: int,
) -> dict[str, str]:
    """The headers that sign a request, names in lower case.

    Args:
        key: the sender.
        method: in capitals.
        path: as on the wire, percent-encoded.
        query: as on the wire, without the question mark.
        body_digest: SHA-256 of the body, also of an empty one; see :func:`digest_of`.
        federation: whom it is for.
        epoch: of the server, as it last said; 0 when not known.
        sequence: higher than any used before in this epoch.
        created: now, in seconds since 1970.

    Raises:
        AuthError: a part that cannot be signed, such as a path with blanks.
    """
    _match(_METHOD, method, "method")
    _match(_PATH, path, "path")
    _match(_QUERY, query, "query")
    _match(_FEDERATION, federation, "federation's name")
    digest, parameters = _digest_field(body_digest), _parameters(_REQUEST, created, key.fingerprint)
    rest = (digest, federation, str(epoch), str(sequence), parameters)
    signature = key.sign(_request_base(method, path, query, rest))
    return {
        "content-digest": digest,
        "atoll-federation": federation,
        "atoll-epoch": str(epoch),
        "atoll-sequence": str(sequence),
        "signature-input": f"atoll={parameters}",
        "signature": f"atoll=:{_base64(signature)}:",
    }


def signature_in(signed: Mapping[str, str]) -> bytes:
    """The signature among the headers that :func:`sign_request` or :func:`sign_response` gave, 64 bytes."""
    return binascii.a2b_base64(signed["signature"][len("atoll=:") : -1])


def read_request(method: str, path: str, query: str, headers: Headers) -> Claim:
    """What a request claims, from its line and headers alone; looks at syntax only.

    Args:
        method: as it came.
        path: as it came, nothing decoded.
        query: as it came, nothing decoded, without the question mark.
        headers: all of them, repeated ones included.

    Raises:
        AuthError: not signed, or not in this profile.
    """
    digest, federation, epoch, sequence, inputs, signature = _fields(headers, _REQUEST_FIELDS)
    _match(_METHOD, method, "method")
    _match(_PATH, path, "path")
    _match(_QUERY, query, "query")
    _match(_FEDERATION, federation, "header atoll-federation")
    _match(_NUMBER, epoch, "header atoll-epoch")
    _match(_NUMBER, sequence, "header atoll-sequence")
    body = _match(_DIGEST, digest, "header content-digest")
    parts = _match(_REQUEST_INPUT, inputs, "header signature-input")
    raw = _match(_SIGNATURE, signature, "header signature")
    return Claim(
        keyid=parts[3],
        federation=federation,
        epoch=int(epoch),
        sequence=int(sequence),
        created=int(parts[2]),
        digest=binascii.a2b_base64(body[1]),
        base=_request_base(method, path, query, (digest, federation, epoch, sequence, parts[1])),
        signature=binascii.a2b_base64(raw[1]),
    )


def verify(claim: Claim, public_key: bytes) -> None:
    """Refuse a claim that ``public_key`` (raw, 32 bytes) did not sign.

    The body's digest, the federation, the epoch and the sequence are still to be compared.

    Raises:
        AuthError: wrong signature, or another key than the claim names.
    """
    if fingerprint_of(public_key) != claim.keyid:
        raise AuthError("the signature names another key")
    check_signature(public_key, claim.signature, claim.base)


def sign_response(
    key: Identity, *, status: int, body_digest: bytes, sequence: int, answers: bytes, created: int
) -> dict[str, str]:
    """The headers that sign an answer, names in lower case.

    Args:
        key: the server.
        status: of HTTP.
        body_digest: SHA-256 of the body, also of an empty one.
        sequence: of the request.
        answers: signature of the request, 64 bytes.
        created: now, in seconds since 1970.
    """
    digest, parameters = (
        _digest_field(body_digest),
        _parameters(_RESPONSE, created, key.fingerprint),
    )
    told = hashlib.sha256(answers).hexdigest()
    signature = key.sign(_response_base(status, digest, str(sequence), told, parameters))
    return {
        "content-digest": digest,
        "atoll-sequence": str(sequence),
        "atoll-answers": told,
        "signature-input": f"atoll={parameters}",
        "signature": f"atoll=:{_base64(signature)}:",
    }


def verify_response(
    public_key: bytes, status: int, headers: Headers, *, sequence: int, answers: bytes
) -> bytes:
    """Check an answer's signature; returns the SHA-256 that its body must have.

    Args:
        public_key: the server's, raw, 32 bytes.
        status: of HTTP, as it came.
        headers: all of them.
        sequence: of the request.
        answers: signature of the request, 64 bytes.

    Raises:
        AuthError: not signed, by another key, or an answer to another request.
    """
    digest, number, told, inputs, signature = _fields(headers, _RESPONSE_FIELDS)
    _match(_NUMBER, number, "header atoll-sequence")
    _match(_HASH, told, "header atoll-answers")
    body = _match(_DIGEST, digest, "header content-digest")
    parts = _match(_RESPONSE_INPUT, inputs, "header signature-input")
    raw = _match(_SIGNATURE, signature, "header signature")
    if fingerprint_of(public_key) != parts[3]:
        raise AuthError("the answer is signed by another key than the server's")
    base = _response_base(status, digest, number, told, parts[1])
    check_signature(public_key, binascii.a2b_base64(raw[1]), base)
    if int(number) != sequence or told != hashlib.sha256(answers).hexdigest():
        raise AuthError("this is the answer to another request")
    return binascii.a2b_base64(body[1])


class Window:
    """Sequence numbers seen: each is accepted once, in any order within the last 1024.

    Attributes:
        highest: the highest number accepted; 0 before the first.

    >>> window = Window()
    >>> [window.accept(n) for n in (3, 1, 3, 2000, 2, 977)]
    [True, True, False, True, False, True]
    """

    SIZE = 1024

    def __init__(self) -> None:
        self.highest = 0
        self._seen = 0  # bit i: highest - i was accepted

    def accept(self, sequence: int) -> bool:
        """Whether ``sequence`` (from 1) is new and not too old; it is used up then."""
        if sequence < 1:
            return False
        ahead = sequence - self.highest
        if ahead > 0:
            shifted = self._seen << ahead if ahead < self.SIZE else 0
            self._seen = (shifted | 1) & ((1 << self.SIZE) - 1)
            self.highest = sequence
            return True
        if -ahead >= self.SIZE or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True
