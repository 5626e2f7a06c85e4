"""The work of one job, or of one task of an array: its slides, or its share of one."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.state import (
    State,
    StateFile,
    obstacle,
    read_states,
    stamp_of,
    state_of_slide,
)
from wsi_pgdips.cohort.work import SlideWork
from wsi_pgdips.pipeline.ledger import Ledger
from wsi_pgdips.pipeline.part import Part
from wsi_pgdips.pipeline.signals import LONGER, TOO_SHORT, Stop, Stopped, stoppable
from wsi_pgdips.pipeline.slide import is_restarted
from wsi_pgdips.progress import Progress
from wsi_pgdips.slurm.queue import requeue_this
from wsi_pgdips.slurm.submission import Submission

EXIT_FAILED = 3


def run_task(folder: JobFolder, submission: str, job: str, task: int, shown: Progress) -> int:
    """Work on the slides of a task; return the exit code.

    A signal before the time limit drops the work in hand and asks Slurm to restart the job; a
    signal that ends the job is obeyed. Finished pieces are kept in any case.

    Returns:
        0 all done; 3 some failed, or a stage before did; 75 to be restarted; 143 ended.
    """
    _, cohort = JobFolder.opened(folder.path)
    planned = Submission.read(folder.slurm / submission).job(job)
    slides = [cohort.entry(name) for name in planned.slides[task]]
    part = planned.part(task)
    before = _progress(folder, slides)
    in_vain = False
    states: list[State | None] = []

    def start_anew() -> None:
        again = requeue_this()
        shown.note("out of time: " + ("goes on in a new start" if again else "cannot be requeued"))

    def ask_for_more(number: int) -> None:
        nonlocal in_vain
        if not Stopped(number).asks_for_more:
            return
        in_vain = is_restarted() and _progress(folder, slides) == before
        if not in_vain:
            start_anew()

    try:
        with stoppable() as stop, stop.telling(ask_for_more):
            for entry in slides:
                states.append(_one(folder, cohort, entry, part, shown, stop))
    except Stopped as stopped:
        if in_vain:
            in_hand, *others = slides[len(states) :]
            _give_up(folder, cohort, in_hand, part)
            shown.note(f"{in_hand.name}: nothing was finished since the last start; given up")
            if not others:
                return EXIT_FAILED
            start_anew()
        if not stopped.asks_for_more:
            shown.note(f"ended by {stopped}; what is done is kept")
        return stopped.exit_code
    good = ("done", "stage_done")
    return 0 if all(s is not None and s.status in good for s in states) else EXIT_FAILED


def _one(
    folder: JobFolder,
    cohort: Cohort,
    entry: Entry,
    part: Part,
    shown: Progress,
    stop: Stop,
) -> State | None:
    """Work on a slide, unless it has ended, or a stage before could not begin."""
    before = obstacle(part, read_states(folder.state(entry)))
    if before is not None:
        shown.note(f"{entry.name}: {before.status} before {before.reason}")
        return before
    state = SlideWork(folder, cohort, entry, part, shown, stop).run()
    text = "another process works on it" if state is None else state.text
    shown.note(f"{entry.name}: {text}")
    return state


def _progress(folder: JobFolder, slides: Sequence[Entry]) -> int:
    """Return a number that grows with each finished piece, and with each slide that has ended."""
    ended = [state_of_slide(read_states(folder.state(e))) for e in slides]
    over = sum(s is not None and s.has_ended for s in ended)
    return 10**6 * over + sum(Ledger(folder.output(e)).pieces() for e in slides)


def _give_up(folder: JobFolder, cohort: Cohort, entry: Entry, part: Part) -> None:
    digest = cohort.settings(entry).science.digest()
    StateFile(folder.state(entry), part, digest, stamp_of(entry.slide)).write(
        status="failed",
        exit_code=EXIT_FAILED,
        reason=TOO_SHORT,
        hint=LONGER,
    )
