"""The model that a run begins at, where that is not the one that its job's seed gives.

A job then carries the hash of that model, ``model.start``: what a site is asked for, a simulation runs and a
manifest tells under the job's hash begins at these numbers and no others. The numbers come beside the job, as
named arrays and not as a vector: of a model whose inputs are the columns of all sites nobody knows the layout
before the sites have told of them.

The hash is over names, dtypes, shapes and values in the order of the names, so the same model has one hash in
whatever file it lies. Half-precision numbers become float32 before and short integers int32, exactly: so they
travel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll.core.errors import AtollError, Fault, JobError, LayoutError, raise_faults, suggest
from atoll.core.layout import Array, Entry, Layout
from atoll.job.islands import Islands
from atoll.wire.frames import DTYPES, Allowed, Blob, check_finite, open_frame, write_frame

if TYPE_CHECKING:
    from atoll.job.schema import JobSpec

__all__ = ["Initial", "Start", "agreed", "begun", "misfits"]

Initial = str | Path | Mapping[str, Any]
"""A file of named arrays (safetensors or ``.npz``), the folder of a run, or the arrays themselves."""

_MOST = 10_000
"""Arrays of a model."""
_SHOWN = 20
_WIDER = {"float16": "float32", "int8": "int32", "int16": "int32", "uint16": "uint32"}
_ANOTHER = "begin at a model of the same columns, categories and [model]"


@dataclass(frozen=True, eq=False)
class Start:
    """Named arrays that a run begins at: finite, of dtypes that travel, sorted by name.

    Args:
        tensors: from :meth:`of`, :meth:`read` or :meth:`sent`.

    >>> start = Start.of({"weight": [[1.0, 2.0]], "bias": [0.5]})
    >>> start.hash[:12], list(start.tensors)
    ('a6cdb76e13a8', ['bias', 'weight'])
    """

    tensors: Mapping[str, Array]

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> Start:
        """These arrays, or what becomes one, such as a CPU tensor of torch.

        Raises:
            JobError: with every array that cannot be: no numbers, of a dtype that does not travel, not finite.
        """
        found: dict[str, Array] = {}
        faults: list[Fault] = []
        for name in sorted(map(str, tensors)):
            try:
                found[name] = _plain(name, tensors[name])
            except (TypeError, ValueError, RuntimeError, KeyError, AtollError) as error:
                said = error.message if isinstance(error, AtollError) else str(error)
                faults.append(Fault(f"entry {name[:200]!r}", said[:500]))
        if not tensors or len(tensors) > _MOST:
            faults.append(Fault("entries", f"there are {len(tensors)}: a model has 1 to {_MOST:,}"))
        raise_faults(JobError, "no model to begin at", faults[:_SHOWN])
        return cls(found)

    @classmethod
    def read(cls, path: str | Path) -> Start:
        """The model in a file of safetensors, in an ``.npz``, or in the folder of a run.

        Raises:
            JobError: there is none, or it is not finite.
        """
        path = Path(path)
        file = path / "model.safetensors" if path.is_dir() else path
        return cls.of(_archive(file) if file.suffix == ".npz" else _safetensors(file))

    @classmethod
    def given(cls, initial: Initial) -> Start:
        """A file's, a folder's or these arrays; see :meth:`read` and :meth:`of`.

        Raises:
            JobError: it is none of them, or there is no model.
        """
        if isinstance(initial, Mapping):
            return cls.of(initial)
        given: Any = initial
        if not isinstance(given, str | Path):
            remedy = "give arrays by name, such as run.parameters, or the path of a run's folder"
            raise JobError(f"a {type(given).__name__} is no model to begin at", remedy=remedy)
        return cls.read(given)

    @classmethod
    def sent(cls, path: Path, digest: str) -> Start:
        """What :meth:`write` wrote and somebody else sent, if it is what the job names.

        Raises:
            WireError: it is no frame of arrays.
            UpdateRefused: it holds a number that is not finite.
            JobError: it is another model than the one with this hash.
        """
        _, arrays = open_frame(path, cls.allowed(path.stat().st_size))
        return cls.received(arrays, digest)

    @classmethod
    def received(cls, arrays: Mapping[str, Array], digest: str) -> Start:
        """The same of arrays that have been read from a frame already."""
        check_finite(arrays)
        made = cls(dict(sorted(arrays.items())))
        if made.hash != digest:
            raise JobError(
                f"the model that came with the job has hash {made.hash[:12]}, "
                f"not {digest[:12]} as the job says",
                remedy="submit the job again",
            )
        return made

    @staticmethod
    def allowed(size: int) -> Allowed:
        """What the frame of a start of ``size`` bytes may hold."""
        return Allowed(None, None, DTYPES, _MOST, size)

    def write(self, path: Path) -> Blob:
        """A frame of these arrays, for its way to a server.

        Raises:
            WireError: its names are too long together.
            StorageError: the file cannot be written.
        """
        return write_frame(path, {"start": self.hash}, self.tensors)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over names, dtypes, shapes and values (little-endian), in the order of the names."""
        sha = hashlib.sha256()
        for name, array in self.tensors.items():
            told = [name, array.dtype.name, list(array.shape)]
            sha.update(json.dumps(told, separators=(",", ":")).encode() + b"\n")
            sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        return sha.hexdigest()

    def vector(self, layout: Layout) -> Array:
        """The whole vector, personal region included, ``(layout.size,)``.

        Raises:
            JobError: it is of another layout; with every entry that is missing, unknown or of another shape.
        """
        what = "the model to begin at is not of this job's layout"
        raise_faults(JobError, what, list(_differences(self.tensors, layout))[:_SHOWN])
        try:
            return layout.pack(self.tensors)
        except LayoutError as error:
            remedy = f"store it as {layout.dtype}, or set model.dtype"
            raise JobError(what, faults=[Fault("model.start", error.message, remedy)]) from error


