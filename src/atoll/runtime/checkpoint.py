"""A run's whole state as one record, and that record as one file.

A checkpoint is written to a temporary file, fsynced, and renamed, so at every instant the newest
file in the folder is whole; the two newest are kept. Its hash is checked when it is read.

A file in a folder is one of safetensors. A checkpoint that is kept under its SHA-256 (:func:`named`)
begins with the very bytes that the model's hash is taken over, so that hash goes on over the rest and nobody
looks at the model twice::

    float32 or float64 | the model, little-endian | safetensors of all else, with the record | its length, u64
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from atoll.core.errors import CheckpointError, StorageError
from atoll.core.layout import Array, dtype_name
from atoll.core.tensors import tensor_pieces
from atoll.core.values import Broadcast, ClientId, Memory, State, freeze
from atoll.runtime.pace import Pace

__all__ = [
    "Best",
    "ModelHash",
    "Progress",
    "begins",
    "decode",
    "encode",
    "model_hash",
    "named",
    "newest",
    "read",
    "write",
]

_FORMAT = "2"
_READ = ("1", _FORMAT)
_KINDS = ("float32", "float64")
_KIND = 7
"""Bytes of each."""


@dataclass(frozen=True, eq=False)
class Best:
    """The best model so far by the named metric."""

    round: int
    value: float
    parameters: Array


@dataclass(frozen=True, eq=False)
class Progress:
    """Everything a run needs to continue to the same bits.

    Args:
        state: the algorithm's record.
        pace: where the schedule stands.
        rounds: rounds ended so far, committed or aborted.
        memories: clients' own states.
        broadcasts: models that tasks under way started from, by version.
        best: best model by the watched metric.
        waiting: evaluations since the watched metric last improved.
        aborted: aborted rounds in a row.
        seconds: working time so far.
    """

    state: State
    pace: Pace = field(default_factory=Pace)
    rounds: int = 0
    memories: Mapping[ClientId, Memory] = field(default_factory=dict)
    broadcasts: Mapping[int, Broadcast] = field(default_factory=dict)
    best: Best | None = None
    waiting: int = 0
    aborted: int = 0
    seconds: float = 0.0


_latest: tuple[weakref.ref[Array], ModelHash] | None = None
"""The last read-only vector that was hashed: a model's hash is in its round's record and in its checkpoint."""


def model_hash(parameters: Array) -> str:
    """SHA-256 over the parameters' bytes (little-endian) and dtype, in hex."""
    return _hashed(parameters).hex


def _hashed(parameters: Array) -> ModelHash:
    latest = _latest
    if latest is not None and latest[0]() is parameters:
        return latest[1]
    found = ModelHash(parameters.dtype)
    found.take(parameters)
    found.keep(parameters)
    return found


class ModelHash:
    """The same hash of a vector that is still being made, taken from its start on.

    Args:
        dtype: of the vector.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        # Its text with the byte order; float32 and float64, all that a state has, go by their names.
        self._sha = hashlib.sha256((dtype_name(dtype) if dtype.isnative else str(dtype)).encode())
        self._size = 0

    def take(self, part: Array) -> None:
        """The next values."""
        self._sha.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data)
        self._size += part.size

    def keep(self, parameters: Array) -> None:
        """These are all the values, and will not change: :func:`model_hash` need not look at them again."""
        global _latest
        if self._size == parameters.size and not parameters.flags.writeable:
            _latest = weakref.ref(parameters), self

    @property
    def hex(self) -> str:
        """Of the values so far."""
        return self._sha.hexdigest()

    def followed(self, rest: Iterable[bytes | memoryview]) -> str:
        """SHA-256 of the dtype's name, the values so far and these bytes."""
        sha = self._sha.copy()
        for piece in rest:
            sha.update(piece)
        return sha.hexdigest()


def _arrays(progress: Progress) -> dict[str, Array]:
    arrays: dict[str, Array] = {"state": progress.state.parameters}
    for name, slot in progress.state.slots.items():
        arrays[f"slot/{name}"] = slot
    for index, memory in enumerate(progress.memories.values()):
        # By number: a client's id may be a file name that no UTF-8 string can hold.
        for name, value in memory.items():
            arrays[f"memory/{index}/{name}"] = value
    for version, broadcast in progress.broadcasts.items():
        for name, vector in broadcast.vectors.items():
            arrays[f"broadcast/{version}/{name}"] = vector
    if progress.best is not None:
        arrays["best"] = progress.best.parameters
    # Not ascontiguousarray, which turns a single number into a vector of one.
    return {name: np.asarray(_native(a), order="C") for name, a in arrays.items()}


