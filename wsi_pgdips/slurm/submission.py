"""Submit a cohort to Slurm, and follow its jobs afterwards."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.looks import pool_groups
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.runner import left_of
from wsi_pgdips.cohort.state import ask_for_attempt
from wsi_pgdips.disk import make_folder, write_atomic, writing
from wsi_pgdips.errors import OutputError, SlurmError, WsiPgdipsError
from wsi_pgdips.pipeline.lock import lock_output, locks_of
from wsi_pgdips.slurm import queue
from wsi_pgdips.slurm.plan import REPORT, Job, plan_jobs
from wsi_pgdips.slurm.script import Resources, script_of

SPLIT_ABOVE = 200  # blocks


@dataclass(frozen=True)
class Splitting:
    """Which slides are shared by several jobs.

    Attributes:
        always: all. above: those of more blocks than this. parts: tasks that share the blocks.
        slides_per_task: of the others.
    """

    always: bool = False
    above: int = SPLIT_ABOVE
    parts: int = 4
    slides_per_task: int = 1


@dataclass(frozen=True)
class Submission:
    """Jobs that were submitted together, as kept in their folder ``slurm/NNN``.

    Attributes:
        path: the folder. jobs: as planned. ids: of Slurm, by name, as far as submitted.
    """

    path: Path
    jobs: tuple[Job, ...]
    resources: Resources
    splitting: Splitting
    ids: dict[str, str]

    def keep(self) -> None:
        """Write the submission to its folder.

        Raises:
            OutputError: it cannot be written.
        """
        facts = asdict(self)
        del facts["path"]
        write_atomic(self.path / "jobs.json", json.dumps(facts, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the submission that is kept in a folder."""
        facts = json.loads((path / "jobs.json").read_bytes())
        return TypeAdapter(cls).validate_python({**facts, "path": path})

    @classmethod
    def latest(cls, folder: JobFolder) -> Self | None:
        """Return the last submission of a cohort; None where none was made."""
        found = [n for n in _numbers(folder) if (_path(folder, n) / "jobs.json").exists()]
        return cls.read(_path(folder, max(found))) if found else None

    @classmethod
    def last(cls, folder: JobFolder) -> Self:
        """Return the last submission of a cohort.

        Raises:
            SlurmError: none was made.
        """
        if latest := cls.latest(folder):
            return latest
        raise SlurmError("nothing was submitted from this folder", where=folder.path)

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)

    def queued(self) -> list[queue.Queued] | None:
        """Return its jobs that wait or run; None where there is no Slurm.

        Raises:
            SlurmError: it does not answer.
        """
        return queue.queued(list(self.ids.values()))


def _numbers(folder: JobFolder) -> list[int]:
    """Return the numbers of the submissions, in any order."""
    return [int(p.name) for p in folder.slurm.glob("*") if p.name.isdecimal()]


def _path(folder: JobFolder, number: int) -> Path:
    return folder.slurm / f"{number:03d}"


def plan_submission(
    folder: JobFolder,
    cohort: Cohort,
    todo: Sequence[Entry],
    resources: Resources,
    splitting: Splitting,
) -> Submission:
    """Return the jobs that would be submitted; nothing is written."""
    always, above = splitting.always, splitting.above
    large = [] if cohort.looks_only else todo
    split = [e.name for e in large if always or _blocks(cohort, e) > above]
    apart = set(split)
    whole = [e.name for e in todo if e.name not in apart]
    jobs = plan_jobs(
        whole,
        split,
        parts=splitting.parts,
        slides_per_task=splitting.slides_per_task,
        max_array=queue.max_array(),
    )
    path = _path(folder, 1 + max(_numbers(folder), default=0))
    return Submission(path, tuple(jobs), resources, splitting, {})


def scripts_of(folder: JobFolder, planned: Submission) -> dict[str, str]:
    """Return the text of each job's script, by its name."""
    return {
        job.name: script_of(
            job, planned.resources, folder=folder.path, submission=planned.path.name
        )
        for job in planned.jobs
    }


