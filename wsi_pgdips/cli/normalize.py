"""The commands ``normalize`` and ``export``: outputs for other programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_pgdips.cli.options import LayersPath, Overwrite, Quiet
from wsi_pgdips.cli.say import EXIT_INTERRUPTED, print_rows, progress_of, say_error

if TYPE_CHECKING:
    from wsi_pgdips.progress import Progress


def normalize(
    layers: Annotated[
        Path,
        typer.Argument(
            help="Output of [b]run[/b]; or, with --look, the slide itself.", metavar="LAYERS|SLIDE"
        ),
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
            help="The look to give to the slide: see [b]wsi-pgdips reference[/b]; [b]self[/b] is "
            "its own. Required without --map or --only.",
            metavar="NAME|FILE|self",
        ),
    ] = None,
    slide: Annotated[
        Path | None,
        typer.Option(
            help="The slide of the layers, for its own resolution and detail. "
            "[dim]default: the layers alone, without residual[/dim]",
            metavar="SLIDE",
        ),
    ] = None,
    look: Annotated[
        Path | None,
        typer.Option(help="The slide's own look, from [b]look[/b].", metavar="LOOK.json"),
    ] = None,
    group_look: Annotated[
        Path | None,
        typer.Option(
            "--group-look",
            help="The look of its scanner or laboratory, from [b]reference fit[/b].",
            metavar="GROUP.json",
        ),
    ] = None,
    colour_map: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="Colours between two scanners, from [b]reference pair[/b], in place of looks.",
            metavar="MAP.json",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="matched: what the looks support. augmented: S, M and B, as published.",
            metavar="matched|augmented",
        ),
    ] = "matched",
    keep_amounts: Annotated[
        bool, typer.Option("--keep-amounts", help="Change colours, not how much stain there is.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="Show one stain by itself: in the reference's colour and glass, or without "
            "--reference in its own colour on white.",
            metavar="STAIN",
        ),
    ] = None,
    tile: Annotated[int, typer.Option(help="Side of a tile of a TIFF or a folder.")] = 512,
    quality: Annotated[int, typer.Option(help="JPEG quality, 1 to 100.")] = 90,
    ngff: Annotated[str, typer.Option(help="Version of the OME-Zarr.", metavar="0.5|0.4")] = "0.5",
    form: Annotated[str, typer.Option(help="Format of tiles.", metavar="png|jpeg")] = "png",
    overwrite: Overwrite = False,
    even_if_failed: Annotated[
        bool, typer.Option("--even-if-failed", help="Also if the verdict on the slide is fail.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a slide in the look of a reference, or one of its stains, for other programs."""
    options: dict[str, Any] = {"method": method, "ngff": ngff, "form": form}
    without_layers = look is not None and not (layers / "zarr.json").is_file()
    with _exporting(output, quiet) as progress:
        from wsi_pgdips.export.normalize import normalize_slide

        normalize_slide(
            None if without_layers else layers,
            output,
            reference=reference,
            slide=layers if without_layers and slide is None else slide,
            look=look,
            group_look=group_look,
            colour_map=colour_map,
            keep_amounts=keep_amounts,
            only=only,
            tile=tile,
            quality=quality,
            overwrite=overwrite,
            even_if_failed=even_if_failed,
            progress=progress,
            **options,
        )


def export(
    layers: LayersPath,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.ome.zarr")],
    profile: Annotated[
        str,
        typer.Option(help="OME-Zarr 0.4, for QuPath, OMERO and Bio-Formats.", metavar="ngff04"),
    ] = "ngff04",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write the concentrations for programs that cannot read the layers."""
    with _exporting(output, quiet) as progress:
        from wsi_pgdips.export.normalize import export_layers

        export_layers(layers, output, profile=profile, overwrite=overwrite, progress=progress)


@contextlib.contextmanager
def _exporting(output: Path, quiet: bool) -> Iterator[Progress]:
    """Show the progress of an export, and say at its end where it was written."""
    progress = progress_of(quiet)
    try:
        yield progress
    except KeyboardInterrupt:
        say_error("interrupted; repeat the command to resume a folder of tiles", kind="stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        progress.close()
    if not quiet:
        print_rows([("written", str(output))])
