"""Pyramids that OpenSlide does not read: OME-TIFF and plain TIFF, PNG, JPEG."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import ByteArray
from wsi_pgdips.slide.colour import on_white
from wsi_pgdips.slide.pyramid import FileFacts, MemoryPyramid, Pyramid, damaged

# the user sees tifffile's complaints as our errors, so logging must not print them as well
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# an image without tiles is decoded whole: 2**30 pixels are 3 GiB
MAX_PIXELS_IN_MEMORY = 2**30
# codecs raise their own classes, all derived from these
DECODE_ERRORS = (
    ValueError,
    RuntimeError,
    OSError,
    TypeError,
    IndexError,
    KeyError,
    SyntaxError,
    struct.error,
    tifffile.TiffFileError,
)
_UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM_PER_TIFF_UNIT = {2: 25400.0, 3: 10000.0}  # inch, centimetre


class ImagePyramid(MemoryPyramid):
    """An image file decoded into memory; only its path is pickled."""

    def __init__(self, path: Path, rgb: ByteArray, facts: FileFacts) -> None:
        super().__init__(rgb, facts)
        self._path = path

    def __reduce__(self) -> tuple[Callable[[Path], Pyramid], tuple[Path]]:
        return (open_tiff if self.facts.vendor.endswith("tiff") else open_picture), (self._path,)


def open_picture(path: Path) -> ImagePyramid:
    """Open a PNG or JPEG in memory. Its resolution, if any, gives the mpp (72 dpi is 353 um/px).

    Raises:
        SlideError: the image is damaged, too large, or not 8-bit colour.
    """
    # the plugins' classes, because a process-wide setting makes Image.open refuse slides' sizes
    with path.open("rb") as file:
        head = file.read(25)
        is_png = head.startswith(b"\x89PNG")
        file.seek(0)
        try:
            picture = PngImageFile(file) if is_png else JpegImageFile(file)
            _check_size(picture.height, picture.width, path)
            if is_png and head[24:] == b"\x10":  # the header's bit depth; Pillow would cut it to 8
                raise _not_brightfield(path, "16 bits per channel")
            if picture.mode not in ("RGB", "RGBA", "P"):
                raise _not_brightfield(path, f"an image of mode {picture.mode}")
            transparent = picture.mode == "RGBA" or "transparency" in picture.info
            dpi = picture.info.get("dpi")
            rgb = np.asarray(picture.convert("RGBA" if transparent else "RGB"))
        except DECODE_ERRORS as error:
            raise _damaged(path, error) from None
    mpp_yx = None
    if dpi is not None and min(dpi) > 0:
        mpp_yx = (25400.0 / float(dpi[1]), 25400.0 / float(dpi[0]))
    facts = FileFacts(
        "png" if is_png else "jpeg", mpp_yx, icc_profile=picture.info.get("icc_profile")
    )
    return ImagePyramid(path, on_white(rgb) if transparent else rgb, facts)


def open_tiff(path: Path) -> TiffPyramid | ImagePyramid:
    """Open the largest series of a TIFF or OME-TIFF, with its pyramid, by tifffile.

    Tiled images are read tile by tile, others are decoded into memory.

    Raises:
        SlideError: the image is damaged, too large, or not 8-bit RGB brightfield.
    """
    try:
        # otherwise tifffile takes any JSON with a "shape" for its own description
        with tifffile.TiffFile(path, is_shaped=False) as tif:
            if not tif.series:
                raise _damaged(path, "no image in the TIFF")
            series = max(tif.series, key=lambda s: math.prod(s.shape))
            _check_brightfield(series, path)
            pages: list[Any] = [level.pages[0] for level in series.levels]
            facts = _facts(pages[0], tif.ome_metadata if tif.is_ome else None)
            _check_complete(pages, path)
            if pages[0].is_tiled:
                return TiffPyramid(path, pages, facts)
            height, width = series.shape[1:] if series.axes == "SYX" else series.shape[:2]
            _check_size(height, width, path)
            pixels = pages[0].asarray()
    except DECODE_ERRORS as error:
        raise _damaged(path, error) from None
    pixels = pixels.transpose(1, 2, 0) if series.axes == "SYX" else pixels
    return ImagePyramid(path, on_white(pixels) if pixels.shape[2] == 4 else pixels, facts)


class TiffPyramid:
    """A tiled TIFF, read tile by tile. Each read opens the file anew, so that nothing is shared."""

    def __init__(self, path: Path, pages: list[Any], facts: FileFacts) -> None:
        self._path, self._pages, self.facts = path, pages, facts
        # tifffile reads these lazily, so they are read now, while the file is open
        self._tiles = [(p.dataoffsets, p.databytecounts, p.jpegtables, p.decode) for p in pages]

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple((page.imagelength, page.imagewidth) for page in self._pages)

    @property
    def level_exact(self) -> tuple[bool, ...]:
        return (True,) * len(self._pages)

    def read_level(self, level: int, y: int, x: int, h: int, w: int) -> ByteArray:
        page = self._pages[level]
        offsets, counts, tables, decode = self._tiles[level]
        th, tw, samples = page.tilelength, page.tilewidth, page.samplesperpixel
        down, across = -(-page.imagelength // th), -(-page.imagewidth // tw)
        planes = samples if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
        out = np.full((h, w, samples), 255, np.uint8)
        try:
            with self._path.open("rb") as file:
                for ty in range(y // th, -(-(y + h) // th)):
                    for tx in range(x // tw, -(-(x + w) // tw)):
                        for plane in range(planes):
                            index = (plane * down + ty) * across + tx
                            if counts[index] == 0:  # a sparse file: this tile was never written
                                continue
                            file.seek(offsets[index])
                            tile = decode(file.read(counts[index]), index, jpegtables=tables)[0]
                            tile = tile.reshape(tile.shape[-3:])  # (1, th, tw, s) -> (th, tw, s)
                            band = slice(None) if planes == 1 else slice(plane, plane + 1)
                            _paste(out[..., band], tile, ty * th - y, tx * tw - x)
        except DECODE_ERRORS as error:
            raise _damaged(self._path, error) from None
        return on_white(out) if samples == 4 else out

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def __reduce__(self) -> tuple[Callable[[Path], Pyramid], tuple[Path]]:
        return open_tiff, (self._path,)


def _paste(out: ByteArray, tile: ByteArray, top: int, left: int) -> None:
    """Put ``tile`` into ``out`` with its corner at (top, left), which may lie outside."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + tile.shape[0], out.shape[0]), min(left + tile.shape[1], out.shape[1])
    out[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]


