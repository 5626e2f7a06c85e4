"""Open slides: OpenSlide for whole-slide formats, ``image`` for the rest.

The only place where (x, y) exists, because OpenSlide speaks it. Nothing personal leaves it:
of a file's properties only the vendor, numbers and a content hash are kept (``_facts``), never
user, date, case, barcode, comment, path, label or macro image.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import openslide
from openslide.lowlevel import OpenSlideUnsupportedFormatError

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import ByteArray, SlideMeta
from wsi_pgdips.slide.colour import on_white
from wsi_pgdips.slide.image import open_picture, open_tiff, positive
from wsi_pgdips.slide.pyramid import FileFacts, Pyramid
from wsi_pgdips.slide.source import ArraySource, PyramidSource, make_grid, says_mpp

if TYPE_CHECKING:
    from wsi_pgdips.slide.source import PyramidSource

__all__ = ["ArraySource", "open_source", "read_meta"]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
_HASHED_WHOLE = 64 * 2**20
_PIECE, _N_PIECES = 2**20, 64
_PROBE = 8
_MPP_Y, _MPP_X = openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X


class OpenSlidePyramid:
    """A slide that OpenSlide reads.

    A failed read leaves an OpenSlide handle unusable for good, so handles are replaced: a read that
    fails is tried once more on a handle of its own, as another thread's bad tile may have been the
    cause, and the broken one is dropped (never closed: other threads may still be inside it).

    Raises:
        openslide.OpenSlideError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        handle = openslide.OpenSlide(path)
        self._handle: Any = handle
        self._pid = os.getpid()
        self.level_shapes = tuple((h, w) for w, h in handle.level_dimensions)
        self.level_downsamples = tuple(float(d) for d in handle.level_downsamples)
        # positions are given in level-0 pixels; elsewhere OpenSlide would interpolate
        self.level_exact = tuple(d == round(d) for d in self.level_downsamples)
        self.facts = _facts(handle)

    def read_level(self, level: int, y: int, x: int, h: int, w: int) -> ByteArray:
        scale = self.level_downsamples[level]
        return on_white(self.read_rgba((round(x * scale), round(y * scale)), level, (w, h)))

    def read_rgba(self, where_l0: tuple[int, int], level: int, size: tuple[int, int]) -> ByteArray:
        """(h, w, 4) uint8 of a region as OpenSlide gives it: (x, y), (width, height).

        Raises:
            SlideError: the pixels cannot be read; later reads of others still work.
        """
        shared = self._shared()
        try:
            return np.array(shared.read_region(where_l0, level, size))
        except openslide.OpenSlideError:
            self._drop(shared)
        try:
            own = openslide.OpenSlide(self._path)
            rgba = np.array(own.read_region(where_l0, level, size))
        except (openslide.OpenSlideError, OSError) as error:
            (x, y), (w, h) = where_l0, size
            raise SlideError(
                "pixels of the slide cannot be read; the file is damaged or truncated",
                found=error,
                where=f"{self._path.name}, level {level}, {w}x{h} pixels, level-0 x {x}, y {y}",
                hint="copy it again from its source and compare checksums",
            ) from None
        with self._lock:
            if self._handle is None:
                self._handle = own
        return rgba

    def all_properties(self) -> dict[str, str]:
        """All that the file says, also what is personal: for who holds the slide anyway."""
        return dict(self._shared().properties)

    def _shared(self) -> Any:
        with self._lock:
            # a handle taken through a fork shares its file position with the parent
            if self._handle is None or self._pid != os.getpid():
                try:
                    self._handle = openslide.OpenSlide(self._path)
                except (openslide.OpenSlideError, OSError) as error:
                    raise SlideError(
                        "the slide cannot be opened again", found=error, where=self._path.name
                    ) from None
                self._pid = os.getpid()
            return self._handle

    def _drop(self, handle: Any) -> None:
        with self._lock:
            if self._handle is handle:
                self._handle = None

    def close(self) -> None:
        """Let go of the file; it is closed when the last read in flight has ended."""
        with self._lock:
            self._handle = None

    def __reduce__(self) -> tuple[type[OpenSlidePyramid], tuple[Path]]:
        return OpenSlidePyramid, (self._path,)


