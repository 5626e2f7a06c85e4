"""The examples in pipelines/ load, and those that start programs hand on what they were given."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from wsi_pgdips.config import make_settings
from wsi_pgdips.optics.stain_files import load_stains

ROOT = Path(__file__).parent.parent
PIPELINES = ROOT / "pipelines"
SNAKEFILE = PIPELINES / "snakemake" / "Snakefile"
DOCKERFILE = (PIPELINES / "docker" / "Dockerfile").read_text()
APPTAINER = (PIPELINES / "apptainer" / "wsi-pgdips.def").read_text()


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.toml")), ids=lambda p: p.name)
def test_example_settings_load_and_their_stains_exist(path: Path):
    settings = make_settings({}, path)
    assert load_stains(settings.science.stains).n >= 1


def test_he_example_states_the_defaults():
    assert make_settings({}, PIPELINES / "he.toml").science == make_settings({}).science


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("**/*.sbatch")), ids=lambda p: p.name)
def test_batch_scripts_are_valid_bash(path: Path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_run_slide_passes_arguments_on(tmp_path: Path):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", str(PIPELINES / "slurm/run_slide.sbatch"), "a b.svs", "out", "--preset", "fast"],
        env={"PATH": "/usr/bin:/bin", "WSI_PGDIPS": str(program), "SLURM_CPUS_PER_TASK": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ["run", "a b.svs", "out", "--threads", "3", "--preset", "fast"]
    assert done.stdout.splitlines() == expected


def test_run_slide_says_how_it_is_used():
    done = subprocess.run(
        ["bash", str(PIPELINES / "slurm/run_slide.sbatch"), "a.svs"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "usage: sbatch run_slide.sbatch SLIDE" in done.stderr


@pytest.fixture(scope="module")
def manifests() -> ModuleType:
    """The Snakefile's reader of manifests, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("manifest", SNAKEFILE.with_name("manifest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["manifest"] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["manifest"]
    return module


def test_example_manifest_is_read(manifests: ModuleType):
    path = PIPELINES / "manifest.csv"
    jobs = list(manifests.read_manifest(path, Path("/out")).values())
    assert len(jobs) == len(path.read_text().splitlines()) - 1
    first, second, third, fourth, fifth = jobs
    assert first.slide == PIPELINES / "slides" / "case-001 HE.svs"
    assert first.layers == Path("/out/case-001 HE.ome.zarr")
    assert first.options == ()
    assert first.reference is None
    assert second.options == ("--mask", str(PIPELINES / "masks" / "case-002.geojson"))
    assert second.picture == Path("/out/case-002.he.tiff")
    assert third.layers == PIPELINES / "elsewhere" / "case-003.ome.zarr"
    assert third.options == ("--mpp", "0.5", "--mpp-source", "0.2528")
    assert (fourth.options, fourth.reference) == (("--stains", "hdab"), "hdab")
    assert fifth.options == ("--stains", f"{PIPELINES}/stains/ours.toml", "--mpp", "native")
    # keys go through shells and into names of files
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", job.key) for job in jobs)
    assert second.key == second.name
    with path.open(newline="") as lines:
        header = next(csv.reader(lines))
    assert set(header) == set(manifests.COLUMNS)


def test_reference_of_a_row_wins_over_that_of_all(manifests: ModuleType, tmp_path: Path):
    path = tmp_path / "m.csv"
    # as spreadsheets write it, with lines of empty cells
    path.write_text("\ufeffslide, reference\na.svs,ours.json\nb.svs,\n,\n", encoding="utf-8")
    a, b = manifests.read_manifest(path, tmp_path, "he").values()
    assert (a.reference, a.picture.name) == (str(tmp_path / "ours.json"), "a.ours.tiff")
    assert (b.reference, b.picture.name) == ("he", "b.he.tiff")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide\na/x.svs\nb/x.tiff\n", r"lines 2 and 3: two slides are called 'x'.*output"),
        ("slide,output\nx.svs,\ny.svs,z/x.ome.zarr\n", "two slides are called 'x'"),
        ("slide,stain\nx.svs,he\n", r"line 1: expected slide and any of stains.*stain"),
        ("slides\nx.svs\n", "line 1: expected slide"),
        ("slide,stains\n,he\n", "line 2: there is no slide"),
        ("slide\nx, y.svs\n", "line 2: expected 1 cells, found 2"),
        ("slide\n", "no slides in it"),
        ("", "found nothing"),
    ],
)
def test_bad_manifests_are_refused(manifests: ModuleType, tmp_path: Path, text: str, said: str):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(manifests.ManifestError, match=said):
        manifests.read_manifest(path, tmp_path)


def test_keys_of_different_names_differ(manifests: ModuleType, tmp_path: Path):
    path = tmp_path / "m.csv"
    path.write_text("slide\na b.svs\na_b.svs\n'a$b'.svs\n")
    assert len(manifests.read_manifest(path, tmp_path)) == 3


