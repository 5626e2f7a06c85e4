"""The overview figure: it shows what it is given, in the right place and window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_pgdips.errors import OutputError
from wsi_pgdips.optics.physics import compose_od, od_to_rgb, unit_rows
from wsi_pgdips.records import Fields
from wsi_pgdips.report.overview import mean_direction, overview, stain_colormap

ROWS = unit_rows([[0.65, 0.704, 0.286], [0.269, 0.568, 0.778], [0.072, 0.99, 0.105]])
LABELS, COLORS = ("Hematoxylin", "DAB", "Eosin"), ("5a4fcf", "8a5a2b", "ff4fa0")
SHAPE, GRID = (120, 200), (3, 5)


def make_fields(n: int, grid: tuple[int, int] = GRID) -> Fields:
    rows = np.broadcast_to(ROWS[:n], (*grid, n, 3)).copy()
    rows[:, :, 0] = unit_rows(rows[:, :, 0] + 0.05 * np.arange(grid[1])[:, None])
    mass = np.full((*grid, n), 1.2, np.float32)
    background = np.full((*grid, 3), 0.03, np.float32)
    nothing = np.full_like(background, np.nan)
    return Fields(
        rows.repeat(2, 0).repeat(2, 1),
        mass,
        background.repeat(2, 0).repeat(2, 1),
        np.full_like(rows, np.nan),
        np.full_like(mass, np.nan),
        nothing,
        np.ones_like(mass),
        np.zeros(grid, bool),
    )


def arguments(n: int) -> dict:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    tissue = (y - 60) ** 2 + (x - 100) ** 2 / 2 < 45**2
    q = np.stack([np.where(tissue, 0.3 + 0.2 * k + x / 400, 0) for k in range(n)])
    rgb = od_to_rgb(compose_od(q.astype(np.float32), ROWS[:n], np.full(3, 0.03, np.float32)))
    rgb = np.ascontiguousarray(rgb.transpose(1, 2, 0))
    return {
        "slide_rgb": rgb,
        "tissue": tissue,
        "concentrations": np.where(tissue, q, np.nan).astype(np.float32),
        "labels": LABELS[:n],
        "colors": COLORS[:n],
        "residual_rms": np.full((30, 50), 0.02, np.float32),
        "fields": make_fields(n),
        "recomposition": rgb,
        "title": "a slide",
        "mpp": 8.0,
        "tile_um": 320.0,
        "dpi": 50,
    }


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_figure_for_any_number_of_stains(tmp_path: Path, n: int):
    path = tmp_path / "overview.png"
    assert overview(path, **arguments(n)) == path
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert min(image.shape[:2]) > 300
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 500
    assert [p.name for p in tmp_path.iterdir()] == ["overview.png"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path):
    a, b = (overview(tmp_path / f"{k}.png", **arguments(2)).read_bytes() for k in "ab")
    assert a == b


def test_other_resolutions_and_nothing_measured(tmp_path: Path):
    given = arguments(2)
    given |= {
        "concentrations": np.full((2, 11, 17), np.nan, np.float32),
        "residual_rms": np.full((3, 4), np.nan, np.float32),
        "tissue": np.zeros(SHAPE, bool),
    }
    assert overview(tmp_path / "empty.pdf", **given).stat().st_size > 1000


def test_a_missing_folder_is_said_so(tmp_path: Path):
    with pytest.raises(OutputError, match="cannot be written"):
        overview(tmp_path / "none" / "x.png", **arguments(1))


def test_colormap_runs_from_white_through_the_stain_to_dark():
    colormap = stain_colormap("8a5a2b")
    np.testing.assert_allclose(colormap(0.0)[:3], 1)
    np.testing.assert_allclose(colormap(0.5)[:3], np.array([0x8A, 0x5A, 0x2B]) / 255, atol=0.01)
    brightness = np.asarray([sum(colormap(v)[:3]) for v in np.linspace(0, 1, 20)])
    assert (np.diff(brightness) < 0).all()


def test_mean_direction_is_that_of_the_measured_tiles():
    fields = make_fields(2)
    measured = np.zeros(GRID, bool)
    measured[1, 3] = True
    np.testing.assert_allclose(
        mean_direction(fields.tile_stain_matrix, measured),
        fields.tile_stain_matrix[1, 3],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        np.linalg.norm(mean_direction(fields.tile_stain_matrix, ~measured & measured), axis=1),
        1,
        atol=1e-6,
    )