def open_source(
    path: str | os.PathLike[str],
    *,
    mpp: float | Literal["native"] = 0.5,
    mpp_source: float | None = None,
    tile: int = 512,
    block: int = 4096,
    icc: bool = False,
) -> PyramidSource:
    """A slide or image on the output grid for a wanted mpp.

    Args:
        path: whole-slide file, OME-TIFF, plain TIFF, PNG or JPEG.
        mpp: wanted micrometres per output pixel, snapped to an integer downsample within 6 %;
            "native" for the slide's own pixels.
        mpp_source: micrometres per level-0 pixel, in place of the file's.
        tile, block: sides of tiles and blocks in output pixels.
        icc: convert to sRGB by the embedded profile; no error where there is none.

    Raises:
        SlideError: missing, unreadable, not RGB brightfield, or without a usable mpp.
        SettingsError: an option outside its limits.
    """
    file = Path(path).absolute()
    pyramid = open_pyramid(file)
    grid = make_grid(
        pyramid.level_shapes[0],
        pyramid.facts,
        mpp=mpp,
        mpp_source=mpp_source,
        tile=tile,
        block=block,
        where=file.name,
    )
    return PyramidSource(pyramid, _meta(file, pyramid), grid, icc=icc)


def mpp_where_silent(path: str | os.PathLike[str], told: float | None) -> float | None:
    """``told`` for a file without a usable mpp of its own; None for others.

    Raises:
        SlideError: missing, unreadable, or not RGB brightfield.
    """
    if told is None or says_mpp(open_pyramid(Path(path).absolute()).facts):
        return None
    return told


def read_meta(path: str | os.PathLike[str]) -> SlideMeta:
    """What is known of a slide; works without an mpp (``mpp_l0`` is then None).

    ``mpp_l0`` is the mean of both directions, believable or not; ``bounds_l0`` is
    (y, x, height, width) of the scanned part; ``checksum`` see :func:`file_checksum`.

    Raises:
        SlideError: missing, unreadable, or not RGB brightfield.
    """
    file = Path(path).absolute()
    return _meta(file, open_pyramid(file))


