"""Bugs that are planted, to see that the checks find them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["BUGS"]

BUGS: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {}
