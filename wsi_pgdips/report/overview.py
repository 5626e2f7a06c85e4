"""One figure that shows a slide, its layers and its fields."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.recompose import recompose
from wsi_pgdips.optics.interpolate import interpolation_weights
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.records import BoolArray, ByteArray, Fields, FloatArray, TileSource

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

MAX_SIDE = 1280
Q_WINDOW = (0.0, 2.0)  # OD; the same for every slide, so that slides can be compared by eye
RESIDUAL_WINDOW = (0.0, 0.1)
# least spans of a map's colours, lest a field that hardly changes looks as if it did
ANGLE_SPAN_DEG, M_SPAN, B_SPAN = 2.0, 0.2, 0.02
COLUMNS = 3
PANEL_INCHES = 3.6
NOT_MEASURED = "#e6e6e6"
OUTLINE = "#00a078"
Extent = tuple[float, float, float, float]  # left, right, bottom, top; mm


def draw_overview(source: TileSource, layers: Layers, path: Path) -> Path:
    """Draw slide, tissue, layers, residual, recomposition and fields into one figure.

    Args:
        source: the slide on the layers' output grid. layers: finished. path: picture to write.

    Raises:
        SlideError: the slide cannot be read. OutputError: layers damaged, picture not writable.
    """
    grid = layers.grid
    level = next(
        (k for k in range(grid.n_levels) if max(grid.level_shape(k)) <= MAX_SIDE),
        grid.n_levels - 1,
    )
    height, width = grid.level_shape(level)
    mpp = grid.mpp * 2**level
    rgb, _ = source.overview(mpp)
    q = layers.read(0, 0, height, width, level)
    side = grid.cell / 2**level
    return overview(
        path,
        slide_rgb=rgb,
        tissue=np.asarray(layers.tissue(level).compute(), bool),
        concentrations=q,
        labels=layers.stains.labels,
        colors=layers.stains.colors,
        residual_rms=np.asarray(layers.residual_rms().compute(), np.float32),
        fields=layers.fields,
        recomposition=recompose(
            q,
            field_at_level(layers.fields.stain_matrix, (height, width), side),
            field_at_level(layers.fields.background, (height, width), side),
        ),
        title=f"{source.meta.name}, {layers.stains.name}",
        mpp=mpp,
        tile_um=grid.tile * grid.mpp,
    )


def field_at_level(field: npt.NDArray[Any], shape: tuple[int, int], side: float) -> FloatArray:
    """Interpolate a field on the centres of cells to the pixels of a coarse level.

    Args:
        field: (CY, CX, ...). shape: (h, w) of the level. side: of a cell, in pixels of the level.

    Returns:
        (..., h, w) float32.
    """
    down, across = (
        interpolation_weights(n, side, 0, length)
        for n, length in zip(field.shape[:2], shape, strict=True)
    )
    return np.asarray(np.einsum("ya,ab...,xb->...yx", down, field, across, optimize=True))


def overview(
    path: Path,
    *,
    slide_rgb: ByteArray,
    tissue: BoolArray,
    concentrations: FloatArray,
    labels: Sequence[str],
    colors: Sequence[str],
    residual_rms: FloatArray,
    fields: Fields,
    recomposition: ByteArray,
    title: str,
    mpp: float,
    tile_um: float,
    dpi: int = 130,
) -> Path:
    """Draw a slide's overview: the slide, then one row a stain (q, turn of S, M), then B.

    All panels share one frame in millimetres, so pictures may differ in resolution.

    Args:
        path: file to write; its suffix gives the format (.png, .pdf, .svg). Replaced if there.
        slide_rgb: (H, W, 3) uint8. tissue: (H, W).
        concentrations: (N, h, w) OD of any resolution, NaN: not measured.
        labels: N names. colors: N colours of six hex digits.
        residual_rms: (h, w) OD of any resolution, NaN: not measured.
        fields: on the tile grid (GY, GX). Tiles without tissue are left out of the maps.
        recomposition: (h, w, 3) uint8, the model's picture without the residual.
        mpp: micrometres per pixel of ``slide_rgb``. tile_um: side of a tile in micrometres.

    Returns:
        ``path``.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    n, (height, width) = len(labels), tissue.shape
    panel = (PANEL_INCHES + 0.5, PANEL_INCHES * height / width)  # 0.5 in for the colour bar
    figure = Figure(
        figsize=(COLUMNS * panel[0], (n + 2) * (min(panel[1], 2 * PANEL_INCHES) + 0.35) + 0.5),
        layout="constrained",
        facecolor="white",
    )
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(n + 2, COLUMNS, squeeze=False)
    frame = _extent(tissue.shape, mpp)
    for ax in axes.flat:
        _set_frame(ax, frame)
    _draw_picture(axes[0, 0], slide_rgb, frame, "slide, tissue outlined")
    _outline(axes[0, 0], tissue, frame)
    axes[0, 0].set_xlabel("mm", fontsize=8)
    _draw_picture(axes[0, 1], recomposition, frame, "recomposed from q, S and B alone")
    draw_map = functools.partial(_draw_map, frame=frame)
    colormap = _sequential("cividis")
    draw_map(axes[0, 2], residual_rms, colormap, RESIDUAL_WINDOW, "residual RMS, OD", extend="max")

    measured = _tiles_with_tissue(tissue, tile_um / mpp, fields.inherited.shape)
    on_tiles = _extent(measured.shape, tile_um)

    def of_tissue(values: npt.NDArray[Any]) -> FloatArray:
        return np.where(measured, values, np.nan).astype(np.float32)

    def draw_field(ax: Axes, values: FloatArray, span: float, title: str) -> None:
        shown = of_tissue(values)
        draw_map(ax, shown, _sequential("viridis"), _range(shown, span), title, at=on_tiles)

    mean = mean_direction(fields.tile_stain_matrix, measured)
    for k, label in enumerate(labels):
        color = stain_colormap(colors[k])
        draw_map(
            axes[k + 1, 0], concentrations[k], color, Q_WINDOW, f"{label}: q, OD", extend="max"
        )
        turn = of_tissue(angle_deg(fields.tile_stain_matrix[:, :, k], mean[k]))
        window = (0.0, max(ANGLE_SPAN_DEG, _range(turn, 0)[1]))
        vector = ", ".join(f"{v:.2f}" for v in mean[k])
        words = f"{label}: S, degrees from its mean\n({vector})"
        draw_map(axes[k + 1, 1], turn, _sequential("magma"), window, words, at=on_tiles)
        correction = fields.spectral_correction[:, :, k]
        draw_field(axes[k + 1, 2], correction, M_SPAN, f"{label}: M, OD")
    for c, channel in enumerate(("red", "green", "blue")):
        background = fields.tile_background[:, :, c]
        draw_field(axes[n + 1, c], background, B_SPAN, f"B {channel}, OD")
    _save(figure, path, dpi)
    return path


