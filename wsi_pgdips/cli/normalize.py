"""``normalize`` and ``export``: what other programs read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from wsi_pgdips.cli.say import EXIT_INTERRUPTED, print_rows, progress_of, say_error

if TYPE_CHECKING:
    from wsi_pgdips.progress import Progress


def normalize(
    layers: Annotated[
        Path, typer.Argument(help="Layers of [b]run[/b].", metavar="LAYERS.ome.zarr")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A pyramidal TIFF, an RGB OME-Zarr, or a folder of tiles.",
            metavar="OUT.tiff|OUT.ome.zarr|DIR",
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="The look: see [b]wsi-pgdips reference[/b]; [b]self[/b] is the slide's own. "
            "Needed, except with --only.",
            metavar="NAME|FILE|self",
        ),
    ] = None,
    slide: Annotated[
        Path | None,
        typer.Option(
            help="The slide the layers are of, for its own resolution and detail. "
            "[dim]default: the layers alone, without residual[/dim]",
            metavar="SLIDE",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Typical colours; as published, S, M and B, or S alone; or S, B, percentiles.",
            metavar="typical|augmented|percentile|stains",
        ),
    ] = "typical",
    keep_amounts: Annotated[
        bool, typer.Option("--keep-amounts", help="Change colours, not how much stain there is.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="Show one stain by itself: in the reference's colour and glass, or without "
            "--reference in its own on white.",
            metavar="STAIN",
        ),
    ] = None,
    tile: Annotated[int, typer.Option(help="Side of a tile, of TIFF and folder.")] = 512,
    quality: Annotated[int, typer.Option(help="Of JPEG.")] = 90,
    ngff: Annotated[str, typer.Option(help="Version of the OME-Zarr.", metavar="0.5|0.4")] = "0.5",
    form: Annotated[
        str, typer.Option(help="Of the pictures in a folder.", metavar="png|jpeg")
    ] = "png",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Write a slide in the look of a reference, or one of its stains, for other programs."""

    def work(progress: Progress) -> Path:
        from wsi_pgdips.export.normalize import normalize_slide

        return normalize_slide(
            layers,
            output,
            reference=reference,
            slide=slide,
            method=cast(Any, method),  # checked by who uses them
            keep_amounts=keep_amounts,
            only=only,
            tile=tile,
            quality=quality,
            ngff=cast(Any, ngff),
            form=cast(Any, form),
            overwrite=overwrite,
            progress=progress,
        )

    _carry_out(work, quiet)


def export(
    layers: Annotated[
        Path, typer.Argument(help="Layers of [b]run[/b].", metavar="LAYERS.ome.zarr")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.ome.zarr")],
    profile: Annotated[
        str,
        typer.Option(help="OME-Zarr 0.4, for QuPath, OMERO and Bio-Formats.", metavar="ngff04"),
    ] = "ngff04",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only say errors.")] = False,
) -> None:
    """Write the concentrations for programs that do not read the layers as they are."""

    def work(progress: Progress) -> Path:
        from wsi_pgdips.export.normalize import export_layers

        return export_layers(
            layers, output, profile=profile, overwrite=overwrite, progress=progress
        )

    _carry_out(work, quiet)


def _carry_out(work: Callable[[Progress], Path], quiet: bool) -> None:
    progress = progress_of(quiet)
    try:
        written = work(progress)
    except KeyboardInterrupt:
        say_error("interrupted; a folder of tiles can be gone on with", kind="stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        progress.close()
    if not quiet:
        print_rows([("written", str(written))])