def agreed(digest: str, start: Start | None) -> Start | None:
    """The start of a job, if it is what the job names.

    Args:
        digest: the job's ``model.start``; empty where it begins at its seed's model.
        start: what came with it.

    Raises:
        JobError: one is there without the other, or they differ.
    """
    given = "" if start is None else start.hash
    if given == digest:
        return start
    if not given:
        said, remedy = f"begins at model {digest[:12]}, which is not given", "name it with --from"
    elif not digest:
        said, remedy = "names no model to begin at, and one is given", "submit the job again"
    else:
        said = f"begins at model {digest[:12]}, and model {given[:12]} is given"
        remedy = "name that one with --from, or remove model.start from the job"
    raise JobError("the job and its start", faults=[Fault("model.start", said, remedy)])


def begun(spec: JobSpec, start: Start) -> JobSpec:
    """The job as it begins at ``start``: another job, with another hash.

    Raises:
        JobError: it trains no model, or names another start.
    """
    if spec.statistics is not None:
        raise JobError("statistics train no model that could begin anywhere", remedy="leave it out")
    agreed(spec.model.start or start.hash, start)
    model = spec.model.model_copy(update={"start": start.hash})
    return spec.model_copy(update={"model": model})


def misfits(spec: JobSpec, folder: Path, start: Start) -> list[Fault]:
    """Why a job's model cannot begin at ``start``, as far as that is known where the sites' data are not.

    Numbers of inputs and of classes are the sites' to tell; all the rest of a layout is the model's own.

    Args:
        spec: the job.
        folder: of its own code.
        start: the model.
    """
    from atoll.job.registry import (
        trainer_for,
    )  # reads job files, as a start made in Python need not

    wide = (
        spec.model.kind != "logistic" and spec.data.task != "regression" and not spec.data.classes
    )
    least = 1 if spec.data.task == "regression" else len(spec.data.classes) or 2
    try:
        one, other = (
            trainer_for(spec, Islands({}, features=2 + n, classes=least + n * wide), folder).layout
            for n in (0, 1)
        )
    except AtollError:  # a model that takes other sizes: its sites will tell
        return []
    open_ = {
        e.name: tuple(m == n for m, n in zip(e.shape, f.shape, strict=False))
        for e, f in zip(one.entries, other.entries, strict=False)
        if e.shape != f.shape
    }
    return list(_differences(start.tensors, one, open_))[:_SHOWN]


def _differences(
    tensors: Mapping[str, Array],
    layout: Layout,
    open_: Mapping[str, tuple[bool, ...]] | None = None,
) -> Iterator[Fault]:
    """Entries that are missing, unknown or of another shape.

    Args:
        tensors: by name.
        layout: what they are held against.
        open_: of some entries which axes are known; all are of any other.
    """
    known = {name for e in layout.entries for name in (e.name, *e.aliases)}
    for name in tensors:
        if name not in known:
            yield Fault(f"entry {name[:200]!r}", "is none of the model's", suggest(name, known))
    for e in layout.entries:
        if e.name not in tensors:
            yield Fault(f"entry {e.name!r}", "is missing", suggest(e.name, tensors))
            continue
        shape = tensors[e.name].shape
        if not _fits(shape, e, (open_ or {}).get(e.name)):
            said = f"has shape {shape}, and the model's has {_told(e, (open_ or {}).get(e.name))}"
            yield Fault(f"entry {e.name!r}", said, _ANOTHER)
        for alias in e.aliases:
            if alias in tensors and not np.array_equal(tensors[alias], tensors[e.name]):
                yield Fault(f"entry {alias!r}", f"is to be the same as {e.name!r}, and is not")


def _fits(shape: tuple[int, ...], entry: Entry, known: tuple[bool, ...] | None) -> bool:
    if known is None or len(shape) != len(entry.shape):
        return shape == entry.shape
    return all(m == n or not sure for m, n, sure in zip(shape, entry.shape, known, strict=True))


def _told(entry: Entry, known: tuple[bool, ...] | None) -> str:
    sizes = [str(n) if known is None or known[i] else "any" for i, n in enumerate(entry.shape)]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _plain(name: str, value: Any) -> Array:
    """An array as it travels.

    Raises:
        TypeError: it is none, or none of numbers.
        UpdateRefused: it is not finite.
    """
    array = np.asarray(value)
    dtype = _WIDER.get(array.dtype.name, array.dtype.name)
    if dtype not in DTYPES:
        raise TypeError(f"is {array.dtype}, which does not travel; store it as float32 or int64")
    made = np.asarray(array, np.dtype(dtype), order="C")
    check_finite({name: made})
    return made


def _archive(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive raises what its parts raise
        raise _no_model(path, error) from error


def _safetensors(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, safe_open  # heavier than all the rest of this file

    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()  # the file itself is no mapping
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise _no_model(path, error) from error


def _no_model(path: Path, error: Exception) -> JobError:
    said = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return JobError(
        f"{path} holds no model to begin at: {said:.500}",
        remedy="name the folder of a run that trained one, or a file of named arrays: safetensors or .npz",
    )
