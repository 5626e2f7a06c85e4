"""The work of ``normalize`` and ``export``: the output's name decides what is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from wsi_pgdips.errors import OutputError, SettingsError
from wsi_pgdips.export.ngff04 import export_concentration
from wsi_pgdips.export.place import check_place
from wsi_pgdips.export.rgb_zarr import Version, export_rgb_zarr
from wsi_pgdips.export.source import check_option
from wsi_pgdips.export.tiff import export_tiff
from wsi_pgdips.export.tiles import Form, export_tiles
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.colour_map import ColourMap
from wsi_pgdips.looks.normalized_slide import SELF, LookLike, NormalizedSlide
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import Method
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.slide.reader import file_checksum

Kind = Literal["tiff", "zarr", "tiles"]


def normalize_slide(
    layers: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | Reference | None = None,
    slide: str | os.PathLike[str] | None = None,
    look: LookLike | None = None,
    group_look: LookLike | None = None,
    colour_map: str | os.PathLike[str] | ColourMap | None = None,
    method: Method = "matched",
    keep_amounts: bool = False,
    only: str | None = None,
    tile: int = 512,
    quality: int = 90,
    ngff: Version = "0.5",
    form: Form = "png",
    overwrite: bool = False,
    even_if_failed: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a slide in another look, as a TIFF, an OME-Zarr or a folder of tiles.

    Args:
        layers: output of ``run``; or None with a ``look``.
        output: a name that ends in ``.tiff``, ``.tif`` or ``.ome.zarr``, or, for a folder of tiles,
            a name without an ending.
        reference: see ``NormalizedSlide``. It may be omitted with ``only``, and is ``self`` then.
        slide: the slide's file; without it the layers alone are rendered.
        look, group_look, colour_map: see ``NormalizedSlide``.
        method, keep_amounts, only: see ``NormalizedSlide``.
        tile: side of the tiles of a TIFF or a folder, pixels. quality: JPEG quality, 1 to 100.
        ngff: version of the OME-Zarr, ``0.5`` or ``0.4``.
        form: of the pictures in a folder, ``png`` or ``jpeg``.
        overwrite: replace an earlier export.
        even_if_failed: also write a slide whose verdict is ``fail``.

    Returns:
        ``output``.

    Raises:
        SettingsError: an option or the output's name cannot be used.
        OutputError: the output is taken or not writable, there are no finished layers, or their
            verdict is ``fail``.
        SlideError: the slide cannot be read, or is not the one of these layers.
        StainError: the reference is of other stains, or ``only`` is not a stain of the slide.
    """
    progress, output = progress or QuietProgress(), Path(output)
    kind = kind_of(output)
    if reference is None and only is None and colour_map is None:
        raise SettingsError(
            "no look was given for the slide",
            expected="--reference he, hdab, self or a file; --map; or --only with a stain",
            where="--reference",
        )
    opened = None if layers is None else _open(layers, output)
    if opened is not None and opened.verdict.status == "fail" and not even_if_failed:
        raise OutputError(
            "the verdict on this slide is `fail`",
            found="; ".join(opened.verdict.reasons),
            where=opened.path,
            hint="mend the cause, or give --even-if-failed",
        )
    if slide is not None and output.resolve() == Path(slide).resolve():
        raise OutputError(
            "the output would replace the slide", where=output, hint="give another output"
        )
    if kind != "tiles":
        check_place(output, overwrite=overwrite)
    target = SELF if reference is None else reference
    given: dict[str, Any] = {"look": look, "group_look": group_look, "colour_map": colour_map}
    with NormalizedSlide(
        slide, opened, target, method=method, keep_amounts=keep_amounts, only=only, **given
    ) as reader:
        for line in reader.account:
            progress.note(line)
        if slide is None and opened is not None:
            progress.note(
                f"rendered from the layers alone, at their {opened.grid.mpp:.4g} um/px and without "
                "residual; give --slide for the slide's own detail"
            )
        elif slide is not None and _is_another_file(Path(slide), reader):
            progress.note(
                f"warning: {Path(slide).name} is not the file that "
                + ("the look was measured on" if opened is None else "these layers were made of")
            )
        if kind == "zarr":
            export_rgb_zarr(reader, output, progress=progress, version=ngff, overwrite=overwrite)
            return output
        shared: dict[str, Any] = {"quality": quality, "progress": progress, "overwrite": overwrite}
        if kind == "tiff":
            export_tiff(reader, output, tile=tile, **shared)
        else:
            export_tiles(reader, output, size=tile, form=form, **shared)
    return output


def export_layers(
    layers: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    profile: str = "ngff04",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the concentrations for programs that cannot read the layers.

    Args:
        layers: output of ``run``. output: a name that ends in ``.zarr``.
        profile: ``ngff04``, the only one. overwrite: replace an earlier export.

    Returns:
        ``output``.

    Raises:
        SettingsError: an unknown profile, or a name that does not end in ``.zarr``.
        OutputError: see ``export_concentration``.
    """
    output = Path(output)
    check_option(profile == "ngff04", "--profile", "ngff04", profile)
    check_option(kind_of(output) == "zarr", "--output", "a name in .ome.zarr", output.name)
    export_concentration(_open(layers, output), output, progress=progress, overwrite=overwrite)
    return output


def kind_of(output: Path) -> Kind:
    """Return what the name of an output asks for.

    Raises:
        SettingsError: nothing can be written under this name. That holds for OME-TIFF too, because
            OpenSlide reads only its first level.
    """
    name = output.name.lower()
    if name.endswith(".zarr"):
        return "zarr"
    if name.endswith((".tif", ".tiff")) and not name.endswith((".ome.tif", ".ome.tiff")):
        return "tiff"
    if not output.suffix:
        return "tiles"
    raise SettingsError(
        "the output's name does not say what to write",
        expected=".tiff, .tif or .ome.zarr at its end, or no ending for a folder of tiles",
        found=output.name,
        where="--output",
    )


def _is_another_file(slide: Path, reader: NormalizedSlide) -> bool:
    """Return whether a slide's bytes differ from those that its look was measured on."""
    known = {source.get("checksum") for source in reader.look.sources} - {None}
    return bool(known) and slide.is_file() and file_checksum(slide) not in known


def _open(layers: str | os.PathLike[str], output: Path) -> Layers:
    """Open layers, and refuse an output inside of them."""
    opened = open_layers(Path(layers))
    if opened.path.resolve() in (output.resolve(), *output.resolve().parents):
        raise OutputError(
            "the output lies inside the layers", where=output, hint="give another output"
        )
    return opened
