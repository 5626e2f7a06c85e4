"""Which jobs a cohort becomes, what their scripts say, and what they ask for."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.pipeline.part import OVER_BLOCKS, STAGES, Part
from wsi_pgdips.slurm.plan import REPORT, Job, plan_jobs
from wsi_pgdips.slurm.script import Resources, script_of, seconds_of

NAMES = st.lists(st.text("ab/ ]é%", min_size=1, max_size=6), unique=True, max_size=25)


@given(
    whole=NAMES,
    split=NAMES,
    parts=st.integers(1, 9),
    slides_per_task=st.integers(1, 5),
    max_array=st.integers(1, 7),
)
def test_each_slide_is_worked_on_once_and_in_order(
    whole: list[str], split: list[str], parts: int, slides_per_task: int, max_array: int
) -> None:
    split = [name for name in split if name not in whole]
    jobs = plan_jobs(
        whole, split, parts=parts, slides_per_task=slides_per_task, max_array=max_array
    )
    assert len({job.name for job in jobs}) == len(jobs)
    assert all(len(job.slides) <= max_array for job in jobs)
    arrays = [job for job in jobs if job.stage is None and job.name != REPORT]
    assert [s for job in arrays for task in job.slides for s in task] == whole
    assert all(1 <= len(task) <= slides_per_task for job in arrays for task in job.slides)
    assert all(job.part(t) == Part() for job in arrays for t in range(len(job.slides)))
    assert all(not job.after for job in arrays)

    known: set[str] = set()
    for job in jobs:  # nothing waits for what comes later, so nothing waits in a circle
        assert set(job.after) <= known
        known.add(job.name)
    for slide in split:
        own = [job for job in jobs if job.stage and job.slides[0] == (slide,)]
        assert [job.stage for job in own] == list(STAGES)
        assert [job.after for job in own] == [(), *((job.name,) for job in own[:-1])]
        for job in own:
            done = [job.part(t) for t in range(len(job.slides))]
            if job.stage in OVER_BLOCKS:
                n = min(parts, max_array)
                assert done == [Part(job.stage, i + 1, n) for i in range(n)]
            else:
                assert done == [Part(job.stage)]
    if jobs:
        before = {name for job in jobs[:-1] for name in job.after}
        assert jobs[-1].name == REPORT
        assert set(jobs[-1].after) == {job.name for job in jobs[:-1]} - before
        assert not jobs[-1].is_array
    assert bool(jobs) == bool(whole or split)


FOLDER = Path("/data/job")


SMALL = Resources(program="wsi-pgdips")


ARRAY = """\
#!/usr/bin/env bash
#SBATCH --job-name=wsi-pgdips-slides-0
#SBATCH --output=/data/job/slurm/001/logs/slides-0-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --gpus-per-task=1
#SBATCH --array=0-1%5
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --constraint=a100
# without -u: what sites load here often uses unset variables
set -eo pipefail
module load cuda
# exec: the signals of Slurm reach the program itself, which drops its work and exits
exec wsi-pgdips slurm task /data/job --submission 001 --job slides-0 --task "$SLURM_ARRAY_TASK_ID"
"""


STAGE = """\
#!/usr/bin/env bash
#SBATCH --job-name=wsi-pgdips-split-0-a-blend
#SBATCH --output=/data/job/slurm/001/logs/split-0-a-blend-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
# without -u: what sites load here often uses unset variables
set -eo pipefail
# exec: the signals of Slurm reach the program itself, which drops its work and exits
exec wsi-pgdips slurm task /data/job --submission 001 --job split-0-a-blend --task 0
"""


REPORTS = """\
#!/usr/bin/env bash
#SBATCH --job-name=wsi-pgdips-report
#SBATCH --output=/data/job/slurm/001/logs/report-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=00:30:00
# without -u: what sites load here often uses unset variables
set -eo pipefail
# exec: the signals of Slurm reach the program itself, which drops its work and exits
exec wsi-pgdips cohort report /data/job
"""


def script(job: Job, resources: Resources = SMALL, folder: Path = FOLDER) -> str:
    return script_of(job, resources, folder=folder, submission="001")


def test_scripts_word_by_word() -> None:
    resources = replace(
        SMALL,
        partition="gpu",
        gpus_per_task=1,
        cpus_per_task=8,
        time="1-00:00:00",
        mem="32G",
        account="lab",
        qos="high",
        array_limit=5,
        extra=("--constraint=a100",),
        setup=("module load cuda",),
    )
    assert script(Job("slides-0", (("a",), ("b", "c"))), resources) == ARRAY
    assert script(Job("split-0-a-blend", (("a",),), "blend", ("before",))) == STAGE
    assert script(Job(REPORT, ((),), after=("slides-0",))) == REPORTS


def directives(text: str) -> dict[str, str]:
    """Of a script, with the quotes taken off as Slurm does, much as a shell."""
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line.removeprefix("#SBATCH "), comments=True) for line in lines]
    assert all(len(w) == 1 for w in words), words
    return {name: value for name, _, value in (w[0].partition("=") for w in words)}


ODD = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="/"),
    min_size=1,
    max_size=12,
).filter(lambda s: s not in (".", ".."))


@given(name=ODD, slide=ODD, stage=st.sampled_from([None, *STAGES]))
def test_any_folder_and_any_slide(name: str, slide: str, stage: Any) -> None:
    folder = Path("/data") / name
    jobs = plan_jobs([] if stage else [slide], [slide] if stage else [])
    job = next(j for j in jobs if j.stage == stage)
    text = script(job, folder=folder)
    found = directives(text)
    log = f"{folder}/slurm/001/logs/{job.name}-{'%A_%a' if job.is_array else '%j'}.out"
    assert found["--output"].replace("%%", "%") == log
    assert found["--job-name"] == f"wsi-pgdips-{job.name}"
    last = shlex.split(text.splitlines()[-1])
    assert last[:5] == ["exec", "wsi-pgdips", "slurm", "task", str(folder)]
    assert last[last.index("--job") + 1] == job.name


@pytest.mark.parametrize("name", ["a b", 'quo"te', "it's", "100%", "$HOME", "back\\slash", "a#b"])
def test_scripts_are_shell(name: str, tmp_path: Path) -> None:
    folder = Path("/data") / name
    jobs = plan_jobs([name, "b"], [f"big {name}"], parts=2)
    assert len(jobs) == 7
    resources = replace(SMALL, setup=('echo "it is set up"',), extra=("--nice",))
    for job in jobs:
        text = script(job, resources, folder)
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_script_is_a_function_of_what_it_is_given() -> None:
    job = Job("slides-0", (("a",),))
    assert script(job) == script(job)
    assert "--array=0-0\n" in script(job)  # a task number in any case
    assert "--array" not in script(Job("split-0-a-fit", (("a",),), "fit"))
    assert "--array=0-3\n" in script(Job("split-0-a-fit", (("a",),) * 4, "fit"))


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.j2"
    mine.write_text("#!/bin/sh\n{{ job.name }} {{ folder | sh }}\n")
    resources = replace(SMALL, template=str(mine))
    assert script(Job(REPORT, ((),)), resources) == "#!/bin/sh\nreport /data/job\n"
    for broken in ("{{ nothing_known }}", "{% if %}"):
        mine.write_text(broken)
        with pytest.raises(SettingsError, match=r"template(.|\n)*mine\.j2"):
            script(Job(REPORT, ((),)), resources)
    mine.unlink()
    with pytest.raises(SettingsError, match="template"):
        script(Job(REPORT, ((),)), resources)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800),
        ("2:30", 150),
        ("1:02:03", 3723),
        ("1-1", 90000),
        ("1-1:30", 91800),
        ("2-00:00:05", 172805),
        ("UNLIMITED", None),
    ],
)
def test_times_of_slurm(time: str, seconds: int | None) -> None:
    assert seconds_of(time) == seconds
    assert Resources(time=time).time == time


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"time": "soon"}, "not a --time of Slurm"),
        ({"time": "2"}, "over before a job would be told"),
        ({"mem": "16 GB"}, "not a --mem of Slurm"),
        ({"extra": ("constraint=a100",)}, "not an option of sbatch"),
        ({"setup": ("module load a\nrm x",)}, "more than one line"),
    ],
)
def test_what_slurm_would_not_take(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Resources(**wrong)
