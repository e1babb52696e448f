"""Data on stdout, talk on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from atoll.core.errors import AtollError

__all__ = ["brief", "data_line", "plain", "table_of", "talk", "talk_error"]


def plain(text: str) -> str:
    r"""``text``, which may come from elsewhere, with nothing in it that moves the cursor or writes over a line.

    >>> plain("done\x1b[1A\x9bK")
    'done\ufffd[1A\ufffdK'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def brief(text: str, most: int = 100) -> str:
    r"""The first line of a text, cut to what a cell of a table has room for.

    >>> brief("2 sites cannot take part\n  - ulm: no dataset", 20)
    '2 sites cannot take…'
    """
    line = text.partition("\n")[0]
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def data_line(text: str, *, coloured: bool = False) -> None:
    """Print data: what a program or a pipe would read; as it is only where ``coloured`` by ourselves."""
    sys.stdout.write(f"{text if coloured else plain(text)}\n")


def talk(text: str) -> None:
    """Print what is said to a person, and never to a pipe."""
    sys.stderr.write(f"{plain(text)}\n")


def talk_error(error: AtollError) -> None:
    """Print an error with its code; in colour on a terminal."""
    if sys.stderr.isatty():
        mark = f"\x1b[1;31merror\x1b[0m \x1b[2m{plain(error.code)}\x1b[0m"
        sys.stderr.write(f"{mark}  {plain(str(error))}\n")
    else:
        talk(f"error {error.code}  {error}")


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces between them; a cell is one line.

    >>> print(table_of(("name", "size"), [("ant", "1"), ("whale", "30")]))
    name   size
    ant    1
    whale  30
    """
    rows = [[" ".join(cell.split("\n")) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )
    return "\n".join(lines)
