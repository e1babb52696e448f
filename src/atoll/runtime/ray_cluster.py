"""Joining, starting and leaving a Ray cluster: quietly, and without a door to the network."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from atoll.core.errors import JobError, MissingExtra

__all__ = ["connect", "first_line", "leave", "library"]

_KNOCK = 10.0
"""Seconds in which a cluster has to take a connection."""


def library() -> Any:
    """The Ray package.

    Raises:
        MissingExtra: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra(
            "this executor needs Ray",
            remedy="pip install 'atoll[ray]', or run with executor = 'processes'",
        ) from error


def connect(ray: Any, address: str, workers: int) -> bool:
    """Join a cluster or start one.

    Args:
        ray: from :func:`library`.
        address: of a running cluster, or ``"auto"``; empty for RAY_ADDRESS or a cluster of our own.
        workers: how many cores a cluster of our own says it has, if more than there are.

    Returns:
        whether it is ours to :func:`leave`; False when this program had joined one before.

    Raises:
        JobError: no cluster answers there.
    """
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    _announce(False)
    where = address or os.environ.get("RAY_ADDRESS", "")
    if not where:
        with _loopback():
            cores = max(workers, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
        return True
    try:
        _knock(where)
        ray.init(address=where, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise JobError(
            f"no Ray cluster answers at {where!r}: {first_line(error)}",
            remedy="start one with `ray start --head`, or leave the address out to run on this "
            "machine",
        ) from error
    return True


def leave(ray: Any) -> None:
    """Leave the cluster; it ends if :func:`connect` started it."""
    ray.shutdown()
    _announce(True)


def _knock(where: str) -> None:
    """Find out at once, not after Ray's many minutes, that nobody listens.

    Raises:
        OSError: nobody does.
        ValueError: this is no address.
    """
    if "://" in where:
        return
    services: Any = importlib.import_module("ray._private.services")
    host, _, port = (services.canonicalize_bootstrap_address(where) or "").rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _announce(wanted: bool) -> None:
    """Whether Ray may print the cluster's news: it does so on stdout, where our results go."""
    worker: Any = importlib.import_module("ray._private.worker")
    worker._worker_logs_enabled = wanted


@contextmanager
def _loopback() -> Iterator[None]:
    """A cluster that starts now is reachable from this machine only.

    Ray does so by itself on macOS and Windows; this is the switch it has for it, for this process and
    for those it starts.
    """
    constants: Any = importlib.import_module("ray._private.ray_constants")
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before, switch = os.environ.get(name), getattr(constants, "ENABLE_RAY_CLUSTER", True)
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = switch
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def first_line(error: BaseException) -> str:
    """What an error says first: Ray's say a lot."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
