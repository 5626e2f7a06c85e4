"""JSON files of numbers with a hash, so that a paper can state which numbers were used."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from wsi_pgdips.errors import StainError

Json = dict[str, Any]
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, zlib.error)


class Hashed(Protocol):
    """Numbers that know their hash."""

    @property
    def digest(self) -> str:
        """Hex SHA-256."""
        ...


Numbers = TypeVar("Numbers", bound=Hashed)


def digest_of(numbers: Json) -> str:
    """Return the hex SHA-256 of a table, whatever the order of its keys."""
    text = json.dumps(numbers, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def checked(
    table: Json,
    read: Callable[[Json], Numbers],
    *,
    version: int,
    what: str,
    again: str,
    where: object,
) -> Numbers:
    """Return what ``read`` makes of a file's table, once its version and its hash are checked.

    Args:
        read: may fail on damaged tables. version: that can be read. what: the file holds: "map".
        again: how the file is had anew: "make it again". where: named in errors.

    Raises:
        StainError: another version, a damaged table, or a hash that does not match the numbers.
    """
    if table.get("version") != version:
        raise StainError(
            f"the {what} has another version",
            expected=version,
            found=table.get("version"),
            where=where,
            hint=f"read it with the version of wsi-pgdips that wrote it, or {again}",
        )
    try:
        found = read(table)
        digest = found.digest
    except _DAMAGE as error:
        raise StainError(
            f"the {what} is incomplete or damaged", where=where, found=repr(error)
        ) from None
    if "sha256" in table and table["sha256"] != digest:
        raise StainError(
            f"the {what}'s numbers are not those it was written with",
            expected=f"sha256 {table['sha256']}",
            found=digest,
            where=where,
            hint=f"{again}; if you changed it on purpose, remove the line sha256",
        )
    return found
