"""Reading a job file: TOML, overrides, all faults at once."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from atoll.core.errors import Fault, JobError, raise_faults, suggest
from atoll.job.build import Job, job_from_spec
from atoll.job.schema import JobSpec

__all__ = ["load_job", "parse_job", "read_spec"]


def load_job(path: str | Path, overrides: Iterable[str] = ()) -> Job:
    """Read, check and build a job file.

    Args:
        path: a TOML file; relative paths inside it are relative to its folder.
        overrides: ``a.b=c`` settings that replace the file's, values in TOML.

    Raises:
        JobError: with every fault found, each with its place and remedy.
    """
    path = Path(path)
    return job_from_spec(read_spec(path, overrides), folder=path.resolve().parent)


def read_spec(path: Path, overrides: Iterable[str] = ()) -> JobSpec:
    """Read and validate a job file without building anything.

    Raises:
        JobError: the file is missing, not TOML, or has faults.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(
            f"{path} cannot be read: {error.strerror}", remedy="check the path of the job file"
        ) from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 text: {error.reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not valid TOML: {error}", remedy="mend that line") from error
    for override in overrides:
        _override(raw, override)
    return parse_job(raw, source=str(path))


def parse_job(raw: Mapping[str, Any], *, source: str = "job") -> JobSpec:
    """Validate a job given as nested tables.

    Raises:
        JobError: with every fault: unknown keys with a suggestion, wrong types, values out of range.
    """
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        faults = [_fault(e["loc"], e["msg"], e["type"], e.get("input")) for e in error.errors()]
        raise_faults(JobError, f"{source} is not a valid job", faults)
        raise


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise JobError(f"--set {text!r} is not of the form a.b=c")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    table = raw
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise JobError(f"--set {text!r}: {parent!r} is a value, not a table")
        table = inner
    table[last] = parsed


def _fault(loc: tuple[int | str, ...], message: str, kind: str, value: Any) -> Fault:
    place = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return Fault(place, "unknown key", suggest(str(loc[-1]), _known(loc[:-1])))
    if kind == "missing":
        return Fault(place, "this key is required", f"add {loc[-1]} = …")
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    return Fault(place, f"{message[:1].lower()}{message[1:]}; got {shown}")


def _known(path: tuple[int | str, ...]) -> list[str]:
    """Keys that the schema knows in the table at ``path``."""
    model: Any = JobSpec
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(str(part))
            model = field.annotation if field else None
        else:
            model = next(iter(typing.get_args(model)[1:]), None)  # dict[str, Model]
        options = [a for a in typing.get_args(model) if isinstance(a, type)]
        tables = [a for a in options if issubclass(a, BaseModel)]
        if tables and typing.get_origin(model) is not dict:
            model = tables[0]
    return (
        sorted(model.model_fields)
        if isinstance(model, type) and hasattr(model, "model_fields")
        else []
    )
