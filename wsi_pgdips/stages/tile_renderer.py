"""``render`` of one tile under the blended fields, on any device: pixels in, codes out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_pgdips.geometry import Region
from wsi_pgdips.layers.schema import FILL, SCALE_FACTOR, residual_level
from wsi_pgdips.optics.foreign import BLACK_OD, DARK_OD, smooth_share
from wsi_pgdips.optics.interpolate import crossfade, interpolation
from wsi_pgdips.optics.physics import od_table
from wsi_pgdips.optics.unmix import unmix
from wsi_pgdips.records import Artifact, ByteArray, Fields, FloatArray, SlidePrior
from wsi_pgdips.solver import slide_network
from wsi_pgdips.solver.presets import HALO
from wsi_pgdips.solver.rays import POOL
from wsi_pgdips.solver.tile import planar_od, reflected
from wsi_pgdips.solver.trust import MOST_FOREIGN
from wsi_pgdips.stages.context import Context
from wsi_pgdips.stages.lattice import Counts, count, lattice_index, without_lattice
from wsi_pgdips.stages.pixels import (
    artifacts_of,
    cross_faded,
    encode_pixels,
    render_pixels,
    residual_of,
    residual_rms,
    saturated_amounts,
)
from wsi_pgdips.stages.seams import Strips, along_sides, by_side

TileIndex = tuple[int, int]
Maps = Callable[[TileIndex], npt.NDArray[np.float16] | None]
_KEPT = threading.local()  # maps so large that new memory for them takes longer than their use
NEUTRAL_PRIOR_WEIGHT = 1e-3  # below, a prior map moves q by less than the stored step


@dataclass(frozen=True)
class RenderedTile:
    """The arrays that one tile adds to its block.

    Attributes:
        codes: (N, h, w) uint16, 0 where foreign pixels are. artifact: (h, w) uint8, ``Artifact``.
        residual_rms: uint16 codes at the level of ``qc/residual``.
        residual_od: (3, h, w) float32 against the stored q, or None.
        strips: along its sides.
        lattice: (N, BINS) histogram of its lattice indices, None without a network.
    """

    codes: npt.NDArray[np.uint16]
    artifact: ByteArray
    residual_rms: npt.NDArray[np.uint16]
    residual_od: FloatArray | None
    strips: Strips
    lattice: Counts | None = None


class TileRenderer:
    """Renders the tiles of a slide; several threads may call it at once.

    Args:
        context: of the slide. prior: its network and Lambda. fields, slide_matrix: of ``blend``.
        maps: returns the map of a tile's own networks, None where it has none.
        device: where to compute.
    """

    def __init__(
        self,
        context: Context,
        prior: SlidePrior,
        fields: Fields,
        slide_matrix: FloatArray,
        maps: Maps,
        device: str,
    ) -> None:
        self._context, self._prior, self._fields = context, prior, fields
        self._maps, self._device = maps, torch.device(device)
        self._table = self._on_device(od_table())
        self._matrix = torch.from_numpy(slide_matrix)
        self._weight = self._on_device(prior.prior_weight)
        moves = prior.prior_weight.max() >= NEUTRAL_PRIOR_WEIGHT
        network = prior.network if moves else {}
        self._network = {k: self._on_device(v) for k, v in network.items()}
        self._scale = float(prior.spectral_correction.mean())
        brown = fields.brown if fields.brown.size else np.zeros(fields.background.shape[:2])
        together = (fields.stain_matrix, fields.background, brown)
        # (CY, CX, 3 N + 4): all are interpolated at once
        self._field = np.concatenate(
            [f.reshape(*f.shape[:2], -1) for f in together], 2, dtype=np.float32
        )
        self._usual = self._on_device(prior.usual)
        self._rms_level = residual_level(context.grid)
        self._streams = threading.local()

    def region(self, tile: TileIndex) -> Region:
        """Return the region to read for a tile: with its halo where the network needs it."""
        if self._network:
            return self._context.with_halo(self._context.tile_square(tile))
        return self._context.grid.tile_region(*tile)

    @property
    def needs_halo(self) -> bool:
        return bool(self._network)

    def render(self, tile: TileIndex, rgb: ByteArray, *, halo_read: bool) -> RenderedTile:
        """Render one tile.

        Args:
            rgb: (h, w, 3) of :meth:`region`, or of the tile's own pixels alone where ``halo_read``
                is False; the halo is then reflected.
        """
        with torch.inference_mode(), self._stream():
            return self._render(tile, rgb, halo_read)

    def _render(self, tile: TileIndex, rgb: ByteArray, halo_read: bool) -> RenderedTile:
        own = self._context.grid.tile_region(*tile)
        square = self._context.tile_square(tile).grown(HALO) if self._network else own
        margins = self._context.margins(tile, halo_read=halo_read) if self._network else (0,) * 4
        od = self._densities(rgb, margins)
        s, b, brown = self._fields_at(square)
        change = None
        if self._network:
            change = slide_network.correction(self._network, od - b, s, self._scale)
            first = np.s_[..., HALO : HALO + own.h, HALO : HALO + own.w]
            od, s, b, brown, change = (a[first].contiguous() for a in (od, s, b, brown, change))
        anchor, closed = None, None
        if change is not None:
            closed = unmix(od, s, b)
            anchor = (closed + change).clamp_min_(0)
        elif self._context.preset.noise_input:
            found = self._prior_map(tile, own)
            anchor = None if found is None else self._on_device(found)
        q, residual = render_pixels(od, s, b, None if anchor is None else self._weight, anchor)
        lattice = None
        if closed is not None:
            index = lattice_index(q, closed)
            final = without_lattice(q, closed, index)
            if final is not q:
                q, residual = final, residual_of(od, s, b, final)
                index = lattice_index(q, closed)
            lattice = count(index)
        # the slide's network adds no border of its own (it sees past the tile's); what remains is
        # the fields' part, and the closed form shows it without the noise of the other
        strips = (
            self._strips(tile, od, q, anchor)
            if closed is None
            else self._strips(tile, od, closed, None)
        )
        q, residual, artifact = self._told_apart(od - b, s, brown, q, residual)
        codes = encode_pixels(q)
        codes[:, artifact == Artifact.FOREIGN] = FILL
        stored = None
        if self._context.settings.store_residual:
            # against the stored, quantised q, so that recomposition is lossless
            kept = self._on_device(codes.astype(np.float32) * np.float32(SCALE_FACTOR))
            stored = (od - b - (kept[:, None] * s).sum(0)).cpu().numpy()
        rms = residual_rms(residual, self._rms_level)
        return RenderedTile(codes, artifact, rms, stored, strips, lattice)

    def _told_apart(
        self, y: Tensor, s: Tensor, brown: Tensor, q: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor, ByteArray]:
        """Give black its stain, and find what no stain explains.

        Returns:
            (N, h, w) q, (3, h, w) residual, and (h, w) ``Artifact``.
        """
        prior, saturates = self._prior, self._prior.saturating >= 0
        if saturates:
            black = smooth_share(y.amin(0), DARK_OD, BLACK_OD) * brown
            if black.any():
                q = saturated_amounts(y, s, q, black, prior.saturating, self._usual)
                residual = y - (q[:, None] * s).sum(0)
        if prior.foreign > MOST_FOREIGN:
            return q, residual, np.zeros(q.shape[1:], np.uint8)
        found = artifacts_of(y, s, prior.pooled_noise_od, brown if saturates else None)
        whole = np.repeat(np.repeat(found, POOL, 0), POOL, 1)[: q.shape[1], : q.shape[2]]
        return q, residual, whole

    def _densities(self, rgb: ByteArray, margins: tuple[int, ...]) -> Tensor:
        """(3, H, W) OD on the device; a GPU is sent bytes."""
        if self._device.type == "cpu":
            return torch.from_numpy(planar_od(rgb, margins))
        pixels = torch.from_numpy(reflected(rgb, margins)).pin_memory()
        pixels = pixels.to(self._device, non_blocking=True)
        return self._table[pixels.permute(2, 0, 1).int()]

    def _fields_at(self, region: Region) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, h, w) S, rows renormalised after interpolation, (3, h, w) B, (h, w) brown."""
        i = interpolation(self._field, self._context.grid, region)
        at = self._product(i.down, i.local @ i.across)  # (3 N + 4, h, w)
        s = at[:-4].reshape(-1, 3, region.h, region.w)
        for row in s:  # (3, h, w)
            size = torch.addcmul(torch.addcmul(row[0] * row[0], row[1], row[1]), row[2], row[2])
            row.mul_(size.clamp_min_(1e-12).rsqrt_())
        return s, at[-4:-1], at[-1]

    def _product(self, down: FloatArray, rows: FloatArray) -> Tensor:
        """(h, a) times (K, a, w) on the device; on a CPU in memory that the thread keeps."""
        if self._device.type != "cpu":
            return self._on_device(down) @ self._on_device(rows)
        shape = (len(rows), len(down), rows.shape[2])
        kept = getattr(_KEPT, "field", None)
        if kept is None or kept.shape != shape:
            kept = _KEPT.field = np.empty(shape, np.float32)
        return torch.from_numpy(np.matmul(down, rows, out=kept))

    def _prior_map(self, tile: TileIndex, region: Region) -> FloatArray | None:
        """(N, h, w) map of a tile's own networks, faded into its neighbours' at the borders.

        None for a tile without a map, such as one that could not be fitted.
        """
        side = self._context.grid.tile
        found = {}
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                q = self._maps((tile[0] + dy, tile[1] + dx))
                if q is not None and np.isfinite(q).all():
                    found[dy, dx] = q
        if (0, 0) not in found:
            return None
        faded = cross_faded(found, crossfade(side, HALO), side)
        return np.ascontiguousarray(faded[:, : region.h, : region.w])

    def _strips(self, tile: TileIndex, od: Tensor, q: Tensor, anchor: Tensor | None) -> Strips:
        """d along the sides; the reference is rendered in the same way, with the prior map."""
        f, b0 = self._fields, self._context.b0
        own_s, own_b = f.raw_stain_matrix[tile], f.raw_background[tile]
        own_s = np.where(np.isfinite(own_s), own_s, self._matrix.numpy()).astype(np.float32)
        own_b = np.where(np.isfinite(own_b), own_b, b0).astype(np.float32)
        y, amount = along_sides(od).cpu(), along_sides(q).cpu()
        pull = None if anchor is None else along_sides(anchor).cpu()
        weight = None if anchor is None else torch.from_numpy(self._prior.prior_weight)
        reference, _ = render_pixels(y, self._matrix, torch.from_numpy(b0), weight, pull)
        own, _ = render_pixels(y, torch.from_numpy(own_s), torch.from_numpy(own_b), weight, pull)
        size, side = (od.shape[1], od.shape[2]), self._context.grid.tile
        return Strips(
            by_side(amount - reference, size, side),
            by_side(own - reference, size, side),
            self._context.tissue_along(self._context.grid.tile_region(*tile)),
        )

    def _on_device(self, a: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(a).to(self._device)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        """Use a stream of the calling thread, so that copies of one overlap work of another."""
        if self._device.type != "cuda":
            yield
            return
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._streams.own):
            yield
