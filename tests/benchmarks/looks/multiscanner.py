"""Fields that three scanners and a hyperspectral microscope saw, and a scan in the truth's frame.

``DIR/multiscanner`` holds ``ORGAN_SCANNER.png``, ``ORGAN_truth.png`` and ``registration.json`` with
an affine from each scan's (x, y) to the truth's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.records import BoolArray, ByteArray, FloatArray

ORGANS = ("brain", "breast", "colon", "kidney", "liver")
SCANNERS = ("hamamatsu", "leica", "zeiss")
TRUTH = "truth"
TRUTH_MPP = 0.74
MIN_OD, SIGMA = 0.05, 2.0  # of the truth's tissue: mean OD, after a blur of so many pixels
MARGIN_PX = 8  # of the valid area: as far as the blur reaches
# rows and columns of what is burnt into the scans; outside the truth's frame in all five fields
BURNT_IN = {"leica": (slice(558, 583), slice(48, 350))}

Key = tuple[str, str]  # organ, scanner
Pictures = Mapping[Key, ByteArray]


@dataclass(frozen=True, eq=False)
class Scan:
    """One field as a scanner exported it.

    Attributes:
        rgb: (h, w, 3). affine: (2, 3) from (x, y, 1) of the scan to (x, y) of the truth.
    """

    rgb: ByteArray
    affine: npt.NDArray[np.float64]
    scanner: str

    @property
    def mpp(self) -> float:
        """Micrometres per pixel."""
        return TRUTH_MPP * float(np.sqrt(abs(np.linalg.det(self.affine[:, :2]))))

    @cached_property
    def clean(self) -> BoolArray:
        """(h, w) pixels of the slide, without what is burnt in."""
        clean = np.ones(self.rgb.shape[:2], bool)
        if self.scanner in BURNT_IN:
            clean[BURNT_IN[self.scanner]] = False
        return clean


class MultiScanner:
    """All fields.

    Attributes:
        scans: (organ, scanner) -> scan. truths: organ -> (H, W, 3) uint8.
    """

    def __init__(self, scans: Mapping[Key, Scan], truths: Mapping[str, ByteArray]) -> None:
        self.scans, self.truths = dict(scans), dict(truths)
        self._around: dict[str, FloatArray] = {}
        self._valid: dict[Key, BoolArray] = {}
        self._truth_lab: dict[str, npt.NDArray[np.float64]] = {}

    def warp(self, rgb: npt.NDArray[np.generic], organ: str, scanner: str) -> FloatArray:
        """A picture of the scan's size in the truth's frame: (H, W, 3), NaN outside.

        Args:
            rgb: (h, w, 3), in register with the scan, normalised or not.

        Raises:
            SettingsError: the picture has another size than the scan.
        """
        scan = self.scans[organ, scanner]
        if rgb.shape != scan.rgb.shape:
            raise SettingsError(
                "the picture does not fit its scan",
                expected=scan.rgb.shape,
                found=rgb.shape,
                where=f"{organ}, {scanner}",
            )
        values = np.asarray(rgb, np.float32)
        values = np.where(scan.clean[..., None], values, np.float32(np.nan))
        return warp(values, scan.affine, self.truths[organ].shape[:2])

    def valid(self, organ: str, scanner: str) -> BoolArray:
        """(H, W) pixels of the truth's frame that a scan covers, less 8 pixels at the border."""
        if (organ, scanner) not in self._valid:
            rgb = self.scans[organ, scanner].rgb
            covered = np.isfinite(self.warp(rgb, organ, scanner)).all(-1)
            inner = ndimage.binary_erosion(covered, _square(MARGIN_PX))
            self._valid[organ, scanner] = np.asarray(inner, bool)
        return self._valid[organ, scanner]

    def tissue(
        self, organ: str, scanner: str | None = None, *, min_od: float = MIN_OD
    ) -> BoolArray:
        """(H, W) tissue of the truth that a scan, or all three scanners, cover.

        Args:
            min_od: mean OD around a pixel of tissue. The usual one leaves out what is palest: most
                of the brain and of the breast.
        """
        if organ not in self._around:
            od = ndimage.gaussian_filter(rgb_to_od(self.truths[organ]).mean(-1), SIGMA)
            self._around[organ] = np.asarray(od, np.float32)
        wanted = [s for o, s in self.scans if o == organ and scanner in (None, s)]
        covered = [self.valid(organ, s) for s in wanted]
        return np.asarray(np.logical_and.reduce([self._around[organ] > min_od, *covered]), bool)

    def median_de(self, rgb: npt.NDArray[np.generic], organ: str, scanner: str) -> float:
        """Median CIELAB difference (1976) to the truth over tissue, after a blur of 2 pixels.

        Args:
            rgb: (h, w, 3), in register with the scan, 0 to 255.
        """
        mask = self.tissue(organ, scanner)
        own = _blurred_lab(self.warp(rgb, organ, scanner))
        if organ not in self._truth_lab:
            self._truth_lab[organ] = _blurred_lab(self.truths[organ].astype(np.float32))
        away = own[mask] - self._truth_lab[organ][mask]
        return float(np.median(np.linalg.norm(away, axis=-1)))

    def pictures(self, make: Callable[[Scan, str, str], ByteArray] | None = None) -> Pictures:
        """Every field in the truth's frame, (H, W, 3) uint8; white outside a scan.

        The truth itself is there as scanner ``truth``.

        Args:
            make: makes a picture of the scan's size of a scan, its organ and its scanner; None
                takes the scan as it is.
        """
        found: dict[Key, ByteArray] = {(o, TRUTH): rgb for o, rgb in self.truths.items()}
        for (organ, scanner), scan in self.scans.items():
            rgb = scan.rgb if make is None else make(scan, organ, scanner)
            found[organ, scanner] = to_bytes(self.warp(rgb, organ, scanner))
        return found


