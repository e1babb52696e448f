"""Federations for the tests of the service."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import masked_sites as masked
import played_sites as played


@pytest.fixture(scope="session")
def hospitals() -> dict[str, Any]:
    """The four hospitals' tables."""
    return played.heart_tables()


@pytest.fixture(scope="session")
def six() -> dict[str, Any]:
    """Six sites' tables, of the same rows."""
    return masked.six_tables()


@pytest.fixture
def make_world(tmp_path: Path, hospitals: dict[str, Any]) -> Callable[..., played.World]:
    """A federation of the four hospitals; more than one have homes of their own."""
    made: list[played.World] = []

    def make(**settings: Any) -> played.World:
        made.append(played.World(tmp_path / f"home-{len(made)}", hospitals, **settings))
        return made[-1]

    return make


@pytest.fixture
def world(make_world: Callable[..., played.World]) -> played.World:
    """One such federation."""
    return make_world()
