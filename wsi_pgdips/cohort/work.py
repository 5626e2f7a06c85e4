"""The work on one slide of a cohort, or on a part of it; its state says how it ended."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.looks import group_has, keep_look, look_at, measure
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.state import ABSENT, State, StateFile, read_states, stamp_of
from wsi_pgdips.config import Settings
from wsi_pgdips.disk import make_folder, share, writing
from wsi_pgdips.errors import NotReadyError, OutputError, WsiPgdipsError
from wsi_pgdips.layers.provenance import DONE, RUN_RECORD, read_run_record
from wsi_pgdips.pipeline.lock import LockedError, lock_output, wait_until_free
from wsi_pgdips.pipeline.part import Part
from wsi_pgdips.pipeline.record import RunSummary
from wsi_pgdips.pipeline.retry import WAITS_S, has_passed, is_passing, retrying
from wsi_pgdips.pipeline.signals import Stop, Stopped
from wsi_pgdips.progress import LineProgress, Progress, Together

WHOLE = Part()


@dataclass(frozen=True)
class SlideWork:
    """The work of this process on a slide.

    Attributes:
        part: of the slide that is done. shown: also gets the progress. stop: may end the work.
        device, threads: in place of the settings', where slides share a machine.
    """

    folder: JobFolder
    cohort: Cohort
    entry: Entry
    part: Part = WHOLE
    shown: Progress | None = None
    stop: Stop = field(default_factory=Stop)
    device: str | None = None
    threads: int | None = None

    @property
    def output(self) -> Path:
        return self.folder.output(self.entry)

    def run(self) -> State | None:
        """Do the work; return the state of the part, done or failed, which is also kept on disk.

        None where another process works on the slide, and will write its state.

        Raises:
            BaseException: only what is no fault of the slide: an interruption.
        """
        # locked while nobody works on the output, too: before, between two attempts, and after
        own = self.folder.state(self.entry) / self.part.name
        try:
            if not wait_until_free(self.output, self.part, self.stop.check):
                return None
            if not wait_until_free(own, WHOLE, self.stop.check):
                return None
            with lock_output(own):
                return self._run_locked()
        except LockedError:
            return None
        except (WsiPgdipsError, OSError) as error:  # of the state or the log: others may succeed
            return unwritten(error, self.part)

    def _run_locked(self) -> State:
        done_before, begun = self._finished(), bool(read_states(self.folder.state(self.entry)))
        log = self.folder.log(self.entry)
        try:
            settings = self._settings()
        except WsiPgdipsError as error:
            return _write_failure(self._state_file(""), error)
        file = self._state_file(settings.science.digest())

        def write_stopped(by: object) -> None:
            file.write_soon(status="stopped", reason=f"stopped: {by or 'interrupted'}")

        with (
            _opened(log) as lines,
            self.stop.telling(lambda number: write_stopped(Stopped(number))),
        ):
            logged = _Log(lines)
            shown = [self.shown] if self.shown else []
            progress = Together([file, logged, *shown], self.stop.check)
            try:
                try:
                    # to overwrite layers of this cohort again and again would never end
                    if self.cohort.looks_only:
                        return self._look_only(file, progress)
                    summary = self._with_retries(settings, progress, begun)
                except Exception:  # if another process took this one for dead, files may be gone
                    summary = None if done_before else self._finished()
                    if summary is None:
                        raise
                    logged.note("another process has finished the slide")
                if summary is None:
                    return file.write(status="stage_done", exit_code=0)
                # layers that were finished before are found by the first stage
                is_last = self.part.does("calibrate") or self.part.does("finalize")
                if summary.verdict.status == "fail":
                    logged.note("the verdict is `fail`, so there is no normalised copy")
                elif not summary.has_failures and is_last:
                    keep_look(self.folder, self.entry)
                    self._normalize(progress)
                return _write_end(file, summary)
            except KeyboardInterrupt as error:
                write_stopped(error)
                raise
            except WsiPgdipsError as error:
                logged.note(str(error))
                return _write_failure(file, error)
            except Exception as error:  # a bug in one slide must not end the cohort
                with suppress(OSError):
                    traceback.print_exception(error, file=lines)
                    lines.flush()
                hint = (
                    "see whether the disk is there; `cohort retry --failed` tries again"
                    if is_passing(error)
                    else f"this is a bug of wsi-pgdips: please report what {log} says, without "
                    "what names a patient"
                )
                reason = f"unexpected {type(error).__name__}: {error}"
                return file.write(status="failed", exit_code=1, reason=reason, hint=hint)

    def _state_file(self, digest: str) -> StateFile:
        folder, stamp = self.folder.state(self.entry), stamp_of(self.entry.slide)
        return StateFile(folder, self.part, digest, stamp)

    def _settings(self) -> Settings:
        """Return the settings of the slide.

        Raises:
            SettingsError: a value cannot be used.
        """
        settings = self.cohort.settings(self.entry)
        if self.device is None:
            return settings
        # this process is one of the cohort's workers
        own = {"device": self.device, "threads": self.threads, "workers": 1, "cluster": "local"}
        execution = settings.execution.model_copy(update=own)
        return settings.model_copy(update={"execution": execution})

    def _with_retries(
        self, settings: Settings, progress: Progress, begun: bool
    ) -> RunSummary | None:
        """Run the part, again after a passing fault; return what ``run_part`` returns."""
        from wsi_pgdips.pipeline.slide import run_part

        slide = Path(self.entry.slide)

        def note(outcome: Any, wait_s: float) -> None:
            if isinstance(outcome, BaseException):
                progress.note(f"{outcome}\nthis may pass: trying again in {wait_s:g} s")
            else:
                lost = outcome.failed_tiles
                progress.note(f"{lost} tiles failed: looking at them in {wait_s:g} s")

        def lacks_tiles(summary: RunSummary | None) -> bool:
            return summary is not None and summary.failed_tiles > 0 and self.part.stage is None

        summary: RunSummary | None = None
        policy = retrying(WAITS_S, self.cohort.retries, again=lacks_tiles, note=note)
        for attempt in policy:
            if summary is not None:  # its tiles failed
                if not has_passed(slide, self.output, settings.science):
                    break
                progress.note("they can be read now: trying again")
                summary = None
            state = attempt.retry_state
            with attempt:
                again = begun or state.attempt_number > 1
                summary = run_part(slide, self.output, settings, self.part, progress, begun=again)
            if state.outcome is not None and not state.outcome.failed:
                state.set_result(summary)
        return summary

    def _look_only(self, file: StateFile, progress: Progress) -> State:
        """Measure the slide's look, unless it is there, and write the copy by it."""
        measure(self.folder, self.cohort, self.entry)
        self._normalize(progress)
        return file.write(status="done", exit_code=0)

    def _normalize(self, progress: Progress) -> None:
        """Write the slide in the look of its reference, where that is wanted and not there.

        A slide of a group waits until its look is in that of the group.
        """
        entry, folder = self.entry, self.folder
        target = folder.normalised(entry)
        waits = entry.group is not None and not group_has(folder, entry)
        if target is None or waits or copy_is_current(folder, entry):
            return
        from wsi_pgdips.export.normalize import normalize_slide
        from wsi_pgdips.export.place import is_export

        overwrite = self.cohort.settings(entry).execution.overwrite
        make_folder(target.parent)
        normalize_slide(
            None if self.cohort.looks_only else self.output,
            target,
            reference=folder.reference(entry),
            slide=entry.slide,
            look=folder.look(entry) if self.cohort.looks_only else None,
            group_look=None if entry.group is None else folder.group(entry.group),
            overwrite=overwrite or is_export(target),
            progress=progress,
        )

    def _finished(self) -> RunSummary | None:
        """Return the summary of layers that are done, whoever has made them."""
        try:
            record = read_run_record(self.output)
        except OutputError:
            return None
        if record.get("status") != DONE:
            return None
        return RunSummary.of_record(self.output, record, already_done=True)


