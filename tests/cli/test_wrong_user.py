"""Commands of another user than the one whom a folder belongs to: refused in words, with a way out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.node.home import Federation, Home
from atoll.server import admin
from atoll.wire.findings import owners
from atoll.wire.identity import Identity

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
_NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="atoll-user-", dir="/tmp"))
    made.chmod(0o755)
    home = Home(made / "node")
    home.join(Federation("lagoon-1", "east", "127.0.0.1:9", "ab" * 32, "cd" * 32, 1.5))
    Identity.create(home.identity)
    admin.found(made / "server", admin.Founding("x", "127.0.0.1:9"), time.time())
    yield made
    shutil.rmtree(made)


def as_nobody(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command of another user, in a process that has loaded what it needs while it could be read."""
    spare = folder / "spare"
    if not spare.exists():
        for name in ("node", "server"):
            shutil.copytree(folder / name, spare / name)
    code = """
        import contextlib, io, os, sys
        import atoll.server.web.serving, typer.rich_utils
        from atoll.cli.main import main
        spare = sys.argv[1]
        node, server = ["--home", spare + "/node"], ["--home", spare + "/server"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for words in (
                ["node", "status", *node], ["node", "peers", *node], ["node", "data", "list", *node],
                ["node", "server", "--address", "127.0.0.1:9", *node], ["node", "start", "--home", "/dev/null"],
                ["server", "status", *server], ["server", "invite", "x", *server],
                ["server", "change", spare + "/server", "--renew"], ["server", "init", spare + "/server"],
                ["doctor", *node], ["doctor", "--server", spare + "/server"],
            ):
                main(words)
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        sys.exit(main(sys.argv[2:]))
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(spare), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HOME": "/nonexistent"},
    )


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
def test_another_user_is_told_whose_folder_it_is(folder: Path, words: tuple[str, ...]) -> None:
    given = [folder / word[1:] if word.startswith("@") else word for word in words]
    told = as_nobody(folder, *given)
    said = told.stdout + told.stderr
    assert "Traceback" not in said, said
    assert "run this as the user" in said or "check its owner" in said, said
    assert told.returncode == 5, said


def test_files_that_root_has_left_are_found_with_the_command_that_mends_them(folder: Path) -> None:
    home = folder / "node"
    for path in (home, *home.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    assert owners("files", home).state == "ok"
    os.chown(home / "identity.pem", 0, 0)
    found = owners("files", home)
    assert (found.state, found.status) == ("fault", 5)
    assert "identity.pem" in found.text
    assert found.remedy.startswith(f"chown -R --reference={home} {home}")
    told = as_nobody(folder, "doctor", "--home", home)
    assert "Traceback" not in told.stdout + told.stderr
    assert "chown -R --reference" in told.stdout
