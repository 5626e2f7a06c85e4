"""What goes wrong stays where it is, is flagged, and is made good when the fault is gone."""

from __future__ import annotations

import errno
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr
from PIL import Image
from scipy.ndimage import gaussian_filter

from support.cheap_runs import BALANCED, FAST, PAPER, Slide, differing, stop_at
from wsi_pgdips.errors import IncompleteRunError, SlideError
from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline import slide_run
from wsi_pgdips.progress import LineProgress
from wsi_pgdips.records import TileFlag
from wsi_pgdips.slide import image, reader, source
from wsi_pgdips.solver import optimise
from wsi_pgdips.stages import fit as fitting
from wsi_pgdips.stages import render as rendering

TISSUE_TILE = Region(512, 768, 256, 256)
Breaks = Callable[..., None]


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Breaks:
    """Make a part of every slide unreadable, on all its levels or on level 0 alone."""

    def breaks(bad: Region, *, level_0_only: bool = True) -> None:
        for kind in (reader.OpenSlidePyramid, image.TiffPyramid):
            genuine = kind.read_level

            def read(self: Any, level: int, *window: int, genuine: Any = genuine) -> Any:
                scale = self.level_shapes[0][0] / self.level_shapes[level][0]
                y, x, h, w = (v * scale for v in window)
                hit = y < bad.stop_y and x < bad.stop_x and y + h > bad.y and x + w > bad.x
                if hit and window[2:] != (8, 8) and not (level and level_0_only):  # probes pass
                    raise SlideError("pixels of the slide cannot be read")
                return genuine(self, level, *window)

            monkeypatch.setattr(kind, "read_level", read)

    return breaks


def flags_of(layers: Layers) -> npt.NDArray[np.int64]:
    """Flags on the tile grid, -1 for tiles without a row."""
    out = np.full(layers.grid.tile_grid, -1)
    table = layers.tiles.to_pydict()
    out[table["tile_y"], table["tile_x"]] = table["flags"]
    return out


def has(flags: npt.NDArray[np.int64], flag: TileFlag) -> npt.NDArray[np.bool_]:
    return (flags >= 0) & ((flags & int(flag)) != 0)


def record(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "provenance" / "run.json").read_text()))


