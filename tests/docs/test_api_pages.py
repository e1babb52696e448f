"""Every module of a deployment has its place on a page of the Python reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTED = {
    name
    for page in (ROOT / "docs" / "reference" / "api").glob("*.md")
    for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
}
INSIDE = ("atoll.server.store.tables",)  # the schema, told by its migrations


def modules(package: str) -> set[str]:
    """Public modules of a package; steps of the database are no modules to import."""
    folder = ROOT / "src" / "atoll" / package
    names = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in folder.rglob("*.py")
        if path.name != "__init__.py" and "migrations" not in path.parts
    }
    return {n for n in names if "._" not in n} - set(INSIDE)


@pytest.mark.parametrize("package", ["wire", "server", "node", "runs", "privacy"])
def test_each_module_is_on_a_page(package: str) -> None:
    assert modules(package) - LISTED == set()


def test_no_page_names_a_module_that_is_gone() -> None:
    for name in LISTED:
        path = ROOT / "src" / Path(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name
