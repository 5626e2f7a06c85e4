"""The jobs of a cohort; nothing is submitted here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from wsi_pgdips.pipeline.part import OVER_BLOCKS, STAGES, Part, Stage

REPORT = "report"


@dataclass(frozen=True)
class Job:
    """One submission to Slurm.

    Attributes:
        name: unique in the cohort. slides: names of those that each task of the job works on, one
            by one; a job of one task is no array. stage: of a slide that many jobs share, None
            for whole slides. after: jobs that must have ended, well or not, before it begins.
    """

    name: str
    slides: tuple[tuple[str, ...], ...]
    stage: Stage | None = None
    after: tuple[str, ...] = ()

    @property
    def is_array(self) -> bool:
        return (self.stage is None and self.name != REPORT) or len(self.slides) > 1

    def part(self, task: int) -> Part:
        """Return the part of its slides that a task does."""
        if self.stage in OVER_BLOCKS:
            return Part(self.stage, task + 1, len(self.slides))
        return Part(self.stage)


def plan_jobs(
    whole: Sequence[str],
    split: Sequence[str],
    *,
    parts: int = 4,
    slides_per_task: int = 1,
    max_array: int = 1000,
) -> list[Job]:
    """Return the jobs of a cohort, each after those it waits for.

    Args:
        whole: slides of one task each. split: slides whose stages are jobs of their own.
        parts: tasks that share the blocks of one. max_array: tasks of an array, at most.

    Returns:
        Arrays of whole slides; for each other ``calibrate -> fit[] -> blend -> render[] ->
        finalize``; and ``report``, after all.
    """
    tasks = [tuple(whole[i : i + slides_per_task]) for i in range(0, len(whole), slides_per_task)]
    jobs = [
        Job(f"slides-{i // max_array}", tuple(tasks[i : i + max_array]))
        for i in range(0, len(tasks), max_array)
    ]
    last = [job.name for job in jobs]
    for number, slide in enumerate(split):
        before: tuple[str, ...] = ()
        for stage in STAGES:
            name = f"split-{number}-{_short_name(slide)}-{stage}"
            count = min(parts, max_array) if stage in OVER_BLOCKS else 1
            jobs.append(Job(name, ((slide,),) * count, stage, before))
            before = (name,)
        last += before
    if jobs:
        jobs.append(Job(REPORT, ((),), after=tuple(last)))
    return jobs


def _short_name(slide: str) -> str:
    """Return a slide's name as part of the name of a job and its files."""
    name = PurePosixPath(slide).name
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:40]
