"""What a run sees of the node's cache: its own files, and only while it works on them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import fake_federation as ff
import pytest

from atoll.node.room import sandbox
from atoll.node.room.view import View, view_of

LOOKS = (
    ff.LOOKING
    + """    files = [path for path in node.rglob("*") if path.is_file() and len(path.name) == 64]
    bad = [path.name for path in files if b"only their " + b"code says this" in path.read_bytes()]
    raise NameError(f"{len(files)} files, {len(bad)} of another run")
"""
)


@pytest.mark.parametrize("way", ["auto", "off"])
def test_a_run_sees_its_own_blobs_and_none_of_another_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "auto" and sandbox.trouble():
        pytest.skip(sandbox.trouble())
    server = ff.FakeServer()
    monkeypatch.setattr(ff, "OWN", f"# only their code says this\n{ff.OWN}")
    theirs = ff.Solo(server, tmp_path, "theirs")
    monkeypatch.setattr(ff, "OWN", LOOKS)
    mine = ff.Solo(server, tmp_path, "mine")
    limits = ff.LIMITS.model_copy(update={"sandbox": way})
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1), limits=limits)):
        assert server.result(theirs.train().id)[0].status == "done"
        said = server.result(mine.train().id)[0].reason
    assert ("0 of another run" in said) is (way == "auto"), said
    assert ("3 files" in said) is (way == "auto"), said  # plan, code, model


def test_each_order_shows_its_own_files_and_the_next_none_of_them(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "work" / "r1"
    cache.mkdir()
    for name in "abc":
        (cache / name).write_text(name)
    view = View(folder)
    view.show([str(cache / "a"), str(cache / "b"), str(cache / "b")])
    assert {path.name for path in view_of(folder).iterdir()} == {"a", "b"}
    view.show([str(cache / "b"), str(cache / "c")])
    assert {path.name for path in view_of(folder).iterdir()} == {"b", "c"}
    view.show(())
    assert not list(view_of(folder).iterdir())
    assert [(cache / name).stat().st_nlink for name in "abc"] == [1, 1, 1]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_what_lies_on_another_disk_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("a model")
    view = View(tmp_path / "r1")
    view.show([str(tmp_path / "a")])
    assert (view_of(tmp_path / "r1") / "a").read_text() == "a model"


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match="No space left"):
        View(tmp_path / "r1").show([str(tmp_path / "a")])
