"""When something is tried again: faults of a disk or network share that may be gone soon."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pgdips.config import ScientificSettings
from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.records import TileFlag, TileSource

if TYPE_CHECKING:
    from tenacity import Retrying

WAITS_S = (5.0, 30.0, 120.0)  # before each new attempt at a slide
LOOKED_AT = 16  # tiles
# what the operating system says of a fault that may pass
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
    getattr(errno, "EREMOTEIO", errno.EIO),  # Linux only
}


def retrying(
    waits: Sequence[float],
    retries: int | None = None,
    *,
    again: Callable[[Any], bool] = lambda result: False,
    note: Callable[[Any, float], None] = lambda outcome, wait_s: None,
) -> Retrying:
    """Return the policy for one piece of work: call it with a function, or loop over it.

    A passing fault of a disk is tried again. The last result is returned, the last error raised.

    Args:
        waits: seconds before each new attempt; the last one holds for all that follow.
        retries: new attempts, at most; None for as many as there are waits.
        again: whether a result asks for a new attempt.
        note: is told of each error or result that is tried again, and the seconds until then.
    """
    from tenacity import (
        Retrying,
        retry_if_exception,
        retry_if_result,
        stop_after_attempt,
        wait_chain,
        wait_fixed,
    )

    def passes(error: BaseException) -> bool:
        # a signal that comes while a fault is handled has that fault as its context
        return isinstance(error, WsiPgdipsError | OSError) and is_passing(error)

    def tell(state: Any) -> None:
        note(state.outcome.exception() or state.outcome.result(), state.upcoming_sleep)

    return Retrying(
        wait=wait_chain(*map(wait_fixed, waits or (0.0,))),
        stop=stop_after_attempt(1 + (len(waits) if retries is None else retries)),
        retry=retry_if_exception(passes) | retry_if_result(again),
        before_sleep=tell,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )


def is_passing(error: BaseException | None) -> bool:
    """Return whether an error comes from a fault that may be gone soon."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def has_passed(slide: Path, output: Path, settings: ScientificSettings) -> bool:
    """Return whether tiles that a run could not read can be read now.

    A reading library reports the same error for a share that is away and for a damaged file; only
    the first is over after a while.

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
    """Return whether a window of a slide can be read."""
    try:
        source.read(y, x, h, w)
    except (WsiPgdipsError, OSError):
        return False
    return True
