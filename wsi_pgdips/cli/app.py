"""The program's commands, before any is added, and its entry point."""

from __future__ import annotations

import io
import sys
import traceback
import warnings
from typing import Annotated

import typer

from wsi_pgdips import __version__
from wsi_pgdips.cli.say import say_error
from wsi_pgdips.errors import WsiPgdipsError

EXIT_BUG, EXIT_INTERRUPTED = 1, 130
# libraries whose warnings speak to their callers, not to who runs a slide
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


def main() -> None:
    """Entry point: run the command, and turn what it raises into a message and an exit code."""
    for name in _NOISY:
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name of a file may be of another encoding
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


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"wsi-pgdips {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None: ...
