"""Records of the benchmarks: one figure each, a JSON list of them, and the tables made of them."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from wsi_pgdips.disk import write_atomic
from wsi_pgdips.errors import OutputError, SettingsError

Row = dict[str, Any]
Say = Callable[[str], None]
Texts = Mapping[str, str]  # row of a table -> its cell
ALL = "all"  # the stain of a figure over all stains
NOTHING = "-"  # the cell of a figure that is not known
KEYS = {
    "quality": ("case", "kind", "seed", "method", "blur_px", "stain", "metric", "value", "seconds"),
    "speed": ("device", "case", "method", "stage", "metric", "value"),
    "looks": ("kind", "case", "method", "part", "metric", "value"),
    "cohort": ("device", "case", "how", "metric", "value"),
}
USUAL: dict[str, Row] = {  # keys that need not be given
    "quality": {"seed": None, "blur_px": 0, "stain": ALL, "seconds": None},
    "looks": {"part": "tissue"},
}


def silent(line: str) -> None:
    """Take a line of progress, and print nothing."""


@dataclass
class Records:
    """Records of one benchmark, in the order in which they are measured.

    Args:
        benchmark: one of ``KEYS``. where: values of keys that the next records have in common.
        rows: the records, a mapping of the benchmark's keys each.
    """

    benchmark: str
    where: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def at(self, **where: Any) -> Records:
        """The same list of records, for more that have these keys in common."""
        return replace(self, where={**self.where, **where})

    def add(self, values: Mapping[str, float], **where: Any) -> None:
        """Add one record for each metric: four digits, counts as they are, else null.

        Args:
            values: metric -> figure. where: values of the other keys, beside those in common.
        """
        for metric, value in values.items():
            row = {**USUAL.get(self.benchmark, {}), **self.where, **where}
            row |= {"metric": metric, "value": _rounded(value, 4)}
            if row.get("seconds") is not None:
                row["seconds"] = _rounded(row["seconds"], 3)
            self.rows.append({key: row[key] for key in KEYS[self.benchmark]})

    def put(self, new: Records, *keys: str) -> None:
        """Take records in place of those with the same values of some keys."""
        there = {tuple(row[k] for k in keys) for row in new.rows}
        self.rows[:] = [r for r in self.rows if tuple(r[k] for k in keys) not in there] + new.rows

    @property
    def frame(self) -> pd.DataFrame:
        """The records as a table: a record a row, null figures as NaN."""
        frame = pd.DataFrame(self.rows, columns=list(KEYS[self.benchmark]))
        return frame.astype({"value": float})

    def save(self, path: Path) -> None:
        """Write a JSON list, one record a line. Replaces the file.

        Raises:
            OutputError: the file cannot be written.
        """
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        write_atomic(path, f"[\n{lines}\n]\n".encode())


def load_records(benchmark: str, path: Path) -> Records:
    """Read the records of a file.

    Raises:
        SettingsError: the file is missing, is not JSON, or holds other records.
    """
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise SettingsError("the results cannot be read", where=path, found=found) from None
    keys = KEYS[benchmark]
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and set(keys) <= set(row) for row in rows
    ):
        raise SettingsError(
            f"these are not results of the benchmark of {benchmark}",
            expected=f"a list of records with {', '.join(keys)}",
            where=path,
        )
    return Records(benchmark, rows=rows)


def kept_records(benchmark: str, path: Path, *, keep: bool = True) -> Records:
    """Records to add to: those of a file, or none where it does not exist or is not kept.

    Raises:
        SettingsError: kept records cannot be read.
    """
    return load_records(benchmark, path) if keep and path.exists() else Records(benchmark)


def check_places(out: Path, data: Path | None = None, folder: str = "") -> None:
    """Refuse a place of results or data that cannot be used, before hours are spent.

    Args:
        out: file of records. data: folder of real images. folder: that it must have.

    Raises:
        OutputError: the folder of the results is missing. SettingsError: that of the data is.
    """
    parent = out.absolute().parent
    if not parent.is_dir():
        raise OutputError("the folder of the results does not exist", where=parent)
    if data is not None and not (data / folder).is_dir():
        raise SettingsError(
            "the data of the benchmark is missing",
            expected="a folder with truth/, semisynthetic/, slides/ and scanners/",
            found="a file" if data.is_file() else "another folder" if data.exists() else "nothing",
            where=data,
        )


def write_page(benchmark: str, results: Path, output: Path) -> None:
    """Render a file of records as a page of Markdown, and its plots in ``images/`` beside it.

    Raises:
        SettingsError: the records cannot be read. OutputError: a file cannot be written.
    """
    records = load_records(benchmark, results)
    here, folder = results.resolve(), output.resolve().parent
    named = here.relative_to(folder).as_posix() if here.is_relative_to(folder) else here.name
    render = import_module(f"benchmarks.{benchmark}.page").render
    write_atomic(output, render(records.frame, named, output.parent / "images").encode())


def prose(benchmark: str) -> dict[str, str]:
    """Paragraphs of a benchmark's page by name, from ``page.md`` beside its ``page.py``."""
    text = (Path(__file__).parent / benchmark / "page.md").read_text()
    _, *parts = re.split(r"<!-- (\w+) -->\n", text)
    return {name: body.strip() + "\n" for name, body in zip(parts[::2], parts[1::2], strict=True)}


