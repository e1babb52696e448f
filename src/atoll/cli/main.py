"""The root of the ``atoll`` command and the one place where errors become exit codes.

======  ====================================================================
status  meaning
======  ====================================================================
0       done
1       an error of Atoll itself: please report it
2       the job file or the command line is wrong
3       the data or the model do not match what was declared
4       a client, an update or a quorum failed while running
5       a folder or checkpoint cannot be used
6       an optional library is missing
7       another machine does not answer, or not as it should
8       who asks is not known, or may not do this
9       the request contradicts what already is
130     interrupted; the run can be resumed
======  ====================================================================
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import atoll
from atoll.cli import audit, doctor, job, node, remote, run, server
from atoll.cli.output import talk, talk_error
from atoll.core.errors import AtollError, StorageError
from atoll.wire.trouble import remedy_of

__all__ = ["app", "main"]

root = typer.Typer(
    name="atoll",
    help="Federated learning for data that may not be pooled.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
root.command("run")(run.run)
root.command("report")(run.report)
root.command("check")(job.check)
root.command("methods")(job.methods)
root.command("doctor")(doctor.doctor)
root.add_typer(audit.commands, name="audit")
root.add_typer(node.commands, name="node")
root.add_typer(server.server)
root.add_typer(remote.job)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"atoll {atoll.__version__}")
        raise typer.Exit


@root.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        root(arguments, prog_name="atoll")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        talk("interrupted")
        return 130
    except AtollError as error:
        talk_error(error)
        return error.exit_status
    except OSError as error:  # a disk or a right that nobody thought of on the way
        if not (remedy := remedy_of(error)):
            raise
        told = f"{error.filename or 'a file'} cannot be used: {error.strerror}"
        talk_error(StorageError(told, remedy=remedy))
        return StorageError.exit_status
    return 0


def app() -> None:
    """Entry point of the installed command."""
    sys.exit(main())
