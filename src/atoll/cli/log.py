"""The log of a program that runs for long: one line a record, whatever others have put into its words.

Names of sites and runs, reasons of refusals and texts of errors come from others. A line break in one would
begin a line that looks like the program's own, and what moves a terminal's cursor could write over one.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["OneLine", "begin_log", "escaped"]


def begin_log(level: int) -> None:
    """Log to stderr from now on.

    Args:
        level: of the least that is logged.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(level=level, handlers=[handler])


def escaped(text: str) -> str:
    r"""``text`` on one line, in characters that only show themselves.

    >>> print(escaped("gone\n2026-01-01 ERROR all keys revoked\x1b[1A"))
    gone\n2026-01-01 ERROR all keys revoked\x1b[1A
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class OneLine(logging.Formatter):
    """A record on one line; the lines of a traceback below it are indented, and begin none of their own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the library's name
        """The line itself."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  # likewise
        """What is written below it."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {escaped(line)}" for line in lines)
