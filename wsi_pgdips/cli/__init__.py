"""The program ``wsi-pgdips``: its commands parse their options, call the package, and print.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import io
import sys
import traceback
import warnings
from typing import Annotated

import typer

from wsi_pgdips import __version__
from wsi_pgdips.cli import cohort, normalize, phantom, reference, run, slurm, stains
from wsi_pgdips.cli.say import say_error
from wsi_pgdips.errors import WsiPgdipsError

__all__ = ["app", "main"]

EXIT_BUG = 1
# libraries whose warnings are meant for programmers, not for users of this program
_NOISY = ("dask", "distributed", "numcodecs", "numba", "tiatoolbox", "torch", "zarr")

app = typer.Typer(
    name="wsi-pgdips",
    help="Stain concentrations of whole slides, without training and without seams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# in the order of the help
app.command()(run.run)
app.command()(run.info)
app.command()(run.estimate)
app.command()(normalize.normalize)
app.command()(normalize.export)
app.command()(reference.look)
app.command()(reference.compare)
app.command()(phantom.phantom)
app.command()(phantom.demo)
app.add_typer(cohort.cohort_app, name="cohort")
app.add_typer(slurm.slurm_app, name="slurm")
app.add_typer(stains.stains_app, name="stains", invoke_without_command=True)
app.add_typer(reference.reference_app, name="reference")


def main() -> None:
    """Run the command; an error becomes a message and an exit code."""
    atexit.register(gc.freeze)  # when the program ends, nothing that is left has to be collected
    for name in _NOISY:
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may have another encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="wsi-pgdips")
    except WsiPgdipsError as error:
        say_error(str(error))
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        say_error(
            "this is a bug of wsi-pgdips, not yours\n"
            f"  what to do: please report the lines above, the command, and version {__version__}; "
            "leave out what names a patient"
        )
        sys.exit(EXIT_BUG)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"wsi-pgdips {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None: ...