def assert_no_nan(output: Path) -> None:
    """No array holds a NaN; only the tiles' own parameters may say "not fitted" by one."""
    nodes = [p for p in output.rglob("zarr.json") if json.loads(p.read_text()).get("shape")]
    assert len(nodes) > 8
    for node in nodes:
        name = node.parent.relative_to(output).as_posix()
        if not name.startswith("parameters/raw/"):
            values = np.asarray(zarr.open_array(node.parent, mode="r")[...])
            assert values.dtype.kind != "f" or np.isfinite(values).all(), name


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_a_tile_that_cannot_be_read(
    preset: str,
    slide: Slide,
    unreadable: Breaks,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    clean: Layers = request.getfixturevalue("finished" if preset == "fast" else preset)
    options = FAST if preset == "fast" else BALANCED
    unreadable(TISSUE_TILE.grown(-40))
    done = slide.run(output, **options)
    assert (done.exit_code, done.incomplete, done.failed_blocks) == (3, True, 0)
    assert record(output)["status"] == "incomplete"
    layers = open_layers(output, unfinished=True)
    flags = flags_of(layers)
    lost = np.argwhere(has(flags, TileFlag.READ_FAILED)).tolist()
    assert lost == [[TISSUE_TILE.y // 256, TISSUE_TILE.x // 256]]
    assert done.failed_tiles == 1 + has(flags, TileFlag.FAILED).sum()
    for stage, kind in zip(("fit", "render"), record(output)["tile_failures"], strict=True):
        assert (kind["stage"], kind["type"], kind["count"]) == (
            stage,
            "SlideError",
            done.failed_tiles,
        )
        assert kind["place"].startswith("slide/")
    r = TISSUE_TILE
    assert np.isnan(layers.read(r.y, r.x, r.h, r.w)).all()
    same = np.isnan(layers.read(0, 0, *layers.grid.shape)[0])
    before = np.isnan(clean.read(0, 0, *clean.grid.shape)[0])
    same[r.y : r.stop_y, r.x : r.stop_x] = before[r.y : r.stop_y, r.x : r.stop_x]
    assert np.array_equal(same, before)  # all else is measured
    assert_no_nan(output)

    monkeypatch.undo()
    assert slide.run(output, **options).exit_code == 0
    assert differing(clean.path, output) == []


def test_a_tile_whose_halo_cannot_be_read_is_measured(
    slide: Slide, unreadable: Breaks, output: Path
) -> None:
    r = TISSUE_TILE
    unreadable(Region(r.y + 64, r.x + 2, 64, 64))  # within the halo of the tile to the left
    assert slide.run(output, **BALANCED).exit_code == 3
    layers = open_layers(output, unfinished=True)
    flags, left = flags_of(layers), (r.y // 256, r.x // 256 - 1)
    assert has(flags, TileFlag.FAILED)[left]
    assert not has(flags, TileFlag.READ_FAILED)[left]
    assert np.isfinite(layers.read(r.y, r.x - 256, 256, 256)).any()


@pytest.mark.parametrize(
    "bad", [Region(0, 0, 1100, 1500), Region(0, 0, 560, 1500)], ids=["all", "upper half"]
)
def test_pixels_that_calibration_misses_are_taken_in_later(
    bad: Region,
    slide: Slide,
    finished: Layers,
    unreadable: Breaks,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unreadable(bad)
    done = slide.run(output, **FAST)
    assert done.exit_code == 3
    assert "calibration_unread" in done.flags
    if bad.h == 1100:
        assert done.failed_tiles == done.tiles == finished.tiles.num_rows
    assert_no_nan(output)
    monkeypatch.undo()
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_what_the_overview_cannot_read_does_not_pass_for_glass(
    slide: Slide,
    finished: Layers,
    unreadable: Breaks,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source, "SMALLEST_LVL", 1)  # the overview of so small a slide is one read
    unreadable(Region(300, 500, 500, 500), level_0_only=False)
    done = slide.run(output, **FAST)
    assert done.exit_code == 3
    assert "overview_unreadable" in done.flags
    flags = flags_of(open_layers(output, unfinished=True))
    assert has(flags, TileFlag.READ_FAILED)[1:4, 1:4].all()
    # still broken: nothing is thrown away, and it ends the same
    plan = (output / "work" / "plan.npz").stat().st_mtime_ns
    assert slide.run(output, **FAST).exit_code == 3
    assert (output / "work" / "plan.npz").stat().st_mtime_ns == plan
    monkeypatch.undo()
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_tiles_whose_fit_raises(
    slide: Slide, finished: Layers, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = io.StringIO()
    genuine = fitting.fit_tiles
    errors = [ArithmeticError("a surprise"), ArithmeticError("another"), LookupError("a third")]

    def fit_tiles(tiles: Any, *others: Any) -> Any:
        if tiles and errors:
            raise errors.pop()
        return genuine(tiles, *others)

    monkeypatch.setattr(fitting, "fit_tiles", fit_tiles)
    stop_at(slide, output, "render", **FAST)
    monkeypatch.undo()
    # the reasons are known to the run that finishes what this one began
    done = slide.run(output, progress=LineProgress(log), **FAST)
    assert (done.exit_code, done.failed_tiles, done.failed_blocks) == (3, 3, 0)
    layers = open_layers(output, unfinished=True)
    failed = np.argwhere(has(flags_of(layers), TileFlag.FAILED)).tolist()
    kinds = {kind["type"]: kind for kind in record(output)["tile_failures"]}
    assert {name: kind["count"] for name, kind in kinds.items()} == {
        "ArithmeticError": 2,
        "LookupError": 1,
    }
    assert kinds["LookupError"]["message"] == "a third"
    for kind in kinds.values():
        assert re.fullmatch(r"stages/fit\.py:\d+ in solve", kind["place"])
        assert kind["tile"] in failed
        assert f"failed by {kind['type']}: {kind['message']} ({kind['place']})" in log.getvalue()
    assert len(failed) == 3
    for ty, tx in failed:
        assert layers.fields.inherited[ty, tx]
        r = layers.grid.tile_region(ty, tx)
        assert np.isfinite(layers.read(r.y, r.x, r.h, r.w)).all()
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []
    assert record(output)["tile_failures"] == []


def test_a_block_that_breaks(
    slide: Slide, finished: Layers, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = rendering.render_block

    def render_block(
        context: Any, prior: Any, fields: Any, matrix: Any, plan: Any, *a: Any, **k: Any
    ) -> Any:
        if (plan.by, plan.bx) == (0, 1):
            raise ArithmeticError("a surprise")
        return genuine(context, prior, fields, matrix, plan, *a, **k)

    monkeypatch.setattr(rendering, "render_block", render_block)
    done = slide.run(output, **FAST)
    assert (done.exit_code, done.failed_blocks) == (3, 1)
    assert record(output)["failures"] == {"0,1": "ArithmeticError: a surprise"}
    layers = open_layers(output, unfinished=True)
    assert np.isnan(layers.read(0, 1024, 1024, 476)).all()
    assert np.isfinite(layers.read(0, 0, 1024, 1024)).any()
    monkeypatch.undo()
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_block_that_a_passing_fault_has_struck_is_tried_again(
    times: int,
    slide: Slide,
    finished: Layers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, waits, left = tmp_path / "out.ome.zarr", list[float](), [times]
    genuine = fitting.fit_block

    def fit_block(context: Any, prior: Any, plan: Any, *a: Any, **k: Any) -> Any:
        if (plan.by, plan.bx) == (0, 1) and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return genuine(context, prior, plan, *a, **k)

    monkeypatch.setattr(fitting, "fit_block", fit_block)
    monkeypatch.setattr(slide_run.time, "sleep", waits.append)
    done = slide.run(output, **FAST)
    assert waits == [slide_run.AGAIN_S]
    assert (done.exit_code, done.failed_blocks) == ((0, 0) if times == 1 else (3, 1))
    if times == 1:
        assert differing(finished.path, output) == []


def test_where_no_block_can_be_fitted_it_says_so(
    slide: Slide, finished: Layers, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_block(*_: Any, **__: Any) -> None:
        raise ArithmeticError("a surprise")

    monkeypatch.setattr(fitting, "fit_block", fit_block)
    with pytest.raises(IncompleteRunError, match="a surprise") as caught:
        slide.run(output, **FAST)
    assert caught.value.exit_code == 3
    monkeypatch.undo()
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_a_network_that_diverges(
    slide: Slide, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = optimise.solve

    def solve(*a: Any, **k: Any) -> Any:
        solution = genuine(*a, **k)
        solution.concentration[...] = torch.nan
        return solution

    monkeypatch.setattr(optimise, "solve", solve)
    done = slide.run(output, **PAPER)
    flags = flags_of(open_layers(output, unfinished=True))
    assert has(flags, TileFlag.DIVERGED).sum() >= done.tiles // 2
    assert (has(flags, TileFlag.INHERITED) | ~has(flags, TileFlag.DIVERGED)).all()
    assert_no_nan(output)


def test_an_absurd_learning_rate_leaves_numbers(slide: Slide, output: Path) -> None:
    slide.run(output, learning_rate=1e30, **BALANCED)
    assert_no_nan(output)


def test_blank_tiles_are_flagged_and_inherit(slide: Slide, output: Path, tmp_path: Path) -> None:
    everything = tmp_path / "mask.png"
    Image.fromarray(np.full((110, 150), 255, np.uint8)).save(everything)
    assert slide.run(output, mask=str(everything), **FAST).exit_code == 0
    flags = flags_of(open_layers(output))
    assert (flags >= 0).all()
    assert has(flags, TileFlag.BLANK).any()
    assert (has(flags, TileFlag.INHERITED) | ~has(flags, TileFlag.BLANK)).all()
    assert_no_nan(output)


def test_tiles_of_one_stain_are_flagged(output: Path, tmp_path: Path) -> None:
    stains = load_stains("he").stain_matrix
    rng = np.random.default_rng(4)
    q = gaussian_filter(rng.gamma(0.3, 1.0, (2, 512, 1536)), (0, 3, 3)).astype(np.float32)
    q[1, :, 768:] = 0  # no eosin to the right
    q[:, :, :96] = 0  # glass
    path = tmp_path / "halves.png"
    od = np.einsum("nhw,nc->hwc", q, stains) + np.float32(0.03)
    Image.fromarray(od_to_rgb(od)).save(path)
    halves = Slide(path, Path("he"))
    assert halves.run(output, mpp="native", mpp_source=0.5, **BALANCED).exit_code == 0
    scarce = has(flags_of(open_layers(output)), TileFlag.SCARCE_STAIN)
    assert scarce[:, 3:].all()
    assert not scarce[:, :3].any()
    assert_no_nan(output)
