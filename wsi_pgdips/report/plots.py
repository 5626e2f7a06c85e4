"""One figure that shows a slide, its layers and its fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsi_pgdips.errors import OutputError
from wsi_pgdips.optics.physics import angle_deg, unit_rows
from wsi_pgdips.records import BoolArray, ByteArray, Fields, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Q_WINDOW = (0.0, 2.0)  # OD; the same for every slide, so that slides can be compared by eye
RESIDUAL_WINDOW = (0.0, 0.1)
MIN_ANGLE_SPAN_DEG = 2.0  # a field that hardly turns is drawn as one that hardly turns
COLUMNS = 3
PANEL_INCHES = 3.6
NOT_MEASURED = "#e6e6e6"
OUTLINE = "#00a078"
# spans in OD below which a map of M or B would magnify what is next to nothing
M_SPAN, B_SPAN = 0.2, 0.02
Extent = tuple[float, float, float, float]


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
        path: file to write; its suffix says the format (.png, .pdf, .svg). Replaced if there.
        slide_rgb: (H, W, 3) uint8. tissue: (H, W).
        concentrations: (N, h, w) OD of any resolution, NaN: not measured.
        labels: N names. colors: N colours of six hex digits.
        residual_rms: (h, w) OD of any resolution, NaN: not measured.
        fields: on the tile grid (GY, GX). Tiles without tissue are left out of the maps.
        recomposition: (h, w, 3) uint8, what the model says without the residual.
        mpp: micrometres per pixel of ``slide_rgb``. tile_um: side of a tile in micrometres.

    Returns:
        ``path``.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    n = len(labels)
    height, width = tissue.shape
    frame: Extent = (0.0, width * mpp / 1e3, height * mpp / 1e3, 0.0)
    rows = n + 2
    panel = (PANEL_INCHES + 0.5, PANEL_INCHES * height / width)  # 0.5 in for the colour bar
    figure = Figure(
        figsize=(COLUMNS * panel[0], rows * (min(panel[1], 2 * PANEL_INCHES) + 0.35) + 0.5),
        layout="constrained",
        facecolor="white",
    )
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for ax in axes.flat:
        _frame(ax, frame)
    _pictures(axes[0], slide_rgb, tissue, recomposition, residual_rms, frame)
    grid = _Grid(fields, tissue, tile_um / mpp, frame, tile_um)
    for k in range(n):
        _map(
            axes[k + 1, 0],
            concentrations[k],
            frame,
            stain_colormap(colors[k]),
            Q_WINDOW,
            f"{labels[k]}: q, OD",
            extend="max",
        )
        grid.draw_turn(axes[k + 1, 1], k, labels[k])
        grid.draw(
            axes[k + 1, 2], fields.spectral_correction[:, :, k], f"{labels[k]}: M, OD", M_SPAN
        )
    for c, channel in enumerate(("red", "green", "blue")):
        grid.draw(axes[n + 1, c], fields.tile_background[:, :, c], f"B {channel}, OD", B_SPAN)
    _save(figure, path, dpi)
    return path


def stain_colormap(color: str) -> Colormap:
    """White, through the stain's colour, to a dark shade of it; grey where not measured.

    Args:
        color: six hex digits without ``#``.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    full = np.asarray(to_rgb(f"#{color}"))
    shades: Any = ["white", tuple(full), tuple(0.35 * full)]
    colormap = LinearSegmentedColormap.from_list(color, shades)
    return colormap.with_extremes(bad=NOT_MEASURED)


def mean_direction(stain_matrix: FloatArray, measured: BoolArray) -> FloatArray:
    """(N, 3) unit mean of a field (GY, GX, N, 3) over the measured tiles, all tiles if none."""
    chosen = (
        stain_matrix[measured]
        if measured.any()
        else stain_matrix.reshape(-1, *stain_matrix.shape[2:])
    )
    return unit_rows(chosen.astype(np.float64).mean(0))