def submit(
    folder: JobFolder,
    cohort: Cohort,
    resources: Resources,
    splitting: Splitting,
    *,
    failed_too: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Submit what is left of a cohort; return the ids of the jobs.

    Args:
        note: is told what the submission goes on without.

    Raises:
        OutputError: another process or jobs that have not ended work on the cohort.
        SlurmError: Slurm refuses; what it took before is cancelled.
    """
    with lock_output(folder.plan):
        refuse_while_queued(folder)
        folder.keep(cohort, note)
        pool_groups(folder, cohort, note)  # of the looks that an earlier submission has made
        todo = left_of(folder, cohort, failed_too=failed_too)
        planned = plan_submission(folder, cohort, todo, resources, splitting)
        if not planned.jobs:
            return []
        with writing(planned.path):
            make_folder(planned.path / "logs")
        for name, text in scripts_of(folder, planned).items():
            write_atomic(planned.path / f"{name}.sbatch", os.fsencode(text))
        planned.keep()
        for entry in todo:  # a job leaves alone what has ended
            ask_for_attempt(folder.state(entry))
        ids: dict[str, str] = {}
        try:
            for job in planned.jobs:
                if job.name == REPORT:
                    continue
                script = planned.path / f"{job.name}.sbatch"
                ids[job.name] = queue.submit_script(script, [ids[name] for name in job.after])
                planned = replace(planned, ids=dict(ids))
                planned.keep()
        except BaseException:
            with contextlib.suppress(SlurmError):  # those that are left are seen in the queue
                queue.cancel(list(ids.values()))
            raise
        return list(_with_report(planned, note).ids.values())


def _with_report(planned: Submission, note: Callable[[str], None]) -> Submission:
    """Submit the report as well; the slides do not depend on it, and Slurm may refuse it."""
    try:
        # what has ended while others were submitted may be forgotten, and is refused then
        waiting = planned.queued()
        after = [planned.ids[name] for name in planned.job(REPORT).after]
        if waiting is not None:
            left = {q.job for q in waiting}
            after = [job for job in after if job in left]
        job = queue.submit_script(planned.path / f"{REPORT}.sbatch", after)
    except SlurmError as error:
        note(f"no report job: {error}\n`wsi-pgdips cohort report` writes it when all have ended")
        return planned
    planned = replace(planned, ids={**planned.ids, REPORT: job})
    planned.keep()
    return planned


def submit_again(
    folder: JobFolder, *, failed_too: bool, note: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Submit what is left with the resources of the last submission; return the ids of the jobs.

    Raises:
        SlurmError, OutputError: as ``submit``.
    """
    last, (_, cohort) = Submission.last(folder), JobFolder.opened(folder.path)
    how = last.resources, last.splitting
    return submit(folder, cohort, *how, failed_too=failed_too, note=note)


def was_submitted(folder: JobFolder) -> bool:
    return Submission.latest(folder) is not None


def refuse_while_queued(folder: JobFolder) -> None:
    """Refuse to go on while jobs of the folder wait or run.

    Raises:
        OutputError: there are some. SlurmError: Slurm does not answer.
    """
    last = Submission.latest(folder)
    waiting = (last.queued() if last else None) or []
    if waiting:
        ids = sorted({q.job for q in waiting}, key=int)
        raise OutputError(
            "jobs of this folder have not ended",
            expected="a folder that nobody works on",
            found=f"{len(waiting)} of {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}",
            where=folder.path,
            hint="wait for them (`wsi-pgdips cohort status`), or `wsi-pgdips slurm cancel`",
        )


def queue_of(folder: JobFolder) -> Callable[[str], str] | None:
    """Return a function from the name of a slide to the job that waits or runs for it, "" for none.

    None where nothing is known of jobs.
    """
    if any(locks_of(folder.plan).values()):  # `cohort run`, or retry --local, which does them all
        return lambda _: "waits its turn"
    last = Submission.latest(folder)
    try:
        waiting = None if last is None else last.queued()
    except SlurmError:
        waiting = None
    if last is None or waiting is None:
        return None
    names = {job_id: name for name, job_id in last.ids.items()}
    text: dict[str, str] = {}
    # what runs says more than what waits behind it
    for one in sorted(waiting, key=lambda q: (q.state != "RUNNING", int(q.job))):
        job = last.job(names[one.job])
        tasks = job.slides if one.task is None else job.slides[one.task : one.task + 1]
        for slide in (s for task in tasks for s in task):
            text.setdefault(slide, f"{job.stage}: {one.text}" if job.stage else one.text)
    return lambda slide: text.get(slide, "")


def cancel(folder: JobFolder) -> list[str]:
    """End the jobs of a folder; return the ids of those that had not ended.

    Raises:
        SlurmError: nothing was submitted, or Slurm refuses.
    """
    waiting = Submission.last(folder).queued()
    if waiting is None:
        raise SlurmError("there is no Slurm here", expected="the command squeue", found="none")
    ids = sorted({q.job for q in waiting}, key=int)
    queue.cancel(ids)
    return ids


def _blocks(cohort: Cohort, entry: Entry) -> int:
    """Return the blocks of a slide with its glass; 0 where it cannot be opened."""
    from wsi_pgdips.slide.reader import open_slide

    try:
        source = open_slide(Path(entry.slide), cohort.settings(entry).science)
    except (WsiPgdipsError, OSError):
        return 0
    try:
        rows, columns = source.grid.block_grid
        return rows * columns
    finally:
        source.close()
