"""``normalize`` and ``export``: which export an output's name asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from wsi_pgdips.errors import OutputError, SettingsError
from wsi_pgdips.export.place import check_place
from wsi_pgdips.export.rgb_zarr import Version
from wsi_pgdips.export.slides import export_concentration, export_rgb_zarr, export_tiff
from wsi_pgdips.export.tiles import Form, export_tiles
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.looks.normalized_slide import SELF, NormalizedSlide
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import Method
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.slide.reader import file_checksum

PROFILES = ("ngff04",)
Kind = Literal["tiff", "zarr", "tiles"]


def normalize_slide(
    layers: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | Reference | None = None,
    slide: str | os.PathLike[str] | None = None,
    method: Method = "typical",
    keep_amounts: bool = False,
    only: str | None = None,
    tile: int = 512,
    quality: int = 90,
    ngff: Version = "0.5",
    form: Form = "png",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a slide in another look: a TIFF, an OME-Zarr, or a folder of tiles, by its name.

    Args:
        layers: what ``run`` has written. output: ``.tiff``, ``.tif``, ``.ome.zarr``, or a folder.
        reference: see ``NormalizedSlide``; may be left out with ``only``, and is ``self`` then.
        slide: its file; without it the layers alone are rendered.

    Raises:
        SettingsError, OutputError, SlideError, StainError: as the parts that are put together.
    """
    progress, output = progress or QuietProgress(), Path(output)
    kind = kind_of(output)
    if reference is None and only is None:
        raise SettingsError(
            "nothing says what the slide is to look like",
            expected="--reference he, hdab, self or a file; or --only a stain",
            where="--reference",
        )
    opened = _open(layers, output)
    if slide is not None and output.resolve() == Path(slide).resolve():
        raise OutputError("the output is the slide itself", where=output, hint="give another one")
    if kind != "tiles":
        check_place(output, overwrite=overwrite)
    look = SELF if reference is None else reference
    with NormalizedSlide(
        slide, opened, look, method=method, keep_amounts=keep_amounts, only=only
    ) as reader:
        if slide is not None and _another(Path(slide), opened):
            progress.note(
                f"warning: {Path(slide).name} is not the file that these layers are of, though it "
                "has the same size"
            )
        if slide is None:
            progress.note(
                f"rendered from the layers alone, at their {opened.grid.mpp:.4g} um/px and without "
                "residual; give --slide for the slide's own detail"
            )
        if kind == "tiff":
            export_tiff(
                reader, output, progress=progress, tile=tile, quality=quality, overwrite=overwrite
            )
        elif kind == "zarr":
            export_rgb_zarr(reader, output, progress=progress, version=ngff, overwrite=overwrite)
        else:
            export_tiles(
                reader,
                output,
                size=tile,
                form=form,
                quality=quality,
                progress=progress,
                overwrite=overwrite,
            )
    return output


def export_layers(
    layers: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    profile: str = "ngff04",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the concentrations for programs that do not read layers as they are.

    Raises:
        SettingsError: unknown profile, or a name that is not of OME-Zarr. OutputError: see
            ``export_concentration``.
    """
    output = Path(output)
    if profile not in PROFILES:
        raise SettingsError(
            "unknown profile", expected=", ".join(PROFILES), found=profile, where="--profile"
        )
    if kind_of(output) != "zarr":
        raise SettingsError(
            "concentrations are exported as OME-Zarr",
            expected="a name that ends in .ome.zarr",
            found=output.name,
            where="--output",
        )
    opened = _open(layers, output)
    export_concentration(opened, output, progress=progress, overwrite=overwrite)
    return output


def kind_of(output: Path) -> Kind:
    """What a name asks for.

    Raises:
        SettingsError: nothing that can be written, or an OME-TIFF, of whose levels OpenSlide reads
            the first only.
    """
    name = output.name.lower()
    if name.endswith(".zarr"):
        return "zarr"
    if name.endswith((".tif", ".tiff")) and not name.endswith((".ome.tif", ".ome.tiff")):
        return "tiff"
    if not output.suffix:
        return "tiles"
    raise SettingsError(
        "nothing is written under such a name",
        expected=".tiff or .tif, .ome.zarr, or a folder of tiles, whose name has no ending",
        found=output.name,
        where="--output",
    )


def _another(slide: Path, layers: Layers) -> bool:
    """Whether a slide's bytes are others than those that the layers are of."""
    known = (layers.provenance.get("slide") or {}).get("checksum")
    return known is not None and slide.is_file() and file_checksum(slide) != known


def _open(layers: str | os.PathLike[str], output: Path) -> Layers:
    opened = open_layers(Path(layers))
    if opened.path.resolve() in (output.resolve(), *output.resolve().parents):
        raise OutputError(
            "the output is in the layers themselves", where=output, hint="give another one"
        )
    return opened