def copy_is_current(folder: JobFolder, entry: Entry) -> bool:
    """Return whether a slide has its copy in another look, where it is to have one."""
    target = folder.normalised(entry)
    if target is None or entry.reference is None:
        return True
    if not target.exists() or stamp_of(entry.slide) in ("", ABSENT):
        return target.exists()  # without its slide no other can be made
    # an export appears whole or not at all; an older one is of layers or a look that were replaced
    made, record = target.stat().st_mtime, folder.output(entry) / RUN_RECORD
    if record.is_file() and record.stat().st_mtime > made:
        return False
    looks = {"reference_sha256": Path(folder.reference(entry) or "")}
    if entry.group is not None:
        looks["group_sha256"] = folder.group(entry.group)
    newer = {k: p for k, p in looks.items() if p.is_file() and p.stat().st_mtime > made}
    if not newer:
        return True
    from wsi_pgdips.export.place import tiff_record

    written = tiff_record(target)
    return all(written.get(key) == look_at(path).digest for key, path in newer.items())


def unwritten(error: WsiPgdipsError | OSError, part: Part = WHOLE) -> State:
    """Return the state of a failure that is not on disk."""
    own = error if isinstance(error, WsiPgdipsError) else OutputError(str(error))
    return State(
        part.name, "failed", exit_code=own.exit_code, unwritten=True, **_reason_and_hint(own)
    )


def _write_failure(file: StateFile, error: WsiPgdipsError) -> State:
    status = "unready" if isinstance(error, NotReadyError) else "failed"
    return file.write(status=status, exit_code=error.exit_code, **_reason_and_hint(error))


def _write_end(file: StateFile, summary: RunSummary) -> State:
    reason = ""
    if summary.has_failures:
        reason = f"{summary.failed_tiles} tiles and {summary.failed_blocks} blocks failed"
        if not summary.failed_tiles and not summary.failed_blocks:
            reason = f"parts of the slide could not be read ({', '.join(summary.flags)})"
    return file.write(
        status="incomplete" if summary.has_failures else "done",
        exit_code=summary.exit_code,
        reason=reason,
        hint="`cohort retry --failed` tries them again" if reason else "",
        tiles=summary.tiles,
        failed_tiles=summary.failed_tiles,
        verdict=summary.verdict.status,
        verdict_reasons=summary.verdict.reasons,
        wall_s=round(sum(summary.wall_s.values()), 3),
    )


def _reason_and_hint(error: WsiPgdipsError) -> dict[str, Any]:
    facts = [("expected", error.expected), ("found", error.found), ("where", error.where)]
    more = "; ".join(f"{name}: {value}" for name, value in facts if value is not None)
    reason = f"{error.message} ({more})" if more else error.message
    return {"reason": reason, "hint": error.hint or ""}


@contextmanager
def _opened(log: Path) -> Iterator[TextIO]:
    """Open the log of a slide to append to it; a full disk is no error when it is closed.

    Raises:
        OutputError: it cannot be opened.
    """
    with writing(log):
        make_folder(log.parent)
        lines = log.open("a", encoding="utf-8", errors="backslashreplace")
        share(log)
    try:
        yield lines
    finally:
        with suppress(OSError):
            lines.close()


class _Log(LineProgress):
    """The log of a slide, which does not fail if its log cannot be written."""

    def note(self, message: str) -> None:
        with suppress(OSError):
            super().note(message)
