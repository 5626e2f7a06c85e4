"""One slide of a cohort, or a part of it: whatever happens, its state says what became of it."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.state import (
    ABSENT,
    State,
    StateFile,
    Status,
    forget_states,
    read_states,
    stamp_of,
)
from wsi_pgdips.config import Settings
from wsi_pgdips.disk import writing
from wsi_pgdips.errors import NotReadyError, OutputError, WsiPgdipsError
from wsi_pgdips.layers.provenance import DONE, RUN_RECORD, read_run_record
from wsi_pgdips.pipeline.lock import held_by_another, holding, outwait
from wsi_pgdips.pipeline.part import Part
from wsi_pgdips.pipeline.record import RunSummary
from wsi_pgdips.pipeline.retry import WAITS_S, has_passed, is_passing
from wsi_pgdips.pipeline.signals import Stop, Stopped
from wsi_pgdips.progress import LineProgress, Progress, Together

WHOLE = Part()


def work_on(
    folder: JobFolder,
    cohort: Cohort,
    entry: Entry,
    part: Part = WHOLE,
    *,
    shown: Progress | None = None,
    stop: Stop | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> State | None:
    """Run a slide, or a part of it; its state is kept and returned, done or failed.

    None where another process works on it: what becomes of the slide is its to say.

    Args:
        shown: also gets the progress. stop: may end the work.
        device, threads: in place of the settings', where slides share a machine.

    Raises:
        BaseException: only what is no fault of the slide: an interruption.
    """
    own, stop = folder.state(entry) / part.name, stop or Stop()
    try:
        if not (
            outwait(folder.output(entry), part, stop.check) and outwait(own, WHOLE, stop.check)
        ):
            return None
        with ExitStack() as stack:
            try:  # also while nobody works on the output: before, between two attempts, and after
                stack.enter_context(holding(own))
            except OutputError:
                if held_by_another(own, WHOLE):
                    return None
                raise
            return _held(folder, cohort, entry, part, shown, stop, device, threads)
    except (WsiPgdipsError, OSError) as error:  # of its state or log: others may have better luck
        return unwritten(error, part)


def unwritten(error: WsiPgdipsError | OSError, part: Part = WHOLE) -> State:
    """A failure that is not on disk."""
    ours = error if isinstance(error, WsiPgdipsError) else OutputError(str(error))
    said = _words(ours)
    return State(part.name, "failed", exit_code=ours.exit_code, unwritten=True, **said)


def _held(
    folder: JobFolder,
    cohort: Cohort,
    entry: Entry,
    part: Part,
    shown: Progress | None,
    stop: Stop,
    device: str | None,
    threads: int | None,
) -> State:
    first, done_before = part.does("calibrate"), _finished(folder, entry)
    # to overwrite what this cohort has made would never come to an end
    begun = bool(read_states(folder.state(entry)))
    stamp = stamp_of(entry.slide)
    try:
        settings = _settings(cohort, entry, device, threads)
    except WsiPgdipsError as error:
        return _failed(StateFile(folder.state(entry), part, "", stamp), error)
    file = StateFile(folder.state(entry), part, settings.science.digest(), stamp)
    if first:
        forget_states(folder.state(entry), part)
    log = folder.log(entry)
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        opened = log.open("a", encoding="utf-8", errors="backslashreplace")

    def stopped(by: object) -> None:
        file.say(status="stopped", reason=f"stopped: {by or 'interrupted'}")

    with _closing(opened) as lines, stop.telling(lambda number: stopped(Stopped(number))):
        told = _Log(lines)
        progress = Together([file, told, *([shown] if shown else [])], stop.check)
        try:
            try:
                summary = _with_retries(folder, cohort, entry, settings, part, progress, begun)
            except Exception:  # who was taken for dead may find its files gone
                summary = None if done_before else _finished(folder, entry)
                if summary is None:
                    raise
                told.note("another process has finished the slide")
            if summary is None:
                return file.write(status="stage_done", exit_code=0)
            target = folder.normalised(entry)
            # layers that were finished before are found so by the first stage
            if summary.exit_code == 0 and target is not None and (first or part.does("finalize")):
                _normalise(folder, cohort, entry, target, progress)
            return _ended(file, summary)
        except KeyboardInterrupt as error:
            stopped(error)
            raise
        except WsiPgdipsError as error:
            told.note(str(error))
            unready = isinstance(error, NotReadyError)
            return _failed(file, error, "unready" if unready else "failed")
        except Exception as error:  # one slide's surprise must not take the cohort down
            _keep(error, lines)
            hint = (
                "see whether the disk is there; `cohort retry --failed` tries again"
                if is_passing(error)
                else f"this is a bug of wsi-pgdips: please report what {log} says, without what "
                "names a patient"
            )
            reason = f"unexpected {type(error).__name__}: {error}"
            return file.write(status="failed", exit_code=1, reason=reason, hint=hint)


@contextmanager
def _closing(log: TextIO) -> Iterator[TextIO]:
    """A full disk says so again when what it did not take is to be closed."""
    try:
        yield log
    finally:
        with suppress(OSError):
            log.close()


class _Log(LineProgress):
    """A slide is not to fail for its log."""

    def note(self, message: str) -> None:
        with suppress(OSError):
            super().note(message)


def _settings(cohort: Cohort, entry: Entry, device: str | None, threads: int | None) -> Settings:
    settings = cohort.settings(entry)
    if device is None:
        return settings
    # this process is one of the cohort's workers
    own = {"device": device, "threads": threads, "workers": 1, "cluster": "local"}
    execution = settings.execution.model_copy(update=own)
    return settings.model_copy(update={"execution": execution})


def _with_retries(
    folder: JobFolder,
    cohort: Cohort,
    entry: Entry,
    settings: Settings,
    part: Part,
    progress: Progress,
    begun: bool,
) -> RunSummary | None:
    from wsi_pgdips.pipeline.slide import run_part

    slide, output = Path(entry.slide), folder.output(entry)
    for attempt in itertools.count():
        wait = WAITS_S[min(attempt, len(WAITS_S) - 1)]
        try:
            summary = run_part(slide, output, settings, part, progress, begun=begun or attempt > 0)
            if (
                part.stage
                or summary is None
                or not summary.failed_tiles
                or attempt == cohort.retries
            ):
                return summary
            progress.note(f"{summary.failed_tiles} tiles failed: looking at them in {wait:g} s")
            time.sleep(wait)
            if not has_passed(slide, output, settings.science):
                return summary
            progress.note("they can be read now: trying again")
        except (WsiPgdipsError, OSError) as error:
            if attempt == cohort.retries or not is_passing(error):
                raise
            progress.note(f"{error}\nthis may pass: trying again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _normalise(
    folder: JobFolder, cohort: Cohort, entry: Entry, target: Path, progress: Progress
) -> None:
    if copy_is_current(folder, entry):
        return
    from wsi_pgdips.export.normalize import normalize_slide
    from wsi_pgdips.export.place import is_export

    normalize_slide(
        folder.output(entry),
        target,
        reference=entry.reference,
        slide=entry.slide,
        overwrite=cohort.settings(entry).execution.overwrite or is_export(target),
        progress=progress,
    )


def copy_is_current(folder: JobFolder, entry: Entry) -> bool:
    """Whether a slide has its copy in another look, where it is to have one."""
    target = folder.normalised(entry)
    if target is None or entry.reference is None:
        return True
    if not target.exists() or stamp_of(entry.slide) in ("", ABSENT):
        return target.exists()  # without its slide no other can be made
    # an export appears whole or not at all; an older one is of layers or a look that were replaced
    made, record = target.stat().st_mtime, folder.output(entry) / RUN_RECORD
    if record.is_file() and record.stat().st_mtime > made:
        return False
    look = Path(entry.reference)
    if not look.is_file() or look.stat().st_mtime <= made:
        return True
    from wsi_pgdips.export.place import tiff_record
    from wsi_pgdips.looks.files import load_reference

    return bool(tiff_record(target).get("reference_sha256") == load_reference(look).digest)


def _ended(file: StateFile, summary: RunSummary) -> State:
    reason = ""
    if summary.exit_code:
        reason = f"{summary.failed_tiles} tiles and {summary.failed_blocks} blocks failed"
        if not summary.failed_tiles and not summary.failed_blocks:
            reason = f"parts of the slide could not be read ({', '.join(summary.flags)})"
    return file.write(
        status="incomplete" if summary.exit_code else "done",
        exit_code=summary.exit_code,
        reason=reason,
        hint="`cohort retry --failed` tries them again" if reason else "",
        tiles=summary.tiles,
        failed_tiles=summary.failed_tiles,
        wall_s=round(sum(summary.wall_s.values()), 3),
    )


def _finished(folder: JobFolder, entry: Entry) -> RunSummary | None:
    """Of layers that are done, whoever has made them."""
    output = folder.output(entry)
    try:
        record = read_run_record(output)
    except OutputError:
        return None
    if record.get("status") != DONE:
        return None
    return RunSummary.of_record(output, record, already_done=True)


def _failed(file: StateFile, error: WsiPgdipsError, status: Status = "failed") -> State:
    return file.write(status=status, exit_code=error.exit_code, **_words(error))


def _words(error: WsiPgdipsError) -> dict[str, Any]:
    told = [("expected", error.expected), ("found", error.found), ("where", error.where)]
    more = "; ".join(f"{name}: {value}" for name, value in told if value is not None)
    reason = f"{error.message} ({more})" if more else error.message
    return {"reason": reason, "hint": error.hint or ""}


def _keep(error: Exception, log: TextIO) -> None:
    with suppress(OSError):
        traceback.print_exception(error, file=log)
        log.flush()
