"""``estimate``: what it predicts against what the run then takes; no durations, they are noise."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from support.cheap_runs import BALANCED, FAST, PAPER, Slide
from wsi_pgdips.cli.say import size_text, time_text
from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline.estimate import (
    LEAST_RUN,
    RUNS,
    STAGES,
    Estimate,
    estimate_slide,
    sample_runs,
    scale,
)
from wsi_pgdips.pipeline.slide_run import SlideRun
from wsi_pgdips.solver.presets import HALO
from wsi_pgdips.tiles.blocks import BlockPlan

CMU = "CMU-1-Small-Region.svs"
TOLERANCE = 0.25


def predicted(slide: Slide, **options: Any) -> Estimate:
    return estimate_slide(slide.path, stains=str(slide.stains), **options)


def size(output: Path) -> int:
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def agrees(found: Estimate, layers: Layers) -> None:
    record = layers.run_record
    assert found.tiles == record["tiles"]
    # a tile with enough tissue may still turn out to say nothing
    assert record["tiles_fitted"] <= found.tiles_to_fit <= found.tiles
    assert found.disk_bytes == pytest.approx(size(layers.path), rel=TOLERANCE)
    assert tuple(found.wall_s) == STAGES == tuple(record["wall_s"])


@pytest.fixture(scope="module")
def fast(slide: Slide) -> Estimate:
    return predicted(slide, **FAST)


def test_a_fast_run_is_foreseen(fast: Estimate, finished: Layers) -> None:
    agrees(fast, finished)
    assert fast.tiles > RUNS * LEAST_RUN  # not all of them were measured
    assert fast.blocks == len(list((finished.path / "0" / "c").rglob("*/*/*")))
    assert fast.preset == "fast"
    assert (fast.device, fast.peak_vram_mb) == ("cpu", 0)


def test_a_balanced_run_is_foreseen(slide: Slide, balanced: Layers) -> None:
    agrees(predicted(slide, **BALANCED), balanced)


def test_networks_of_tiles_are_extrapolated(
    slide: Slide, fast: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(run: SlideRun, really: Any = SlideRun.fit) -> None:
        really(run)
        if run.job.settings.preset == "paper":
            found = run.log.total()
            found["wall_s"]["fit"] += 1000 * run.job.settings.iterations
            monkeypatch.setattr(run.log, "total", lambda: found)

    monkeypatch.setattr(SlideRun, "fit", fit)
    paper = predicted(slide, **{**PAPER, "iterations": 10**6, "threads": 1})
    assert paper.wall_s["fit"] == pytest.approx(1e9 * paper.tiles_to_fit, rel=0.05)
    assert (paper.preset, paper.tiles) == ("paper", fast.tiles)
    maps = paper.tiles * load_stains(slide.stains).n * (256 + 2 * HALO) ** 2 * 2
    assert paper.peak_disk_bytes > fast.peak_disk_bytes + 0.9 * maps


def test_most_is_on_the_disk_before_the_end_and_less_without_pixels(
    slide: Slide, fast: Estimate
) -> None:
    without = predicted(slide, **FAST, keep_pixels=False)
    assert without.disk_bytes == fast.disk_bytes  # the same tiles, the same bytes
    assert fast.disk_bytes < without.peak_disk_bytes < fast.peak_disk_bytes
    kept = fast.peak_disk_bytes - without.peak_disk_bytes
    assert kept == fast.tiles_to_fit * 256**2 * 3


def test_nothing_is_left_behind(
    slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    predicted(slide, **FAST)
    with pytest.raises(SlideError):
        estimate_slide(tmp_path / "nowhere.svs")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused_as_in_a_run(slide: Slide, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown setting"):
        predicted(slide, colour="red")
    nothing = {"type": "FeatureCollection", "features": []}
    (tmp_path / "roi.geojson").write_text(json.dumps(nothing))
    with pytest.raises(SettingsError):
        predicted(slide, **FAST, roi=str(tmp_path / "roi.geojson"))


@pytest.fixture
def arguments(slide: Slide, tmp_path: Path) -> list[str]:
    lines = [f"{k} = {json.dumps(v)}" for k, v in FAST.items() if k not in ("tile", "device")]
    (tmp_path / "cheap.toml").write_text("\n".join(lines))
    text = f"estimate {slide.path} --stains {slide.stains} --config {tmp_path / 'cheap.toml'}"
    return [*text.split(), "--tile", "256", "--device", "cpu", "--threads", "2"]


def test_the_command_says_it_in_words(
    call: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], fast: Estimate
) -> None:
    assert call(*arguments) == 0
    said = capsys.readouterr().out
    rows = dict(line.split("  ", 1) for line in said.splitlines())
    assert rows["tiles"].strip() == f"{fast.tiles}, {fast.tiles_to_fit} to be fitted on their own"
    assert "fast on cpu, 2 threads" in rows["run"]
    assert all(f"{stage} " in rows["seconds"] for stage in STAGES)
    assert {"blocks", "time", "memory", "disk"} <= rows.keys()
    assert "GPU memory" not in rows


def test_the_command_says_it_as_json(
    call: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], fast: Estimate
) -> None:
    assert call(*arguments, "--workers", "2", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    same = ("slide", "preset", "device", "tiles", "tiles_to_fit", "blocks", "disk_bytes")
    assert {k: facts[k] for k in same} == {k: getattr(fast, k) for k in same}
    assert list(facts["wall_s"]) == list(STAGES)
    assert facts["total_s"] == pytest.approx(sum(facts["wall_s"].values()), abs=0.01)
    assert (facts["workers"], facts["threads"]) == (2, 2)
    assert facts["peak_rss_mb"] > 0


def test_a_missing_slide_ends_with_2(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("estimate", "nowhere.svs") == 2
    assert "no such file" in capsys.readouterr().err


def seconds(load: tuple[float, float], once: float = 0.0) -> dict[str, float]:
    area, tiles = load
    return {"fit": once + 2 * tiles, "blend": once + 7 + tiles, "render": once + area / 2 + tiles}


def test_seconds_grow_with_tiles_and_with_the_area_of_blocks() -> None:
    thin, full, whole = (32.0, 4.0), (48.0, 24.0), (640.0, 400.0)
    taken = [(seconds(thin, 5.0), thin), (seconds(thin), thin), (seconds(full), full)]
    assert scale(taken, whole) == pytest.approx(seconds(whole, 5.0))
    # a slide as small as a sample is measured as a whole
    assert scale(taken[:1], thin) == seconds(thin, 5.0)


def plans(*sizes: int) -> list[BlockPlan]:
    found = []
    for b, n in enumerate(sizes):
        tiles = tuple((b, i) for i in range(n))
        found.append(BlockPlan(0, b, tiles, tiles, (1.0,) * n))
    return found


@pytest.mark.parametrize("sizes", [(7,), (64, 64, 3, 1, 40), (200,), (1, 1, 1, 90), (2,) * 60])
@pytest.mark.parametrize("run", [6, 16])
def test_a_sample_is_of_neighbours_all_over_the_slide(sizes: tuple[int, ...], run: int) -> None:
    every = [t for p in plans(*sizes) for t in p.render]
    runs = sample_runs(plans(*sizes), run)
    chosen = [t for r in runs for t in r]
    assert len(set(chosen)) == len(chosen) <= max(RUNS * run, 1)
    assert set(chosen) <= set(every)
    if len(every) <= RUNS * run:
        assert runs == [every]
        return
    at = [every.index(t) for t in chosen]
    assert at == sorted(at)
    quarters = {i * RUNS // len(every) for i in at}
    assert len(quarters) >= min(RUNS, 2)


@pytest.mark.parametrize(
    ("given", "text"),
    [(0.2, "1 s"), (61, "61 s"), (125, "2 min"), (7300, "2 h 2 min"), (90_000, "25 h 0 min")],
)
def test_times_are_said_as_people_do(given: float, text: str) -> None:
    assert time_text(given) == text


def test_sizes_are_said_as_people_do() -> None:
    assert [size_text(n) for n in (10, 41.6e6, 3.44e9)] == ["1 MB", "42 MB", "3.4 GB"]


@pytest.mark.realslide
def test_a_real_slide_is_foreseen(data_dir: Path, tmp_path: Path) -> None:
    slide = Slide(data_dir / "slides" / CMU, Path("he"))
    options = {"preset": "fast", "device": "cpu", "calibration_tiles": 4}
    output = tmp_path / "out.ome.zarr"
    assert slide.run(output, **options).exit_code == 0
    agrees(predicted(slide, **options), open_layers(output))
