"""Records of a benchmark as a file: a JSON list, one record a line, written whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from wsi_pgdips.disk import write_atomic
from wsi_pgdips.errors import SettingsError

Row = dict[str, Any]


def save_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write records; replaces the file.

    Raises:
        OutputError: the file cannot be written.
    """
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomic(path, f"[\n{lines}\n]\n".encode())


def load_rows(path: Path, keys: Sequence[str], benchmark: str) -> list[Row]:
    """The records of a file.

    Args:
        keys: that each has. benchmark: its name, for an error.

    Raises:
        SettingsError: not there, not JSON, or not such records.
    """
    try:
        rows = json.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            "the results cannot be read", where=path, found=error.strerror
        ) from None
    except ValueError as error:
        raise SettingsError("the results are not valid JSON", where=path, found=error) from None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and set(keys) <= set(row) for row in rows
    ):
        raise SettingsError(
            f"these are not results of the {benchmark}",
            expected=f"a list of records with {', '.join(keys)}",
            where=path,
        )
    return rows
