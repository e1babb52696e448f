"""What a site answers once it could begin a run, and how the server reads it.

Without masks: numbers of rows, a data card, notes. In a masked run none of these, for they would tell of one
site what its updates do not; only what everybody must know alike (the layout, the hash of the initial vector),
whether there are rows to evaluate on, and which figures they will give.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from atoll.core.errors import DataError, Fault, LayoutError, raise_faults
from atoll.core.layout import Array, Layout
from atoll.core.values import ClientId
from atoll.job.card_form import checked_card
from atoll.job.islands import Islands
from atoll.job.schema import Section
from atoll.job.summed import kinds_from_plain
from atoll.job.survey import body_of
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.client import Parts, evaluate_client
from atoll.runtime.figures import kinds_of
from atoll.runtime.groups import way

__all__ = [
    "Answer",
    "figures_told",
    "initial_vector",
    "layout_from_plain",
    "layout_to_plain",
    "ready",
]

_MOST_ROWS = 2**53


def initial_vector(parts: Parts) -> Array:
    """Where the run starts: the whole vector, personal region included, ``(layout.size,)``."""
    return parts.beginning()


class Answer(Section):
    """What :func:`ready` gives.

    In a masked run ``rows`` is 0, for not told; ``held_out`` is 1 for any number, and ``figures`` are the
    kinds of metrics that such rows will give. ``inputs`` allows the server to hand out with the model what
    that has to be given.
    """

    rows: Annotated[int, Field(ge=0, le=_MOST_ROWS)]
    held_out: Annotated[int, Field(ge=0, le=_MOST_ROWS)]
    figures: Annotated[dict[str, tuple[str, int]], Field(default_factory=dict, max_length=256)]
    layout: dict[str, Any]
    card: Annotated[dict[str, Any], AfterValidator(checked_card)]
    notes: Annotated[tuple[str, ...], Field(max_length=10_000)]
    way: Annotated[str, Field(max_length=1000)]
    initial: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    fingerprint: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    inputs: bool = False


def ready(parts: Parts, islands: Islands, *, rows: bool = False) -> dict[str, Any]:
    """What a site answers once it could begin, ready for JSON: numbers of rows, card, layout.

    With them the hash of its initial vector, which must be that of every site. In a masked run neither
    numbers of rows nor a card nor notes are told.

    Args:
        parts: see :func:`parts_at`.
        islands: see :func:`islands_at`.
        rows: whether the number of rows is told all the same, as an account of privacy needs it.
    """
    ((site, data),) = parts.clients.items()
    card = next(iter(islands.cards), {})
    masked, tests = parts.chain.gives("sums only"), parts.held_out.get(site, ())
    figures: dict[str, tuple[str, int]] = {}
    if masked and len(tests):  # names and sizes are all that is told of this
        start = initial_vector(parts)[: parts.trainer.layout.shared.stop]
        figures = kinds_of(evaluate_client(parts, start, site, {}))
    return Answer(
        rows=0 if masked and not rows else len(data),
        held_out=min(1, len(tests)) if masked else len(tests),
        figures=figures,
        layout=layout_to_plain(parts.trainer.layout),
        card={} if masked else dict(card),
        notes=() if masked else tuple(islands.notes),
        way=way(parts)[:1000],
        initial=model_hash(initial_vector(parts)),
        fingerprint=str(card.get("fingerprint", "")),
        inputs=islands.inputs is not None,
    ).model_dump(mode="json")


def layout_to_plain(layout: Layout) -> dict[str, Any]:
    """The layout as JSON can hold it."""
    plain: dict[str, Any] = json.loads(layout.to_json())
    return plain


def layout_from_plain(plain: Mapping[str, Any]) -> Layout:
    """Read what :func:`layout_to_plain` gave.

    Raises:
        LayoutError: it is no layout.
    """
    try:
        return Layout.from_json(json.dumps(plain))
    except (TypeError, AttributeError) as error:
        raise LayoutError(f"not a layout: {error}") from error


def figures_told(answers: Mapping[ClientId, Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    """The kinds of metrics that sites will add up under masks; see :func:`ready`.

    Raises:
        WireError: what a site said is no such thing; names the site.
        DataError: sites say different things, which cannot be added.
    """
    told = {site: body_of(Answer, answers[site], site) for site in sorted(answers)}
    kinds = {s: kinds_from_plain(a.figures, s) for s, a in told.items() if a.held_out}
    first = next(iter(kinds.values()), {})
    other = [
        Fault(f"site {site!r}", f"tells {sorted(own.items())}, not {sorted(first.items())}")
        for site, own in kinds.items()
        if own != first
    ]
    raise_faults(DataError, "the sites' figures of held-out rows do not add up", other)
    return first
