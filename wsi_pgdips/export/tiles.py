"""A folder of tiles as pictures, with a table of their positions, for training networks."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from PIL import Image

from wsi_pgdips.disk import remove_partials, write_atomic, writing
from wsi_pgdips.errors import OutputError
from wsi_pgdips.export.source import check_option, export_threads, mpp_of, provenance, read_rgb
from wsi_pgdips.geometry import Region
from wsi_pgdips.machine import in_threads
from wsi_pgdips.progress import Progress, QuietProgress
from wsi_pgdips.records import BoolArray

if TYPE_CHECKING:
    from openslide import AbstractSlide

    from wsi_pgdips.layers.reader import Layers

Form = Literal["png", "jpeg"]
_FORMS: tuple[Form, ...] = get_args(Form)
TABLE, SETTINGS = "tiles.csv", "tiles.json"
_COLUMNS = ("file", "x_l0", "y_l0", "level", "tissue")
# files that this module writes, whole, or unfinished by a process that was killed
_OURS = re.compile(r"(\d+_\d+\.(png|jpeg)|tiles\.(csv|json))(\.[0-9a-f]+\.partial)?")
_FIRST_WRITE = re.compile(r"tiles\.json\.[0-9a-f]+\.partial")
_MASK_MPP = 4.0  # micrometres per pixel of the mask that shares are taken from
_Row = tuple[str, int, int, int, float]


def export_tiles(
    reader: AbstractSlide,
    folder: Path,
    *,
    size: int = 512,
    level: int = 0,
    form: Form = "png",
    quality: int = 90,
    tissue: BoolArray | None = None,
    blank: bool = False,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> int:
    """Write the tiles of a level as pictures ``X_Y.png``, named by their top left level-0 pixel.

    Every tile has ``size`` pixels a side; beyond the slide's edge it is white. ``tiles.csv`` is
    written last. An export without it is resumed if its settings and its slide are the same.

    Args:
        reader: anything with OpenSlide's interface, thread-safe.
        folder: made if missing. size: side of a tile in the level's pixels, 16 to 8192.
        form: ``png`` or ``jpeg``. quality: JPEG quality, 1 to 100.
        tissue: (H, W) bool mask of the whole slide at any resolution; by default that of the
            reader's layers, if it has layers. blank: also write tiles without tissue.
        overwrite: replace an earlier export.

    Returns:
        The number of tiles.

    Raises:
        OutputError: the folder holds a finished export, one with other settings, or other files.
        SettingsError: ``size``, ``level``, ``form`` or ``quality`` is out of range.
        SlideError: mpp is not known, or the slide cannot be read.
    """
    progress = progress or QuietProgress()
    check_option(16 <= size <= 8192, "--tile", "16 to 8192", size)
    levels = f"0 to {reader.level_count - 1}"
    check_option(0 <= level < reader.level_count, "the level", levels, level)
    check_option(form in _FORMS, "--form", " or ".join(_FORMS), form)
    check_option(1 <= quality <= 100, "--quality", "1 to 100", quality)
    record = {
        **provenance(reader),
        "mpp": mpp_of(reader) * reader.level_downsamples[level],
        "size": size,
        "level": level,
        "form": form,
        "quality": quality if form == "jpeg" else None,
    }
    _claim(folder, record, overwrite)
    layers: Layers | None = getattr(reader, "layers", None)
    mask = tissue
    if tissue is None and layers is not None:
        mask, _ = layers.tissue_near(_MASK_MPP)
    rows = [row for row in _rows(reader, size, level, form, mask) if blank or row[-1] > 0]

    def write(row: _Row) -> None:
        path = folder / row[0]
        if path.exists():  # whole, since it was moved there when it was finished
            return
        scale = reader.level_downsamples[level]
        region = Region(round(row[2] / scale), round(row[1] / scale), size, size)
        data = _encoded(Image.fromarray(read_rgb(reader, region, level)), form, quality)
        try:
            write_atomic(path, data)
        except OutputError:
            # an export that started meanwhile may have removed the unfinished file
            if not path.exists():
                write_atomic(path, data)

    progress.stage("export", len(rows), "tiles")
    for _ in in_threads(write, rows, export_threads()):
        progress.advance()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([_COLUMNS, *((*row[:-1], f"{row[-1]:.4f}") for row in rows)])
    write_atomic(folder / TABLE, text.getvalue().encode())
    return len(rows)


def _rows(
    reader: AbstractSlide, size: int, level: int, form: Form, mask: BoolArray | None
) -> list[_Row]:
    """List all tiles in raster order; without a mask each has a tissue share of 1."""
    scale, (width, height) = reader.level_downsamples[level], reader.level_dimensions[level]
    rows = []
    for y in range(0, height, size):
        for x in range(0, width, size):
            share = 1.0
            if mask is not None:
                down = _span(y, min(y + size, height), height, mask.shape[0])
                across = _span(x, min(x + size, width), width, mask.shape[1])
                share = float(mask[down, across].mean())
            x_l0, y_l0 = round(x * scale), round(y * scale)
            rows.append((f"{x_l0}_{y_l0}.{form}", x_l0, y_l0, level, share))
    return rows


def _span(start: int, stop: int, length: int, n: int) -> slice:
    """Return which of a mask's ``n`` pixels touch [start, stop) of ``length``; at least one."""
    first = min(start * n // length, n - 1)
    return slice(first, max(-(-stop * n // length), first + 1))


def _encoded(picture: Image.Image, form: Form, quality: int) -> bytes:
    out = io.BytesIO()
    if form == "png":
        picture.save(out, "PNG", compress_level=4)
    else:
        picture.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def _claim(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Make the folder and record the settings in it; empty it of tiles with ``overwrite``.

    Raises:
        OutputError: see :func:`export_tiles`.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = {node.name for node in folder.iterdir()}
    others = sorted(name for name in names if not _OURS.fullmatch(name))
    begun = SETTINGS in names or all(_FIRST_WRITE.fullmatch(name) for name in names)
    if others or not begun:
        raise OutputError(
            "the output folder holds files that are not an export of wsi-pgdips",
            expected="a new or empty folder",
            found=", ".join((others or sorted(names))[:3]),
            where=folder,
            hint="give another output",
        )
    if overwrite:
        with writing(folder):
            # the table first, which says that the tiles are complete; last what says they are ours
            for name in sorted(names, key=lambda name: (name != TABLE, name == SETTINGS)):
                (folder / name).unlink()
    elif TABLE in names:
        raise OutputError(
            "the output exists", where=folder, hint="give --overwrite, or another output"
        )
    elif SETTINGS in names and _recorded(folder) != record:
        raise OutputError(
            "the folder holds tiles of another slide or of other settings",
            where=folder,
            hint="give --overwrite to replace them, or another output",
        )
    remove_partials(folder)
    write_atomic(folder / SETTINGS, json.dumps(record, indent=2).encode() + b"\n")


def _recorded(folder: Path) -> Any:
    """Read the settings that a folder of tiles was made with; None if they are damaged."""
    try:
        return json.loads((folder / SETTINGS).read_bytes())
    except ValueError:
        return None