class _Grid:
    """The tile grid as maps: where it lies in the frame, and which tiles hold tissue."""

    def __init__(
        self, fields: Fields, tissue: BoolArray, side: float, frame: Extent, tile_um: float
    ) -> None:
        gy, gx = fields.inherited.shape
        self._frame = frame
        self._extent: Extent = (0.0, gx * tile_um / 1e3, gy * tile_um / 1e3, 0.0)
        self._measured = _tiles_with_tissue(tissue, side, (gy, gx))
        self._rows = fields.tile_stain_matrix
        self._mean = mean_direction(self._rows, self._measured)

    def draw(self, ax: Axes, values: FloatArray, title: str, span: float) -> None:
        """A scalar per tile, in a window of its own range but at least ``span``."""
        shown = self._masked(values)
        low, high = _range(shown, span)
        _map(ax, shown, self._frame, _sequential("viridis"), (low, high), title, at=self._extent)

    def draw_turn(self, ax: Axes, stain: int, label: str) -> None:
        """Angle of S to the slide's mean."""
        mean = self._mean[stain]
        turn = self._masked(angle_deg(self._rows[:, :, stain], mean))
        top = max(MIN_ANGLE_SPAN_DEG, _range(turn, 0)[1])
        vector = ", ".join(f"{v:.2f}" for v in mean)
        _map(
            ax,
            turn,
            self._frame,
            _sequential("magma"),
            (0.0, top),
            f"{label}: S, degrees from its mean\n({vector})",
            at=self._extent,
        )

    def _masked(self, values: npt.NDArray[Any]) -> FloatArray:
        return np.where(self._measured, values, np.nan).astype(np.float32)


def _pictures(
    axes: npt.NDArray[Any],
    slide_rgb: ByteArray,
    tissue: BoolArray,
    recomposition: ByteArray,
    residual_rms: FloatArray,
    frame: Extent,
) -> None:
    axes[0].imshow(slide_rgb, extent=frame, interpolation="antialiased")
    axes[0].set_title("slide, tissue outlined", fontsize=9)
    if tissue.any() and not tissue.all():
        height, width = tissue.shape
        axes[0].contour(
            (np.arange(width) + 0.5) * frame[1] / width,
            (np.arange(height) + 0.5) * frame[2] / height,
            tissue.astype(np.float32),
            levels=[0.5],
            colors=OUTLINE,
            linewidths=0.8,
        )
    axes[0].set_xlabel("mm", fontsize=8)
    axes[1].imshow(recomposition, extent=frame, interpolation="antialiased")
    axes[1].set_title("recomposed from q, S and B alone", fontsize=9)
    residual = "residual RMS, OD"
    _map(
        axes[2],
        residual_rms,
        frame,
        _sequential("cividis"),
        RESIDUAL_WINDOW,
        residual,
        extend="max",
    )


def _map(
    ax: Axes,
    values: npt.NDArray[Any],
    frame: Extent,
    colormap: Colormap,
    window: tuple[float, float],
    title: str,
    *,
    at: Extent | None = None,
    extend: str = "neither",
) -> None:
    """An image with its colour bar; ``at`` where it does not fill the frame."""
    shown = ax.imshow(
        values,
        cmap=colormap,
        vmin=window[0],
        vmax=window[1],
        extent=at or frame,
        interpolation="nearest" if at else "antialiased",
    )
    # imshow moves the limits to its own extent
    _frame(ax, frame)
    ax.set_title(title, fontsize=9)
    figure: Any = ax.figure
    bar = figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.02, extend=extend)
    bar.ax.tick_params(labelsize=7)


def _frame(ax: Axes, frame: Extent) -> None:
    ax.set_xlim(frame[0], frame[1])
    ax.set_ylim(frame[2], frame[3])
    ax.set_aspect("equal")
    ax.tick_params(labelsize=7, length=2)


def _sequential(name: str) -> Colormap:
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=NOT_MEASURED)


def _tiles_with_tissue(tissue: BoolArray, side: float, shape: tuple[int, int]) -> BoolArray:
    """(GY, GX) whether a tile of ``side`` overview pixels holds any tissue."""
    yy, xx = np.nonzero(tissue)
    out = np.zeros(shape, bool)
    ty = np.minimum((yy / side).astype(int), shape[0] - 1)
    tx = np.minimum((xx / side).astype(int), shape[1] - 1)
    out[ty, tx] = True
    return out


def _range(values: FloatArray, span: float) -> tuple[float, float]:
    """Range of what is finite, widened to ``span`` around its middle."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    lacking = max(span - (high - low), 0.0)
    return low - lacking / 2, high + lacking / 2


def _save(figure: Figure, path: Path, dpi: int) -> None:
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        # no creation date: equal input, equal bytes
        figure.savefig(
            partial, dpi=dpi, metadata={"Software": None} if path.suffix == ".png" else None
        )
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            "the figure cannot be written", where=path, found=error.strerror
        ) from error
