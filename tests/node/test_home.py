"""A node's folder: private, used by one node at a time, readable again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atoll.core.errors import JobError, NotFound, StorageError
from atoll.node.home import Federation, Home, default_home
from atoll.node.settings import Settings, keep_proxy, read_settings

JOINED = Federation("lagoon-1", "east", "localhost:7443", "ab" * 32, "cd" * 32, 1.5)


def test_the_record_of_joining_comes_back(tmp_path: Path) -> None:
    home = Home(tmp_path / "node")
    with pytest.raises(NotFound, match="atoll node join CODE"):
        home.joined()
    home.join(JOINED)
    assert home.joined() == JOINED
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700
    assert home.federation.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["{", "[]", json.dumps({"site": "east"})])
def test_a_damaged_record_is_refused(tmp_path: Path, damage: str) -> None:
    home = Home(tmp_path)
    home.federation.write_text(damage)
    with pytest.raises(StorageError):
        home.joined()


def test_one_node_at_a_time(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert not home.running
    with home.locked():
        assert home.running
        with pytest.raises(StorageError, match="another node runs"), home.locked():
            pass
    assert not home.running


def test_the_folder_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_NODE_HOME", "/srv/node")
    assert default_home() == Path("/srv/node")


def test_settings_have_defaults_and_say_all_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    assert read_settings(path) == Settings()
    path.write_text('pass_on = ["CUDA_VISIBLE_DEVICES"]\n[limits]\nmemory = 4.0\ncpu = 60\n')
    made = read_settings(path)
    assert (made.limits.memory, made.limits.cpu) == (4.0, 60)
    assert made.pass_on == ("CUDA_VISIBLE_DEVICES",)
    path.write_text("[limits]\nmemori = 4.0\nfiles = 1\n")
    with pytest.raises(JobError) as caught:
        read_settings(path)
    assert {f.place for f in caught.value.faults} == {"limits.memori", "limits.files"}
    assert "did you mean 'memory'?" in str(caught.value)


def test_a_proxy_is_kept_beside_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[limits]\ncpu = 60\n")
    keep_proxy(path, "http://proxy:3128")
    assert (read_settings(path).proxy, read_settings(path).limits.cpu) == ("http://proxy:3128", 60)
    keep_proxy(path, "http://other:3128")
    assert read_settings(path).proxy == "http://proxy:3128"