def stain_colormap(color: str) -> Colormap:
    """Return white, through the stain's colour, to a dark shade of it; grey where not measured.

    Args:
        color: six hex digits without ``#``.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    full = np.asarray(to_rgb(f"#{color}"))
    shades: Any = ["white", tuple(full), tuple(0.35 * full)]
    colormap = LinearSegmentedColormap.from_list(color, shades)
    return colormap.with_extremes(bad=NOT_MEASURED)


def mean_direction(stain_matrix: FloatArray, measured: BoolArray) -> FloatArray:
    """Return the (N, 3) unit mean of a field (GY, GX, N, 3) over measured tiles, or over all."""
    chosen = stain_matrix[measured if measured.any() else np.ones_like(measured)]
    return unit_rows(chosen.astype(np.float64).mean(0))


def _draw_picture(ax: Axes, rgb: ByteArray, frame: Extent, title: str) -> None:
    ax.imshow(rgb, extent=frame, interpolation="antialiased")
    ax.set_title(title, fontsize=9)


def _outline(ax: Axes, tissue: BoolArray, frame: Extent) -> None:
    if not tissue.any() or tissue.all():
        return
    height, width = tissue.shape
    ax.contour(
        (np.arange(width) + 0.5) * frame[1] / width,
        (np.arange(height) + 0.5) * frame[2] / height,
        tissue.astype(np.float32),
        levels=[0.5],
        colors=OUTLINE,
        linewidths=0.8,
    )


def _draw_map(
    ax: Axes,
    values: npt.NDArray[Any],
    colormap: Colormap,
    window: tuple[float, float],
    title: str,
    *,
    frame: Extent,
    at: Extent | None = None,
    extend: Literal["neither", "max"] = "neither",
) -> None:
    """Draw an image with its colour bar; ``at`` places one that does not fill the frame."""
    shown = ax.imshow(
        values,
        cmap=colormap,
        vmin=window[0],
        vmax=window[1],
        extent=at or frame,
        interpolation="nearest" if at else "antialiased",
    )
    _set_frame(ax, frame)  # imshow moves the limits to its own extent
    ax.set_title(title, fontsize=9)
    figure: Any = ax.figure
    bar = figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.02, extend=extend)
    bar.ax.tick_params(labelsize=7)


def _extent(shape: tuple[int, ...], side_um: float) -> Extent:
    """Return where a grid of cells lies."""
    return 0.0, shape[1] * side_um / 1e3, shape[0] * side_um / 1e3, 0.0


def _set_frame(ax: Axes, frame: Extent) -> None:
    ax.set_xlim(frame[0], frame[1])
    ax.set_ylim(frame[2], frame[3])
    ax.set_aspect("equal")
    ax.tick_params(labelsize=7, length=2)


def _sequential(name: str) -> Colormap:
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=NOT_MEASURED)


def _tiles_with_tissue(tissue: BoolArray, side: float, shape: tuple[int, ...]) -> BoolArray:
    """Return (GY, GX), whether a tile of ``side`` overview pixels holds any tissue."""
    out = np.zeros(shape, bool)
    at = ((i / side).astype(int) for i in np.nonzero(tissue))
    out[tuple(np.minimum(i, n - 1) for i, n in zip(at, shape, strict=True))] = True
    return out


def _range(values: FloatArray, span: float) -> tuple[float, float]:
    """Return the range of the finite values, widened to ``span`` around its middle."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    lacking = max(span - (high - low), 0.0)
    return low - lacking / 2, high + lacking / 2


def _save(figure: Figure, path: Path, dpi: int) -> None:
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    # no creation date: equal input gives equal bytes
    metadata: Any = {"Software": None} if path.suffix == ".png" else None
    try:
        figure.savefig(partial, dpi=dpi, metadata=metadata)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            "the figure cannot be written", where=path, found=error.strerror
        ) from error
