"""TensorBoard events: every number of every round, by round.

=====================================  ==========================================
``train/<metric>``                     of local training
``central/<m>``, ``federated/<m>``     evaluations
``sites/<metric>/<site>``              evaluations per site
``participation/contributed|missing``  clients
``staleness/mean|max``                 versions between start and use
``time/seconds``, ``time/clock``       measured, and virtual
=====================================  ==========================================
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from atoll.core.errors import MissingExtra
from atoll.report.compare import number, scores

__all__ = ["TensorBoard", "scalars"]


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and value of each finite number of a round's record, in a fixed order."""
    for source in ("train", "central", "federated", "staleness"):
        for metric, value in scores(record.get(source)).items():
            yield from _finite(f"{source}/{metric}", value)
    for site, metrics in (record.get("sites") or {}).items():
        for metric, value in scores(metrics).items():
            yield from _finite(f"sites/{metric}/{site}", value)
    yield "participation/contributed", float(len(record.get("contributed") or ()))
    yield "participation/missing", float(len(record.get("missing") or ()))
    yield from _finite("time/seconds", record.get("seconds"))
    yield from _finite("time/clock", record.get("clock"))


def _finite(name: str, value: Any) -> Iterator[tuple[str, float]]:
    known = number(value)
    if known is not None:
        yield name, known


class TensorBoard:
    """An observer that writes events for TensorBoard, through tensorboardX.

    Args:
        folder: where to; usually the run's folder.
        resumed_at: when a run continues, the last round that counts: events after it are hidden.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resumed_at: int | None = None) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingExtra(
                "TensorBoard events need tensorboardX", remedy="pip install 'atoll[tracking]'"
            ) from error
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(os.fspath(folder), purge_step=purge)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write one round."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, global_step=int(record["round"]))

    def close(self) -> None:
        """Write out what is buffered; safe to call twice."""
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        """Nothing to begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