def _native(array: Array) -> Array:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _digest(arrays: Mapping[str, Array], record: str, version: str) -> str:
    """What a checkpoint says of all it holds; since version 2 of the hashes of its vectors."""
    if version == "1":
        return _digest_of_bytes(arrays, record)
    sha = hashlib.sha256(record.encode())
    for name in sorted(arrays):
        array = arrays[name]
        own = model_hash(array) if array.size else ""
        sha.update(f"{name} {array.dtype} {array.shape} {own}\n".encode())
    return sha.hexdigest()


def _digest_of_bytes(arrays: Mapping[str, Array], record: str) -> str:
    sha = hashlib.sha256(record.encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.data if array.size else b"")
    return sha.hexdigest()


def encode(progress: Progress, job_hash: str, extra: Mapping[str, Any]) -> bytes:
    """A checkpoint as bytes, which :func:`decode` reads; see :func:`named`."""
    return b"".join(named(progress, job_hash, extra)[0])


def named(
    progress: Progress, job_hash: str, extra: Mapping[str, Any]
) -> tuple[list[bytes | memoryview], str]:
    """A checkpoint piece by piece, without a copy of any vector, and the SHA-256 of all pieces together.

    Args:
        progress: the record.
        job_hash: of the job it belongs to.
        extra: JSON-able notes of the caller, given back by :func:`decode`.
    """
    arrays = _arrays(progress)
    meta = _described(progress, arrays, job_hash, extra)
    model = arrays.pop("state")
    rest = list(tensor_pieces(arrays, meta))
    rest.append(sum(map(len, rest)).to_bytes(8, "little"))
    little = np.asarray(model, model.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    return [dtype_name(model.dtype).encode(), little.data, *rest], _hashed(model).followed(rest)


def begins(first: bytes, last: bytes, size: int) -> int:
    """Where in a checkpoint of ``size`` bytes the safetensors begin that hold its record.

    Args:
        first: its first bytes, 7 or more.
        last: its last 8 bytes.
        size: of all.

    Raises:
        ValueError: nowhere.
    """
    if first[:_KIND].decode("latin-1") not in _KINDS:
        return 0
    at = size - 8 - int.from_bytes(last, "little")
    if at < _KIND:
        raise ValueError("it is cut, or its last bytes are damaged")
    return at


def _described(
    progress: Progress, arrays: Mapping[str, Array], job_hash: str, extra: Mapping[str, Any]
) -> dict[str, str]:
    """What a checkpoint says of itself: the record, and the digest of that and of all vectors."""
    state, best = progress.state, progress.best
    record = json.dumps(
        {
            "format": _FORMAT,
            "job": job_hash,
            "state": [state.round, state.trained.start, state.trained.stop, state.population],
            "pace": progress.pace.to_plain(),
            "rounds": progress.rounds,
            "clients": list(progress.memories),
            "best": None if best is None else [best.round, best.value],
            "waiting": progress.waiting,
            "aborted": progress.aborted,
            "seconds": progress.seconds,
            "extra": dict(extra),
        }
    )
    return {"record": record, "sha256": _digest(arrays, record, _FORMAT)}


def _pieces(
    progress: Progress, job_hash: str, extra: Mapping[str, Any]
) -> Iterator[bytes | memoryview]:
    """A checkpoint as one file of safetensors, without a copy of any vector."""
    arrays = _arrays(progress)
    return tensor_pieces(arrays, _described(progress, arrays, job_hash, extra))


def write(folder: Path, progress: Progress, job_hash: str, extra: Mapping[str, Any]) -> Path:
    """Write ``progress`` durably; older checkpoints but one are removed.

    Args:
        folder: where checkpoints lie; made if missing.
        progress: the record.
        job_hash: of the job it belongs to.
        extra: JSON-able notes of the caller, given back by :func:`read`.

    Raises:
        StorageError: the folder cannot be written; the earlier checkpoint is still whole.
    """
    path = folder / f"round-{progress.rounds:08d}.safetensors"
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.writelines(_pieces(progress, job_hash, extra))
            file.flush()
            os.fsync(file.fileno())
        # Before the new name is there, so that a run killed in between does this again.
        older = sorted({*folder.glob("round-*.safetensors")} - {path})[:-1]
        for old in (*older, *({*folder.glob("*.partial")} - {partial})):
            old.unlink()
        partial.rename(path)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StorageError(
            f"the checkpoint {path} cannot be written: {error.strerror}",
            remedy="free space or choose another folder with --out; the run can be resumed",
        ) from error
    return path


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``; None when there is none."""
    return max(folder.glob("round-*.safetensors"), default=None)


def read(path: Path, job_hash: str) -> tuple[Progress, dict[str, Any]]:
    """Read a checkpoint of the job with ``job_hash``; returns also the caller's notes.

    Raises:
        CheckpointError: unreadable, damaged, or of another job.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            meta = dict(file.metadata() or {})
            names = file.keys()  # the file itself is no mapping
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", remedy="delete it to use the one before"
        ) from error
    return _checked(meta, arrays, job_hash, str(path))


