"""Commands of another user than the one whom a folder belongs to: refused in words, with a way out."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import nobody
from process_copies import Launcher

from atoll.wire.findings import owners

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
HERE = Path(__file__).parent


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="atoll-user-", dir="/tmp"))
    made.chmod(0o755)
    nobody.found(made)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """A process that has run the commands before, and is copied."""
    made = Launcher([nobody.__name__], [str(HERE)])
    yield made
    made.close()


def as_nobody(launcher: Launcher, folder: Path, *words: object) -> tuple[int, str]:
    """A command of another user: its status, and what it says."""
    log = folder / "said"
    command = ["atoll", *map(str, words)]
    environment = {**os.environ, "HOME": "/nonexistent"}
    status = launcher.start("nobody:command", command, log, environment).wait(120)
    return status, log.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("node", "start", "--home", "@node"),
        ("node", "status", "--home", "@node"),
        ("node", "peers", "--home", "@node"),
        ("node", "leave", "--yes", "--home", "@node"),
        ("node", "server", "--address", "a.example:1", "--home", "@node"),
        ("node", "data", "list", "--home", "@node"),
        ("server", "start", "@server"),
        ("server", "status", "--home", "@server"),
        ("server", "invite", "north", "--home", "@server"),
        ("server", "change", "@server", "--renew"),
        ("server", "init", "@server"),
        ("doctor", "--home", "@node"),
        ("doctor", "--server", "@server"),
    ],
)
def test_another_user_is_told_whose_folder_it_is(
    launcher: Launcher, folder: Path, words: tuple[str, ...]
) -> None:
    given = [folder / word[1:] if word.startswith("@") else word for word in words]
    status, said = as_nobody(launcher, folder, *given)
    assert "Traceback" not in said, said
    assert "run this as the user" in said or "check its owner" in said, said
    assert status == 5, said


def test_files_that_root_has_left_are_found_with_the_command_that_mends_them(
    launcher: Launcher, folder: Path
) -> None:
    home = folder / "node"
    for path in (home, *home.rglob("*")):
        os.chown(path, nobody.NOBODY, nobody.NOBODY)
    assert owners("files", home).state == "ok"
    os.chown(home / "identity.pem", 0, 0)
    found = owners("files", home)
    assert (found.state, found.status) == ("fault", 5)
    assert "identity.pem" in found.text
    assert found.remedy.startswith(f"chown -R --reference={home} {home}")
    _, said = as_nobody(launcher, folder, "doctor", "--home", home)
    assert "Traceback" not in said
    assert "chown -R --reference" in said
