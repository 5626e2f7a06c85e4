"""Output that the commands share: rows, errors, progress, and times and sizes as text."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsi_pgdips.pipeline.record import RunSummary
    from wsi_pgdips.progress import Progress

EXIT_INTERRUPTED = 130


def print_summary(summary: RunSummary, *, times: bool = False) -> None:
    from wsi_pgdips.checks.info import seam_texts, times_text, verdict_rows

    done = "finished before, nothing to do" if summary.already_done else "done"
    counts = f"{summary.tiles}, {summary.fitted} fitted on their own, {summary.inherited} inherited"
    rows = [(done if not summary.has_failures else "ended with failures", str(summary.path))]
    rows.append(("tiles", counts))
    if summary.has_failures:
        failed = f"{summary.failed_tiles} tiles, {summary.failed_blocks} blocks"
        if not summary.failed_tiles and not summary.failed_blocks:
            failed = "parts of the slide could not be read, see flags"
        rows.append(("failed", failed + "; repeat the command to try them again"))
    rows += [(name, text) for name, text in verdict_rows(summary.verdict) if text]
    if summary.flags:
        rows.append(("flags", ", ".join(summary.flags)))
    rows += [(f"seam step, {label}", text) for label, text in seam_texts(summary.seam_step_od)]
    if times:
        rows.append(("seconds", times_text(summary.wall_s)))
    print_rows(rows)


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one a line and never wrapped, so that they can be copied."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        indented = value.replace("\n", "\n" + " " * (width + 2))
        line = Text.assemble((name.ljust(width), "bold"), "  ", indented)
        stdout().print(line, soft_wrap=True, highlight=False)


def say_error(message: str, *, kind: str = "error") -> None:
    line = Text.assemble((f"{kind}:", "bold red"), " ", message)
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def say_note(message: str) -> None:
    say_error(message, kind="note")


def stdout() -> Console:
    return Console()


def progress_of(quiet: bool) -> Progress:
    from wsi_pgdips.progress import QuietProgress, make_progress

    return QuietProgress() if quiet else make_progress(sys.stderr)


def speak_up() -> None:
    warnings.resetwarnings()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("wsi_pgdips").setLevel(logging.INFO)


def numbers(text: str, separator: str, count: int, option: str, form: str) -> list[int]:
    parts = text.split(separator)
    if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
        refuse(f"expected whole numbers as {form}, found {text!r}", option)
    return [int(part) for part in parts]


def refuse(message: str, option: str) -> NoReturn:
    raise typer.BadParameter(message, param_hint=option)


def time_text(seconds: float) -> str:
    """Return a time such as ``40 s``, ``3 min`` or ``2 h 10 min``."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def size_text(size: float) -> str:
    """Return a size such as ``40 MB`` or ``3.4 GB``, in powers of ten, as disks are sold."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(round(size / 1e6), 1)} MB"
