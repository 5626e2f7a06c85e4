"""A cohort as jobs of a real Slurm: the same bytes and the same failures as in one process."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.cheap_runs import differing
from support.cluster import CHEAP, JOB, PROGRAM, jobs_of, logs, program, slurm, until
from support.cluster import wait_for_jobs as wait
from support.cohorts import leftovers, summary
from wsi_pgdips.export.place import tiff_record
from wsi_pgdips.looks.files import load_reference

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

REAL = ("CMU-1-Small-Region.svs", "BS9_HE2_40x_AT2.svs", "metaplasia_trypsin_DAB_20x.svs")
FAST = ("--preset=fast", "--block=1024")
MANY_BLOCKS = (*CHEAP, "--preset=balanced")


def phantom(path: Path, size: str) -> Path:
    program("phantom", path, "--size", size, "--quiet")
    return path


def one_slide(path: Path, size: str, *options: str) -> tuple[Path, Path]:
    """(a manifest of one phantom, the layers of a run of it in one process)."""
    whole, manifest = path.with_suffix(".whole.ome.zarr"), path.with_suffix(".csv")
    program("run", phantom(path, size), whole, *options, "--quiet")
    manifest.write_text(f"slide\n{path.name}\n")
    return manifest, whole


def blank(path: Path) -> Path:
    """A slide without tissue: glass, with its scale in the file."""
    glass = np.full((700, 900, 3), 244, np.uint8)
    Image.fromarray(glass).save(path, dpi=(50800, 50800))  # 0.5 um a pixel
    return path


def failures(folder: Path) -> dict[str, str]:
    with (folder / "failures.csv").open() as file:
        return {Path(row["slide"]).name: row["reason"] for row in csv.DictReader(file)}


def row_of(said: str, name: str) -> str:
    return next(line for line in said.splitlines() if line.startswith(name))


@pytest.mark.realslide
def test_a_cohort_of_real_slides_with_broken_ones_among_them(
    data_dir: Path, tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in REAL:
        shutil.copyfile(data_dir / "slides" / name, slides / name)
    phantom(slides / "phantom.tiff", "900x700")
    whole = (slides / "phantom.tiff").read_bytes()
    (slides / "truncated.tiff").write_bytes(whole[: len(whole) // 3])
    blank(slides / "blank.tif")
    manifest = slides / "cohort.csv"
    names = [*REAL, "phantom.tiff", "truncated.tiff", "blank.tif"]
    stains = {REAL[2]: "hdab"}
    manifest.write_text("slide,stains\n" + "".join(f"{n},{stains.get(n, 'he')}\n" for n in names))

    here, there = tmp_path / "here", tmp_path / "there"
    program("cohort", "run", manifest, here, *FAST, "--quiet", code=3)
    program("slurm", "submit", manifest, there, *FAST, *JOB)
    refused = program("slurm", "submit", manifest, there, *FAST, *JOB, code=2)
    assert "jobs of this folder have not ended" in refused.stderr
    assert program("cohort", "run", manifest, there, *FAST, code=2).stderr.count("not ended") == 1
    assert "waiting" in program("cohort", "status", there, code=3).stdout
    wait(there)

    for folder in (here, there):
        found = summary(folder)
        assert (found["done"], found["failed"], found["exit_code"]) == (4, 2, 3), logs(there)
        reasons = failures(folder)
        assert reasons.keys() == {"truncated.tiff", "blank.tif"}
        assert "damaged or truncated" in reasons["truncated.tiff"]
        assert "no tissue found" in reasons["blank.tif"]
    assert failures(here) == failures(there)
    ids = jobs_of(there)
    codes = slurm("scontrol", "show", "job", ids["slides-0"])
    assert codes.count("ExitCode=0:0") == 4
    assert codes.count("ExitCode=3:0") == 2
    assert "ExitCode=3:0" in slurm("scontrol", "show", "job", ids["report"])
    done = [Path(n).stem for n in names[:4]]
    for name in done:
        layers = f"layers/{name}.ome.zarr"
        assert differing(here / layers, there / layers) == [], name
    assert leftovers(there) == []
    said = program("cohort", "status", there, code=3).stdout
    assert all(row_of(said, name).split()[1] == "done" for name in done)
    program("cohort", "verify", there)
    # nothing is left to do, and what failed is tried again when that is asked for
    assert "nothing" in program("cohort", "retry", there).stdout
    (slides / "truncated.tiff").write_bytes(whole)
    program("cohort", "retry", there, "--failed")
    wait(there, "002")
    assert summary(there)["done"] == 5


def test_one_slide_over_four_tasks_on_two_nodes(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    manifest, whole = one_slide(tmp_path / "large.tiff", "3100x2100", *MANY_BLOCKS)
    resources = [*JOB, "--split-slide", "--split-tasks=4"]
    program("slurm", "submit", manifest, folder, *MANY_BLOCKS, *resources)
    wait(folder)
    assert summary(folder)["done"] == 1, logs(folder)
    assert differing(whole, folder / "layers" / "large.ome.zarr") == []
    assert leftovers(folder) == []
    program("cohort", "verify", folder)
    ids = jobs_of(folder)
    assert len(ids) == 6
    for stage in ("fit", "render"):
        job = ids[f"split-0-large-{stage}"]
        parts = sorted(p.stem for p in folder.glob(f"state/large/{stage}-*.json"))
        assert parts == [f"{stage}-{i}-of-4" for i in (1, 2, 3, 4)]
        nodes = slurm("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%N").split()
        assert len(nodes) == 4
        if slurm("sinfo", "-h", "-o", "%D").split() == ["2"]:
            assert set(nodes) == {"n1", "n2"}


def test_a_task_of_a_split_slide_is_cancelled_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    manifest, whole = one_slide(tmp_path / "small.tiff", "1500x1100", *FAST)
    split = ("--split-slide", "--split-tasks=2")
    program("slurm", "submit", manifest, folder, *FAST, *JOB, *split)
    slurm("scancel", f"{jobs_of(folder)['split-0-small-fit']}_0")
    wait(folder)
    assert summary(folder)["interrupted"] == 1, logs(folder)
    assert "blend cannot begin (expected: fit of the whole slide" in failures(folder)["small.tiff"]
    done = [p.name for p in folder.glob("layers/*/work/fit/*.npz")]
    assert len(done) == 2  # of the other task
    program("cohort", "retry", folder)
    wait(folder, "002")
    assert summary(folder)["done"] == 1, logs(folder)
    assert differing(whole, folder / "layers" / "small.ome.zarr") == []
    assert leftovers(folder) == []


def test_a_split_slide_that_cannot_begin_leaves_no_job_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.svs").write_text("no slide")
    manifest, folder = tmp_path / "one.csv", tmp_path / "job"
    manifest.write_text("slide\nbroken.svs\n")
    program("slurm", "submit", manifest, folder, *MANY_BLOCKS, *JOB, "--split-slide")
    wait(folder)
    assert summary(folder)["failed"] == 1
    assert len(failures(folder)) == 1
    for name, job in jobs_of(folder).items():
        assert "ExitCode=3:0" in slurm("scontrol", "show", "job", job), name


def test_a_job_sees_the_gpus_that_slurm_gave_it(tmp_path: Path) -> None:
    if "gpu:" not in slurm("sinfo", "-h", "-o", "%G"):
        pytest.skip("this Slurm has no GPUs, not even fake ones: SLURM_GPUS=2 start_slurm.sh")
    phantom(tmp_path / "a.tiff", "600x500")
    shutil.copyfile(tmp_path / "a.tiff", tmp_path / "b.tiff")
    manifest, folder = tmp_path / "two.csv", tmp_path / "job"
    manifest.write_text("slide\na.tiff\nb.tiff\n")
    # the device is looked for where the job runs, and only among those it was given
    told = ["--setup", 'echo "given: $CUDA_VISIBLE_DEVICES"', "--gpus-per-task=1"]
    program("slurm", "submit", manifest, folder, *FAST, *JOB, *told)
    job = jobs_of(folder)["slides-0"]
    assert "gres:gpu:1" in slurm("scontrol", "show", "job", job)
    wait(folder)
    given = [line for line in logs(folder).splitlines() if line.startswith("given: ")]
    assert given.count("given: ") == 1  # the report has none
    assert len(given) == 3
    assert set(given) <= {"given: ", "given: 0", "given: 1"}
    assert summary(folder)["done"] == 2


def test_of_two_submissions_at_once_one_is_refused(tmp_path: Path) -> None:
    phantom(tmp_path / "small.tiff", "600x500")
    manifest, folder = tmp_path / "one.csv", tmp_path / "job"
    manifest.write_text("slide\nsmall.tiff\n")
    command = [*PROGRAM, "slurm", "submit", manifest, folder, *FAST, *JOB]
    both = [
        subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    # both may find the other at work, and then neither goes on; but never both
    assert sorted(codes) in ([0, 2], [2, 2]), said
    if 0 not in codes:
        program(*command[len(PROGRAM) :])
    assert [p.name for p in folder.glob("slurm/*/jobs.json")] == ["jobs.json"]
    wait(folder)
    assert summary(folder)["done"] == 1
    assert leftovers(folder) == []


def test_out_of_time_it_is_started_anew_until_it_is_done(tmp_path: Path) -> None:
    slow = (*CHEAP, "--preset=paper", "--iterations=1")
    folder = tmp_path / "job"
    manifest, undisturbed = one_slide(tmp_path / "slow.tiff", "3100x2100", *slow)
    # Slurm counts in minutes, and looks every half of one: the signal comes after 30 to 60 s, in
    # which a start has to finish a block, and may not finish all twelve
    short = ("--mem=3G", "--cpus-per-task=1", "--time=2", "--signal-before=60")
    program("slurm", "submit", manifest, folder, *slow, *short)
    job = jobs_of(folder)["slides-0"]
    until(lambda: "out of time: goes on in a new start" in logs(folder), folder)
    wait(folder)
    assert "Restarts=0" not in slurm("scontrol", "show", "job", job)
    assert summary(folder)["done"] == 1, logs(folder)
    assert differing(undisturbed, folder / "layers" / "slow.ome.zarr") == []
    assert leftovers(folder) == []


def test_looks_alone_with_a_broken_slide_and_one_added_later(tmp_path: Path) -> None:
    slides, job = tmp_path / "slides", tmp_path / "job"
    slides.mkdir()
    whole = phantom(slides / "a.tiff", "900x700").read_bytes()
    phantom(slides / "b.tiff", "700x600")
    (slides / "truncated.tiff").write_bytes(whole[: len(whole) // 3])
    manifest = slides / "cohort.csv"
    options = ("--looks-only", "--reference=he", *JOB)

    def submit(*names: str) -> None:
        rows = "".join(f"{name}.tiff,lab\n" for name in names)
        manifest.write_text(f"slide,group\n{rows}")
        submission = len(list(job.glob("slurm/0*"))) + 1
        program("slurm", "submit", manifest, job, *options)
        wait(job, f"{submission:03d}")

    def group_of(name: str) -> object:
        return tiff_record(job / "layers" / f"{name}.he.tiff").get("group_sha256")

    first, later = ("a", "truncated", "b"), ("a", "truncated", "b", "later")
    submit(*first)  # looks
    assert summary(job)["done"] == 2, logs(job)
    assert list(failures(job)) == ["truncated.tiff"]
    submit(*first)  # groups, and copies by them
    assert group_of("a") == group_of("b") == load_reference(job / "groups" / "lab.json").digest
    shutil.copyfile(slides / "b.tiff", slides / "later.tiff")
    submit(*later)
    submit(*later)
    now = load_reference(job / "groups" / "lab.json")
    assert len(now.slides) == 3
    assert {group_of(name) for name in ("a", "b", "later")} == {now.digest}
    assert not list(job.rglob("*.zarr"))
