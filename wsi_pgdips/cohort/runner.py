"""A cohort on this machine or on a cluster of dask: each worker process serves many slides."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_pgdips.cohort.folder import GROUP, Cohort, CohortOptions, JobFolder
from wsi_pgdips.cohort.looks import group_has, pool_groups
from wsi_pgdips.cohort.manifest import Entry, read_cohort
from wsi_pgdips.cohort.report import REST, Row, rows_of, write_report
from wsi_pgdips.cohort.state import ABSENT, State, StateFile, ask_for_attempt, stamp_of
from wsi_pgdips.cohort.work import WHOLE, SlideWork, copy_is_current, unwritten
from wsi_pgdips.errors import OutputError, SettingsError, WsiPgdipsError
from wsi_pgdips.pipeline.lock import lock_output
from wsi_pgdips.progress import Progress, QuietProgress

# workers that others have started may have many threads
_ONE_AT_A_TIME = threading.Lock()
NOTE_S = 30.0  # between two notes about slides that take long


@dataclass(frozen=True)
class CohortJob:
    """The cohort, as a worker process is told of it.

    Attributes:
        folder: path of the job folder. device, threads: of the worker.
    """

    folder: str
    device: str
    threads: int | None


@dataclass(frozen=True)
class SlideReport:
    """A worker's result for a slide; the progress of the cohort counts a slide as one tile."""

    state: State | None
    tiles: int = 1


def plan_cohort(source: Path, job: Path, asked: CohortOptions) -> tuple[JobFolder, Cohort]:
    """Read which slides make a cohort, and check every setting before anything is begun.

    Args:
        asked: options of all slides; its reference holds for rows that name none.

    Raises:
        SettingsError: the manifest or a setting cannot be used. OutputError: the folder cannot.
    """
    entries = read_cohort(source, job)
    if asked.reference is not None:
        entries = tuple(replace(e, reference=e.reference or asked.reference) for e in entries)
    cohort = Cohort(entries, asked.settings, asked.retries, asked.looks_only)
    _check(cohort)
    return JobFolder(job.absolute()), cohort


def _check(cohort: Cohort) -> None:
    """Check every setting, and every file that settings name, once.

    Raises:
        SettingsError: one cannot be used; names the first slide that has it.
    """
    from wsi_pgdips.looks.files import load_reference
    from wsi_pgdips.optics.stain_files import load_stains

    def is_file(path: str) -> None:
        if not os.path.isfile(path):  # noqa: PTH113 - it never raises
            raise SettingsError("there is no such file", found=path, where="--mask, --roi")

    checked: set[tuple[Callable[[str], Any], str | None]] = {(load_reference, "self")}
    for entry in cohort.entries:
        science = cohort.settings(entry).science
        if entry.reference == GROUP and entry.group is None:
            raise SettingsError(
                "a slide has no group whose look it could be given",
                expected="a group in the manifest, or another reference",
                found="reference group, and no group",
                where=f"slide {entry.name}",
            )
        reference = None if entry.reference == GROUP else entry.reference
        try:
            for check, text in (
                (load_stains, science.stains),
                (load_reference, reference),
                (is_file, science.mask),
                (is_file, science.roi),
            ):
                if text is not None and (check, text) not in checked:
                    check(text)
                    checked.add((check, text))
        except WsiPgdipsError as error:
            where = f"{error.where}, slide {entry.name}"
            raise SettingsError.like(error, where=where) from None


def run_cohort(
    source: str | os.PathLike[str],
    job: str | os.PathLike[str],
    *,
    config: Path | None = None,
    reference: str | None = None,
    looks_only: bool | None = None,
    retries: int | None = None,
    skip_errors: bool | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Row]:
    """Run every slide of a cohort that is not done; a slide that fails does not stop the others.

    To resume, call it again with the same arguments.

    Args:
        source: a manifest (CSV or TSV, one row a slide), or a folder of slides.
        job: folder to write: layers, states, logs, ``summary.json`` and ``failures.csv``.
        config: TOML of settings of ``run`` and of the cohort; the other arguments win.
        reference: look in which each slide is also written as a TIFF; None for none; ``group`` for
            that of its group.
        looks_only: make looks, and copies by them, but no layers.
        retries: of a slide after a fault of a disk or network that may pass; 2 by default.
        skip_errors: go on with the others after a slide has failed; True by default.
        progress: where to show progress; quiet by default.
        settings: the fields of ``config.ScientificSettings`` and ``config.ExecutionSettings``.

    Returns:
        How each slide stands, in the order of the manifest; see ``cohort.report.Row``.

    Raises:
        SettingsError: the manifest or a setting cannot be used.
        OutputError: another process runs this cohort, or the folder is of another.
    """
    own: dict[str, Any] = {"reference": reference, "looks_only": looks_only}
    own |= {"retries": retries, "skip_errors": skip_errors}
    asked = CohortOptions.of(config, own, settings)
    folder, cohort = plan_cohort(Path(source), Path(job), asked)
    return run_planned(
        folder,
        progress=progress or QuietProgress(),
        planned=cohort,
        skip_errors=asked.skip_errors,
    )


