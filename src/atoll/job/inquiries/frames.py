"""Results as pandas frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atoll.core.errors import MissingExtra

__all__ = ["frame"]


def frame(records: Sequence[Mapping[str, Any]], index: str = "") -> Any:
    """A pandas frame of records.

    Args:
        records: one a line.
        index: column that becomes the index.

    Raises:
        MissingExtra: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtra(
            "tables come as pandas frames", remedy="pip install 'atoll[tables]'"
        ) from error
    made = pd.DataFrame([dict(record) for record in records])
    return made.set_index(index) if index and len(made) else made
