"""The one table between errors and HTTP: code -> status, and code -> class on the way back."""

from __future__ import annotations

from atoll.core.errors import (
    AtollError,
    AuthError,
    Busy,
    CheckpointError,
    ClientError,
    DataError,
    Equivocation,
    FenceError,
    Forbidden,
    JobConflict,
    JobError,
    LayoutError,
    MissingExtra,
    NotFound,
    PolicyError,
    PutBack,
    QuorumError,
    StateError,
    StorageError,
    TooLarge,
    Unreachable,
    UpdateRefused,
    WireError,
)

__all__ = ["EPOCH", "error_class", "http_status"]

EPOCH = "wire.epoch"
"""Code of the 409 answer to a request of another epoch or with a used sequence number."""

_TABLE: dict[type[AtollError], int] = {
    AtollError: 500,
    JobError: 422,
    JobConflict: 422,
    DataError: 422,
    LayoutError: 422,
    UpdateRefused: 422,
    QuorumError: 424,
    ClientError: 424,
    CheckpointError: 500,
    StorageError: 507,
    FenceError: 503,
    MissingExtra: 501,
    WireError: 400,
    Unreachable: 503,
    Busy: 429,
    PutBack: 503,
    TooLarge: 413,
    AuthError: 401,
    Forbidden: 403,
    PolicyError: 403,
    StateError: 409,
    NotFound: 404,
    Equivocation: 409,
}
_STATUS = {kind.code: status for kind, status in _TABLE.items()} | {EPOCH: 409}
_CLASS = {kind.code: kind for kind in _TABLE}

_BY_STATUS: dict[int, type[AtollError]] = {
    401: AuthError,
    403: Forbidden,
    404: NotFound,
    408: Unreachable,
    409: StateError,
    413: TooLarge,
    429: Unreachable,
    502: Unreachable,
    503: Unreachable,
    504: Unreachable,
    507: StorageError,
}


def http_status(code: str) -> int:
    """HTTP status of an error with ``code``; 500 for one that is not in the table.

    >>> http_status("auth.refused"), http_status("wire.toolarge")
    (401, 413)
    """
    return _STATUS.get(code, 500)


def error_class(code: str, status: int) -> type[AtollError]:
    """The class of an answer's error, by its code, else (a newer server's) by its status.

    >>> error_class("state.missing", 404).__name__, error_class("newer.code", 503).__name__
    ('NotFound', 'Unreachable')
    """
    return _CLASS.get(code) or _BY_STATUS.get(status, WireError)
