"""Which jobs a cohort becomes, what their scripts say, and what a fake Slurm is asked."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.report import rows_of
from wsi_pgdips.cohort.state import StateFile, read_states, state_of_slide
from wsi_pgdips.errors import OutputError, SettingsError, SlurmError
from wsi_pgdips.pipeline.lock import lock_output
from wsi_pgdips.pipeline.part import OVER_BLOCKS, STAGES, Part
from wsi_pgdips.slurm import queue
from wsi_pgdips.slurm.plan import REPORT, Job, plan_jobs
from wsi_pgdips.slurm.script import Resources, script_of
from wsi_pgdips.slurm.submission import (
    Splitting,
    Submission,
    cancel,
    queue_of,
    refuse_while_queued,
    submit,
    submit_again,
)

NAMES = st.lists(st.text("ab/ ]é%", min_size=1, max_size=6), unique=True, max_size=25)


class FakeSlurm:
    """Commands on the PATH: they note how they were called, and say what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "next").write_text("100")
        self.says(
            "sbatch",
            f'n=$(cat {folder}/next); echo $((n + 1)) > {folder}/next; echo "$n;cluster"',
        )
        self.says("squeue", "true")
        self.says("scancel", "true")
        self.says("scontrol", "echo 'MaxArraySize            = 1001'")

    def says(self, command: str, script: str) -> None:
        path = self.folder / command
        calls = shlex.quote(str(self.folder / "calls"))
        path.write_text(f'#!/bin/sh\necho "{command} $*" >> {calls}\n{script}\n')
        path.chmod(0o755)

    def lacks(self, command: str) -> None:
        (self.folder / command).unlink()

    def calls(self, command: str) -> list[str]:
        """Arguments of each call of a command so far."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split()[0] == command]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    # nothing else but a shell and what scripts need: a real Slurm must not be asked
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "sleep"):
        found = next(Path(p) / name for p in ("/bin", "/usr/bin") if (Path(p) / name).exists())
        (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", f"{fake.folder}:{tools}")
    for name in [n for n in os.environ if n.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return fake


# which jobs


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


# what their scripts say

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
# not -u: what sites load at the start of a job seldom stands it
set -eo pipefail
module load cuda
# exec: the signals of Slurm reach the program itself, which ends what it has in hand
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
# not -u: what sites load at the start of a job seldom stands it
set -eo pipefail
# exec: the signals of Slurm reach the program itself, which ends what it has in hand
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
# not -u: what sites load at the start of a job seldom stands it
set -eo pipefail
# exec: the signals of Slurm reach the program itself, which ends what it has in hand
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


# what Slurm is asked


def test_what_waits_or_runs(slurm: FakeSlurm) -> None:
    assert queue.queued([]) == []
    slurm.says(
        "squeue",
        "echo '7|0|RUNNING|None'; echo '7|1|PENDING|Resources'; echo '9|N/A|PENDING|(a|b)'; "
        "echo 'slurm says hello'",
    )
    found = queue.queued(["7", "9"])
    assert found == [
        queue.Queued("7", 0, "RUNNING", "None"),
        queue.Queued("7", 1, "PENDING", "Resources"),
        queue.Queued("9", None, "PENDING", "(a|b)"),
    ]
    assert [q.text for q in found[:2]] == ["job 7 running", "job 7 pending (Resources)"]
    (call,) = slurm.calls("squeue")
    assert "-j 7,9" in call
    # a job that is long over
    slurm.says("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queue.queued(["7"]) == []
    slurm.says("squeue", "echo 'slurm_load_jobs error: Unable to contact controller' >&2; exit 1")
    with pytest.raises(SlurmError, match="Unable to contact"):
        queue.queued(["7"])
    slurm.lacks("squeue")
    assert queue.queued(["7"]) is None


def test_a_slurm_that_does_not_answer(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ANSWER_S", 0.2)
    for command in ("squeue", "sbatch", "scontrol"):
        slurm.says(command, "exec sleep 30")
    with pytest.raises(SlurmError, match="does not answer"):
        queue.queued(["7"])
    with pytest.raises(SlurmError, match="does not answer"):
        queue.submit_script(Path("a.sbatch"))
    assert queue.max_array() == queue.MAX_ARRAY - 1


def test_submitting_a_script(slurm: FakeSlurm, tmp_path: Path) -> None:
    script = tmp_path / "a b.sbatch"
    assert queue.submit_script(script) == "100"
    assert queue.submit_script(script, ["100", "7"]) == "101"
    assert slurm.calls("sbatch") == [
        f"--parsable {script}",
        f"--parsable --dependency=afterany:100:7 {script}",
    ]
    slurm.says("sbatch", "echo 'welcome to the cluster'; echo 55")
    assert queue.submit_script(script) == "55"
    for said in ("true", "echo 'Submitted, more or less'"):
        slurm.says("sbatch", said)
        with pytest.raises(SlurmError, match="does not say which job"):
            queue.submit_script(script)
    slurm.says("sbatch", "echo 'invalid partition' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"refused(.|\n)*invalid partition"):
        queue.submit_script(script)
    (slurm.folder / "sbatch").chmod(0o644)
    with pytest.raises(SlurmError, match="there is no Slurm here"):
        queue.submit_script(script)
    slurm.lacks("sbatch")
    with pytest.raises(SlurmError, match=r"there is no Slurm here(.|\n)*cohort run"):
        queue.submit_script(script)


@pytest.mark.parametrize(
    ("said", "tasks"),
    [
        ("echo 'MaxArraySize            = 4001'", 4000),
        ("echo 'MaxArraySize = 0'", 1),
        ("echo 'SomethingElse = 7'", 1000),
        ("exit 1", 1000),
    ],
)
def test_how_many_tasks_an_array_may_have(slurm: FakeSlurm, said: str, tasks: int) -> None:
    slurm.says("scontrol", said)
    assert queue.max_array() == tasks


def test_a_job_asks_to_be_started_anew(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not queue.requeue_this()  # no job
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert queue.requeue_this()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")  # its own, or of the job that submitted it
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert queue.requeue_this()
    monkeypatch.setenv("SLURM_JOB_ID", "10")  # one task has the id of the whole array
    assert queue.requeue_this()
    assert slurm.calls("scontrol") == ["requeue 12", "requeue 12", "requeue 10_2"]
    slurm.says("scontrol", "exit 1")
    assert not queue.requeue_this()
    slurm.says("scontrol", "kill -TERM $$")  # the job is ended, scontrol with it, before it answers
    assert queue.requeue_this()


# submitting a cohort


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path / "job [1]")


def cohort(*names: str, **options: Any) -> Cohort:
    return Cohort(tuple(Entry(n, f"/none/{n}.svs", f"layers/{n}.ome.zarr") for n in names), options)


def submit_all(folder: JobFolder, *names: str, **others: Any) -> list[str]:
    return submit(folder, cohort(*names), SMALL, Splitting(), **others)


def waiting(slurm: FakeSlurm, *jobs: str) -> None:
    slurm.says("squeue", "; ".join(f"echo '{job}|0|PENDING|None'" for job in jobs) or "true")


def test_a_cohort_is_submitted_and_watched(slurm: FakeSlurm, folder: JobFolder) -> None:
    waiting(slurm, "104", "109")
    ids = submit(folder, cohort("a", "b"), SMALL, Splitting(always=True, parts=2))
    assert ids == [str(100 + i) for i in range(11)]
    calls = slurm.calls("sbatch")
    after = [c.partition("afterany:")[2].split()[0] if "after" in c else "" for c in calls]
    assert after == ["", "100", "101", "102", "103", "", "105", "106", "107", "108", "104:109"]
    last = Submission.latest(folder)
    assert last is not None
    assert last.path == folder.slurm / "001"
    assert list(last.ids.values()) == ids
    assert {p.stem for p in last.path.glob("*.sbatch")} == set(last.ids)
    assert Submission.read(last.path) == last

    slurm.says("squeue", "echo '101|0|PENDING|Priority'; echo '101|1|RUNNING|None'")
    rows = rows_of(folder, cohort("a", "b"), queue_of(folder))
    assert [(r.standing, r.queue) for r in rows] == [
        ("waiting", "fit: job 101 running"),
        ("interrupted", ""),
    ]
    with pytest.raises(OutputError, match=r"have not ended(.|\n)*2 of 101"):
        refuse_while_queued(folder)
    with pytest.raises(OutputError, match="have not ended"):
        submit_all(folder, "a", "b")
    assert cancel(folder) == ["101"]
    assert slurm.calls("scancel") == ["101"]
    waiting(slurm)
    assert cancel(folder) == []
    ids = submit_again(folder, failed_too=False)
    assert len(ids) == 11
    assert [p.parent.name for p in sorted(folder.slurm.glob("*/jobs.json"))] == ["001", "002"]


def test_slides_are_worked_on_without_a_report_that_is_refused(
    slurm: FakeSlurm, folder: JobFolder
) -> None:
    taken = 'case "$*" in *report*) echo "no GPU" >&2; exit 1;; *) echo 7;; esac'
    slurm.says("sbatch", taken)
    waiting(slurm, "7")
    notes: list[str] = []
    assert submit_all(folder, "a", note=notes.append) == ["7"]
    assert slurm.calls("sbatch")[-1].startswith("--parsable --dependency=afterany:7 ")
    assert slurm.calls("scancel") == []
    assert "no GPU" in notes[0]
    assert "cohort report" in notes[0]
    last = Submission.latest(folder)
    assert last is not None
    assert last.ids == {"slides-0": "7"}
    waiting(slurm)  # what has ended long ago is not waited for: Slurm would refuse it
    slurm.says("sbatch", "echo 8")
    assert submit_all(folder, "a") == ["8", "8"]
    assert "dependency" not in slurm.calls("sbatch")[-1]


def test_a_job_does_not_take_what_submits_it_for_itself(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "STEP_ID", "STEP_NUM_TASKS", "RESTART_COUNT"):
        monkeypatch.setenv(f"SLURM_{name}", "5")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    seen = tmp_path / "seen"
    slurm.says("sbatch", f"set > '{seen}'; echo 1")
    queue.submit_script(tmp_path / "a.sbatch")
    found = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert {n for n in found if n.startswith("SLURM_")} == {"SLURM_CONF"}


def test_slides_that_are_no_longer_named(slurm: FakeSlurm, folder: JobFolder) -> None:
    notes: list[str] = []
    submit_all(folder, "a", "b", "c", note=notes.append)
    assert notes == []
    submit_all(folder, "b", note=notes.append)
    assert notes == ["2 slides are no longer of the cohort: a, c; what they became stays"]
    assert [e.name for e in JobFolder.opened(folder.path)[1].entries] == ["b"]


def test_who_is_worked_on_here_waits_its_turn(slurm: FakeSlurm, folder: JobFolder) -> None:
    submit_all(folder, "a", "b")
    StateFile(folder.path / "state" / "a", Part(), "").write(status="stopped")
    with lock_output(folder.plan):  # by cohort retry --local
        rows = rows_of(folder, cohort("a", "b"), queue_of(folder))
        assert [(r.standing, r.queue) for r in rows] == [("waiting", "waits its turn")] * 2
    rows = rows_of(folder, cohort("a", "b"), queue_of(folder))
    assert [r.standing for r in rows] == ["interrupted"] * 2


def test_what_was_taken_is_cancelled_when_a_later_job_is_refused(
    slurm: FakeSlurm, folder: JobFolder
) -> None:
    slurm.says(
        "sbatch",
        'case "$*" in *blend*) echo "no more jobs" >&2; exit 1;; *fit*) echo 8;; *) echo 7;; esac',
    )
    with pytest.raises(SlurmError, match="no more jobs"):
        submit(folder, cohort("a"), SMALL, Splitting(always=True))
    assert slurm.calls("scancel") == ["7 8"]
    # also where they cannot be cancelled the user is told why
    slurm.says("scancel", "echo 'not now' >&2; exit 1")
    with pytest.raises(SlurmError, match="no more jobs"):
        submit(folder, cohort("a"), SMALL, Splitting(always=True))
    last = Submission.latest(folder)
    assert last is not None
    assert sorted(last.ids.values()) == ["7", "8"]


def test_a_refused_submission_leaves_the_reasons_of_failures(
    slurm: FakeSlurm, folder: JobFolder
) -> None:
    plan = cohort("a")
    folder.keep(plan)
    digest = plan.settings(plan.entries[0]).science.digest()
    StateFile(folder.state(plan.entries[0]), Part(), digest).write(status="failed", reason="broken")
    slurm.says("sbatch", "echo 'invalid partition' >&2; exit 1")
    with pytest.raises(SlurmError, match="invalid partition"):
        submit_all(folder, "a", failed_too=True)
    (row,) = rows_of(folder, plan, lambda _: "")
    assert (row.standing, row.reason) == ("failed", "broken")


def test_without_an_answer_nothing_is_submitted(slurm: FakeSlurm, folder: JobFolder) -> None:
    submit_all(folder, "a")
    slurm.says("squeue", "echo 'no controller' >&2; exit 1")
    with pytest.raises(SlurmError, match="no controller"):
        submit_all(folder, "a")
    assert queue_of(folder) is None
    assert len(slurm.calls("sbatch")) == 2


def test_what_has_ended_is_worked_on_again(slurm: FakeSlurm, folder: JobFolder) -> None:
    plan = cohort("failed", "gone", "fresh")
    digest = plan.settings(plan.entries[0]).science.digest()
    StateFile(folder.state(plan.entries[0]), Part(), digest).write(status="failed", reason="x")
    StateFile(folder.state(plan.entries[1]), Part(), digest).write(status="done")  # no layers
    submit(folder, plan, SMALL, Splitting(), failed_too=False)
    last = Submission.latest(folder)
    assert last is not None
    assert last.job("slides-0").slides == (("gone",), ("fresh",))
    found = [state_of_slide(read_states(folder.state(e))) for e in plan.entries]
    # a job leaves alone what has ended
    assert [s and (s.status, s.has_ended) for s in found] == [
        ("failed", True),
        ("done", False),
        None,
    ]
    submit(folder, plan, SMALL, Splitting(), failed_too=True)
    last = Submission.latest(folder)
    assert last is not None
    assert last.job("slides-0").slides == (("failed",), ("gone",), ("fresh",))
    found = [state_of_slide(read_states(folder.state(e))) for e in plan.entries]
    assert [s and (s.status, s.digest, s.has_ended) for s in found] == [
        ("failed", digest, False),
        ("done", digest, False),
        None,
    ]


def test_submissions_are_counted_on(slurm: FakeSlurm, folder: JobFolder) -> None:
    for name in ("999", "1000", "001.copy", "dask"):
        (folder.slurm / name).mkdir(parents=True)
    submit_all(folder, "a")
    last = Submission.latest(folder)
    assert last is not None
    assert last.path.name == "1001"


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


def test_a_dry_run_writes_nothing(
    slurm: FakeSlurm, tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.csv").write_text("slide,output\na.svs,\nb.svs,100% of b.ome.zarr\n")
    before = tree(tmp_path)
    arguments = ("slurm", "submit", tmp_path / "m.csv", tmp_path / "job", "--slides-per-task=2")
    assert call(*arguments, "--dry-run", "--program=wsi") == 0
    said = capsys.readouterr().out
    assert "### slides-0.sbatch\n#!/usr/bin/env bash" in said
    assert "### report.sbatch, after slides-0\n" in said
    assert "--array=0-0\n" in said
    assert tree(tmp_path) - before <= {"fake/calls"}
    assert slurm.calls("sbatch") == []


def test_on_the_command_line(
    slurm: FakeSlurm,
    tmp_path: Path,
    call: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "m.csv").write_text("slide\na.svs\n")
    monkeypatch.chdir(tmp_path)
    # jobs start in other folders: nothing in a script is relative
    assert call("slurm", "submit", "m.csv", "job", "--mem=lots") == 2
    assert call("slurm", "submit", "m.csv", "job", "--cluster=tcp://h:1") == 2
    assert call("slurm", "submit", "m.csv", "job", "--time=1:00:00") == 0
    assert "100, 101" in capsys.readouterr().out
    waiting(slurm, "100")
    assert call("cohort", "status", "job") == 3
    assert "job 100 pending" in capsys.readouterr().out
    for arguments in (
        ("slurm", "submit", "m.csv", "job"),
        ("cohort", "run", "m.csv", "job"),
        ("cohort", "retry", "job"),
        ("cohort", "retry", "job", "--local"),
    ):
        assert call(*arguments) == 2
        assert "have not ended" in capsys.readouterr().err
    assert call("slurm", "cancel", "job") == 0
    assert slurm.calls("scancel") == ["100"]
    waiting(slurm)
    assert call("slurm", "cancel", "job") == 0
    assert "nothing" in capsys.readouterr().out
    assert call("cohort", "retry", "job") == 0
    assert "102, 103" in capsys.readouterr().out
    for text in (p.read_text() for p in (tmp_path / "job" / "slurm").glob("*/*.sbatch")):
        assert f" {tmp_path}/job" in text.splitlines()[-1]
        assert "--time=1:00:00" in text or "report" in text
    facts = json.loads((tmp_path / "job" / "slurm" / "002" / "jobs.json").read_text())
    assert facts["ids"] == {"slides-0": "102", "report": "103"}
    (tmp_path / "other").mkdir()
    assert call("slurm", "cancel", "other") == 2
    slurm.lacks("squeue")
    assert call("slurm", "cancel", "job") == 2
    assert call("cohort", "status", "job") == 3
