"""The protocol's messages as bytes, and back: one reading only, checked before anything is made of it.

The bytes are those of :func:`~atoll.privacy.secagg.canonical.pack`: the message's name, then its fields
in order. A reader believes nothing: lengths are compared with what is there before a byte is copied,
kinds and numbers of fields with the table below, and what was read must give the same bytes again when
it is written. Signatures are checked by the machines, not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from atoll.core.errors import WireError
from atoll.privacy.secagg.canonical import Part, pack
from atoll.privacy.secagg.messages import (
    Commitment,
    Deal,
    Dealt,
    Envelope,
    Invitation,
    Opening,
    Pledge,
    Release,
    Roster,
    Share,
    Survivors,
    Vector,
)
from atoll.privacy.secagg.terms import Lane, Member, Occasion, Terms

__all__ = ["MOST", "read", "written"]

MOST = 1 << 20
"""Bytes of the longest message: the keys of some 5000 sites, or the shares of as many neighbours."""

_DEPTH = 6
_DIGITS = 20
_M = TypeVar("_M")


def written(message: Any) -> bytes:
    """A message as bytes.

    Raises:
        WireError: it is longer than :data:`MOST`, or none of the protocol's.
    """
    kind = type(message)
    if kind not in _NAMES:
        raise WireError(f"{kind.__name__} is no message of a masked round")
    raw = pack(_NAMES[kind], *_plain(message))
    if len(raw) > MOST:
        raise WireError(
            f"a {kind.__name__} of {len(raw)} bytes: at most {MOST} travel",
            remedy="set privacy.degree, so that each site shares with its neighbours only",
        )
    return raw


def read(kind: type[_M], raw: bytes | memoryview) -> _M:
    """The message of ``kind`` in ``raw``.

    Raises:
        WireError: it is too long, another message, or none.
    """
    if len(raw) > MOST:
        raise WireError(f"a message of {len(raw)} bytes: at most {MOST} are allowed")
    raw = bytes(raw)
    try:
        parts = _tree(raw)
        if not parts or parts[0] != _NAMES[kind]:
            raise WireError(f"these bytes are no {kind.__name__}")
        found: _M = _made(kind, tuple(parts[1:]))
        again = written(found)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"this is no valid {kind.__name__}: {error}") from error
    if again != raw:
        raise WireError(f"a {kind.__name__} is not in canonical form")
    return found


# Parts ------------------------------------------------------------------------------------------


def _tree(raw: bytes) -> list[Part]:
    parts, end = _part(raw, 0, len(raw), 0)
    if end != len(raw) or not isinstance(parts, tuple):
        raise WireError("bytes are left after the message")
    return list(parts)


def _part(raw: bytes, at: int, end: int, depth: int) -> tuple[Part, int]:
    """The part that begins at ``at``, and where the next one does; nothing reaches beyond ``end``."""
    letter = raw[at : at + 1]
    colon = raw.find(b":", at + 1, min(end, at + 2 + _DIGITS))
    if not letter or colon < 0:
        raise WireError("a part of a message has no length")
    number = int(raw[at + 1 : colon])
    start = colon + 1
    if letter == b"i":
        return number, start
    stop = start + number
    if number < 0 or stop > end:
        raise WireError(f"a part of a message says that it has {number} bytes")
    content = raw[start:stop]
    if letter == b"b":
        return content, stop
    if letter == b"s":
        return content.decode(), stop
    if letter == b"f":
        return _number(content), stop
    if letter != b"t" or depth >= _DEPTH:
        raise WireError("a part of a message is of no known kind, or too deep")
    inner = list[Part]()
    while start < stop:
        part, start = _part(raw, start, stop, depth + 1)
        inner.append(part)
    return tuple(inner), stop


def _number(content: bytes) -> float:
    value = float.fromhex(content.decode())
    if not math.isfinite(value):
        raise WireError("a number of a message is not finite")
    return value


# Messages ---------------------------------------------------------------------------------------

_NAMES: Mapping[type, str] = {
    kind: kind.__name__.lower()
    for kind in (
        Invitation,
        Commitment,
        Roster,
        Deal,
        Dealt,
        Vector,
        Survivors,
        Pledge,
        Opening,
        Release,
    )
}


def _whole(part: Part) -> int:
    if type(part) is not int or not 0 <= part < 2**53:
        raise WireError(f"{part!r:.60} is no number of a message")
    return part


def _text(part: Part) -> str:
    if not isinstance(part, str) or len(part) > 1000:
        raise WireError("a text of a message is none, or too long")
    return part


def _bytes(part: Part) -> bytes:
    if not isinstance(part, bytes):
        raise WireError("a part of a message is not bytes")
    return part


def _real(part: Part) -> float:
    if not isinstance(part, float):
        raise WireError("a part of a message is no real number")
    return part


def _several(reader: Callable[[Part], Any]) -> Callable[[Part], tuple[Any, ...]]:
    def read_all(part: Part) -> tuple[Any, ...]:
        if not isinstance(part, tuple):
            raise WireError("a part of a message is no list")
        return tuple(map(reader, part))

    return read_all


def _step(part: Part) -> float | None:
    return None if part == "" else _real(part)


def _one(kind: type) -> Callable[[Part], Any]:
    def read_one(part: Part) -> Any:
        if not isinstance(part, tuple):
            raise WireError(f"a part of a message is no {kind.__name__}")
        return _made(kind, part)

    return read_one


def _kind(part: Part) -> str:
    if part not in ("seed", "key"):
        raise WireError("a share is of no known kind")
    return _text(part)


_wholes = _several(_whole)
_FIELDS: Mapping[type, Mapping[str, Callable[[Part], Any]]] = {
    Occasion: {"federation": _text, "job": _text, "round": _whole, "attempt": _whole}
    | {"model": _text},
    Member: {"name": _text, "key": _bytes},
    Lane: {"name": _text, "length": _whole, "bound": _real, "bits": _whole, "step": _step}
    | {"excess": _text},
    Terms: {"occasion": _one(Occasion), "cohort": _several(_one(Member)), "threshold": _whole}
    | {"lanes": _several(_one(Lane)), "expiry": _real, "degree": _whole}
    | {"weight_rule": _text, "work": _text},
    Invitation: {"terms": _one(Terms), "signature": _bytes},
    Commitment: {"sender": _whole, "channel": _bytes, "mask": _bytes, "seed_hash": _bytes}
    | {"signature": _bytes},
    Roster: {"commitments": _several(_one(Commitment))},
    Envelope: {"source": _whole, "target": _whole, "sealed": _bytes, "hashes": _several(_bytes)}
    | {"signature": _bytes},
    Deal: {"sender": _whole, "envelopes": _several(_one(Envelope))},
    Dealt: {"members": _wholes, "envelopes": _several(_one(Envelope))},
    Vector: {"sender": _whole, "root": _bytes, "dealers": _wholes, "signature": _bytes},
    Survivors: {"members": _wholes},
    Pledge: {"sender": _whole, "signature": _bytes},
    Opening: {"members": _wholes, "pledges": _several(_one(Pledge))},
    Share: {"dealer": _whole, "kind": _kind, "value": _bytes},
    Release: {"sender": _whole, "shares": _several(_one(Share)), "signature": _bytes},
}
"""The fields of everything that occurs in a message, in order."""


def _made(kind: type, parts: tuple[Part, ...]) -> Any:
    fields = _FIELDS[kind]
    if len(parts) != len(fields):
        raise WireError(f"a {kind.__name__} with {len(parts)} fields, {len(fields)} belong to it")
    made = {n: reader(part) for (n, reader), part in zip(fields.items(), parts, strict=True)}
    if kind is Envelope and len(made["hashes"]) != 2:
        raise WireError("an envelope with other than two hashes")
    return kind(**made)


def _plain(value: Any) -> tuple[Part, ...]:
    return tuple(_field(getattr(value, name)) for name in _FIELDS[type(value)])


def _field(value: Any) -> Part:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return tuple(map(_field, value))
    return _plain(value) if type(value) in _FIELDS else value
