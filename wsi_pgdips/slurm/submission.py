"""Submitting a cohort to Slurm, and what is known of its jobs afterwards."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.runner import left_of
from wsi_pgdips.cohort.state import ask_for_attempt
from wsi_pgdips.disk import write_atomic, writing
from wsi_pgdips.errors import OutputError, SlurmError, WsiPgdipsError
from wsi_pgdips.pipeline.lock import lock_output, locks_of
from wsi_pgdips.slurm import queue
from wsi_pgdips.slurm.plan import REPORT, Job, plan_jobs
from wsi_pgdips.slurm.resources import Resources
from wsi_pgdips.slurm.script import script_of

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
        facts = {
            "jobs": [asdict(job) for job in self.jobs],
            "resources": asdict(self.resources),
            "splitting": asdict(self.splitting),
            "ids": self.ids,
        }
        write_atomic(self.path / "jobs.json", json.dumps(facts, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        facts = json.loads((path / "jobs.json").read_bytes())
        resources: dict[str, Any] = facts["resources"]
        for name in ("extra", "setup"):
            resources[name] = tuple(resources[name])
        return cls(
            path,
            tuple(_job(job) for job in facts["jobs"]),
            Resources(**resources),
            Splitting(**facts["splitting"]),
            facts["ids"],
        )

    @classmethod
    def latest(cls, folder: JobFolder) -> Self | None:
        """The last that was made; None where none was."""
        found = [n for n in _numbers(folder) if (_path(folder, n) / "jobs.json").exists()]
        return cls.read(_path(folder, max(found))) if found else None

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)

    def queued(self) -> list[queue.Queued] | None:
        """Its jobs that wait or run; None where there is no Slurm.

        Raises:
            SlurmError: it does not answer.
        """
        return queue.queued(list(self.ids.values()))


def _numbers(folder: JobFolder) -> list[int]:
    """Of the submissions, in any order."""
    return [int(p.name) for p in folder.slurm.glob("*") if p.name.isdecimal()]


def _path(folder: JobFolder, number: int) -> Path:
    return folder.slurm / f"{number:03d}"


def _job(facts: dict[str, Any]) -> Job:
    slides = tuple(tuple(s) for s in facts["slides"])
    return Job(facts["name"], slides, facts["stage"], tuple(facts["after"]))


def plan_submission(
    folder: JobFolder,
    cohort: Cohort,
    todo: Sequence[Entry],
    resources: Resources,
    splitting: Splitting,
) -> Submission:
    """Which jobs would be submitted; nothing is written."""
    split = [e.name for e in todo if _is_split(cohort, e, splitting)]
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
    """Text of each job's script, by its name."""
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
    """Submit what is left of a cohort; ids of the jobs.

    Args:
        note: is told what the submission goes on without.

    Raises:
        OutputError: it is being worked on, here or by jobs that have not ended.
        SlurmError: Slurm refuses; what it took before is cancelled.
    """
    with lock_output(folder.plan):
        refuse_while_queued(folder)
        folder.keep(cohort, note)
        todo = left_of(folder, cohort, failed_too=failed_too)
        planned = plan_submission(folder, cohort, todo, resources, splitting)
        if not planned.jobs:
            return []
        with writing(planned.path):
            (planned.path / "logs").mkdir(parents=True)
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
    """The report too; slides are worked on also where Slurm refuses that, as some options do."""
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
    """Submit what is left as the last time.

    Raises:
        As ``submit``.
    """
    last = Submission.latest(folder)
    if last is None:
        raise SlurmError("nothing was submitted from this folder", where=folder.path)
    _, cohort = JobFolder.opened(folder.path)
    how = last.resources, last.splitting
    return submit(folder, cohort, *how, failed_too=failed_too, note=note)


def was_submitted(folder: JobFolder) -> bool:
    return Submission.latest(folder) is not None


def refuse_while_queued(folder: JobFolder) -> None:
    """
    Raises:
        OutputError: jobs of the folder wait or run. SlurmError: it does not say.
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
    """What waits or runs of a slide, in words, "" for nothing; None where nobody can tell."""
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
    """End the jobs of a folder; ids of those that had not ended.

    Raises:
        SlurmError: nothing was submitted, or Slurm refuses.
    """
    last = Submission.latest(folder)
    if last is None:
        raise SlurmError("nothing was submitted from this folder", where=folder.path)
    waiting = last.queued()
    if waiting is None:
        raise SlurmError("there is no Slurm here", expected="the command squeue", found="none")
    ids = sorted({q.job for q in waiting}, key=int)
    queue.cancel(ids)
    return ids


def _is_split(cohort: Cohort, entry: Entry, splitting: Splitting) -> bool:
    return splitting.always or _blocks(cohort, entry) > splitting.above


def _blocks(cohort: Cohort, entry: Entry) -> int:
    """Of a slide with its glass; 0 where it cannot be opened, which its job will say."""
    from wsi_pgdips.slide.opening import open_slide

    try:
        source = open_slide(Path(entry.slide), cohort.settings(entry).science)
    except (WsiPgdipsError, OSError):
        return 0
    try:
        rows, columns = source.grid.block_grid
        return rows * columns
    finally:
        source.close()
