"""A real server whose folder is put back from a copy, and what its sites and its operator are told."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from test_serving import Live

from atoll.core.errors import PutBack
from atoll.node.link import Link
from atoll.node.run_folder import Held
from atoll.server import admin
from atoll.wire.frames import Blob
from atoll.wire.https import Channel


def test_a_server_put_back_from_a_backup_is_found_out_however_often_it_was_started(
    tmp_path: Path,
) -> None:
    path, copy, seen = tmp_path / "server", tmp_path / "copy", [""]

    def asked(channel: Channel) -> None:
        reply, _ = Link(channel, seen=lambda: seen[0]).poll((), 0)
        seen[0] = f"{reply.epoch}-{reply.start}"

    with Live(path) as live:
        channel = live.join("ulm")
        asked(channel)
    shutil.copytree(path, copy)
    for _ in range(2):
        with Live(path), channel:
            asked(channel)
    shutil.rmtree(path)
    shutil.copytree(copy, path)
    for _ in range(3):
        with Live(path):
            pass
    with Live(path), channel:
        held = Held("heart-1.train.0.ulm", "heart-1", Blob.of(b"old"), tmp_path)
        with pytest.raises(PutBack, match="put back from a backup"):
            Link(channel, seen=lambda: seen[0]).deliver(held, b"old")
        with pytest.raises(PutBack, match="put back from a backup"):
            asked(channel)
        told = admin.overview(path, time.time())
        assert "ulm" in told.trouble
        assert f"--seen {told.epoch}" in told.trouble
    assert admin.restored(path, told.epoch, time.time()) == told.epoch + 1
    assert admin.overview(path, time.time()).trouble == ""
    with Live(path), channel:
        asked(channel)