def load(data: Path) -> MultiScanner:
    """Read the fields of ``DATA/multiscanner``.

    Raises:
        SettingsError: they are not there.
    """
    folder = Path(data) / "multiscanner"
    try:
        registration = json.loads((folder / "registration.json").read_text())
        scans = {
            key: Scan(
                rgb,
                np.asarray(registration["_".join(key)]["affine_xy_to_truth"], np.float64),
                key[1],
            )
            for key, rgb in read_pictures(folder).items()
        }
        truths = {organ: _read(folder / f"{organ}_{TRUTH}.png") for organ in ORGANS}
    except (OSError, KeyError, ValueError) as error:
        raise SettingsError(
            "the fields of several scanners cannot be read",
            expected="multiscanner/ with registration.json and the pictures it names",
            found=error,
            where=folder,
        ) from None
    return MultiScanner(scans, truths)


def read_pictures(folder: Path) -> Pictures:
    """Read ``ORGAN_SCANNER.png`` of every field.

    Raises:
        SettingsError: one is missing.
    """
    keys = [(organ, scanner) for organ in ORGANS for scanner in SCANNERS]
    try:
        return {key: _read(folder / f"{'_'.join(key)}.png") for key in keys}
    except OSError as error:
        raise SettingsError(
            "a picture of the scanners cannot be read",
            expected="ORGAN_SCANNER.png for each organ and scanner",
            found=error,
            where=folder,
        ) from None


def warp(values: FloatArray, affine: npt.NDArray[np.float64], shape: tuple[int, int]) -> FloatArray:
    """Bring a picture into another frame, bilinearly.

    Args:
        values: (h, w, C), NaN where unknown. affine: (2, 3) from its (x, y, 1) to the frame's
            (x, y). shape: (H, W) of the frame.

    Returns:
        (H, W, C) float32, NaN where a pixel is outside or next to one that is unknown.
    """
    inverse = np.linalg.inv(affine[:, :2])
    y, x = np.mgrid[: shape[0], : shape[1]]
    at = np.tensordot(inverse, np.stack([x - affine[0, 2], y - affine[1, 2]]), 1)
    planes = [
        ndimage.map_coordinates(values[..., c], at[::-1], order=1, cval=np.nan)
        for c in range(values.shape[2])
    ]
    return np.asarray(np.stack(planes, -1), np.float32)


def to_bytes(rgb: FloatArray) -> ByteArray:
    """Round a warped picture; what is unknown becomes white."""
    return np.clip(np.rint(np.nan_to_num(rgb, nan=255.0)), 0, 255).astype(np.uint8)


def _blurred_lab(rgb: FloatArray) -> npt.NDArray[np.float64]:
    """(H, W, 3) CIELAB of a picture of 0 to 255 after the blur."""
    from skimage.color import rgb2lab

    soft = ndimage.gaussian_filter(np.nan_to_num(rgb, nan=255.0), (SIGMA, SIGMA, 0))
    return np.asarray(rgb2lab(np.clip(soft / 255.0, 0, 1)), np.float64)


def _square(reach: int) -> BoolArray:
    return np.ones((2 * reach + 1, 2 * reach + 1), bool)


def _read(path: Path) -> ByteArray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
