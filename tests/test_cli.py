"""The command line: what it passes on, what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image

from wsi_pgdips import __version__, cli
from wsi_pgdips.config import ExecutionSettings, ScientificSettings, make_settings
from wsi_pgdips.errors import SettingsError, WsiPgdipsError
from wsi_pgdips.optics.physics import angle_deg, od_to_rgb, unit_rows
from wsi_pgdips.optics.stain_files import load_stains, stain_names
from wsi_pgdips.pipeline import slide as pipeline
from wsi_pgdips.pipeline.record import RunSummary
from wsi_pgdips.progress import LineProgress, QuietProgress
from wsi_pgdips.records import Verdict

TINY = Path(__file__).parent / "phantoms" / "tiny.toml"
HEAVY = ("torch", "zarr", "dask", "tiatoolbox", "scipy", "matplotlib", "openslide", "pyarrow")
DAB = unit_rows([0.27, 0.57, 0.78])
GLASS = np.array([0.03, 0.05, 0.02])


def finished(**changes: Any) -> RunSummary:
    values: dict[str, Any] = {
        "path": Path("out.ome.zarr"),
        "tiles": 12,
        "fitted": 9,
        "inherited": 3,
        "failed_tiles": 0,
        "failed_blocks": 0,
        "flags": ("no_glass",),
        "seam_step_od": {"Hematoxylin": 0.0004, "DAB": None},
        "wall_s": {"fit": 3.0, "render": 1.5},
    }
    return RunSummary(**{**values, **changes})


class FakeRun:
    """Takes the pipeline's place: remembers what it was asked for, then ends as told."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.outcome: RunSummary | BaseException = finished()

    def __call__(self, slide: Path, output: Path, **asked: Any) -> RunSummary:
        self.asked = {"slide": slide, "output": output, **asked}
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    @property
    def settings(self) -> dict[str, Any]:
        """What was given of the settings."""
        apart = ("slide", "output", "config", "progress")
        return {k: v for k, v in self.asked.items() if k not in apart and v is not None}


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    fake = FakeRun()
    monkeypatch.setattr(pipeline, "deconvolve_slide", fake)
    return fake


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from wsi_pgdips.cli import main\n"
        f"sys.argv = ['wsi-pgdips', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines()[-1] == "LOADED []"
    assert len(said.splitlines()) > 1


