"""Freed memory that is kept: a tile's maps are a megabyte each, and gone as soon as made.

By default the C library of Linux gives such memory back to the system, and every page of the next
map is then fetched anew, which takes longer than to compute it. A process that works on tiles holds
on to what it had at its peak instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys

# of <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MAPPED = 2**25  # bytes; more is refused
_NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> None:
    """Ask the C library to; where it is not GNU's, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in (
            (_M_ARENA_MAX, 1),  # one heap for all threads, else each begins with an empty one
            (_M_MMAP_THRESHOLD, _LARGEST_MAPPED),
            (_M_TRIM_THRESHOLD, _NEVER),
        ):
            mallopt(option, value)
