"""Every example in the tutorial, the how-to pages and the README works as it stands.

Blocks of a page run in order in an empty folder: a block with a caption is a file of that name, other
Python blocks run in one namespace, and ``$ atoll`` lines of console blocks run the command line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs" / "tutorial").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
BLOCK = re.compile(r"^```(?:\{code-block\} )?(\w+)\n(?::caption: (\S+)\n+)?(.*?)^```$", re.M | re.S)


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """(language, caption or empty, text) of each block."""
    yield from BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[str]:
    """The ``$ atoll`` lines, continuation lines joined."""
    joined = text.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ atoll ")]


def runnable(page: Path) -> bool:
    return any(caption or language == "python" for language, caption, _ in blocks(page))


def marked(page: Path) -> object:
    return pytest.param(page, marks=pytest.mark.cluster) if page.stem == "ray" else page


@pytest.mark.parametrize("page", [marked(p) for p in PAGES if runnable(p)], ids=lambda p: p.stem)
def test_examples_of_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace: dict[str, object] = {"__name__": f"page_{page.stem}"}
    for language, caption, text in blocks(page):
        if caption:
            (tmp_path / caption).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / caption).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif language == "console":
            for line in commands(text):
                status = main(shlex.split(line)[1:])
                assert status == 0, f"{line}\n{capsys.readouterr().err}"


def test_pages_hold_examples() -> None:
    assert sum(map(runnable, PAGES)) >= 6