def test_the_package_loads_nothing_heavy_and_its_names_come_when_asked() -> None:
    code = (
        "import sys, wsi_pgdips\n"
        f"assert not [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert {'deconvolve_slide', 'open_layers'} <= set(dir(wsi_pgdips))\n"
        "from wsi_pgdips.layers.reader import open_layers\n"
        "assert wsi_pgdips.open_layers is open_layers\n"
        "try: wsi_pgdips.nothing\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no attribute 'nothing'" in done.stdout


def test_every_public_name_is_there() -> None:
    import wsi_pgdips

    for name in wsi_pgdips.__all__:
        assert getattr(wsi_pgdips, name) is not None


def test_version(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == f"wsi-pgdips {__version__}"


def test_run_has_an_option_for_every_setting() -> None:
    group: Any = typer.main.get_command(cli.app)
    names = {parameter.name for parameter in group.commands["run"].params}
    assert {*ScientificSettings.model_fields, *ExecutionSettings.model_fields} <= names
    # and only settings reach the pipeline
    beside = {"slide", "output", "config", "verbose", "quiet", "stage", "part"}
    assert names - beside == {*ScientificSettings.model_fields, *ExecutionSettings.model_fields}


def test_run_passes_on_only_what_was_given(call: Any, fake_run: FakeRun) -> None:
    assert call("run", "a.svs", "a.ome.zarr") == 0
    assert fake_run.settings == {}
    assert (fake_run.asked["slide"], fake_run.asked["output"]) == (
        Path("a.svs"),
        Path("a.ome.zarr"),
    )
    assert fake_run.asked["config"] is None


def test_what_run_passes_on_is_what_settings_take(call: Any, fake_run: FakeRun) -> None:
    given = (
        "--stains hdab --stain-vectors fixed --preset fast --mpp native --mpp-source 0.25 "
        "--tile 256 --block 1024 --min-tissue 0.2 --seed 3 --masker morphological "
        "--specimen cytology --mask m.png --roi r.geojson --icc "
        "--store-residual --iterations 7 --learning-rate 0.001 --alpha 2 --beta 0.5 "
        "--calibration-tiles 4 --calibration-steps 9 --prior-weight 0.1 --device cpu "
        "--workers 2 --threads 3 --cluster tcp://host:8786 --batch 4 --cache scratch "
        "--keep-pixels --overwrite --strict --no-resume"
    )
    assert call("run", "a.svs", "b.ome.zarr", *given.split()) == 0
    settings = make_settings(fake_run.settings)
    default = make_settings({})
    for now, before in (
        (settings.science, default.science),
        (settings.execution, default.execution),
    ):
        same = [k for k, v in now.model_dump().items() if v == getattr(before, k)]
        assert not same
    assert settings.science.mpp == "native"
    assert settings.science.prior_weight == 0.1
    assert settings.execution.batch == 4


def test_numbers_and_words_of_mpp_and_batch_reach_the_settings(
    call: Any, fake_run: FakeRun
) -> None:
    assert call("run", "a", "b", "--mpp", "0.25", "--batch", "auto") == 0
    settings = make_settings(fake_run.settings)
    assert settings.science.mpp == 0.25
    assert settings.science.digest() == make_settings({"mpp": 0.25}).science.digest()
    assert settings.execution.batch == "auto"


def test_the_config_file_is_handed_on(call: Any, fake_run: FakeRun) -> None:
    assert call("run", "a", "b", "--config", "he.toml", "--no-icc") == 0
    assert fake_run.asked["config"] == Path("he.toml")
    # off is given too, so that it wins over the file
    assert fake_run.settings == {"icc": False}


def test_a_run_says_what_came_out(
    call: Any, fake_run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "a", "b") == 0
    said = capsys.readouterr().out
    for part in ("out.ome.zarr", "12, 9 fitted", "3 inherited", "no_glass", "0.0004 OD"):
        assert part in said
    assert "seconds" not in said
    assert isinstance(fake_run.asked["progress"].shown[0], LineProgress)


def test_verbose_adds_times_and_quiet_says_nothing(
    call: Any, fake_run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "a", "b", "-v") == 0
    assert "fit 3.0, render 1.5, in all 4.5" in capsys.readouterr().out
    assert call("run", "a", "b", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert isinstance(fake_run.asked["progress"].shown[0], QuietProgress)


def test_failed_parts_end_with_3(
    call: Any, fake_run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run.outcome = finished(failed_tiles=2)
    assert call("run", "a", "b") == 3
    assert "2 tiles, 0 blocks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "strict", "code"),
    [("pass", True, 0), ("review", True, 3), ("fail", True, 3), ("review", False, 0)],
)
def test_strictly_only_a_pass_ends_with_0(
    status: str,
    strict: bool,
    code: int,
    call: Any,
    fake_run: FakeRun,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = () if status == "pass" else ("much is black",)
    fake_run.outcome = finished(verdict=Verdict(status, reasons), strict=strict)
    assert call("run", "a", "b", *(["--strict"] if strict else [])) == code
    assert fake_run.settings == ({"strict": True} if strict else {})
    said = capsys.readouterr().out
    assert "ended with failures" not in said  # the slide is done, whatever it is worth
    assert status in said
    assert all(reason in said for reason in reasons)


def test_bad_input_ends_with_2_and_its_message(
    call: Any, fake_run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run.outcome = SettingsError("no good", found="[bold]x", hint="another")
    assert call("run", "a", "b") == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.split("\n")[:3] == ["error: no good", "  found: [bold]x", "  what to do: another"]
    assert "Traceback" not in said


def test_the_exit_code_is_the_errors_own(call: Any, fake_run: FakeRun) -> None:
    class OtherError(WsiPgdipsError):
        exit_code = 3

    fake_run.outcome = OtherError("some of it")
    assert call("run", "a", "b") == 3


def test_a_bug_ends_with_1_a_traceback_and_what_to_do(
    call: Any, fake_run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run.outcome = ZeroDivisionError("oh")
    assert call("run", "a", "b") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "ZeroDivisionError: oh" in said
    assert "bug of wsi-pgdips" in said


def test_an_interrupted_run_says_that_it_can_go_on(
    call: Any, fake_run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run.outcome = KeyboardInterrupt()
    assert call("run", "a", "b") == 130
    assert "to resume, repeat the command" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "a.svs"],
        ["run", "a.svs", "b", "--nothing"],
        ["run", "a.svs", "b", "--tile", "many"],
        ["nothing"],
        ["phantom", "x.tiff", "--size", "3x4x5"],
        ["phantom", "x.tiff", "--size", "big"],
        ["stains", "fit", "x.svs", "--label", "A", "-o", "a.toml", "--region", "1,2,3"],
        ["stains", "fit", "x.svs", "--label", "A", "-o", "a.toml", "--region", "1,2,3,-4"],
    ],
)
def test_wrong_usage_ends_with_2(
    call: Any, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run", "a.svs", "b", "--mpp", "fine"], "--mpp"),
        (["run", "a.svs", "b", "--tile", "300"], "--tile"),
        (["run", "a.svs", "b", "--preset", "best"], "'balanced'"),
        (["run", "a.svs", "b", "--batch", "some"], "--batch"),
        (["run", "a.svs", "b", "--cluster", "slurm"], "wsi-pgdips slurm submit --split-slide"),
        (["run", "nowhere.svs", "b"], "no such file"),
        (["info", "nowhere.svs"], "no such file"),
        (["info", "nowhere.ome.zarr"], "not layers of wsi-pgdips"),
        (["stains", "show", "hda"], "did you mean"),
        (["phantom", "x.png"], ".tiff"),
        (["phantom", "x.tiff", "--from", "a.svs"], "--stains"),
        (["phantom", "x.tiff", "--config", "nowhere.toml"], "cannot be read"),
        (["phantom", "nowhere/x.tiff"], "does not exist"),
        (["demo", str(TINY)], "cannot be made"),
    ],
)
def test_bad_input_is_told_without_a_traceback(
    call: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert part in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_stains_lists_the_whole_library(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("stains") == 0
    said = capsys.readouterr().out
    for name in stain_names():
        assert name in said
        assert all(label in said for label in load_stains(name).labels)


def test_stains_show_prints_a_file_that_loads(
    call: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("stains", "show", "hdab") == 0
    text = capsys.readouterr().out
    (tmp_path / "mine.toml").write_text(text)
    assert load_stains(tmp_path / "mine.toml") == load_stains("hdab")


@pytest.fixture(scope="module")
def dab_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 0.5 um/px: a square of DAB of varied amount on tinted glass."""
    rng = np.random.default_rng(5)
    q = np.zeros((900, 1100))
    q[200:700, 300:900] = rng.uniform(0.3, 0.9, (500, 600))
    od = q[..., None] * DAB + GLASS + rng.normal(0, 0.002, (900, 1100, 1))
    path = tmp_path_factory.mktemp("dab") / "dab.png"
    Image.fromarray(od_to_rgb(od)).save(path, dpi=(50800, 50800))
    return path


def test_stains_fit_takes_the_vector_of_a_region_less_the_glass(
    call: Any, capsys: pytest.CaptureFixture[str], dab_slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.toml"
    where = ("--region", "400,300,300,200", "-o", out)
    assert call("stains", "fit", dab_slide, *where, "--label", "DAB", "--color", "8a5a2b") == 0
    fitted = load_stains(out)
    assert (fitted.labels, fitted.colors) == (("DAB",), ("8a5a2b",))
    # without the glass taken off it would be 2 degrees off
    assert angle_deg(fitted.stain_matrix[0], DAB) < 0.3
    assert str(out.name) in capsys.readouterr().out

    assert call("stains", "fit", dab_slide, *where, "--label", "Other") == 2
    assert "--add" in capsys.readouterr().err
    # the same colour again cannot be told from the first
    assert call("stains", "fit", dab_slide, *where, "--label", "Other", "--add") == 2
    assert load_stains(out) == fitted


def test_stains_fit_refuses_regions_outside_and_glass(
    call: Any, capsys: pytest.CaptureFixture[str], dab_slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.toml"
    for region, part in (("1000,0,200,100", "inside 1100 x 900"), ("0,0,100,100", "too pale")):
        assert call("stains", "fit", dab_slide, "--region", region, "--label", "A", "-o", out) == 2
        assert part in capsys.readouterr().err
    assert not out.exists()


def test_phantom_writes_a_slide_with_stains_to_run_it(
    call: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from wsi_pgdips.phantom.phantom import open_truth

    out = tmp_path / "p.tiff"
    assert call("phantom", out, "--config", TINY, "--seed", 3, "--size", "700x600") == 0
    truth = open_truth(out)
    assert (truth.shape, truth.config.seed) == ((600, 700), 3)
    stains = load_stains(tmp_path / "p.stains.toml")
    assert stains.labels == truth.labels
    np.testing.assert_allclose(stains.stain_matrix, truth.library, atol=1e-6)

    capsys.readouterr()
    assert call("info", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "slide"
    assert facts["shape"] == [600, 700]
    assert facts["output"]["tiles"] == 4
    assert call("info", out) == 0
    assert "700 x 600" in capsys.readouterr().out


def test_phantom_takes_the_tissue_of_a_slide(call: Any, dab_slide: Path, tmp_path: Path) -> None:
    from wsi_pgdips.phantom.phantom import open_truth

    out, stains = tmp_path / "p.tiff", tmp_path / "dab.toml"
    vector = [round(float(v), 3) for v in DAB]
    stains.write_text(f'name = "mine"\n[[stain]]\nlabel = "DAB"\nod = {vector}\n')
    made = ("--from", dab_slide, "--stains", stains, "--size", "512", "--seed", 1)
    assert call("phantom", out, *made, "--quiet") == 0
    truth = open_truth(out)
    assert truth.labels == ("DAB",)
    assert tomllib.loads((tmp_path / "p.stains.toml").read_text())["name"] == "mine"
    q, tissue = truth.concentration(0, 0, 512, 512)[0], truth.tissue(0, 0, 512, 512)
    # the part that was taken is the square of DAB; M drifts by 20 % over the phantom
    assert tissue.mean() > 0.9
    mean = np.median(q[tissue])
    assert 0.5 < mean < 0.7
