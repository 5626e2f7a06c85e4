"""The records of the benchmark of speed, and the page and plots that are made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.records import number
from benchmarks.speed.page import Figures, bars, slug, write_speed_page
from benchmarks.speed.plots import series
from benchmarks.speed.records import Speeds, check_folder, find, load_speeds, save_speeds
from benchmarks.speed.run import CPU_SECONDS, END_TO_END, ESTIMATE, SECONDS, WITH_WORKERS
from benchmarks.speed.runs import STAGES, slope
from wsi_pgdips.errors import OutputError, SettingsError

CPU, GPU = "Some Processor(R) @ 2.10GHz, 2 cores", "Some GPU, 16 cores"
# seconds a tile, then CPU seconds a tile
ON_CPU = {
    "fast": (0.045, 0.085),
    "balanced": (0.31, 0.6),
    "tiatoolbox-macenko": (0.062, 0.12),
    "tiatoolbox-reinhard": (0.036, 0.07),
    "tiatoolbox-vahadane": (1.43, 2.8),
}
ON_GPU = {
    "fast": (0.0052, 0.04),
    "balanced": (0.021, 0.05),
    "tiatoolbox-macenko": (0.0081, 0.13),
    "tiatoolbox-reinhard": (0.0049, 0.075),
    "tiatoolbox-vahadane": (0.18, 2.8),
}
SHARES = dict(zip(STAGES, (0.22, 0.04, 0.7, 0.04), strict=True))


def measured(
    device: str, methods: dict[str, tuple[float, float]], *, quick: bool = False
) -> Speeds:
    """Figures as a run of the benchmark leaves them, invented."""
    speeds, gpu = Speeds(device), device == GPU
    for name, (wall, cpu) in methods.items():
        speeds.add("phantom", name, END_TO_END, SECONDS, wall)
        speeds.add("phantom", name, END_TO_END, CPU_SECONDS, cpu)
        speeds.add("phantom", name, END_TO_END, "tiles_per_s", 1 / wall)
        if name.startswith("tiatoolbox"):
            continue
        for stage, share in SHARES.items():
            speeds.add("phantom", name, stage, SECONDS, share * wall)
            speeds.add("phantom", name, stage, CPU_SECONDS, share * cpu)
        cores = int(device.split()[-2])
        for metric, value in (
            ("over_cpu_seconds_over_cores", wall * cores / cpu),
            ("tiles", 1600),
            ("peak_rss_mb", 1834.5),
            ("bytes_written_per_tile", 153_210),
            *((("peak_vram_mb", 2210), ("gpu_busy_share", 0.82)) if gpu else ()),
        ):
            speeds.add("phantom", name, END_TO_END, metric, value)
        speeds.add("phantom", name, "prepare", "seconds", 1.2)
        speeds.add("phantom", name, "calibrate", "seconds", 11.7 if name == "balanced" else 2.5)
        for part, share in (("fit-alone", 0.2), ("render-alone", 0.65)):
            speeds.add("phantom", name, part, SECONDS, share * wall)
            speeds.add("phantom", name, part, CPU_SECONDS, share * cpu)
    speeds.add("machine", "matmul", "ceiling", "gflops", 212_000 if gpu else 153)
    for part in ("read", "write"):
        speeds.add("phantom", "ceiling", part, SECONDS, 0.0041)
        speeds.add("phantom", "ceiling", part, CPU_SECONDS, 0.0079)
    speeds.add("phantom", "balanced", "floor", "gflop_per_tile", 14.3)
    speeds.add("phantom", "balanced", "floor", SECONDS, 0.093)
    speeds.add("phantom", "balanced", "floor", "share_achieved", 0.461)
    if quick:
        return speeds
    for workers, rate in ((1, 13.1), (2, 24.6)):
        name = f"tiles_per_s@workers={workers}"
        speeds.add("phantom-blocks", "fast", "fit+render", name, rate)
    speeds.add("phantom-blocks", "fast", "fit+render", "two_workers_over_one", 24.6 / 13.1)
    step = 0.0004 if gpu else 1.9
    for batch, gain in ((1, 1), (2, 1.1), (4, 1.15)):
        speeds.add("phantom", "paper", "solve", f"tiles_per_s@batch={batch}", gain / step)
    speeds.add("phantom", "paper", "solve", "seconds_per_step", step)
    speeds.add("phantom", "paper", END_TO_END, SECONDS, step * 6000)
    for name in ("fast", "balanced", "tiatoolbox-macenko"):
        speeds.add("some_slide", name, END_TO_END, SECONDS, methods[name][0] * 1.25)
        speeds.add("some_slide", name, END_TO_END, CPU_SECONDS, methods[name][1] * 1.2)
        if name != "tiatoolbox-macenko":
            speeds.add("some_slide", name, END_TO_END, "tiles", 431)
            speeds.add("some_slide", name, "calibrate", "seconds", 9.25)
            for stage, much in ((ESTIMATE, 1.2), ("run", 1.0)):
                speeds.add("some_slide", name, stage, "tiles", 431)
                speeds.add("some_slide", name, stage, "seconds", 50 * much)
                speeds.add("some_slide", name, stage, "disk_bytes", 2e8 * much)
                speeds.add("some_slide", name, stage, "peak_rss_mb", 1000 * much)
    return speeds


def page_of(folder: Path, *devices: Speeds) -> str:
    """The page of what was saved, device after device."""
    results, page = folder / "results" / "speed.json", folder / "speed.md"
    results.parent.mkdir(exist_ok=True)
    for speeds in devices:
        save_speeds(results, speeds)
    write_speed_page(results, page)
    return page.read_text()


def section(page: str, device: str) -> str:
    return page.split(f"\n## {device}\n")[1].split("\n## ")[0]


def row(text: str, first: str, after: str) -> list[str]:
    """Cells of the first row that starts so, after a heading or a sentence."""
    lines = text[text.index(after) :].splitlines()
    found = next(line for line in lines if line.startswith(f"| {first} |"))
    return [c.strip() for c in found.strip("|").split("|")]


def verdicts(speeds: Speeds) -> dict[str, str]:
    rows = [bar.row() for bar in bars(Figures(speeds.device, speeds.records))]
    return {what: met for what, _, met in rows}


def altered(speeds: Speeds, value: float | None, **wanted: str) -> Speeds:
    """A copy with another value in the records that are meant."""
    meant = [r for r in speeds.records if all(r[k] == v for k, v in wanted.items())]
    assert meant
    return Speeds(
        speeds.device, [{**r, "value": value} if r in meant else dict(r) for r in speeds.records]
    )


def test_the_page_has_a_section_for_each_device(tmp_path):
    page = page_of(tmp_path, measured(CPU, ON_CPU), measured(GPU, ON_GPU))
    assert "`results/speed.json`" in page
    assert page.index(f"## {CPU}") < page.index(f"## {GPU}")
    on_cpu, on_gpu = section(page, CPU), section(page, GPU)
    assert row(on_cpu, "fast", "The phantom") == (
        ["fast", "0.045", "0.085", "22.2", "1", "1.06", "1600", "1834", "153"]
    )
    assert row(on_cpu, "balanced", "The phantom")[4] == "6.89"
    assert row(on_cpu, "paper", "The phantom")[1:4] == ["11400", "-", "0.0000877"]
    assert row(on_cpu, "tiatoolbox-macenko", "The phantom")[4:] == ["1.38", "1.03", "-", "-", "-"]
    assert row(on_gpu, "balanced", "The phantom")[-3:] == ["2210", "0.82", "153"]
    assert "VRAM" not in on_cpu
    methods = [line.split(" | ")[0][2:] for line in on_cpu.splitlines() if line.startswith("| ")]
    assert methods[2:8] == ["fast", "balanced", "paper", *list(ON_CPU)[2:]]


def test_the_page_shows_slides_stages_and_parts(tmp_path):
    text = section(page_of(tmp_path, measured(CPU, ON_CPU)), CPU)
    assert row(text, "fast", "The slide `some_slide`") == (
        ["fast", "0.0563", "0.102", "431", "9.25", "0.726"]
    )
    assert row(text, "tiatoolbox-macenko", "The slide `some_slide`")[3:] == ["-", "-", "1"]
    assert row(text, "some_slide", "### Foreseen") == (
        ["some_slide", "fast", "431, 431", "60, 50", "240, 200", "1200, 1000"]
    )
    assert row(text, "render", "### Stages") == ["render", "0.0315", "0.0595", "0.217", "0.42"]
    assert row(text, "calibrate, once a slide", "### Stages")[1:] == ["2.5", "-", "11.7", "-"]
    assert row(text, "read", "### Parts") == ["read", "0.0041", "0.0079", "-"]
    assert row(text, "`fast`, fit alone", "### Parts")[1:] == ["0.009", "0.017", "0.0099"]
    assert row(text, "14.3", "The floor") == ["14.3", "0.093", "0.461", "0.202", "153"]


def test_plots_lie_beside_the_page_and_are_made_again_alike(tmp_path):
    page = page_of(tmp_path, measured(CPU, ON_CPU), measured(GPU, ON_GPU))
    names = {
        f"speed-{slug(device)}-{kind}.png"
        for device in (CPU, GPU)
        for kind in ("stages", "batch", "workers")
    }
    files = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    assert set(files) == names
    assert all(f"](images/{name})" in page for name in names)
    assert all(data.startswith(b"\x89PNG") and b"matplotlib" not in data for data in files.values())
    assert page_of(tmp_path) == page
    assert {p.name: p.read_bytes() for p in (tmp_path / "images").iterdir()} == files


def test_fast_by_a_process_on_each_core_has_a_row_and_a_bar(tmp_path):
    speeds = measured(CPU, {**ON_CPU, WITH_WORKERS: (0.03, 0.0588)})
    text = section(page_of(tmp_path, speeds), CPU)
    assert row(text, "fast-workers", "The phantom")[:6] == (
        ["fast-workers", "0.03", "0.0588", "33.3", "0.667", "1.02"]
    )
    bar = "`fast-workers`: x CPU seconds / cores ≤ 1.15"
    slow = {"method": WITH_WORKERS, "metric": "over_cpu_seconds_over_cores"}
    assert verdicts(speeds)[bar] == "yes"
    assert verdicts(altered(speeds, 1.16, **slow))[bar] == "no"
    assert not any(WITH_WORKERS in what for what in verdicts(measured(CPU, ON_CPU)))


def test_a_quick_file_makes_a_page_of_what_it_has(tmp_path):
    few = {name: ON_CPU[name] for name in ("fast", "balanced", "tiatoolbox-macenko")}
    text = section(page_of(tmp_path, measured(CPU, few, quick=True)), CPU)
    for missing in ("The slide", "-batch.png", "-workers.png", "| paper |", "nan"):
        assert missing not in text
    assert "-stages.png" in text
    assert row(text, "two workers / one ≥ 1.8", "### Bars")[1:] == ["-", "-"]


def test_a_page_of_nearly_nothing(tmp_path):
    speeds = Speeds("x")
    speeds.add("phantom", "fast", END_TO_END, SECONDS, math.nan)
    text = section(page_of(tmp_path, speeds), "x")
    assert row(text, "fast", "The phantom")[1:] == ["-"] * 8
    assert "nan" not in text
    assert not (tmp_path / "images").exists()


def test_a_page_needs_records_and_a_place(tmp_path):
    with pytest.raises(SettingsError, match="none"):
        write_speed_page(tmp_path / "none.json", tmp_path / "speed.md")
    save_speeds(tmp_path / "speed.json", measured(CPU, ON_CPU))
    (tmp_path / "images").touch()
    with pytest.raises(OutputError, match="images"):
        write_speed_page(tmp_path / "speed.json", tmp_path / "speed.md")


@pytest.mark.parametrize(
    ("bar", "case", "method", "stage", "metric", "met", "missed"),
    [
        (
            "calibrates on 2 cores, phantom",
            "phantom",
            "balanced",
            "calibrate",
            "seconds",
            15,
            15.01,
        ),
        ("calibrates on 2 cores, some", "some_slide", "balanced", "calibrate", "seconds", 15, 16),
        ("macenko`, phantom", "phantom", "tiatoolbox-macenko", END_TO_END, SECONDS, 0.045, 0.044),
        ("macenko`, some_slide", "some_slide", "fast", END_TO_END, SECONDS, 0.07, 0.08),
        ("`balanced` / `fast`", "phantom", "balanced", END_TO_END, SECONDS, 0.36, 0.361),
        ("`fast`: x", "phantom", "fast", END_TO_END, "over_cpu_seconds_over_cores", 1.15, 1.16),
        ("`balanced`: x", "phantom", "balanced", END_TO_END, "over_cpu_seconds_over_cores", 1, 2),
        ("`estimate`, seconds", "some_slide", "balanced", ESTIMATE, "seconds", 62.5, 62.6),
        ("`estimate`, seconds", "some_slide", "fast", "run", "seconds", 80, 80.1),
        ("`estimate`, disk", "some_slide", "fast", ESTIMATE, "disk_bytes", 1.5e8, 1.49e8),
        ("`estimate`, tiles", "some_slide", "fast", ESTIMATE, "tiles", 431, 600),
        ("two", "phantom-blocks", "fast", "fit+render", "two_workers_over_one", 1.8, 1.79),
    ],
)
def test_bars_of_a_cpu(bar, case, method, stage, metric, met, missed):
    where = {"case": case, "method": method, "stage": stage, "metric": metric}
    for value, verdict in ((met, "yes"), (missed, "no"), (None, "-")):
        found = verdicts(altered(measured(CPU, ON_CPU), value, **where))
        (what,) = (w for w in found if bar in w)
        if value is None and metric == "over_cpu_seconds_over_cores":
            verdict = "yes"  # from the seconds and the cores
        assert found[what] == verdict


@pytest.mark.parametrize(
    ("bar", "method", "met", "missed"),
    [
        ("`fast` on a GPU: seconds", "fast", 0.006, 0.00601),
        ("`balanced` on a GPU: seconds", "balanced", 0.03, 0.0301),
        ("`paper` / `balanced`", "paper", 1.26, 1.25),
    ],
)
def test_bars_of_a_gpu(bar, method, met, missed):
    where = {"case": "phantom", "method": method, "stage": END_TO_END, "metric": SECONDS}
    for value, verdict in ((met, "yes"), (missed, "no"), (None, "-")):
        found = verdicts(altered(measured(GPU, ON_GPU), value, **where))
        (what,) = (w for w in found if bar in w)
        assert found[what] == verdict


def test_bars_belong_to_their_devices():
    on_cpu, on_gpu = verdicts(measured(CPU, ON_CPU)), verdicts(measured(GPU, ON_GPU))
    wide = verdicts(measured("Some Processor, 12 cores", ON_CPU))
    assert not any("GPU" in what for what in on_cpu)
    assert any("calibrates" in what for what in on_cpu)
    assert not any("calibrates" in what for what in [*on_gpu, *wide])
    assert any("CPU seconds / cores" in what for what in wide)
    assert not any("CPU seconds / cores" in what for what in on_gpu)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (15.0, "15"),
        (0.99999, "1"),
        (999.7, "1000"),
        (11_400.4, "11400"),
        (8.77e-5, "0.0000877"),
        (0, "0"),
        (-0.00012, "-0.00012"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_numbers_have_no_exponent(value, text):
    assert number(value) == text


def test_devices_become_names_of_files():
    assert slug("Some Processor(R) @ 2.10GHz, 2 cores") == "some-processor-r-2-10ghz-2-cores"
    assert slug("µ") == "device"


def test_series_are_in_the_order_of_their_number():
    speeds = Speeds("x")
    for batch, value in ((16, 3), (2, 1), (4, math.nan)):
        speeds.add("phantom", "paper", "solve", f"tiles_per_s@batch={batch}", value)
    assert series(speeds.records, "tiles_per_s@batch=", "phantom") == [(2, 1), (16, 3)]


def test_a_figure_is_rounded_or_null():
    speeds = Speeds("x")
    for value in (0.0123456, math.nan, math.inf, 0):
        speeds.add("phantom", "fast", "fit", f"m{value}", value)
    assert [r["value"] for r in speeds.records] == [0.01235, None, None, 0]
    assert speeds.records[0] == {
        "device": "x",
        "case": "phantom",
        "method": "fast",
        "stage": "fit",
        "metric": "m0.0123456",
        "value": 0.01235,
    }
    assert speeds.value("phantom", "fast", "fit", "m0.0123456") == 0.01235
    assert math.isnan(speeds.value("phantom", "fast", "fit", "mnan"))


def test_a_figure_is_found_by_any_of_its_keys():
    records = measured(CPU, ON_CPU).records
    assert find(records, method="balanced", stage="calibrate", case="phantom") == 11.7
    assert find(records, metric=SECONDS) == 0.045
    assert math.isnan(find(records, method="none"))
    assert math.isnan(find([], metric=SECONDS))


def test_saving_keeps_other_devices(tmp_path):
    path = tmp_path / "speed.json"
    for device, value in (("a", 1), ("b", 2), ("a", 3)):
        speeds = Speeds(device)
        speeds.add("phantom", "fast", END_TO_END, SECONDS, value)
        save_speeds(path, speeds)
    assert [(r["device"], r["value"]) for r in load_speeds(path)] == [("b", 2), ("a", 3)]
    assert [p.name for p in tmp_path.iterdir()] == ["speed.json"]
    assert len(path.read_text().splitlines()) == 4  # a line a figure, and brackets


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"device": "x"}]', "nonsense"])
def test_other_files_are_refused_and_kept(tmp_path, text):
    path = tmp_path / "speed.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"speed\.json"):
        load_speeds(path)
    with pytest.raises(SettingsError, match=r"speed\.json"):
        save_speeds(path, Speeds("x"))
    assert path.read_text() == text


def test_records_of_quality_are_refused(tmp_path):
    path = tmp_path / "quality.json"
    path.write_text(json.dumps([{"case": "he", "method": "fast", "metric": "rmse", "value": 1}]))
    with pytest.raises(SettingsError, match="benchmark of speed"):
        write_speed_page(path, tmp_path / "speed.md")


def test_results_need_a_folder(tmp_path):
    check_folder(tmp_path / "speed.json")
    with pytest.raises(OutputError, match="folder"):
        check_folder(tmp_path / "no" / "speed.json")


def test_the_slope_is_free_of_what_is_done_once():
    assert slope((10, 7 + 10 * 0.5), (90, 7 + 90 * 0.5)) == pytest.approx(0.5)