def file_checksum(path: Path) -> str:
    """Hex SHA-256 of the size in bytes (decimal, then a newline) and content of a file.

    From 64 MiB on, of 64 pieces of 1 MiB evenly spaced from the first to the last byte in place of
    the content. Of slides in several files the one that is opened is hashed.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        if size < _HASHED_WHOLE:
            while piece := file.read(_PIECE):
                digest.update(piece)
        else:
            for i in range(_N_PIECES):
                file.seek(i * (size - _PIECE) // (_N_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


def open_pyramid(path: Path) -> Pyramid:
    """Open a file, and read a few pixels to see that it can be done.

    Raises:
        SlideError: missing, unreadable, or not RGB brightfield.
    """
    try:
        if path.is_dir():
            raise SlideError(
                "a folder, not a slide",
                where=path,
                hint="of a slide in many files, name the main one (.mrxs, one .dcm, ...)",
            )
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise SlideError("no such file", where=path) from None
    except OSError as error:
        raise SlideError("the file cannot be opened", found=error.strerror, where=path) from None
    if magic.startswith(_PICTURE_MAGIC):
        return open_picture(path)
    pyramid = _open_slide(path, is_tiff=magic in _TIFF_MAGIC)
    _probe(pyramid, path)
    return pyramid


def _open_slide(path: Path, *, is_tiff: bool) -> Pyramid:
    try:
        slide = OpenSlidePyramid(path)
    except OpenSlideUnsupportedFormatError:
        if is_tiff:
            return open_tiff(path)
        raise SlideError(
            "not a slide or image of a known format",
            expected="a format of OpenSlide, OME-TIFF, TIFF, PNG or JPEG",
            where=path,
        ) from None
    except openslide.OpenSlideError as error:
        if is_tiff:
            # a compression OpenSlide lacks, or damage that can be named more clearly
            return open_tiff(path)
        raise SlideError(
            "the slide cannot be opened; the file is damaged or truncated",
            found=error,
            where=path,
            hint="copy it again from its source and compare checksums",
        ) from None
    if slide.facts.vendor != "generic-tiff":
        return slide
    # OpenSlide turns greyscale and 16-bit TIFFs into RGB silently, and misses SubIFD pyramids
    tiff = open_tiff(path)
    if tiff.facts.vendor == "ome-tiff" or len(tiff.level_shapes) > len(slide.level_shapes):
        return tiff
    return slide


def _probe(pyramid: Pyramid, path: Path) -> None:
    """Refuse a slide of which most probes fail; single bad tiles are left to the reads."""
    height, width = pyramid.level_shapes[0]
    h, w = min(_PROBE, height), min(_PROBE, width)
    places = [(i * (height - h) // 4, j * (width - w) // 4) for i in range(5) for j in range(5)]
    places = places[:: 2 if len(places) > 1 else 1]  # 13 places in quincunx
    errors = []
    for y, x in places:
        try:
            pyramid.read_level(0, y, x, h, w)
        except SlideError as error:
            errors.append(error)
    if 2 * len(errors) > len(places):
        raise SlideError(
            "most of the slide cannot be read; the file is damaged or truncated",
            found=errors[0].found,
            where=path,
            hint="copy it again from its source and compare checksums",
        )


def _meta(path: Path, pyramid: Pyramid) -> SlideMeta:
    facts = pyramid.facts
    name = path.name.removesuffix(path.suffix).removesuffix(".ome")
    return SlideMeta(
        # what is not UTF-8 in it would make JSON that nobody else can read
        name=name.encode(errors="backslashreplace").decode(),
        vendor=facts.vendor,
        shape_l0=pyramid.level_shapes[0],
        mpp_l0=facts.mpp,
        objective_power=facts.objective_power,
        level_shapes=pyramid.level_shapes,
        bounds_l0=facts.bounds_l0,
        has_icc=facts.icc_profile is not None,
        checksum=file_checksum(path),
        properties=dict(facts.properties),
    )


def _facts(handle: Any) -> FileFacts:
    """What may be kept of the properties: the vendor, numbers, and OpenSlide's own hash."""
    found = handle.properties
    vendor = str(found.get(openslide.PROPERTY_NAME_VENDOR, "unknown"))
    kept = {openslide.PROPERTY_NAME_VENDOR: vendor}
    for name in (_MPP_X, _MPP_Y, openslide.PROPERTY_NAME_OBJECTIVE_POWER):
        if positive(found.get(name)) is not None:
            kept[name] = found[name]
    if openslide.PROPERTY_NAME_QUICKHASH1 in found:
        kept[openslide.PROPERTY_NAME_QUICKHASH1] = found[openslide.PROPERTY_NAME_QUICKHASH1]
    mpp_y, mpp_x = positive(kept.get(_MPP_Y)), positive(kept.get(_MPP_X))
    profile = handle.color_profile
    return FileFacts(
        vendor,
        None if mpp_y is None or mpp_x is None else (mpp_y, mpp_x),
        positive(kept.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        _bounds(found),
        None if profile is None else profile.tobytes(),
        kept,
    )


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """(y, x, height, width) of the scanned part in level-0 pixels, where the scanner says so."""
    values = [
        properties.get(name)
        for name in (
            openslide.PROPERTY_NAME_BOUNDS_Y,
            openslide.PROPERTY_NAME_BOUNDS_X,
            openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
            openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        )
    ]
    numbers = [int(v) for v in values if v is not None and v.isdecimal()]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def open_slide(slide: Path, settings: ScientificSettings) -> PyramidSource:
    """Open a slide on the output grid of its settings.

    Raises:
        SlideError, SettingsError: as ``slide.reader.open_source``.
    """
    from wsi_pgdips.slide.reader import open_source

    s = settings
    return open_source(
        slide, mpp=s.mpp, mpp_source=s.mpp_source, tile=s.tile, block=s.block, icc=s.icc
    )
