"""The closed form of a data card that came over the wire: what the report reads must be what it shows.

A card that a node of ours makes (:mod:`atoll.data.card`, with what :func:`atoll.job.islands.card` adds) has
this form. A site that sends another one is named at once; no reader of cards needs to doubt them later.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from atoll.job.schema import Section

__all__ = ["CardBody", "ColumnCard", "checked_card"]

_Count = Annotated[int, Field(ge=0, le=2**53)] | Literal["suppressed"]
_Number = float | Literal["suppressed"] | None
_Name = Annotated[str, Field(max_length=1000)]
_MOST = 100_000
_Counts = Annotated[dict[_Name, _Count], Field(max_length=_MOST)]


class ColumnCard(Section):
    """What a card tells of one column, or of a target that is a number."""

    type: _Name = ""
    unit: _Name | None = ""
    missing: _Count = 0
    mean: _Number = None
    sd: _Number = None
    counts: Annotated[_Counts, Field(default_factory=dict)]


class CardBody(Section):
    """A card; see :func:`atoll.data.card.data_card` and :func:`atoll.data.card.examples_card`."""

    site: _Name = ""
    rows: _Count
    columns: Annotated[dict[_Name, ColumnCard], Field(default_factory=dict, max_length=_MOST)]
    shape: Annotated[tuple[int, ...], Field(max_length=32)] = ()
    classes: _Counts | None = None
    target: ColumnCard | None = None
    fingerprint: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    missing: Annotated[_Counts, Field(default_factory=dict)]
    labels: _Counts | None = None


def checked_card(card: dict[str, Any]) -> dict[str, Any]:
    """The card as it came, if it is one, or empty, for none.

    Raises:
        ValueError: it is something else; with what is wrong first.
    """
    if card:
        try:
            CardBody.model_validate_json(json.dumps(card))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"no data card: {place:.200}: {first['msg']}") from error
    return card
