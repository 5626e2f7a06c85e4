"""What Slurm is asked and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wsi_pgdips.errors import SlurmError
from wsi_pgdips.slurm import queue


def test_what_waits_or_runs(slurm: Any) -> None:
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


def test_a_slurm_that_does_not_answer(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ANSWER_S", 0.2)
    for command in ("squeue", "sbatch", "scontrol"):
        slurm.says(command, "exec sleep 30")
    with pytest.raises(SlurmError, match="does not answer"):
        queue.queued(["7"])
    with pytest.raises(SlurmError, match="does not answer"):
        queue.submit_script(Path("a.sbatch"))
    assert queue.max_array() == queue.MAX_ARRAY - 1


def test_submitting_a_script(slurm: Any, tmp_path: Path) -> None:
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
def test_how_many_tasks_an_array_may_have(slurm: Any, said: str, tasks: int) -> None:
    slurm.says("scontrol", said)
    assert queue.max_array() == tasks


def test_a_job_asks_to_be_started_anew(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_job_does_not_take_what_submits_it_for_itself(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "STEP_ID", "STEP_NUM_TASKS", "RESTART_COUNT"):
        monkeypatch.setenv(f"SLURM_{name}", "5")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    seen = tmp_path / "seen"
    slurm.says("sbatch", f"set > '{seen}'; echo 1")
    queue.submit_script(tmp_path / "a.sbatch")
    found = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert {n for n in found if n.startswith("SLURM_")} == {"SLURM_CONF"}
