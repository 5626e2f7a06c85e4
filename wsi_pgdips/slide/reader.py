"""Opening of slides: OpenSlide reads whole-slide formats, ``image`` reads the rest.

(x, y) pairs appear here and in ``native`` only, because OpenSlide uses them. Nothing personal
leaves this module: of a file's properties it keeps only the vendor, numbers and a content hash
(``_facts``), never user, date, case, barcode, comment, path, label or macro image.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openslide
from openslide.lowlevel import OpenSlideUnsupportedFormatError

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import ByteArray, SlideMeta
from wsi_pgdips.slide.colour import on_white
from wsi_pgdips.slide.image import open_picture, open_tiff, positive
from wsi_pgdips.slide.pyramid import FileFacts, Pyramid, damaged
from wsi_pgdips.slide.source import PyramidSource, has_usable_mpp, make_grid

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
_HASHED_WHOLE = 64 * 2**20
_PIECE, _N_PIECES = 2**20, 64
_PROBE = 8
_MPP_Y, _MPP_X = openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X


class OpenSlidePyramid:
    """A slide that OpenSlide reads.

    A failed read makes an OpenSlide handle unusable, and another thread's bad tile may have caused
    it. So a failed read is tried once more on a new handle. The broken handle is dropped but not
    closed, because other threads may still use it.

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
        # OpenSlide takes level-0 positions, and interpolates if they are not whole level pixels
        self.level_exact = tuple(d == round(d) for d in self.level_downsamples)
        self.facts = _facts(handle)

    def read_level(self, level: int, y: int, x: int, h: int, w: int) -> ByteArray:
        scale = self.level_downsamples[level]
        return on_white(self.read_rgba((round(x * scale), round(y * scale)), level, (w, h)))

    def read_rgba(self, where_l0: tuple[int, int], level: int, size: tuple[int, int]) -> ByteArray:
        """Read (h, w, 4) uint8 of a region at (x, y), of size (width, height), as in OpenSlide.

        Raises:
            SlideError: the pixels cannot be read; later reads of other pixels still work.
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
            raise damaged(
                "pixels of the slide cannot be read",
                error,
                f"{self._path.name}, level {level}, {w}x{h} pixels, level-0 x {x}, y {y}",
            ) from None
        with self._lock:
            if self._handle is None:
                self._handle = own
        return rgba

    def all_properties(self) -> dict[str, str]:
        """All properties of the file, personal ones too; for callers who hold the slide anyway."""
        return dict(self._shared().properties)

    def _shared(self) -> Any:
        with self._lock:
            # after a fork, a handle shares its file position with the parent process
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
        """Release the file; it is closed when the last running read has ended."""
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
    """Open a slide or image on the output grid for a wanted mpp.

    Args:
        path: whole-slide file, OME-TIFF, plain TIFF, PNG or JPEG.
        mpp: wanted micrometres per output pixel, snapped to an integer downsample within 6 %;
            "native" for the slide's own pixels.
        mpp_source: micrometres per level-0 pixel, overrides the file's.
        tile, block: sides of tiles and blocks in output pixels.
        icc: convert to sRGB by the embedded profile, if there is one.

    Raises:
        SlideError: the file is missing, unreadable, not RGB brightfield, or has no usable mpp.
        SettingsError: an option is outside its limits.
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


def open_slide(slide: Path, settings: ScientificSettings) -> PyramidSource:
    """Open a slide on the output grid that the settings of a run ask for.

    Raises:
        SlideError, SettingsError: see :func:`open_source`.
    """
    s = settings
    return open_source(
        slide, mpp=s.mpp, mpp_source=s.mpp_source, tile=s.tile, block=s.block, icc=s.icc
    )


def fallback_mpp(path: str | os.PathLike[str], mpp: float | None) -> float | None:
    """Return ``mpp`` for a file without a usable mpp of its own, and None for other files.

    Raises:
        SlideError: the file is missing, unreadable, or not RGB brightfield.
    """
    if mpp is None or has_usable_mpp(open_pyramid(Path(path).absolute()).facts):
        return None
    return mpp


