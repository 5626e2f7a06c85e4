"""Faults of a disk or network share that may be gone soon."""

from __future__ import annotations

import errno
from pathlib import Path

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.records import TileFlag, TileSource

WAITS_S = (5.0, 30.0, 120.0)  # before each retry; the last one again and again
LOOKED_AT = 16  # tiles
# what the operating system says in a bad moment
_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    getattr(errno, "EREMOTEIO", errno.EIO),  # of Linux
}


def is_passing(error: BaseException | None) -> bool:
    """Whether an error comes from a fault that may be gone soon."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def has_passed(slide: Path, output: Path, settings: ScientificSettings) -> bool:
    """Whether tiles that a run could not read can be read now.

    A reading library says of a share that is away what it says of a file that is damaged; the one
    is over after a while, the other is not.

    Args:
        output: unfinished layers of that run.
    """
    from wsi_pgdips.layers.reader import open_layers
    from wsi_pgdips.slide.reader import open_slide

    try:
        table = open_layers(output, unfinished=True).tiles.to_pydict()
        source = open_slide(slide, settings)
    except (WsiPgdipsError, OSError):
        return False
    columns = (table[name] for name in ("flags", "y", "x", "height", "width"))
    lost = [place for flags, *place in zip(*columns, strict=True) if flags & TileFlag.READ_FAILED]
    try:
        return any(_reads(source, *place) for place in lost[:: -(-len(lost) // LOOKED_AT) or 1])
    finally:
        source.close()


def _reads(source: TileSource, y: int, x: int, h: int, w: int) -> bool:
    try:
        source.read(y, x, h, w)
    except (WsiPgdipsError, OSError):
        return False
    return True
