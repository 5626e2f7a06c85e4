"""The records of the benchmark of speed, and the page and plots that are made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.records import Records, kept_records, write_page
from benchmarks.speed.page import Figures, bars, slug
from benchmarks.speed.plots import series
from benchmarks.speed.run import CPU_SECONDS, END_TO_END, ESTIMATE, SECONDS, WITH_WORKERS
from benchmarks.speed.runs import STAGES, slope
from wsi_pgdips.errors import OutputError

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
) -> Records:
    """Figures as a run of the benchmark leaves them, invented."""
    records, gpu = Records("speed", {"device": device}), device == GPU
    phantom, cores = records.at(case="phantom"), int(device.split()[-2])

    def add(at: Records, stage: str, wall: float, cpu: float, **more: float) -> None:
        at.add({SECONDS: wall, CPU_SECONDS: cpu, **more}, stage=stage)

    for name, (wall, cpu) in methods.items():
        own = phantom.at(method=name)
        add(own, END_TO_END, wall, cpu, tiles_per_s=1 / wall)
        if name.startswith("tiatoolbox"):
            continue
        parts = {"fit-alone": 0.2, "render-alone": 0.65}
        for stage, share in (SHARES | parts).items():
            add(own, stage, share * wall, share * cpu)
        whole = {"over_cpu_seconds_over_cores": wall * cores / cpu, "tiles": 1600}
        whole |= {"peak_rss_mb": 1834.5, "bytes_written_per_tile": 153_210}
        whole |= {"peak_vram_mb": 2210, "gpu_busy_share": 0.82} if gpu else {}
        own.add(whole, stage=END_TO_END)
        own.add({"seconds": 1.2}, stage="prepare")
        own.add({"seconds": 11.7 if name == "balanced" else 2.5}, stage="calibrate")
    matmul = records.at(case="machine", method="matmul")
    matmul.add({"gflops": 212_000 if gpu else 153}, stage="ceiling")
    for part in ("read", "write"):
        add(phantom.at(method="ceiling"), part, 0.0041, 0.0079)
    floor = {"gflop_per_tile": 14.3, SECONDS: 0.093, "share_achieved": 0.461}
    phantom.add(floor, method="balanced", stage="floor")
    if quick:
        return records
    workers = {"tiles_per_s@workers=1": 13.1, "tiles_per_s@workers=2": 24.6}
    workers["two_workers_over_one"] = 24.6 / 13.1
    records.add(workers, case="phantom-blocks", method="fast", stage="fit+render")
    paper, step = phantom.at(method="paper"), 0.0004 if gpu else 1.9
    gains = {f"tiles_per_s@batch={n}": gain / step for n, gain in ((1, 1), (2, 1.1), (4, 1.15))}
    paper.add({**gains, "seconds_per_step": step}, stage="solve")
    paper.add({SECONDS: step * 6000}, stage=END_TO_END)
    for name in ("fast", "balanced", "tiatoolbox-macenko"):
        own, (wall, cpu) = records.at(case="some_slide", method=name), methods[name]
        add(own, END_TO_END, wall * 1.25, cpu * 1.2)
        if name != "tiatoolbox-macenko":
            own.add({"tiles": 431}, stage=END_TO_END)
            own.add({"seconds": 9.25}, stage="calibrate")
            for stage, much in ((ESTIMATE, 1.2), ("run", 1.0)):
                found = {"seconds": 50 * much, "disk_bytes": 2e8 * much}
                own.add({"tiles": 431, **found, "peak_rss_mb": 1000 * much}, stage=stage)
    return records


def save(path: Path, *devices: Records) -> None:
    """Take the records of each device into a file, as the benchmark does."""
    for records in devices:
        kept = kept_records("speed", path)
        kept.put(records, "device")
        kept.save(path)


def page_of(folder: Path, *devices: Records) -> str:
    """The page of what was saved, device after device."""
    results, page = folder / "results" / "speed.json", folder / "speed.md"
    save(results, *devices)
    write_page("speed", results, page)
    return page.read_text()


def section(page: str, device: str) -> str:
    return page.split(f"\n## {device}\n")[1].split("\n## ")[0]


def row(text: str, first: str, after: str) -> list[str]:
    """Cells of the first row that starts so, after a heading or a sentence."""
    lines = text[text.index(after) :].splitlines()
    found = next(line for line in lines if line.startswith(f"| {first} |"))
    return [c.strip() for c in found.strip("|").split("|")]


def verdicts(records: Records) -> dict[str, str]:
    device = records.rows[0]["device"]
    return {what: met for what, _, met in bars(Figures(device, records.frame))}


def altered(records: Records, value: float | None, **wanted: str) -> Records:
    """A copy with another value in the records that are meant."""
    meant = [r for r in records.rows if all(r[k] == v for k, v in wanted.items())]
    assert meant
    return replace(
        records, rows=[{**r, "value": value} if r in meant else dict(r) for r in records.rows]
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
    records = measured(CPU, {**ON_CPU, WITH_WORKERS: (0.03, 0.0588)})
    text = section(page_of(tmp_path, records), CPU)
    assert row(text, "fast-workers", "The phantom")[:6] == (
        ["fast-workers", "0.03", "0.0588", "33.3", "0.667", "1.02"]
    )
    bar = "`fast-workers`: x CPU seconds / cores ≤ 1.15"
    slow = {"method": WITH_WORKERS, "metric": "over_cpu_seconds_over_cores"}
    assert verdicts(records)[bar] == "yes"
    assert verdicts(altered(records, 1.16, **slow))[bar] == "no"
    assert not any(WITH_WORKERS in what for what in verdicts(measured(CPU, ON_CPU)))


def test_a_quick_file_makes_a_page_of_what_it_has(tmp_path):
    few = {name: ON_CPU[name] for name in ("fast", "balanced", "tiatoolbox-macenko")}
    text = section(page_of(tmp_path, measured(CPU, few, quick=True)), CPU)
    for missing in ("The slide", "-batch.png", "-workers.png", "| paper |", "nan"):
        assert missing not in text
    assert "-stages.png" in text
    assert row(text, "two workers / one ≥ 1.8", "### Bars")[1:] == ["-", "-"]


def test_a_page_of_nearly_nothing(tmp_path):
    records = Records("speed", {"device": "x", "case": "phantom", "method": "fast"})
    records.add({SECONDS: math.nan}, stage=END_TO_END)
    text = section(page_of(tmp_path, records), "x")
    assert row(text, "fast", "The phantom")[1:] == ["-"] * 8
    assert "nan" not in text
    assert not (tmp_path / "images").exists()


def test_a_page_needs_a_place_for_its_plots(tmp_path):
    (tmp_path / "images").touch()
    with pytest.raises(OutputError, match="images"):
        page_of(tmp_path, measured(CPU, ON_CPU))


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


def test_devices_become_names_of_files():
    assert slug("Some Processor(R) @ 2.10GHz, 2 cores") == "some-processor-r-2-10ghz-2-cores"
    assert slug("µ") == "device"


def test_series_are_in_the_order_of_their_number():
    records = Records("speed", {"device": "x", "case": "phantom", "method": "paper"})
    counts = ((16, 3), (2, 1), (4, math.nan))
    records.add({f"tiles_per_s@batch={n}": value for n, value in counts}, stage="solve")
    assert series(records.frame, "tiles_per_s@batch=", "phantom") == [(2, 1), (16, 3)]


def test_saving_keeps_other_devices(tmp_path):
    path = tmp_path / "speed.json"
    for device, value in (("a", 1), ("b", 2), ("a", 3)):
        where = {"case": "phantom", "method": "fast", "stage": END_TO_END}
        records = Records("speed", {"device": device, **where})
        records.add({SECONDS: value})
        save(path, records)
    rows = kept_records("speed", path).rows
    assert [(r["device"], r["value"]) for r in rows] == [("b", 2), ("a", 3)]


def test_the_slope_is_free_of_what_is_done_once():
    assert slope((10, 90), (7 + 10 * 0.5, 7 + 90 * 0.5)) == pytest.approx(0.5)
