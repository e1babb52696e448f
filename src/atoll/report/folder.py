"""A run's folder: one place for everything a run leaves behind.

::

    manifest.json       job, versions, seeds, data fingerprints, status      replaced as a whole
    metrics.jsonl       one line per round                                   append only
    profile.json        where the time went, if asked for                    replaced as a whole
    audit.json          what attacks on the run found, if asked for           replaced as a whole
    model.safetensors   the model                                            replaced as a whole
    checkpoint/         the state to resume from                             the round loop's
    report.html         the report                                           replaced as a whole
    results.json        of statistics: what they found                       replaced as a whole
    tables/             of statistics: a CSV each                            replaced as a whole
    models/             of statistics: what predicts, for other programs     replaced as a whole

Whole files are written beside their place, flushed to disk and renamed, so a reader sees the old one or
the new one. A line of ``metrics.jsonl`` goes out in a single write; a crash can tear the last line only,
and a torn last line is ignored when reading and cut before anything is appended.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import StorageError
from atoll.core.layout import Array
from atoll.core.tensors import tensor_pieces

__all__ = ["RunFolder", "plain", "read_model", "write_atomic", "write_model"]

_KNOWN = (
    "manifest.json",
    "metrics.jsonl",
    "inputs.json",
    "profile.json",
    "audit.json",
    "report.html",
    "results.json",
    "tables",
    "models",
    "checkpoint",
    "tensorboard",
)
_KNOWN_ENDINGS = (".safetensors", ".tmp")
_KNOWN_BEGINNINGS = ("events.out.tfevents",)


class RunFolder:
    """A folder that belongs to one run; created, with its parents, when it does not exist.

    Args:
        path: the folder. An earlier run's folder is accepted (see :attr:`used`).

    Raises:
        StorageError: it cannot be made or written to, is a file, or holds something else than a run.

    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "first")
    >>> folder.append({"round": 1, "train": {"loss": math.nan}})
    >>> folder.read_rounds()
    [{'round': 1, 'train': {'loss': None}}]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._mended = False
        with _storage(self.path, "create the run's folder"):
            self.path.mkdir(parents=True, exist_ok=True)
            names = sorted(entry.name for entry in self.path.iterdir())
        self._refuse_foreign(names)
        _probe(self.path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The folder of an existing run, for reading; nothing is made.

        Raises:
            StorageError: there is no run in it.
        """
        self = cls.__new__(cls)
        self.path, self._mended = Path(path), False
        if not (self.manifest.is_file() or self.metrics.is_file()):
            raise StorageError(
                f"no run in {str(self.path)!r}",
                remedy="name a folder that 'atoll run' wrote (it holds manifest.json)",
            )
        return self

    @property
    def manifest(self) -> Path:
        """Where the manifest lies."""
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        """Where the round records lie."""
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        """Where the model lies."""
        return self.path / "model.safetensors"

    @property
    def inputs(self) -> Path:
        """Where it is written what the model has to be given, if it was trained on tables."""
        return self.path / "inputs.json"

    @property
    def profile(self) -> Path:
        """Where the account of the run's time lies, if it was asked for."""
        return self.path / "profile.json"

    @property
    def audit(self) -> Path:
        """Where the findings of ``atoll audit privacy`` lie, if it was asked for."""
        return self.path / "audit.json"

    @property
    def checkpoint(self) -> Path:
        """The round loop's own folder."""
        return self.path / "checkpoint"

    @property
    def report(self) -> Path:
        """Where the report lies."""
        return self.path / "report.html"

    @property
    def results(self) -> Path:
        """Where the results of statistics lie."""
        return self.path / "results.json"

    @property
    def tables(self) -> Path:
        """The folder of their tables."""
        return self.path / "tables"

    @property
    def models(self) -> Path:
        """The folder of models among them that other programs can read."""
        return self.path / "models"

    @property
    def used(self) -> bool:
        """Whether a run has already left rounds, a manifest, a model or a checkpoint here.

        TensorBoard events alone do not count: their writer opens before the run begins.
        """
        return any(p.exists() for p in (self.manifest, self.metrics, self.model, self.checkpoint))

    def write_manifest(self, manifest: Mapping[str, Any]) -> Path:
        """Replace the manifest; numbers that are not finite become null."""
        content = json.dumps(plain(manifest), indent=2, ensure_ascii=False, allow_nan=False)
        return write_atomic(self.manifest, _encode(content + "\n"))

    def write_profile(self, profile: Mapping[str, Any]) -> Path:
        """Replace the account of the run's time."""
        content = json.dumps(plain(profile), indent=2, allow_nan=False)
        return write_atomic(self.profile, _encode(content + "\n"))

    def write_inputs(self, text: str) -> Path:
        """Replace what the model has to be given."""
        return write_atomic(self.inputs, _encode(text + "\n"))

    def write_audit(self, found: Mapping[str, Any]) -> Path:
        """Replace the findings of an audit."""
        content = json.dumps(plain(found), indent=2, allow_nan=False)
        return write_atomic(self.audit, _encode(content + "\n"))

    def read_manifest(self) -> dict[str, Any]:
        """The manifest; empty when none has been written yet.

        Raises:
            StorageError: it is not a JSON object.
        """
        return _read_object(self.manifest)

    def read_audit(self) -> dict[str, Any]:
        """What an audit of this run found; empty when there was none.

        Raises:
            StorageError: it is not a JSON object.
        """
        return _read_object(self.audit)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one round's record as one line.

        It survives the end of this process at once, and the end of the machine after :meth:`sync`:
        a flush to disk per round would cost more than a small round itself.

        Raises:
            StorageError: the disk refused it; the file is then as it was before.
        """
        line = _encode(json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n")
        if not self._mended:
            self._mend()
        with _storage(self.metrics, "append to"), self.metrics.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                _write_all(file.fileno(), line)
            except OSError:
                file.truncate(start)
                raise

    def sync(self) -> None:
        """Flush the round records to disk; call it before a checkpoint that relies on them."""
        if self.metrics.exists():
            with _storage(self.metrics, "flush"), self.metrics.open("rb+") as file:
                os.fsync(file.fileno())

    def truncate(self, rounds: int) -> int:
        """Forget what came after round ``rounds``, to resume there; returns the records kept.

        Also cuts a torn last line and removes files that a crash left half-written.
        """
        kept = [record for record in self.read_rounds() if int(record["round"]) <= rounds]
        lines = (json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in kept)
        write_atomic(self.metrics, _encode("".join(lines)))
        for name in ("manifest.json", "model.safetensors", "report.html", "profile.json"):
            _scratch(self.path / name).unlink(missing_ok=True)
        self._mended = True
        return len(kept)

    def read_rounds(self) -> list[dict[str, Any]]:
        """All records in the order they were written; a torn last line is left out.

        Raises:
            StorageError: a line before the last one is damaged.
        """
        if not self.metrics.exists():
            return []
        with _storage(self.metrics, "read"):
            lines = self.metrics.read_bytes().split(b"\n")
        # A whole file ends with a newline, so what follows the last one is empty or torn.
        records = [_parse(line) for line in lines[:-1]]
        if None in records:
            line = records.index(None) + 1
            raise StorageError(f"line {line} of {str(self.metrics)!r} is damaged", remedy=_DAMAGED)
        return [record for record in records if record is not None]

    def clear(self) -> None:
        """Remove the earlier run with all that it left, audit and profile included, and nothing else.

        Raises:
            StorageError: something in it cannot be removed.
        """
        kept = (
            set() if self.results.exists() else {self.tables.name, self.models.name}
        )  # not a run's
        with _storage(self.path, "remove the earlier run in"):
            for entry in sorted(self.path.iterdir()):
                known = entry.name in _KNOWN or entry.suffix == ".safetensors"
                if not known or entry.name in kept:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        self._mended = False

    def _mend(self) -> None:
        if self.metrics.exists():
            with _storage(self.metrics, "mend"), self.metrics.open("rb+") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
        self._mended = True

    def _refuse_foreign(self, names: list[str]) -> None:
        if "manifest.json" in names:
            if "atoll" in (_parse(self.manifest.read_bytes()) or {}):
                return
            foreign = ["manifest.json"]
        else:
            foreign = [name for name in names if not _ours(name)]
        if foreign:
            raise StorageError(
                f"folder {str(self.path)!r} holds something else than a run: {', '.join(foreign[:5])}",
                remedy="name a new or empty folder",
            )


_DAMAGED = "restore the file from a copy, or start again in a new folder"


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with _storage(path, "read"):
        content = path.read_bytes()
    found = _parse(content)
    if found is None:
        raise StorageError(f"{str(path)!r} is not a JSON object", remedy=_DAMAGED)
    return found


def _ours(name: str) -> bool:
    return name in _KNOWN or name.endswith(_KNOWN_ENDINGS) or name.startswith(_KNOWN_BEGINNINGS)


_ATOMS = frozenset((type(None), bool, int, str))
"""Most of a record; looked at first, because it takes half the time of asking what they are kinds of."""


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: NumPy unpacked, tuples as lists, non-finite numbers as None.

    Raises:
        TypeError: something in it has no JSON form.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {
            str(key): inner if type(inner) in _ATOMS else plain(inner)
            for key, inner in value.items()
        }
    if kind is list:
        return [inner if type(inner) in _ATOMS else plain(inner) for inner in value]
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value))
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def write_atomic(path: Path, content: bytes | Iterable[bytes | memoryview]) -> Path:
    """Put ``content`` at ``path``: either all of it is there afterwards, or what was there before.

    Args:
        path: the file.
        content: its bytes, or pieces that make them.

    Raises:
        StorageError: the disk refused it; nothing is left behind.
    """
    scratch = _scratch(path)
    with _storage(path, "write"):
        try:
            with scratch.open("wb") as file:
                file.writelines((content,) if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return path


def write_model(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write named tensors, bit for bit, in the safetensors format; same content, same bytes.

    Args:
        path: the file, usually :attr:`RunFolder.model`.
        tensors: arrays by name, any shape; the layout's own dtypes.
        metadata: free strings, such as the job's hash.

    Raises:
        StorageError: the disk refused it.
    """
    return write_atomic(Path(path), tensor_pieces(tensors, metadata))


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of a file that :func:`write_model` wrote.

    Raises:
        StorageError: there is no such file, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    with _storage(Path(path), "read"):
        try:
            with safe_open(path, framework="numpy") as file:
                names = file.keys()  # the file itself is no mapping
                tensors = {name: file.get_tensor(name) for name in names}
                return tensors, dict(file.metadata() or {})
        except SafetensorError as error:
            raise StorageError(
                f"{os.fspath(path)!r} is not a model file: {error}", remedy=_DAMAGED
            ) from error


def _encode(content: str) -> bytes:
    return content.encode("utf-8", "replace")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _scratch(path: Path) -> Path:
    # One run has one writer, so a fixed name is free, and a crash leaves at most one per file.
    return path.with_name(f".{path.name}.tmp")


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _probe(folder: Path) -> None:
    # Asking os.access is not enough: read-only mounts and quotas show only when one writes.
    probe = folder / ".probe.tmp"
    with _storage(folder, "write into"):
        probe.write_bytes(b"atoll")
        probe.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot {action} {str(path)!r}: {error.strerror or error}",
            remedy="check permissions and free space, or name another folder",
        ) from error
