"""Atoll: federated learning for data that may not be pooled."""

from __future__ import annotations

__version__ = "0.1.0"
