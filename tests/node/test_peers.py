"""Keys that are seen first: what runs meet at the same time is noted for all of them."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from atoll.node import peers
from atoll.node.peers import Peers
from atoll.privacy.secagg.terms import Member


def member(number: int) -> Member:
    return Member(f"site-{number}", bytes([number]) * 32)


def test_runs_that_meet_others_at_the_same_time_forget_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = peers.write_text

    def slowly(*given: Any) -> None:
        time.sleep(0.05)
        write(*given)

    monkeypatch.setattr(peers, "write_text", slowly)
    known = Peers(tmp_path / "peers.json")
    threads = [threading.Thread(target=known.meet, args=([member(n)],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = json.loads((tmp_path / "peers_seen.json").read_text())
    assert seen == {m.name: hashlib.sha256(m.key).hexdigest() for m in map(member, range(4))}


def test_members_may_be_told_one_by_one(tmp_path: Path) -> None:
    known = Peers(tmp_path / "peers.json")
    assert known.meet(member(n) for n in range(2)) == {
        member(n).name: member(n).key for n in (0, 1)
    }
