"""Options that several commands share, as types of their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LayersPath = Annotated[
    Path, typer.Argument(help="Output of [b]run[/b].", metavar="LAYERS.ome.zarr")
]
MppSource = Annotated[
    float | None, typer.Option(help="Micrometres per pixel of files that do not say it.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Settings of this page as a flat TOML; the command line wins.", metavar="FILE.toml"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