def start(snakemake: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the Snakefile in a folder."""
    return subprocess.run(
        [snakemake, "-s", str(SNAKEFILE), "--cores", "2", *options],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )


def plan(snakemake: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What would be done."""
    return start(snakemake, folder, "--dry-run", *options)


# stands in for wsi-pgdips: notes its arguments, writes what that would, fails where a name says
PROGRAM = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
command, first, second = sys.argv[2:5]
if command == "normalize":
    pathlib.Path(sys.argv[-1]).write_text("picture")
    sys.exit()
layers = pathlib.Path(second)
failed = "failing" in first and not layers.exists()
(layers / "provenance").mkdir(parents=True, exist_ok=True)
(layers / "kept").write_text("tiles")
record = {"status": "incomplete" if failed else "done"}
(layers / "provenance" / "run.json").write_text(json.dumps(record))
sys.exit(3 if failed else 0)
"""


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A folder with a manifest of slides whose names need care, and settings of Snakemake."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("one two.svs", "it's $HOME.svs", "failing.svs", "m.geojson", "s.toml"):
        (folder / name).touch()
    (folder / "program.py").write_text(PROGRAM)
    rows = ["one two.svs,m.geojson,", "it's $HOME.svs,,self", "failing.svs,,he"]
    (folder / "m.csv").write_text("\n".join(["slide,mask,reference", *rows, ""]))
    config = {
        "manifest": "m.csv",
        "settings": "s.toml",
        "program": [sys.executable, str(folder / "program.py"), "a b"],
        "threads": 1,
        "resources": {"mem_mb": 100, "gres": "gpu:1"},
    }
    (folder / "c.json").write_text(json.dumps(config))
    return folder


def calls_of(cohort: Path) -> list[list[str]]:
    """What the program was called with since the last time this was asked, in some order."""
    calls = cohort / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return sorted(json.loads(line) for line in lines)


def test_snakemake_starts_what_is_due(snakemake: str, cohort: Path):
    layers = cohort / "layers"

    def run(name: str, *more: str) -> list[str]:
        paths = [str(cohort / f"{name}.svs"), str(layers / f"{name}.ome.zarr")]
        return ["a b", "run", *paths, "--threads", "1", "--config", str(cohort / "s.toml"), *more]

    def normalize(name: str, look: str) -> list[str]:
        start = ["a b", "normalize", str(layers / f"{name}.ome.zarr"), "--slide"]
        end = ["--reference", look, "--overwrite", "-o", str(layers / f"{name}.{look}.tiff")]
        return [*start, str(cohort / f"{name}.svs"), *end]

    first = start(snakemake, cohort, "--configfile", "c.json", "--keep-going")
    # tiles of a slide failed: the others are done, and nothing of it is removed
    assert first.returncode != 0
    names = "it's $HOME", "one two", "failing"
    mask = "--mask", str(cohort / "m.geojson")
    expected = [run(names[0]), run(names[1], *mask), run(names[2]), normalize(names[0], "self")]
    assert calls_of(cohort) == sorted(expected)
    kept = layers / "failing.ome.zarr"
    assert json.loads((kept / "provenance" / "run.json").read_text()) == {"status": "incomplete"}

    second = start(snakemake, cohort, "--configfile", "c.json")
    assert second.returncode == 0, second.stderr
    assert calls_of(cohort) == sorted([run("failing"), normalize("failing", "he")])

    # gone is made again; what is there is left alone
    (layers / "it's $HOME.self.tiff").unlink()
    assert start(snakemake, cohort, "--configfile", "c.json").returncode == 0
    assert calls_of(cohort) == [normalize("it's $HOME", "self")]
    assert start(snakemake, cohort, "--configfile", "c.json").returncode == 0
    assert calls_of(cohort) == []
    for name in names:
        # all that was ever written into the layers is there, and nothing else
        files = sorted(p.name for p in (layers / f"{name}.ome.zarr").rglob("*") if p.is_file())
        assert files == ["kept", "run.json"]


def test_snakemake_asks_for_resources(snakemake: str, cohort: Path):
    done = plan(snakemake, cohort, "--configfile", "c.json")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count("gres=gpu:1") == 3  # of the slides, not of their pictures
    assert said.count("mem_mb=100,") == 5
    assert not (cohort / "layers").exists()


@pytest.mark.parametrize(
    ("text", "option", "said"),
    [
        ("slide\na/x.svs\nb/x.svs\n", "threads=1", "two slides are called 'x'"),
        ("slide\nx.svs\n", "thread=1", "unknown in the config: thread"),
        ("slide\nnone.svs\n", "threads=1", "none.svs"),
    ],
)
def test_snakefile_says_what_is_wrong(
    snakemake: str, tmp_path: Path, text: str, option: str, said: str
):
    (tmp_path / "manifest.csv").write_text(text)
    done = plan(snakemake, tmp_path, "--config", option)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_snakemake_drops_marks_whose_products_are_gone(snakemake: str, tmp_path: Path):
    (tmp_path / "x.svs").touch()
    (tmp_path / "y.svs").touch()
    (tmp_path / "manifest.csv").write_text("slide\nx.svs\ny.svs\n")
    marks = tmp_path / "layers" / "marks"
    marks.mkdir(parents=True)
    for name, status in (("x", "done"), ("y", "incomplete")):
        record = tmp_path / "layers" / f"{name}.ome.zarr" / "provenance" / "run.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"status": status}))
        (marks / f"{name}.layers.json").touch()
    assert plan(snakemake, tmp_path).returncode == 0
    assert [path.name for path in marks.iterdir()] == ["x.layers.json"]


def test_snakemake_config_names_every_key():
    config = yaml.safe_load(SNAKEFILE.with_name("config.yaml").read_text())
    known = re.search(r'KNOWN = "([^"]*)"', SNAKEFILE.read_text())
    assert known is not None
    assert sorted(config) == sorted(known.group(1).split())


def test_containers_are_built_of_what_there_is():
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    in_docker = {source for sources in copied for source in sources}
    files = re.search(r"^%files\n((?: +\S+ \S+\n)+)", APPTAINER, re.MULTILINE)
    assert files is not None
    in_apptainer = {line.split()[0] for line in files.group(1).splitlines()}
    assert in_docker == in_apptainer
    assert all((ROOT / source).exists() for source in in_docker)
    # nothing else gets into a build
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == in_docker


@pytest.mark.parametrize(
    "pattern",
    [
        r"(python:\S+)",
        r"apt-get install -y (.*?)(?: \\)?$",
        r"pip install --no-cache-dir (.*?)(?: \\)?$",
        r"(TORCH_BACKEND=cpu)",
    ],
)
def test_containers_are_made_alike(pattern: str):
    in_docker, in_apptainer = (
        re.search(pattern, text, re.MULTILINE) for text in (DOCKERFILE, APPTAINER)
    )
    assert in_docker is not None
    assert in_apptainer is not None
    assert in_docker.group(1) == in_apptainer.group(1)


def test_what_was_not_run_says_so():
    untested = ["nextflow/main.nf", "nextflow/nextflow.config", "nextflow/modules/wsi_pgdips.nf"]
    for name in [*untested, "docker/Dockerfile", "apptainer/wsi-pgdips.def"]:
        assert "NOT " in (PIPELINES / name).read_text().splitlines()[0], name


def test_nextflow_reads_the_same_columns(manifests: ModuleType):
    text = (PIPELINES / "nextflow" / "main.nf").read_text()
    columns = re.search(r"def columns = \[(.*)\]", text)
    assert columns is not None
    assert columns.group(1).replace("'", "").split(", ") == list(manifests.COLUMNS)


def test_the_template_that_sites_change_is_the_one_that_is_used():
    packaged = PIPELINES.parent / "wsi_pgdips" / "slurm" / "job.sbatch.j2"
    assert (PIPELINES / "slurm" / "job.sbatch.j2").read_text() == packaged.read_text()


def test_a_list_as_an_array_takes_the_line_of_its_task(tmp_path: Path):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    slides = tmp_path / "slides.txt"
    slides.write_text("a.svs\n/far/b c.svs\n")
    script = str(PIPELINES / "slurm/run_list.sbatch")
    env = {"PATH": "/usr/bin:/bin", "WSI_PGDIPS": str(program), "SLURM_ARRAY_TASK_ID": "2"}
    command = ["bash", script, str(slides), "out", "--preset", "fast"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    expected = ["run", "/far/b c.svs", "out/b c.ome.zarr", "--preset", "fast"]
    assert done.stdout.splitlines() == expected
    env["SLURM_ARRAY_TASK_ID"] = "3"
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "names no slide" in done.stderr


def test_a_slide_is_split_into_jobs_that_follow_one_another(tmp_path: Path):
    said = tmp_path / "said"
    fake = tmp_path / "sbatch"
    fake.write_text(
        f"#!/bin/bash\nn=$(ls {said}* 2>/dev/null | wc -l)\n"
        f'{{ printf "%s\\n" "$@"; echo "--"; cat; }} > {said}$n\necho "$((n + 7));cluster"\n'
    )
    fake.chmod(0o755)
    command = [
        "bash",
        str(PIPELINES / "slurm/split_slide.sh"),
        "a b.svs",
        "out",
        "3",
        "--seed",
        "1",
    ]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "WSI_PGDIPS": "/opt/my program"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    stages = ["calibrate", "fit", "blend", "render", "finalize"]
    lines = [f"{stage}: job {7 + i}" for i, stage in enumerate(stages)]
    assert done.stdout.splitlines() == lines
    for i, stage in enumerate(stages):
        options, script = (tmp_path / f"said{i}").read_text().split("--\n", 1)
        array = stage in ("fit", "render")
        assert ("--array=1-3" in options) == array
        assert (f"--dependency=afterany:{6 + i}" in options) == (i > 0)
        program = script.splitlines()[1]
        assert program.startswith(f"exec /opt/my\\ program run {tmp_path}/a\\ b.svs ")
        share = '--part "$SLURM_ARRAY_TASK_ID/3"' if array else ""
        assert f"--stage {stage} {share} --seed 1" in program
