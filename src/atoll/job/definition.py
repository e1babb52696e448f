"""The hash of a job: what is signed, approved and written into a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["definition_hash"]


def definition_hash(definition: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able definition in canonical form: sorted keys, no spaces."""
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
