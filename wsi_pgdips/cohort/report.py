"""The report of a cohort: a row for each slide, a summary for programs, a table of failures."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.state import State, read_states, state_of_slide
from wsi_pgdips.disk import write_atomic
from wsi_pgdips.pipeline.lock import SUFFIX, living_holder, locks_of
from wsi_pgdips.progress import clock_text, progress_line

# as its state says, or nobody has begun, or the process that worked on it is gone
Standing = Literal["waiting", "running", "interrupted", "done", "incomplete", "failed"]
Queued = Callable[[str], str]
ORDER: tuple[Standing, ...] = (
    "done",
    "running",
    "waiting",
    "interrupted",
    "incomplete",
    "failed",
)
VERDICTS = ("pass", "review", "fail")
NO_COPY = "slides with verdict fail get no normalised copy and have no say in references"
EXIT_DONE, EXIT_FAILED = 0, 3
REST = 10  # a look at all slides is followed by a rest of this many times its length


@dataclass(frozen=True)
class Row:
    """The standing of one slide.

    Attributes:
        state: of its last attempt; None where nobody has begun.
        queue: the job that waits or runs for it, in words.
    """

    entry: Entry
    standing: Standing
    state: State | None
    queue: str = ""

    @property
    def reason(self) -> str:
        if self.standing == "interrupted":
            reason = self.state.reason if self.state else ""
            return reason or "the process that was to work on it is gone: killed, or out of time"
        return self.state.reason if self.state and self.standing != "running" else ""

    @property
    def verdict(self) -> str:
        """The verdict on layers that are there; "" where there is none."""
        if self.state is None or self.standing not in ("done", "incomplete"):
            return ""
        return self.state.verdict if self.state.verdict in VERDICTS else ""

    @property
    def hint(self) -> str:
        if self.standing == "interrupted":
            return "to resume, repeat the command; with Slurm, use `cohort retry`"
        return self.state.hint if self.state else ""

    @property
    def stage_text(self) -> str:
        """The stage of a slide in hand, as ``fit 12/80 tiles, 3.1 tiles/s, 0:22 left``."""
        s = self.state
        if s is None or self.standing != "running":
            return self.queue
        if not s.stage:
            return "opening"
        return progress_line(s.stage, s.done, s.total, s.unit, s.updated - s.stage_begun)


def rows_of(
    folder: JobFolder,
    cohort: Cohort,
    queued: Queued | None = None,
    lost: Mapping[str, State] = MappingProxyType({}),
) -> list[Row]:
    """Return how every slide stands, in the order of the manifest.

    Args:
        queued: returns the job that waits or runs for a slide, by its name; None without Slurm.
        lost: states that could not be written, by the names of their slides.
    """
    return [_row(folder, entry, queued, lost.get(entry.name)) for entry in cohort.entries]


def _row(folder: JobFolder, entry: Entry, queued: Queued | None, lost: State | None) -> Row:
    state = lost or state_of_slide(read_states(folder.state(entry)))
    if state is not None and state.has_ended:
        return _ended_row(entry, state)
    coming = "" if queued is None else queued(entry.name)
    if state is None:
        standing: Standing = "waiting" if coming or queued is None else "interrupted"
        return Row(entry, standing, None, coming)
    if state.status == "running" and _is_worked_on(folder, entry):
        return Row(entry, "running", state, coming)
    if coming:  # between two of its jobs
        return Row(entry, "waiting", state, coming)
    return _ended_row(entry, state)  # the attempt that was asked for does not come


def _ended_row(entry: Entry, state: State) -> Row:
    if state.status in ("done", "incomplete", "failed"):
        return Row(entry, state.status, state)
    return Row(entry, "interrupted", state)


def _is_worked_on(folder: JobFolder, entry: Entry) -> bool:
    """Return whether a process works on a slide, as far as its output and its states say."""
    output, states = folder.output(entry), folder.state(entry)
    try:
        if any(locks_of(output).values()):
            return True
        return any(living_holder(path) for path in sorted(states.glob(f"*{SUFFIX}")))
    except OSError:  # a folder that cannot be read, or not now: the state is believed
        return True


def exit_code(rows: list[Row]) -> int:
    """Return 0 where all slides are done, 3 where some are not, or strictly are no ``pass``."""
    done = all(r.standing == "done" and not (r.state and r.state.exit_code) for r in rows)
    return EXIT_DONE if done else EXIT_FAILED


def count_text(rows: list[Row]) -> str:
    """Return how many slides stand how, as ``4 done, 2 failed``."""
    counts = Counter(r.standing for r in rows)
    return ", ".join(f"{counts[s]} {s}" for s in ORDER if counts[s])


def verdict_counts(rows: list[Row]) -> dict[str, int]:
    """Return verdict -> number of slides."""
    counts = Counter(r.verdict for r in rows)
    return {v: counts[v] for v in VERDICTS}


def verdict_text(rows: list[Row]) -> str:
    """Return the verdicts and what follows from ``fail``; "" where there are none."""
    counts = verdict_counts(rows)
    if not any(counts.values()):
        return ""
    text = "verdicts: " + ", ".join(f"{n} {v}" for v, n in counts.items())
    return f"{text}; {NO_COPY}" if counts["fail"] else text


def time_left_text(rows: list[Row]) -> str:
    """Return the time left at the pace so far; "" where no slide is done, or none is left."""
    ended = [r.state for r in rows if r.standing in ("done", "incomplete") and r.state]
    left = sum(r.standing in ("waiting", "running", "interrupted") for r in rows)
    if not ended or not left:
        return ""
    took = sum(s.updated - s.begun for s in ended) / len(ended)
    at_once = max(sum(r.standing == "running" for r in rows), 1)
    return f"about {clock_text(took * left / at_once)} left"


def summary_of(folder: JobFolder, rows: list[Row]) -> dict[str, Any]:
    """Return the content of ``summary.json``."""
    counts = Counter(r.standing for r in rows)
    return {
        "slides": len(rows),
        **{str(name): counts[name] for name in ORDER},
        "verdicts": verdict_counts(rows),
        "exit_code": exit_code(rows),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": [_facts(folder, r) for r in rows],
    }


def write_report(
    folder: JobFolder,
    cohort: Cohort,
    queued: Queued | None = None,
    lost: Mapping[str, State] = MappingProxyType({}),
) -> list[Row]:
    """Write ``summary.json`` and ``failures.csv``; return the rows that they tell of."""
    rows = rows_of(folder, cohort, queued, lost)
    summary = json.dumps(summary_of(folder, rows), indent=1)
    write_atomic(folder.summary, summary.encode() + b"\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "output", "status", "reason", "what_to_do", "exit_code", "log"])
    for r in rows:
        if r.standing in ("failed", "incomplete", "interrupted"):
            code = r.state.exit_code if r.state else None
            place, log = folder.output(r.entry), folder.log(r.entry)
            reason, hint = _one_line(r.reason), _one_line(r.hint)
            writer.writerow([r.entry.slide, place, r.standing, reason, hint, code, log])
    # a name of a file may be of another encoding
    write_atomic(folder.failures, text.getvalue().encode(errors="backslashreplace"))
    return rows


def _facts(folder: JobFolder, row: Row) -> dict[str, Any]:
    state = row.state
    normalised = None if row.verdict == "fail" else folder.normalised(row.entry)
    return {
        "name": row.entry.name,
        "slide": row.entry.slide,
        "output": str(folder.output(row.entry)),
        "normalised": None if normalised is None else str(normalised),
        "status": row.standing,
        "reason": _one_line(row.reason),
        "what_to_do": _one_line(row.hint),
        "verdict": {
            "status": row.verdict or None,
            "reasons": list(state.verdict_reasons) if state and row.verdict else [],
        },
        "exit_code": state.exit_code if state else None,
        "stage": state.stage if state else None,
        "tiles": state.tiles if state else 0,
        "failed_tiles": state.failed_tiles if state else 0,
        "wall_s": state.wall_s if state else 0.0,
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())
