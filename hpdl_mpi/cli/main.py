"""``hpdl``: one command with subcommands. Each loads what it needs when it runs, so that help is quick."""

from __future__ import annotations

import sys

import typer

from hpdl_mpi.base.errors import HpdlError
from hpdl_mpi.cli import bench, data, runs

app = typer.Typer(
    name="hpdl",
    help="Train deep networks on CPU clusters with MPI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(runs.train)
app.command("eval")(runs.evaluate)
app.command()(runs.predict)
app.command()(runs.summary)
app.add_typer(data.app, name="data")
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
    except HpdlError as error:
        if sys.excepthook is not sys.__excepthook__:
            raise  # several ranks: the hook knows which of them speaks, and ends the others
        sys.stdout.flush()
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