def only(records: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows whose keys have the wanted values; of a tuple, one of its values."""
    for key, value in wanted.items():
        column = records[key]
        records = records[column.isin(value) if isinstance(value, tuple) else column == value]
    return records


def lookup(records: pd.DataFrame, *keys: str) -> Callable[..., float]:
    """A function of values of some keys: the first figure known there, or NaN."""
    known = records.dropna(subset="value").drop_duplicates(list(keys))
    values = dict(
        zip(known[list(keys)].itertuples(index=False, name=None), known["value"], strict=True)
    )
    return lambda *at: float(values.get(at, math.nan))


def distinct(records: pd.DataFrame, key: str) -> list[Any]:
    """Values of a key in the order of their first appearance."""
    return list(records[key].unique())


def means(records: pd.DataFrame, *keys: str) -> dict[Any, float]:
    """Mean of the figures that are known, for each combination of values of some keys."""
    return {at: float(np.mean(values)) for at, values in _grouped(records, keys)}


def spreads(
    records: pd.DataFrame,
    metric: str,
    digits: int = 4,
    stains: Sequence[str] = (ALL,),
    row: str = "method",
) -> Texts:
    """Cells ``mean ± standard deviation`` over seeds of a metric, with `` / `` between stains.

    Args:
        row: the key whose values are the rows of a table.
    """
    own = only(records, metric=metric, stain=tuple(stains))
    cells = {at: _spread(values, digits) for at, values in _grouped(own, (row, "stain"))}
    return {
        name: " / ".join(cells.get((name, stain), NOTHING) for stain in stains)
        for name in dict.fromkeys(name for name, _ in cells)
    }


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, with an empty line after it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def pivot(first: str, names: Iterable[str], columns: Mapping[str, Texts]) -> str:
    """A Markdown table with a row for each name; a cell that is missing is ``-``.

    Args:
        first: head of the column of names. columns: head -> cells by name.
    """
    rows = [[name, *(cells.get(name, NOTHING) for cells in columns.values())] for name in names]
    return table([first, *columns], rows)


def bar(
    what: str, found: float, limit: float, *, at_least: bool = False, digits: int = 4
) -> list[str]:
    """Cells of a table of bars: what is asked, what was found, and whether that is met."""
    met = found >= limit if at_least else found <= limit
    verdict = ("yes" if met else "no") if math.isfinite(found) else NOTHING
    return [f"{what} {'≥' if at_least else '≤'} {limit:g}", number(found, digits), verdict]


def number(value: float, digits: int = 3) -> str:
    """So many digits, without an exponent; ``-`` where the value is not finite."""
    if not math.isfinite(value):
        return NOTHING
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return np.format_float_positional(value, digits, unique=False, fractional=False, trim="-")


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure of matplotlib as a PNG; equal records give equal bytes. Replaces the file.

    Raises:
        OutputError: the file cannot be written.
    """
    data = io.BytesIO()
    figure.savefig(data, dpi=dpi, format="png", metadata={"Software": None})
    write_atomic(path, data.getvalue())


def _rounded(value: float, digits: int) -> float | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _grouped(
    records: pd.DataFrame, keys: Sequence[str]
) -> Iterable[tuple[Any, npt.NDArray[np.float64]]]:
    """Known figures for each combination of values of some keys, in their order."""
    known = records[records["value"].notna()]
    for at, values in known.groupby(list(keys), sort=False)["value"]:
        yield at if len(keys) > 1 else at[0], values.to_numpy()


def _spread(values: npt.NDArray[np.float64], digits: int) -> str:
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"
