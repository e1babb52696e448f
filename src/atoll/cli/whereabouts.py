"""Where the server is and how it is known: what sites and researchers are shown of it, and tell of a move."""

from __future__ import annotations

from typing import Annotated

import typer

from atoll.cli.output import data_line

__all__ = ["Address", "Certificate", "pin_of", "show_server"]

Address = Annotated[str, typer.Option(help="HOST:PORT where it is now.", show_default="as before")]
Certificate = Annotated[
    str,
    typer.Option(
        help="Fingerprint of its certificate, as its operator read it out.",
        show_default="as before",
    ),
]


def pin_of(certificate: str) -> str:
    """The fingerprint that somebody has typed, in hex; empty for none."""
    from atoll.wire.codes import read_fingerprint

    return read_fingerprint(certificate) if certificate else ""


def show_server(address: str, pin: str, key: str) -> None:
    """Print where the server is, and its fingerprints as they are read out.

    Args:
        address: ``host:port``.
        pin: SHA-256 of its certificate, in hex.
        key: its public key, in hex.
    """
    from atoll.wire.identity import fingerprint_of, spoken

    data_line(f"address      {address}\ncertificate  {spoken(pin)}")
    data_line(f"key          {spoken(fingerprint_of(bytes.fromhex(key)))}")
