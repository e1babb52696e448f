"""Each page has the markers between which a benchmark writes its table."""

from __future__ import annotations

import pytest

from benchmarks import pages

SECTIONS = {
    "performance.md": (
        "speed memory parts population paths long peers deployed masked masked-deployed "
        "encrypted-deployed buffered-deployed statistics trees"
    ),
    "privacy.md": "accuracy figures rest rest-accuracy",
    "reliability.md": "table points",
}
NAMED = [(page, section) for page, names in SECTIONS.items() for section in names.split()]


@pytest.mark.parametrize(("page", "section"), NAMED)
def test_a_page_holds_a_table_between_its_markers(page: str, section: str) -> None:
    assert pages.read(section, page).count("\n|") >= 2


@pytest.mark.parametrize("page", SECTIONS)
def test_a_table_that_is_written_again_leaves_the_rest_of_its_page(page, tmp_path, monkeypatch):
    text = (pages.DOCS / page).read_text(encoding="utf-8")
    (tmp_path / page).write_text(text, encoding="utf-8")
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    for section in SECTIONS[page].split():
        pages.write(section, pages.read(section, page).strip("\n").splitlines(), page)
    assert (tmp_path / page).read_text(encoding="utf-8") == text
