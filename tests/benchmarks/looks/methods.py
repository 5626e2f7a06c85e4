"""The methods of the benchmark of looks, each from one whole picture to the look of another."""

from __future__ import annotations

from functools import cache
from typing import cast

import numpy as np

from benchmarks.looks.pairs import LookPair, Picture
from benchmarks.quiet import quiet
from wsi_pgdips.looks.reader import SlidePixels
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import Method, make_transfer
from wsi_pgdips.pipeline.image import deconvolve_image
from wsi_pgdips.records import ByteArray, Fields

NONE, OURS = "none", "matched"
PEERS = ("macenko", "vahadane", "reinhard")
METHODS = (NONE, *PEERS, OURS, "augmented")
TILE = 512  # of a run's tiles, pixels


class Studio:
    """Normalises pictures; each is deconvolved once.

    Args:
        preset: of the deconvolution.
    """

    def __init__(self, preset: str = "balanced") -> None:
        self._preset = preset
        self._looked = cache(self._deconvolved)

    def apply(self, method: str, pair: LookPair) -> ByteArray:
        """(H, W, 3) uint8: the pair's source as a method makes it look like the target.

        Args:
            method: one of ``METHODS``.
        """
        if method == NONE:
            return pair.source.rgb
        if method in PEERS:
            return _peer(method, pair.source.rgb, pair.target.rgb)
        look, fields = self._looked(pair.source)
        target, _ = self._looked(pair.target)
        transfer = make_transfer(fields, look, target, tile=TILE, method=cast(Method, method))
        height, width = pair.source.rgb.shape[:2]
        pixels = SlidePixels(_InMemory(pair.source.rgb), transfer, None, 1.0)
        return np.ascontiguousarray(pixels.read_rgba((0, 0), 0, (width, height))[..., :3])

    def _deconvolved(self, picture: Picture) -> tuple[Reference, Fields]:
        """The look and fields that the deconvolution of a picture gives.

        Raises:
            SlideError: there is no tissue in it.
        """
        found = deconvolve_image(picture.rgb, picture.stains, self._preset, picture.mpp, tile=TILE)
        assert found.look is not None  # of whole images it is always measured
        return found.look, found.fields


class _InMemory:
    """A picture as the only level of a slide."""

    def __init__(self, rgb: ByteArray) -> None:
        self._rgb = rgb
        self.level_dimensions = ((rgb.shape[1], rgb.shape[0]),)
        self.level_downsamples = (1.0,)

    def read_rgba(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> ByteArray:
        (x, y), (w, h) = location, size
        rgb = self._rgb[y : y + h, x : x + w]
        return np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], -1)

    def close(self) -> None:
        """Nothing is held open."""


def _peer(method: str, source: ByteArray, target: ByteArray) -> ByteArray:
    """tiatoolbox's normaliser, fitted to the whole target."""
    with quiet():
        from tiatoolbox.tools.stainnorm import get_normalizer

        normaliser = get_normalizer(method)
        normaliser.fit(target.copy())
        return np.asarray(normaliser.transform(source.copy()), np.uint8)
