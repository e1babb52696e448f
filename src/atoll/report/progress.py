"""Long work shows progress: plain lines in a log, a live bar on a terminal; always on stderr.

An observer is told each round's record. Both kinds here are also context managers, so that a bar is
taken down when a run fails.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from atoll.report.charts import shown
from atoll.report.compare import metric_label, number, scores
from atoll.report.curves import duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["ProgressBar", "ProgressLines", "Watcher", "progress", "progress_line"]

_BETWEEN = "  "


class Watcher(Protocol):
    """Something that is shown each record, and closed at the end."""

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show one round."""
        ...

    def __enter__(self) -> Watcher:
        """Begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        ...


def progress_line(
    record: Mapping[str, Any], total: int, *, seen: int, elapsed: float, note: str = ""
) -> str:
    """One round as one line: round, metrics, rate, time left, and who is missing.

    Args:
        record: the round's record.
        total: rounds planned; 0 where nobody knows, as in statistics.
        seen: rounds watched so far, this one included (fewer than the round after a resume).
        elapsed: seconds in which they ran.
        note: put at the end, such as the name of a log.

    >>> progress_line({"round": 3, "train": {"loss": 0.4}}, 30, seen=3, elapsed=1.5)
    'round  3/30  loss 0.4000  2.0 rounds/s  13.5 s left'
    """
    done = int(record.get("round") or seen)
    width = len(str(total))
    of = f"/{total}" if total else ""
    parts = [f"round {done:>{width}}{of}", *_metrics(record)]
    rate = seen / elapsed if elapsed > 0 else 0.0
    if rate > 0:
        ahead = max(total - done, 0)
        parts += [_rate(rate), f"{duration(ahead / rate)} left" if ahead else duration(elapsed)]
    return _BETWEEN.join([*parts, *_remarks(record), *([note] if note else [])])


def _rate(rate: float) -> str:
    return f"{rate:.1f} rounds/s" if rate >= 1 else f"{1 / rate:.1f} s/round"


def _metrics(record: Mapping[str, Any]) -> list[str]:
    """Training loss, and the first score of the best evaluation that this round had."""
    found = []
    train = number(scores(record.get("train")).get("loss"))
    if train is not None:
        found.append(f"loss {train:.4f}")
    evaluated = scores(record.get("central") or record.get("federated"))
    if train is None and number(evaluated.get("loss")) is not None:
        found.append(f"loss {evaluated['loss']:.4f}")
    usual = [name for name in ("auc", "accuracy", "r2", "rmse") if name in evaluated]
    name = next(iter([*usual, *(name for name in evaluated if name != "loss")]), "")
    if number(evaluated.get(name)) is not None:
        found.append(f"{metric_label(name)} {shown(number(evaluated[name]))}")
    return found


def _remarks(record: Mapping[str, Any]) -> list[str]:
    remarks = []
    if record.get("committed") is False:
        remarks.append(f"NOT COMMITTED: {_one_line(record.get('reason') or 'no reason given')}")
    missing = record.get("missing") or {}
    if missing:
        names = ", ".join(_one_line(name) for name in list(missing)[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        remarks.append(f"without {names}{more}")
    return remarks


def _one_line(value: object) -> str:
    # Names come from elsewhere: control characters could move the cursor or forge a line of the log.
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value))


def _start(record: Mapping[str, Any], now: float) -> float:
    # The watch starts with the first round, not with the reading of data before it.
    return now - (number(record.get("seconds")) or 0.0)


class ProgressLines:
    """Plain lines for a log: the first, the last, every bad round, and else one per ``interval``.

    Args:
        total: rounds planned.
        stream: where to; standard error by default.
        interval: least seconds between two ordinary lines; 0 writes every round.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        *,
        interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._stream = total, stream if stream is not None else sys.stderr
        self._interval, self._clock = interval, clock
        self._began: float | None = None
        self._said, self._seen = -float("inf"), 0

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write the round's line if it is due."""
        self._seen += 1
        now = self._clock()
        if self._began is None:
            self._began = _start(record, now)
        last = 0 < self._total <= int(record.get("round") or self._seen)
        bad = record.get("committed") is False
        if last or bad or now - self._said >= self._interval:
            line = progress_line(record, self._total, seen=self._seen, elapsed=now - self._began)
            self._stream.write(line + "\n")
            self._stream.flush()
            self._said = now

    def __enter__(self) -> ProgressLines:
        """Nothing to begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to take down: the stream is the caller's."""


class ProgressBar:
    """A live bar on a terminal, drawn by rich: rounds, metrics, rate, time left.

    Args:
        total: rounds planned.
        stream: the terminal; standard error by default.
        title: what is running.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        *,
        title: str = "rounds",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._clock, self._title = total, clock, title
        self._stream = stream if stream is not None else sys.stderr
        self._began: float | None = None
        self._seen = 0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._live = False

    def __enter__(self) -> ProgressBar:
        """Draw the empty bar; it begins to move with the first round.

        Until then no thread refreshes it: worker processes start faster from a process without threads.
        """
        self._draw(live=False)
        return self

    def _draw(self, live: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        # Markup is off because site and metric names may hold square brackets.
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}", markup=False),
            console=Console(file=self._stream),
            auto_refresh=live,
            transient=not live,  # the moving bar takes its place
        )
        self._bar.start()
        self._task = self._bar.add_task(_one_line(self._title), total=self._total or None, line="")
        self._bar.refresh()
        self._live = live

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Move the bar."""
        self._seen += 1
        if not self._live:
            if self._bar is not None:
                self._bar.stop()
            self._draw(live=True)
        now = self._clock()
        if self._began is None:
            self._began = _start(record, now)
        elapsed = now - self._began
        line = progress_line(record, self._total, seen=self._seen, elapsed=elapsed)
        if self._bar is not None and self._task is not None:
            done = int(record.get("round") or self._seen)
            self._bar.update(self._task, completed=done, line=line)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing; the last state stays on the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None
        self._live = False


def progress(total: int, stream: TextIO | None = None, *, title: str = "rounds") -> Watcher:
    """The right kind for ``stream``: a bar on a terminal, lines elsewhere."""
    stream = stream if stream is not None else sys.stderr
    return (
        ProgressBar(total, stream, title=title) if stream.isatty() else ProgressLines(total, stream)
    )