def decode(raw: bytes, job_hash: str) -> tuple[Progress, dict[str, Any]]:
    """Read what :func:`encode` or :func:`named` gave, or a file of :func:`write`; see :func:`read`."""
    what = f"the checkpoint of {len(raw)} bytes"
    try:
        if at := begins(raw[:_KIND], raw[-8:], len(raw)):
            rest, kind = raw[at:-8], np.dtype(raw[:_KIND].decode())
            values = np.frombuffer(memoryview(raw)[_KIND:at], kind.newbyteorder("<"))
            arrays = {**load(rest), "state": values.astype(kind)}
        else:
            rest, arrays = raw, load(raw)
        header = json.loads(rest[8 : 8 + int.from_bytes(rest[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{what} cannot be read: {error}", remedy="use the one before"
        ) from error
    return _checked(header.get("__metadata__") or {}, arrays, job_hash, what)


def _checked(
    meta: Mapping[str, str], arrays: Mapping[str, Array], job_hash: str, what: str
) -> tuple[Progress, dict[str, Any]]:
    damaged = CheckpointError(f"{what} is damaged", remedy="delete it to use the one before")
    record = meta.get("record", "")
    try:
        raw = json.loads(record)
        version = raw["format"]
    except (ValueError, TypeError, KeyError):
        raise damaged from None
    if version not in _READ:
        raise CheckpointError(f"{what} has format {version!r:.20}, this version reads {_FORMAT}")
    if _digest(arrays, record, version) != meta.get("sha256"):
        raise damaged
    if raw["job"] != job_hash:
        raise CheckpointError(
            f"{what} belongs to another job ({raw['job'][:12]}, not {job_hash[:12]})",
            remedy="resume with the unchanged job, or start anew in another folder",
        )
    return _progress(raw, arrays), raw["extra"]


def _progress(raw: Mapping[str, Any], arrays: Mapping[str, Array]) -> Progress:
    slots: dict[str, Array] = {}
    memories: dict[ClientId, dict[str, Array]] = {client: {} for client in raw["clients"]}
    vectors: dict[int, dict[str, Array]] = {}
    for key, value in arrays.items():
        kind, _, rest = key.partition("/")
        name, _, last = rest.partition("/")
        if kind == "slot":
            slots[rest] = freeze(value)
        elif kind == "memory":
            memories[raw["clients"][int(name)]][last] = freeze(value)
        elif kind == "broadcast":
            vectors.setdefault(int(name), {})[last] = freeze(value)
    number, start, stop, population = raw["state"]
    state = State(number, freeze(arrays["state"]), slice(start, stop), population, slots)
    best = None
    if raw["best"] is not None:
        best = Best(raw["best"][0], raw["best"][1], freeze(arrays["best"]))
    return Progress(
        state=state,
        pace=Pace.from_plain(raw["pace"]),
        rounds=raw["rounds"],
        memories=memories,
        broadcasts={v: Broadcast(v, vs) for v, vs in vectors.items()},
        best=best,
        waiting=raw["waiting"],
        aborted=raw["aborted"],
        seconds=raw["seconds"],
    )
