"""A cohort on this machine or on a cluster of dask: worker processes that serve many slides."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry, read_cohort
from wsi_pgdips.cohort.options import CohortOptions
from wsi_pgdips.cohort.report import REST, Row, rows_of, write_report
from wsi_pgdips.cohort.state import (
    ABSENT,
    State,
    StateFile,
    put_all_back,
    stamp_of,
    try_again,
)
from wsi_pgdips.cohort.work import WHOLE, copy_is_current, unwritten, work_on
from wsi_pgdips.errors import OutputError, SettingsError, WsiPgdipsError
from wsi_pgdips.pipeline.lock import holding
from wsi_pgdips.progress import Progress

# workers that others have started may have many threads
_ONE_AT_A_TIME = threading.Lock()
TELL_S = 30.0  # between two words on slides that take long


@dataclass(frozen=True)
class CohortJob:
    """What a worker process is handed.

    Attributes:
        folder: of the job. device, threads: of the worker.
    """

    folder: str
    device: str
    threads: int | None


@dataclass(frozen=True)
class SlideReport:
    """What it says of a slide; ``tiles`` of the cohort's progress: a slide counts as one."""

    state: State | None
    tiles: int = 1


def plan_cohort(source: Path, job: Path, asked: CohortOptions) -> tuple[JobFolder, Cohort]:
    """Read who belongs to a cohort, and check every setting before anything is begun.

    Args:
        asked: of all slides; its reference is of those whose row names none.

    Raises:
        SettingsError: the manifest or a setting cannot be used. OutputError: the folder cannot.
    """
    entries = read_cohort(source, job)
    if asked.reference is not None:
        entries = tuple(replace(e, reference=e.reference or asked.reference) for e in entries)
    cohort = Cohort(entries, asked.settings, asked.retries)
    _check(cohort)
    return JobFolder(job.absolute()), cohort


def _check(cohort: Cohort) -> None:
    """Every setting, and every file that settings name, once.

    Raises:
        SettingsError: names the first slide that has it.
    """
    from wsi_pgdips.looks.files import load_reference
    from wsi_pgdips.optics.stains import load_stains

    def is_file(path: str) -> None:
        if not os.path.isfile(path):  # noqa: PTH113 - it never raises
            raise SettingsError("there is no such file", found=path, where="--mask, --roi")

    looked: set[tuple[Callable[[str], Any], str | None]] = {(load_reference, "self")}
    for entry in cohort.entries:
        science = cohort.settings(entry).science
        try:
            for look, text in (
                (load_stains, science.stains),
                (load_reference, entry.reference),
                (is_file, science.mask),
                (is_file, science.roi),
            ):
                if text is not None and (look, text) not in looked:
                    look(text)
                    looked.add((look, text))
        except WsiPgdipsError as error:
            where = f"{error.where}, slide {entry.name}"
            raise SettingsError.like(error, where=where) from None


def run_cohort(
    folder: JobFolder,
    *,
    progress: Progress,
    planned: Cohort | None = None,
    skip_errors: bool = True,
    failed_too: bool = False,
) -> list[Row]:
    """Work on every slide that is not done, each on its own; how all stand in the end.

    Args:
        planned: is kept in the folder first; None for what was kept before.
        skip_errors: go on with the others after a slide has failed.
        failed_too: also give those another chance that failed before.

    Raises:
        OutputError: another process runs this cohort, or the folder is of another.
    """
    with holding(folder.plan):
        if planned is not None:  # not before: workers of another process read the plan
            folder.keep(planned, progress.note)
        folder, cohort = JobFolder.opened(folder.path)
        todo = left_of(folder, cohort, failed_too=failed_too)
        lost: dict[str, State] = {}
        try:
            if todo:
                with _waiting(folder, todo), _telling(folder, cohort, progress):
                    _work(folder, cohort, todo, progress, skip_errors, lost)
        except BaseException:  # broken off: what was done so far is reported all the same
            with suppress(WsiPgdipsError, OSError):
                write_report(folder, cohort, lost=lost)
            raise
        return write_report(folder, cohort, lost=lost)


@contextmanager
def _waiting(folder: JobFolder, todo: Sequence[Entry]) -> Iterator[None]:
    """What failed before has not failed while it waits; what was not come to is as it was."""
    before = []
    try:
        for entry in todo:
            with suppress(WsiPgdipsError, OSError):  # its own attempt will say so
                before.append((folder.state(entry), try_again(folder.state(entry))))
        yield
    finally:
        put_all_back(before)


def left_of(folder: JobFolder, cohort: Cohort, *, failed_too: bool) -> list[Entry]:
    """The slides to work on: not what is done, in another's hands, or failed before."""
    todo = []
    for row in rows_of(folder, cohort):
        if row.standing == "running":
            continue
        if row.standing in ("failed", "incomplete") and not failed_too and _as_before(row, cohort):
            continue
        if row.standing == "done" and _as_before(row, cohort) and _is_whole(folder, row.entry):
            continue
        todo.append(row.entry)
    return todo


