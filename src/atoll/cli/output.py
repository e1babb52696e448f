"""Data on stdout, talk on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from atoll.core.errors import AtollError

__all__ = ["data_line", "table_of", "talk", "talk_error"]


def data_line(text: str) -> None:
    """Print data: what a program or a pipe would read."""
    sys.stdout.write(f"{text}\n")


def talk(text: str) -> None:
    """Print what is said to a person, and never to a pipe."""
    sys.stderr.write(f"{text}\n")


def talk_error(error: AtollError) -> None:
    """Print an error with its code; in colour on a terminal."""
    if sys.stderr.isatty():
        talk(f"\x1b[1;31merror\x1b[0m \x1b[2m{error.code}\x1b[0m  {error}")
    else:
        talk(f"error {error.code}  {error}")


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces between them.

    >>> print(table_of(("name", "size"), [("ant", "1"), ("whale", "30")]))
    name   size
    ant    1
    whale  30
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )
    return "\n".join(lines)