def run_planned(
    folder: JobFolder,
    *,
    progress: Progress,
    planned: Cohort | None = None,
    skip_errors: bool = True,
    failed_too: bool = False,
) -> list[Row]:
    """Work on every slide that is not done, each on its own; return how all stand in the end.

    Args:
        planned: is kept in the folder first; None for the plan that was kept before.
        skip_errors: go on with the others after a slide has failed.
        failed_too: also try slides again that failed before.

    Raises:
        OutputError: another process runs this cohort, or the folder is of another.
    """
    with lock_output(folder.plan):
        if planned is not None:  # not before: workers of another process read the plan
            folder.keep(planned, progress.note)
        folder, cohort = JobFolder.opened(folder.path)
        lost: dict[str, State] = {}
        try:
            todo = left_of(folder, cohort, failed_too=failed_too)
            _work(folder, cohort, todo, progress, skip_errors, lost)
            # slides first, then groups, then the copies that groups have a say in
            if pool_groups(folder, cohort, progress.note):
                tried = {entry.name for entry in todo}
                again = [
                    entry
                    for entry in left_of(folder, cohort, failed_too=False)
                    if entry.name not in tried or _lacks_copy(folder, entry)
                ]
                _work(folder, cohort, again, progress, skip_errors, lost)
        except BaseException:  # an interruption: what was done so far is reported all the same
            with suppress(WsiPgdipsError, OSError):
                write_report(folder, cohort, lost=lost)
            raise
        return write_report(folder, cohort, lost=lost)


def _lacks_copy(folder: JobFolder, entry: Entry) -> bool:
    """Return whether a slide of a group that has its look lacks its copy."""
    return group_has(folder, entry) and not copy_is_current(folder, entry)


def left_of(folder: JobFolder, cohort: Cohort, *, failed_too: bool) -> list[Entry]:
    """Return the slides to work on: neither done, nor in another's hands, nor failed before."""
    rows = rows_of(folder, cohort)
    return [row.entry for row in rows if _is_left(folder, cohort, row, failed_too)]


def _is_left(folder: JobFolder, cohort: Cohort, row: Row, failed_too: bool) -> bool:
    if row.standing == "running":
        return False
    if row.state is None or not row.state.has_ended or not _is_as_before(row, row.state, cohort):
        return True
    return failed_too if row.standing != "done" else not _is_whole(folder, cohort, row)


def _is_whole(folder: JobFolder, cohort: Cohort, row: Row) -> bool:
    """Return whether layers that were finished still are; their run reports what is wrong."""
    from wsi_pgdips.layers.provenance import is_done

    try:
        copied = row.verdict == "fail" or copy_is_current(folder, row.entry)
        if cohort.looks_only:
            return copied and folder.look(row.entry).is_file()
        return copied and is_done(folder.output(row.entry))
    except WsiPgdipsError:
        return False


def _is_as_before(row: Row, state: State, cohort: Cohort) -> bool:
    """Return whether a slide was worked on with the settings and the file that it has now."""
    digest, stamp = cohort.settings(row.entry).science.digest(), stamp_of(row.entry.slide)
    # a file that is gone, to an archive perhaps, has not changed; one that has come has
    same_file = stamp in ("", ABSENT) or state.stamp in ("", stamp)
    return same_file and state.digest in ("", digest)


def _work(
    folder: JobFolder,
    cohort: Cohort,
    todo: Sequence[Entry],
    progress: Progress,
    skip_errors: bool,
    lost: dict[str, State],
) -> None:
    """Have worker processes work on slides, of which each gets another attempt.

    Args:
        lost: gets states that could not be written, by the names of their slides.
    """
    from wsi_pgdips.pipeline.pool import slide_pool

    if not todo:
        return
    for entry in todo:
        with suppress(WsiPgdipsError, OSError):  # its own attempt will say so
            ask_for_attempt(folder.state(entry))
    how = cohort.settings(todo[0]).execution
    pool: Any
    pool, threads = slide_pool(how, progress.note)
    with _slow_slides_noted(folder, cohort, progress), closing(pool):
        progress.stage("cohort", len(todo), "slides")
        job: Any = CohortJob(str(folder.path), how.device, threads)
        names = [e.name for e in todo]
        for name, outcome in pool.map(on_slide, job, names, progress.advance):
            state = _state_after(folder, cohort, name, outcome)
            text = "another process works on it" if state is None else state.text
            progress.note(f"{name}: {text}")
            if state is not None and state.unwritten:
                lost[name] = state
            if state is not None and state.status not in ("done", "stage_done") and not skip_errors:
                progress.note("stopped at the first failure, as --no-skip-errors asks")
                break


def on_slide(job: CohortJob, name: str, on_tile: Callable[[], None] = lambda: None) -> SlideReport:
    """Work on one slide of many, in a worker process."""
    try:
        folder, cohort = JobFolder.opened(Path(job.folder))
    except WsiPgdipsError as error:  # of this machine, or of a bad moment
        return SlideReport(unwritten(error))
    with _ONE_AT_A_TIME:
        entry, device, threads = cohort.entry(name), job.device, job.threads
        work = SlideWork(folder, cohort, entry, device=device, threads=threads)
        return SlideReport(work.run())


def _state_after(
    folder: JobFolder, cohort: Cohort, name: str, outcome: SlideReport | Exception
) -> State | None:
    """Return the state of a slide that a worker has left; written here where the worker died."""
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


@contextmanager
def _slow_slides_noted(folder: JobFolder, cohort: Cohort, progress: Progress) -> Iterator[None]:
    """Note the progress of the slides in hand now and then."""
    over = threading.Event()

    def note() -> None:
        took = 0.0
        while not over.wait(max(NOTE_S, REST * took)):
            begun = time.monotonic()
            with suppress(OSError):  # a share that is away for a moment
                for row in rows_of(folder, cohort):
                    if row.standing == "running":
                        progress.note(f"{row.entry.name}: {row.stage_text}")
            took = time.monotonic() - begun

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
