"""Free-form options of a job file, held against the names and types that they may have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from atoll.core.errors import Fault, suggest

__all__ = ["checked_options", "told"]


def checked_options(
    options: Mapping[str, Any], kinds: Mapping[str, Any], place: str, owner: str
) -> tuple[dict[str, Any], list[Fault]]:
    """The options as their types want them, and what is wrong.

    Args:
        options: from the job file.
        kinds: type by option; :data:`typing.Any` for one that is not checked.
        place: table that holds them, such as ``data.options``.
        owner: whose options they are, for people.

    >>> checked_options({"row": 3}, {"rows": int}, "data.options", "fcube")[1][0].remedy
    "did you mean 'rows'?"
    """
    from pydantic import (  # half as long to import as all of NumPy, and only job files have options
        ConfigDict,
        PydanticSchemaGenerationError,
        TypeAdapter,
        ValidationError,
    )

    checked: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in options.items():
        if key not in kinds:
            faults.append(
                Fault(f"{place}.{key}", f"{owner} has no such option", suggest(key, kinds))
            )
            continue
        try:
            adapter = TypeAdapter(kinds[key], config=ConfigDict(allow_inf_nan=False))
        except PydanticSchemaGenerationError:  # a type of the owner's own: its class must check it
            checked[key] = value
            continue
        try:
            # By way of JSON: strict about types, yet an array may become a tuple.
            checked[key] = adapter.validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            faults.append(Fault(f"{place}.{key}", told(error.errors()[0]["msg"], value)))
    return checked, faults


def told(message: str, value: object) -> str:
    """What pydantic says, with the offending value.

    >>> told("Input should be greater than 0", -1)
    'should be greater than 0; got -1'
    """
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    plain = message.removeprefix("Input ")
    return f"{plain[:1].lower()}{plain[1:]}; got {shown}"
