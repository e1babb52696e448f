"""Rows to put into a store."""

from __future__ import annotations

import hashlib

from atoll.server.store.contract import Contribution, Invite, RoundRow, RunRow, Store


def secret(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def invite(name: str, text: str = "", role: str = "site", expires: float = 100.0) -> Invite:
    return Invite(secret(text or name), name, role, expires)


def key(letter: str) -> bytes:
    return letter.encode() * 32


def run_row(id: str = "r1", **changes: object) -> RunRow:
    given = {
        "id": id,
        "name": "heart",
        "job_hash": "0" * 64,
        "spec": '{"seed": 1}',
        "files": {"own.py": {"sha256": "a" * 64, "size": 12}},
        "signed": {"nonce": "b" * 32, "sites": []},
        "sites": ("Bern", "Ulm"),
        "by": "ada",
        "created": 1.5,
        "status": "open",
    }
    return RunRow(**{**given, **changes})


def answer(task: str, sha256: str = "a" * 64, **changes: object) -> Contribution:
    run, _, _, client = task.split(".", 3)
    given = {
        "run": run,
        "task": task,
        "client": client,
        "sha256": sha256,
        "size": 10**10,
        "status": "done",
        "examples": 303,
        "weight": 0.1,
        "received": 1.7e9 + 0.1,
    }
    return Contribution(**{**given, **changes})


def round_row(number: int, tasks: tuple[str, ...] = (), run: str = "r1") -> RoundRow:
    record = {"round": number, "loss": 0.1, "sites": {"Ulm": [1, None, "ü\0"]}}
    return RoundRow(run, number, record, "c" * 64, "d" * 64, tasks)


def started(store: Store, run: str = "r1") -> int:
    """Acquire the store and add a run; returns the epoch."""
    epoch = store.acquire("first", 10.0)
    store.add_run(epoch, run_row(run))
    return epoch