def read_meta(path: str | os.PathLike[str]) -> SlideMeta:
    """Read the metadata of a slide.

    ``mpp_l0`` is the mean of both directions, plausible or not, and None if the file states none;
    ``bounds_l0`` is (y, x, height, width) of the scanned part; ``checksum`` is that of
    :func:`file_checksum`.

    Raises:
        SlideError: the file is missing, unreadable, or not RGB brightfield.
    """
    file = Path(path).absolute()
    return _meta(file, open_pyramid(file))


def file_checksum(path: Path) -> str:
    """The hex SHA-256 of a file's size in bytes (decimal, then a newline) and its content.

    From 64 MiB on, 64 pieces of 1 MiB stand for the content, evenly spaced from the first to the
    last byte. For a slide in several files, only the file that is opened is hashed.
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
    """Open a file, and read a few pixels to check that this works.

    Raises:
        SlideError: the file is missing, unreadable, or not RGB brightfield.
    """
    try:
        if path.is_dir():
            raise SlideError(
                "this is a folder, not a slide",
                where=path,
                hint="if the slide has many files, give the main one (.mrxs, one .dcm, ...)",
            )
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise SlideError("there is no such file", where=path) from None
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
            "this is not a slide or image of a known format",
            expected="a format of OpenSlide, OME-TIFF, TIFF, PNG or JPEG",
            where=path,
        ) from None
    except openslide.OpenSlideError as error:
        if is_tiff:
            # either OpenSlide lacks the compression, or tifffile describes the damage better
            return open_tiff(path)
        raise damaged("the slide cannot be opened", error, path) from None
    if slide.facts.vendor != "generic-tiff":
        return slide
    # OpenSlide silently turns greyscale and 16-bit TIFFs into RGB, and misses SubIFD pyramids
    tiff = open_tiff(path)
    if tiff.facts.vendor == "ome-tiff" or len(tiff.level_shapes) > len(slide.level_shapes):
        return tiff
    return slide


def _probe(pyramid: Pyramid, path: Path) -> None:
    """Refuse a slide if most of the probes fail; single bad tiles are left to later reads."""
    height, width = pyramid.level_shapes[0]
    h, w = min(_PROBE, height), min(_PROBE, width)
    corners = [(i * (height - h) // 4, j * (width - w) // 4) for i in range(5) for j in range(5)]
    corners = corners[::2]  # 13 of them, in quincunx
    errors = []
    for y, x in corners:
        try:
            pyramid.read_level(0, y, x, h, w)
        except SlideError as error:
            errors.append(error)
    if 2 * len(errors) > len(corners):
        raise damaged("most of the slide cannot be read", errors[0].found, path)


def _meta(path: Path, pyramid: Pyramid) -> SlideMeta:
    facts, profile = pyramid.facts, pyramid.facts.icc_profile
    name = path.name.removesuffix(path.suffix).removesuffix(".ome")
    return SlideMeta(
        # bytes that are not UTF-8 would make JSON that other programs cannot read
        name=name.encode(errors="backslashreplace").decode(),
        vendor=facts.vendor,
        shape_l0=pyramid.level_shapes[0],
        mpp_l0=facts.mpp,
        objective_power=facts.objective_power,
        level_shapes=pyramid.level_shapes,
        bounds_l0=facts.bounds_l0,
        has_icc=profile is not None,
        checksum=file_checksum(path),
        properties=dict(facts.properties),
        icc_sha256=None if profile is None else hashlib.sha256(profile).hexdigest(),
    )


def _facts(handle: Any) -> FileFacts:
    """The facts of a slide; of its properties only the vendor, numbers and OpenSlide's hash."""
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
    """The scanned part, (y, x, height, width) in level-0 pixels, or None if it is not stated."""
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
