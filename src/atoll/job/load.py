"""Reading a job file: TOML, overrides, all faults at once."""

from __future__ import annotations

import json
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from atoll.core.errors import Fault, JobError, raise_faults, suggest
from atoll.job.build import Job
from atoll.job.check import check_job
from atoll.job.faults import Gathering
from atoll.job.from_file import job_from_spec
from atoll.job.options import told
from atoll.job.schema import JobSpec

__all__ = ["load_job", "parse_job", "read_spec"]

Location = Sequence[int | str]


def load_job(path: str | Path, overrides: Iterable[str] = ()) -> Job:
    """Read, check and build a job file; its data are read when it runs.

    Args:
        path: a TOML file; relative paths inside it are relative to its folder.
        overrides: ``a.b=c`` settings that replace the file's, values in TOML.

    Raises:
        JobError: with every fault found, each with its place and remedy. When there is any, the data
            are read as well, so that their faults come in the same list.
        MissingExtra: the job needs a library that is not installed.
    """
    path = Path(path)
    return job_from_spec(read_spec(path, overrides), folder=path.resolve().parent)


def read_spec(path: Path, overrides: Iterable[str] = ()) -> JobSpec:
    """Read and check a job file without building anything.

    Raises:
        JobError: the file is missing, not TOML, or has faults.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise JobError(
            f"{path} cannot be read: {error.strerror}", remedy="check the path of the job file"
        ) from error
    except UnicodeDecodeError as error:
        raise JobError(
            f"{path} is not UTF-8 text: {error.reason}", remedy="save it as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not valid TOML: {error}", remedy="mend that line") from error
    for override in overrides:
        _override(raw, override)
    return parse_job(raw, source=str(path), folder=path.resolve().parent)


def parse_job(
    raw: Mapping[str, Any], *, source: str = "job", folder: Path | None = None
) -> JobSpec:
    """Validate a job given as nested tables.

    Args:
        raw: the tables.
        source: where they come from, for people.
        folder: relative paths are relative to it; None checks the tables alone.

    Raises:
        JobError: with every fault: unknown keys with a suggestion, wrong types, values out of range,
            choices that exclude each other.
    """
    found = Gathering()
    spec, faults, broken = _validated(raw)
    with found.attempt("job"):
        raise_faults(JobError, source, faults)
    if folder is not None:
        check_job(spec, folder, found, broken)
    elif faults:
        found.raise_all(f"{source} is not a valid job")
    found.raise_all(f"{source} cannot run")
    return spec


def _validated(raw: Mapping[str, Any]) -> tuple[JobSpec, list[Fault], set[str]]:
    """The job as far as it is valid, its faults, and the tables that have them."""
    try:
        # By way of JSON: strict about types ("0.1" is no number), yet an array may become a tuple.
        return JobSpec.model_validate_json(json.dumps(raw, default=str)), [], set()
    except ValidationError as error:
        faults: dict[str, Fault] = {}
        broken: set[str] = set()
        for e in error.errors():
            broken.add(str(e["loc"][0]) if e["loc"] else "")
            if not _beside_the_point(e["loc"], e["type"], e["input"]):
                fault = _fault(_named(e["loc"]), e["msg"], e["type"], e["input"])
                faults.setdefault(fault.place, fault)
    whole = {key: value for key, value in raw.items() if key not in broken}
    whole.setdefault("data", {"source": ""})  # nothing that reads it is checked any more
    return JobSpec.model_validate_json(json.dumps(whole, default=str)), [*faults.values()], broken


def _beside_the_point(loc: Location, kind: str, value: Any) -> bool:
    """Whether pydantic complains that a value is not the *other* thing it might have been."""
    choice = str(loc[-1]) if loc else ""
    words = choice.startswith("literal[") and isinstance(value, Mapping)
    return words or (choice.startswith("dict[") and kind == "dict_type")


def _named(loc: Location) -> tuple[str, ...]:
    """The keys of a location, without pydantic's names for the branches of a choice."""
    keys = [str(p) for p in loc if not re.match(r"(literal|dict)\[", str(p))]
    if len(keys) > 1 and isinstance(loc[-2], int) and keys[-1] in ("str", "float"):
        del keys[-1]
    return tuple(keys)


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parents = [part.strip() for part in key.split(".")]
    if not equals or not all(parents):
        raise JobError(
            f"--set {text!r} is not of the form table.key=value", remedy="write --set local.lr=0.1"
        )
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    table = raw
    *parents, last = parents
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise JobError(
                f"--set {text!r}: {parent!r} is a value, not a table", remedy="shorten the key"
            )
        table = inner
    # A bare word is a string; a line break would have smuggled in further keys.
    table[last] = parsed["value"] if set(parsed) == {"value"} else value.strip()


def _fault(loc: Sequence[str], message: str, kind: str, value: Any) -> Fault:
    place = ".".join(loc)
    if kind == "extra_forbidden":
        return Fault(place, "unknown key", suggest(loc[-1], _known(loc[:-1])))
    if kind == "missing" and loc[-1].isdigit():
        return Fault(".".join(loc[:-1]), "has too few values", "see the reference of the job file")
    if kind == "missing":
        return Fault(place, "this key is required", f"add {loc[-1]} = …")
    remedy = ""
    if kind == "literal_error" and isinstance(value, str):
        remedy = suggest(value, re.findall(r"'([^']+)'", message))
    elif kind == "string_pattern_mismatch":
        return Fault(place, f"{value!r} is not of the right form", _PATTERNS.get(place, ""))
    return Fault(place, told(message, value), remedy)


_PATTERNS = {
    "name": "letters, digits and _ . - only, at most 64",
    "model.start": "remove it, and name the model with --from: its hash comes here",
    "stop.metric": "write central.NAME or federated.NAME, such as federated.loss",
}


def _known(path: Sequence[str]) -> list[str]:
    """Keys that the schema knows in the table at ``path``."""
    model: Any = JobSpec
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(part)
            model = field.annotation if field else None
        else:
            model = next(iter(typing.get_args(model)[1:]), None)  # dict[str, Model]
        options = [a for a in typing.get_args(model) if isinstance(a, type)]
        tables = [a for a in options if issubclass(a, BaseModel)]
        if tables and typing.get_origin(model) is not dict:
            model = tables[0]
    if isinstance(model, type) and issubclass(model, BaseModel):
        return sorted(model.model_fields)
    return []
