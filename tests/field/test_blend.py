"""``blend_fields``: from the blocks' fits to fields, in whatever order they come."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi_pgdips.field.blend import blend_fields
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.pipeline.stage_files import FitFiles, load_fit, save_fit
from wsi_pgdips.records import BlockFit, Fields, FloatArray, SlidePrior, TileFlag
from wsi_pgdips.solver.statistics import Q_MAX, cell_statistics, empty_statistics, q_histogram

ROWS = load_stains("hdab").stain_matrix
GRID = (4, 6)
GLASS = np.array([0.04, 0.02, 0.06], np.float32)
CELLS = (2 * GRID[0], 2 * GRID[1])
QUARTERS = [slice(200 * i, 200 * (i + 1)) for i in range(4)]
BACKGROUND = np.broadcast_to(GLASS, (*CELLS, 3)).astype(np.float32)
PRIOR = SlidePrior(
    stain_matrix=ROWS,
    spectral_correction=np.array([1.1, 0.9], np.float32),
    background=GLASS,
    presence=np.array([0.1, 0.1], np.float32),
    noise_od=0.005,
    pooled_noise_od=0.002,
    prior_weight=np.zeros(2, np.float32),
    measured=np.ones(2, bool),
)


def block_fit(tiles: Sequence[tuple[int, int]], flags: Sequence[TileFlag]) -> BlockFit:
    """Fits of tiles whose content follows from their position; unfitted ones say nothing."""
    rows, statistics = [], []
    for (ty, tx), flag in zip(tiles, flags, strict=True):
        rng = np.random.default_rng(100 * ty + tx)
        rows.append(unit_rows(ROWS + rng.normal(0, 0.02, (2, 3))))
        q = rng.gamma(3, 0.2, (2, 800)).astype(np.float32)
        q[0, :80] = q[1, 80:160] = 0
        y, half = (q.T @ ROWS).astype("f4"), rng.random(800) > 0.5
        cells = [cell_statistics(y[c], half[c], ROWS, 0.002) for c in QUARTERS]
        own = {k: np.stack([c[k] for c in cells]) for k in cells[0]}
        statistics.append(
            empty_statistics(ROWS)
            if flag
            else {
                "q_hist": q_histogram(q),
                **{k: v.reshape(2, 2, *v.shape[1:]) for k, v in own.items()},
            }
        )
    count = len(tiles)
    fitted = np.array([not f for f in flags], np.float32)
    return BlockFit(
        index=np.array(tiles, np.int32),
        tissue=np.ones(count, np.float32),
        stain_matrix=np.stack(rows),
        spectral_correction=np.full((count, 2), 1.5, np.float32),
        background=np.tile(GLASS, (count, 1)) + 0.01,
        confidence=fitted[:, None] * np.full((count, 2), 0.8, np.float32),
        loss=np.zeros(count, np.float32),
        steps=np.zeros(count, np.int32),
        flags=np.array([int(f) for f in flags], np.int32),
        statistics={k: np.stack([s[k] for s in statistics]) for k in statistics[0]},
    )


def fits(flag: TileFlag = TileFlag.BLANK, flagged: tuple[int, int] = (1, 1)) -> list[BlockFit]:
    """Two blocks; the tiles of the last column were never scheduled."""
    blocks = []
    for columns in ((0, 1, 2), (3, 4)):
        tiles = [(ty, tx) for ty in range(GRID[0]) for tx in columns]
        blocks.append(block_fit(tiles, [flag if t == flagged else TileFlag.NONE for t in tiles]))
    return blocks


def blended(
    blocks: Sequence[BlockFit], source: str = "statistics", prior: SlidePrior = PRIOR
) -> tuple[Fields, FloatArray]:
    return blend_fields(blocks, GRID, prior, BACKGROUND, source=source, q_max=Q_MAX)


def shuffled(blocks: Sequence[BlockFit]) -> list[BlockFit]:
    out = []
    for block in reversed(blocks):
        order = np.random.default_rng(0).permutation(len(block.index))
        arrays = {
            name: value[order]
            for name, value in vars(block).items()
            if isinstance(value, np.ndarray)
        }
        statistics = {name: value[order] for name, value in block.statistics.items()}
        out.append(replace(block, **arrays, statistics=statistics))
    return out


@pytest.mark.parametrize("source", ["statistics", "parameters"])
def test_the_order_of_blocks_and_tiles_does_not_matter(source: str) -> None:
    (a, slide_a), (b, slide_b) = (blended(f, source) for f in (fits(), shuffled(fits())))
    np.testing.assert_array_equal(slide_a, slide_b)
    for name, value in vars(a).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)
    assert a.shrinkage == b.shrinkage


@pytest.mark.parametrize("source", ["statistics", "parameters"])
def test_fields_cover_the_grid_and_are_finite(source: str) -> None:
    field, slide = blended(fits(), source)
    assert field.stain_matrix.shape == (*CELLS, 2, 3)
    assert field.spectral_correction.shape == (*GRID, 2)
    assert field.background.shape == (*CELLS, 3)
    for value in (field.stain_matrix, field.spectral_correction, field.background, slide):
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
    np.testing.assert_allclose(np.linalg.norm(field.stain_matrix, axis=-1), 1, atol=1e-5)
    assert angle_deg(field.stain_matrix, ROWS).max() < 2
    assert (field.spectral_correction > 0).all()


@pytest.mark.parametrize(
    "flag",
    [
        TileFlag.LOW_TISSUE,
        TileFlag.BLANK,
        TileFlag.DIVERGED,
        TileFlag.READ_FAILED,
        TileFlag.FAILED | TileFlag.INHERITED,
    ],
)
@pytest.mark.parametrize("source", ["statistics", "parameters"])
def test_unfitted_tiles_inherit(source: str, flag: TileFlag) -> None:
    blocks = fits(flag)
    for block in blocks:
        block.confidence[:] = 0.8  # whatever an unfitted tile claims, it has no say
    field, _ = blended(blocks, source)
    unscheduled = np.zeros(GRID, bool)
    unscheduled[:, 5] = True
    unscheduled[1, 1] = True
    np.testing.assert_array_equal(field.inherited, unscheduled)
    assert not field.confidence[unscheduled].any()
    for raw in (field.raw_stain_matrix, field.raw_spectral_correction, field.raw_background):
        assert np.isnan(raw[unscheduled]).all()
        assert np.isfinite(raw[~unscheduled]).all()


@pytest.mark.parametrize("flag", [TileFlag.SCARCE_STAIN, TileFlag.OUTSIDE_GATE, TileFlag.SATURATED])
def test_odd_but_fitted_tiles_count(flag: TileFlag) -> None:
    blocks = fits()
    blocks[0].flags[:] = int(flag)
    field, _ = blended(blocks)
    assert not field.inherited[:, :3].any()


def test_parameters_blend_by_confidence() -> None:
    blocks = fits(flagged=(99, 99))
    odd = blocks[0].index.tolist().index([2, 2])
    blocks[0].spectral_correction[odd] = 9.0
    blocks[0].confidence[odd] = 0.0
    field, _ = blended(blocks, "parameters")
    np.testing.assert_allclose(field.spectral_correction, 1.5, rtol=1e-5)
    assert field.raw_spectral_correction[2, 2, 0] == 9.0
    np.testing.assert_allclose(field.background, BACKGROUND + 0.01, atol=1e-6)


def test_a_stain_no_tile_holds_keeps_the_priors_vector() -> None:
    blocks = fits()
    for block in blocks:
        block.confidence[:, 1] = 0
    field, slide = blended(blocks, "parameters")
    np.testing.assert_allclose(field.stain_matrix[:, :, 1], np.broadcast_to(ROWS[1], (*CELLS, 3)))
    np.testing.assert_allclose(slide[1], ROWS[1], atol=1e-6)
    np.testing.assert_allclose(field.spectral_correction[..., 1], PRIOR.spectral_correction[1])


@pytest.mark.parametrize("source", ["statistics", "parameters"])
def test_nothing_fitted_is_the_slides_prior(source: str) -> None:
    tiles = [(0, 0), (3, 5)]
    field, slide = blended([block_fit(tiles, [TileFlag.BLANK] * 2)], source)
    np.testing.assert_allclose(slide, ROWS, atol=1e-6)
    np.testing.assert_allclose(field.stain_matrix, np.broadcast_to(ROWS, (*CELLS, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(
        field.spectral_correction, np.broadcast_to(PRIOR.spectral_correction, (*GRID, 2))
    )
    np.testing.assert_allclose(field.background, BACKGROUND)
    assert field.inherited.all()


def test_m_is_the_local_percentile_and_at_least_presence() -> None:
    blocks = fits()
    for block in blocks:
        hist = block.statistics["q_hist"]
        hist[:] = 0
        busy = block.flags == 0
        hist[busy, 0, 50] = 1000  # all of the first stain lies at 0.505 OD
        hist[busy, 1, 0] = 1000  # and next to nothing of the second
    field, _ = blended(blocks)
    np.testing.assert_allclose(field.spectral_correction[:, :5, 0], 0.505, atol=1e-5)
    np.testing.assert_allclose(field.spectral_correction[:, :5, 1], 0.1, atol=1e-6)


def test_threads_share_the_courses_and_change_nothing() -> None:
    alone = blended(fits())[0]
    with ThreadPoolExecutor(2) as executor:
        shared, _ = blend_fields(
            fits(), GRID, PRIOR, BACKGROUND, source="statistics", q_max=Q_MAX, executor=executor
        )
    np.testing.assert_array_equal(alone.stain_matrix, shared.stain_matrix)
    assert alone.shrinkage == shared.shrinkage


def test_fits_that_are_loaded_one_by_one_blend_the_same(tmp_path: Path) -> None:
    paths = []
    for i, block in enumerate(fits()):
        paths.append(tmp_path / f"{i}.npz")
        save_fit(block, paths[-1], tmp_path / "none.npy")
    (a, slide_a), (b, slide_b) = blended(fits()), blended(FitFiles(paths))
    np.testing.assert_array_equal(slide_a, slide_b)
    for name, value in vars(a).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)
    assert not load_fit(paths[0], statistics=False).statistics


@pytest.mark.parametrize("source", ["statistics", "parameters"])
def test_fields_keep_the_freedom_that_the_set_allows(source: str) -> None:
    def freed(degrees: tuple[float, float]) -> tuple[Fields, FloatArray]:
        freedom = np.array(degrees, np.float32)
        return blend_fields(
            fits(),
            GRID,
            PRIOR,
            BACKGROUND,
            source=source,
            q_max=Q_MAX,
            library=own,
            freedom=freedom,
        )

    own = unit_rows(ROWS + np.array([[0.1, -0.1, 0.1], [0.1, 0.1, -0.1]]))  # the user's
    free, slide = freed((np.inf, np.inf))
    assert (angle_deg(slide, own) > 2.2).all()
    fixed, slide = freed((0.0, np.inf))
    np.testing.assert_allclose(slide[0], own[0], atol=1e-6)
    field = np.broadcast_to(own[0], fixed.stain_matrix[:, :, 0].shape)
    np.testing.assert_allclose(fixed.stain_matrix[:, :, 0], field, atol=1e-6)
    np.testing.assert_array_equal(fixed.stain_matrix[:, :, 1], free.stain_matrix[:, :, 1])
    refined, slide = freed((1.0, 2.0))
    assert (angle_deg(refined.stain_matrix, own) < np.array([1.01, 2.01])).all()
    assert (angle_deg(slide, own) < np.array([1.01, 2.01])).all()


def counted(brown: dict[tuple[int, int], int], black: dict[tuple[int, int], int]) -> FloatArray:
    """How far black is the saturating stain, from counts of squares in cells (cy, cx)."""
    dark = np.zeros((*GRID, 2, 2, 2), np.int64)
    for kind, counts in enumerate((brown, black)):
        for (cy, cx), number in counts.items():
            dark[cy // 2, cx // 2, cy % 2, cx % 2, kind] = number
    blocks = []
    for block in fits():
        own = dark[block.index[:, 0], block.index[:, 1]]
        blocks.append(replace(block, statistics={**block.statistics, "dark": own}))
    found = blended(blocks, prior=replace(PRIOR, saturating=1))[0].brown
    assert found.shape == CELLS
    assert found.min() >= 0
    assert found.max() <= 1
    return found


def test_black_near_brown_is_dab_and_black_elsewhere_is_foreign() -> None:
    found = counted({(1, 1): 300, (6, 7): 1}, {(1, 1): 200, (6, 7): 200})
    assert found[1, 1] == 1
    assert found[1, 2] > 0.9  # the cell beside it, too
    assert found[6, 7] == 0
    assert counted({}, {(3, 3): 50})[3, 3] == 0


def test_some_brown_between_leaves_it_open() -> None:
    few, more = (counted({(3, 3): n}, {(3, 3): 1000})[3, 3] for n in (60, 120))
    assert 0 < few < more < 1


def test_without_a_stain_that_saturates_nothing_is_brown() -> None:
    assert blended(fits())[0].brown.size == 0
    assert counted({}, {}).max() == 0
