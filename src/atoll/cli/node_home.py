"""What the commands of a site have in common: the folder of its node, and how they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.node.home import Home
    from atoll.wire.identity import Identity

__all__ = ["Folder", "Json", "home_at", "key_of"]

Folder = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="ATOLL_NODE_HOME",
        help="Folder of the node; ~/.atoll/node.",
        readable=False,  # what cannot be read is told with a remedy
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def home_at(given: Path | None) -> Home:
    """The node's home in the folder that was given, or where it is by default."""
    from atoll.node.home import Home, default_home

    # Workers have a working folder of their own: relative paths would lead elsewhere there.
    return Home((given or default_home()).expanduser().absolute())


def key_of(home: Home) -> Identity:
    """The key of the node in ``home``.

    Raises:
        NotFound: no node ever joined a federation from there.
        AtollError: it cannot be read.
    """
    from atoll.wire.identity import Identity

    if not home.identity.exists():
        home.joined()  # a folder that is none of a node's is not to be restored from a backup
    return Identity.load(home.identity)
