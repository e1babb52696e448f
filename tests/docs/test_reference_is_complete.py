"""The reference pages and the code name the same things."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from atoll.algorithms import ALGORITHMS
from atoll.core import errors
from atoll.job import deployed
from atoll.job.inquiries.registry import KINDS
from atoll.job.schema import JobSpec

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def tables(model: type[BaseModel], path: str = "") -> dict[str, type[BaseModel]]:
    """Every table of the job file by its dotted name."""
    found = {path: model}
    for name, field in model.model_fields.items():
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                named = typing.get_origin(field.annotation) is dict
                key = f"{path}.{name}".strip(".") + (".NAME" if named else "")
                found |= tables(part, key)
    return found


def sections(text: str) -> dict[str, str]:
    """Text below each ``[table]`` heading; the top level's under the empty name."""
    parts = re.split(r"^##+ (?:`\[(.+?)\]`|Top level)$", text, flags=re.M)
    return {name or "": body for name, body in zip(parts[1::2], parts[2::2], strict=True)}


PAGE = sections((REFERENCE / "job-file.md").read_text(encoding="utf-8"))
TABLES = tables(JobSpec)


def test_job_page_has_a_section_for_each_table() -> None:
    assert set(PAGE) == set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_job_page_lists_exactly_the_keys_of_the_schema(table: str) -> None:
    inner = {name.removeprefix(f"{table}.").split(".")[0] for name in TABLES if name}
    keys = {
        name
        for name in TABLES[table].model_fields
        if f"{table}.{name}".strip(".") not in TABLES and name not in inner
    }
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE[table], flags=re.M))
    assert listed == keys


@pytest.mark.parametrize("table", TABLES)
def test_job_page_gives_the_schema_s_defaults(table: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE[table], flags=re.M))
    for name, shown in rows.items():
        field = TABLES[table].model_fields[name]
        default = field.get_default(call_default_factory=True)
        if field.is_required():
            assert shown == "required"
        elif default is None:
            assert shown == "none"
        else:
            assert shown.strip("`") == toml(default), f"{table}.{name}"


def toml(value: object) -> str:
    """A default as it would stand in a job file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{}"
    return "1e-8" if value == 1e-8 else str(value)


def test_every_algorithm_and_its_options_are_on_their_page() -> None:
    page = (REFERENCE / "algorithms.md").read_text(encoding="utf-8")
    for name, method in ALGORITHMS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for option in method.__dataclass_fields__:  # type: ignore[attr-defined]
            assert f"`{option}`" in row, f"{name}: {option}"


@pytest.mark.parametrize("kind", KINDS)
def test_job_page_names_every_option_of_every_analysis(kind: str) -> None:
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|(.+)\|$", PAGE["statistics.analyses"], flags=re.M)
    (told,) = [options for kinds, options in rows if f"`{kind}`" in kinds]
    hints = typing.get_type_hints(KINDS[kind])
    for field in dataclasses.fields(KINDS[kind]):
        inner = hints[field.name]
        names = dataclasses.fields(inner) if dataclasses.is_dataclass(inner) else [field]
        assert not [f.name for f in names if f"`{f.name}" not in told]


def test_errors_page_tells_code_and_exit_status_of_every_error() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.AtollError) and name != "AtollError":
            assert f"| `{name}` | `{kind.code}` | {kind.exit_status} |" in page


def test_job_page_names_what_a_deployment_refuses() -> None:
    """Every place at which :func:`deployable` finds fault is in the page's last section."""
    source = Path(deployed.__file__).read_text(encoding="utf-8")
    body = source[source.index("def _impossible") : source.index("def left_out")]
    places = set(re.findall(r'"((?:data|clock|rounds|stop|model|executor)\.[\w.]+)"', body))
    page = (REFERENCE / "job-file.md").read_text(encoding="utf-8")
    told = page[page.index("## In a deployment") :]
    assert len(places) > 8
    missing = {place for place in places - {"data.source"} if place not in told}
    assert missing == set()
