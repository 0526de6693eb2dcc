"""``hpdl``: one command with subcommands. Each loads what it needs when it runs, so that help is quick."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from hpdl_mpi.base.errors import BAD_INPUT, FAILURE, HpdlError
from hpdl_mpi.base.failure import ends_other_ranks, exit_code, message
from hpdl_mpi.base.launcher import launcher_rank
from hpdl_mpi.base.output import drop_output, flush_output
from hpdl_mpi.cli import bench, data, runs, schedule, text


class _PastClick(BaseException):
    """Carries an exception past Click, which would end the process in its own way, without the other ranks."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; what Click would handle in its own way is carried past it."""
        try:
            return super().invoke(ctx)
        except (EOFError, OSError, KeyboardInterrupt) as error:
            raise _PastClick(error) from error
        except Exception as error:
            if launcher_rank(os.environ) and hasattr(error, "format_message"):
                sys.exit(BAD_INPUT)  # an error of usage, which rank 0 tells for all
            raise


app = typer.Typer(
    name="hpdl",
    cls=_Commands,
    help="Train deep networks on CPU clusters with MPI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(runs.train)
app.command("eval")(runs.evaluate)
app.command()(runs.predict)
app.command()(text.generate)
app.command()(runs.summary)
app.command()(runs.export)
app.add_typer(data.app, name="data")
app.add_typer(schedule.app, name="schedule")
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Show the version and leave.")) -> None:
    if version:
        from hpdl_mpi import __version__

        typer.echo(f"hpdl_mpi {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of the user's ends it with a message and the error's exit code."""
    try:
        typer.main.get_command(app)()  # calling the app itself would put Typer's own exception hook in place
    except _PastClick as carrier:
        _end(carrier.error)
    except HpdlError as error:
        _end(error)


def _end(error: BaseException) -> NoReturn:
    """Leave with what the user should read of an error."""
    if ends_other_ranks():
        raise error  # the hook knows which of them speaks
    if isinstance(error, BrokenPipeError):
        drop_output()  # the reader has seen enough, as `head` does
        sys.exit(FAILURE)
    if not isinstance(error, (HpdlError, KeyboardInterrupt)):
        raise error
    flush_output()
    print(message(error, None), file=sys.stderr)
    sys.exit(exit_code(error))