def _is_whole(folder: JobFolder, entry: Entry) -> bool:
    """Whether layers that were finished still are; what is wrong with them, their run will say."""
    from wsi_pgdips.layers.provenance import is_done

    try:
        return is_done(folder.output(entry)) and copy_is_current(folder, entry)
    except WsiPgdipsError:
        return False


def _as_before(row: Row, cohort: Cohort) -> bool:
    """Whether a slide was worked on with the settings and the file it has now."""
    if row.state is None:
        return False
    digest, stamp = cohort.settings(row.entry).science.digest(), stamp_of(row.entry.slide)
    # a file that is gone, to an archive perhaps, has not changed; one that has come has
    same_file = stamp in ("", ABSENT) or row.state.stamp in ("", stamp)
    return same_file and row.state.digest in ("", digest)


def _work(
    folder: JobFolder,
    cohort: Cohort,
    todo: Sequence[Entry],
    progress: Progress,
    skip_errors: bool,
    lost: dict[str, State],
) -> None:
    """
    Args:
        lost: gets states that could not be written, by the names of their slides.
    """
    from wsi_pgdips.pipeline.pool import slide_pool

    how = cohort.settings(todo[0]).execution
    pool: Any
    pool, threads = slide_pool(how, progress.note)
    try:
        progress.stage("cohort", len(todo), "slides")
        job: Any = CohortJob(str(folder.path), how.device, threads)
        names = [e.name for e in todo]
        for name, outcome in pool.map(on_slide, job, names, progress.advance):
            state = _said(folder, cohort, name, outcome)
            progress.note(f"{name}: {_word(state)}")
            if state is not None and state.unwritten:
                lost[name] = state
            if state is not None and state.status not in ("done", "stage_done") and not skip_errors:
                progress.note("stopped at the first failure, as --no-skip-errors asks")
                break
    finally:
        pool.close()


def on_slide(job: CohortJob, name: str, on_tile: Callable[[], None] = lambda: None) -> SlideReport:
    """In a worker process: one slide of many."""
    try:
        folder, cohort = JobFolder.opened(Path(job.folder))
    except WsiPgdipsError as error:  # of this machine, or of a bad moment
        return SlideReport(unwritten(error))
    with _ONE_AT_A_TIME:
        state = work_on(folder, cohort, cohort.entry(name), device=job.device, threads=job.threads)
    return SlideReport(state)


def _said(
    folder: JobFolder, cohort: Cohort, name: str, outcome: SlideReport | Exception
) -> State | None:
    if not isinstance(outcome, Exception):
        return outcome.state
    entry = cohort.entry(name)
    facts: dict[str, Any] = {
        "status": "failed",
        "exit_code": 1,
        "reason": str(outcome) or type(outcome).__name__,
        "hint": "give the slide more memory, or look at the log; `cohort retry --failed` tries "
        "again",
    }
    try:
        digest, stamp = cohort.settings(entry).science.digest(), stamp_of(entry.slide)
        return StateFile(folder.state(entry), WHOLE, digest, stamp).write(**facts)
    except (OutputError, OSError):
        return State(WHOLE.name, unwritten=True, **facts)


def _word(state: State | None) -> str:
    if state is None:
        return "another process works on it"
    if state.status == "done":
        return f"done, {state.tiles} tiles"
    return f"{state.status}: {state.reason}"


def verify_cohort(folder: JobFolder, cohort: Cohort, progress: Progress) -> dict[str, list[str]]:
    """What is wrong with each finished slide, by its name; nothing where it is whole."""
    from wsi_pgdips.checks.verify import verify_layers

    done = [r.entry for r in rows_of(folder, cohort) if r.standing == "done"]
    found: dict[str, list[str]] = {}
    progress.stage("verify", len(done), "slides")
    try:
        for entry in done:
            try:
                wrong = verify_layers(folder.output(entry))
            except WsiPgdipsError as error:
                wrong = [f"{error.where}: {error.message}"]
            target = folder.normalised(entry)
            if target is not None and not target.exists():
                wrong.append(f"{target.name}: missing")
            found[entry.name] = wrong
            progress.advance()
    finally:
        progress.close()
    return found


@contextmanager
def _telling(folder: JobFolder, cohort: Cohort, progress: Progress) -> Iterator[None]:
    """Say now and then how far the slides in hand are."""
    over = threading.Event()

    def tell() -> None:
        took = 0.0
        while not over.wait(max(TELL_S, REST * took)):
            begun = time.monotonic()
            with suppress(OSError):  # a share that is away for a moment
                for row in rows_of(folder, cohort):
                    if row.standing == "running":
                        progress.note(f"{row.entry.name}: {row.stage_text}")
            took = time.monotonic() - begun

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