def _check_brightfield(series: Any, path: Path) -> None:
    page = series.levels[0].pages[0]
    colour = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if (
        not colour
        or series.axes not in ("YXS", "SYX")
        or page.dtype != np.uint8
        or page.samplesperpixel not in (3, 4)
    ):
        photometric = getattr(page.photometric, "name", str(page.photometric)).lower()
        shape = " x ".join(map(str, series.shape))
        raise _not_brightfield(path, f"{shape} ({series.axes}) {page.dtype}, {photometric}")


def _check_complete(pages: list[Any], path: Path) -> None:
    size = path.stat().st_size
    for page in pages:
        end = max(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
        if end > size:
            raise _damaged(path, f"{size} bytes, but the image needs {end}")


def _check_size(height: int, width: int, path: Path) -> None:
    if height * width > MAX_PIXELS_IN_MEMORY:
        raise SlideError(
            "the image has no tiles and is too large to be decoded as a whole",
            expected=f"at most {MAX_PIXELS_IN_MEMORY} pixels",
            found=f"{width} x {height}",
            where=path.name,
            hint="convert it to a tiled pyramidal TIFF",
        )


def _facts(page: Any, ome_xml: str | None) -> FileFacts:
    icc = page.tags.get("InterColorProfile")
    return FileFacts(
        "tiff" if ome_xml is None else "ome-tiff",
        _ome_mpp(ome_xml, page) or _tag_mpp(page),
        icc_profile=None if icc is None else bytes(icc.value),
    )


def _ome_mpp(xml: str | None, page: Any) -> tuple[float, float] | None:
    """The (y, x) um per pixel of the first OME ``Pixels`` with the page's size, or None."""
    try:
        root = ElementTree.fromstring(xml or "")
    except ElementTree.ParseError:
        return None
    for pixels in root.iterfind(".//{*}Pixels"):
        if (pixels.get("SizeY"), pixels.get("SizeX")) != (
            str(page.imagelength),
            str(page.imagewidth),
        ):
            continue
        sizes = []
        for axis in ("Y", "X"):
            unit = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            value = positive(pixels.get(f"PhysicalSize{axis}"))
            if unit is not None and value is not None:
                sizes.append(value * unit)
        if len(sizes) == 2:
            return sizes[0], sizes[1]
    return None


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    """The (y, x) micrometres per pixel of the TIFF resolution tags, or None without a unit."""
    tags = page.tags
    unit = _UM_PER_TIFF_UNIT.get(
        int(tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 2)
    )
    sizes = []
    for name in ("YResolution", "XResolution"):
        numerator, denominator = tags[name].value if name in tags else (0, 1)
        if unit is None or numerator <= 0 or denominator <= 0:
            return None
        sizes.append(unit * denominator / numerator)
    return sizes[0], sizes[1]


def positive(text: str | None) -> float | None:
    """The positive, finite number in ``text``, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _not_brightfield(path: Path, found: str) -> SlideError:
    return SlideError(
        "this is not an RGB brightfield image",
        expected="8 bits per channel; red, green and blue in one plane",
        found=found,
        where=path.name,
        hint="fluorescence, greyscale and 16-bit images cannot be unmixed by optical density",
    )


def _damaged(path: Path, error: Exception | str) -> SlideError:
    return damaged("the image cannot be read", str(error) or type(error).__name__, path.name)
