"""What a site tells others of an error in job code: where it happened, never on what data.

The text of an exception may quote a cell of a table, and a traceback the folders of a hospital's disk.
So of an exception that is not Atoll's own only its type travels, with the files (as the job names them),
lines and functions it passed. The whole of it goes to the site's own log.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from atoll.core.errors import AtollError, DataError

__all__ = ["MOST", "told"]

MOST = 2000
"""Characters of a reason; more is cut."""
_FRAMES = 8
_VALUES = "the values are in the log of this site's node"
_PLAIN = (ImportError, NameError, RecursionError)
"""Their texts name modules and names in code, which the job brought itself."""
_PATH = re.compile(r"(?<![\w.])(?:/[^\s/:;,'\"()\[\]]+)+/?")


def told(error: BaseException, folder: Path, memory: float = 0.0) -> str:
    """The reason to send, without data and without paths of this site.

    Args:
        error: what was raised.
        folder: where the job's own files lie; they are shown relative to it.
        memory: GiB the site allows, to be named when they were not enough; 0 for none.
    """
    return _told(error, folder, memory)[:MOST]


def _told(error: BaseException, folder: Path, memory: float) -> str:
    if isinstance(error, AtollError):
        cause = error.__cause__
        if isinstance(error, DataError):
            return _places(error)
        if cause is None or isinstance(cause, AtollError):
            return without_paths(str(error))
        head = without_paths(error.message.partition(":")[0])
        return f"{head}: {_told(cause, folder, memory)}"
    text = type(error).__name__
    if isinstance(error, MemoryError) and memory:
        text += f": a worker may write to {memory:.3g} GiB at this site"
    elif isinstance(error, _PLAIN):
        text += f": {without_paths(str(error))}"
    elif isinstance(error, SyntaxError):
        text += f": {error.msg} (line {error.lineno})"
    frames = [_frame(f, folder) for f in traceback.extract_tb(error.__traceback__)]
    shown = [f for f in frames if f][-_FRAMES:]
    return f"{text} ({', '.join(reversed(shown))})" if shown else text


def _places(error: DataError) -> str:
    """Where the data do not fit: sites and columns, which the job names anyway; no values, no rows.

    What is wrong there is said only where the fault itself has words without values for it.
    """
    told = (f"{f.place}: {f.withheld}" if f.withheld else f.place for f in error.faults if f.place)
    places = list(dict.fromkeys(map(without_paths, told)))
    first = without_paths(error.message) if error.faults else "the data do not fit the job"
    where = f" ({'; '.join(places[:20])})" if places else ""
    whole = error.faults and all(fault.withheld for fault in error.faults)
    more = "this site sees more with atoll doctor --job" if whole else _VALUES
    return f"{first}{where}; {more}"


def _frame(frame: traceback.FrameSummary, folder: Path) -> str:
    """``model.py:12 in fit``; empty for lines that tell a reader nothing."""
    path = Path(frame.filename)
    for root in (folder, folder.resolve()):
        if path.is_relative_to(root):
            return f"{path.relative_to(root)}:{frame.lineno} in {frame.name}"
    own = Path(__file__).parents[1]
    if path.is_relative_to(own):
        if path.is_relative_to(own / "node"):
            return ""
        return f"atoll/{path.relative_to(own)}:{frame.lineno} in {frame.name}"
    for part in ("site-packages", "dist-packages"):
        if part in path.parts:
            inner = path.parts[path.parts.index(part) + 1 :]
            return f"{'/'.join(inner)}:{frame.lineno} in {frame.name}"
    return f"{path.name}:{frame.lineno} in {frame.name}"


def without_paths(text: str) -> str:
    """``text`` with each path cut to its last part.

    >>> without_paths("/srv/data/model.py cannot be imported (see /tmp/x/)")
    'model.py cannot be imported (see x)'
    """
    return _PATH.sub(lambda found: Path(found.group()).name, text)
