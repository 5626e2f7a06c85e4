"""The same made-up tissue on two scanners: known colours, known geometry."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from wsi_pgdips.optics.physics import od_to_rgb
from wsi_pgdips.records import ByteArray

STAINS = np.array([(0.65, 0.70, 0.29), (0.10, 0.95, 0.25), (0.55, 0.45, 0.70)])
GLASS_A, GLASS_B = np.array([0.030, 0.034, 0.026]), np.array([0.010, 0.012, 0.015])
MATRIX = np.array([(0.90, 0.15, 0.02), (-0.05, 1.10, 0.04), (0.03, -0.08, 0.85)])


def tissue_od(seed: int, shape: tuple[int, int] = (520, 560), has_glass: bool = True):
    """(h, w, 3) OD above glass: nuclei and two kinds of matrix, with glass in a corner."""
    rng = np.random.default_rng(seed)

    def noise(sigma: float):
        field = gaussian_filter(rng.normal(size=shape), sigma)
        return field / field.std()

    nuclei = 0.8 * np.clip(noise(4.0) - 0.8, 0, 1) * (1 + 0.2 * noise(1.5))
    first = 0.25 * np.exp(0.4 * noise(12.0) + 0.2 * noise(2.0))
    third = np.clip(0.15 * noise(25.0) + 0.04 * noise(3.0), 0, None)
    q = np.stack([np.clip(nuclei, 0, None), first, third])
    if has_glass:
        y, x = np.mgrid[: shape[0], : shape[1]]
        edge = gaussian_filter((y + x > 0.55 * shape[0]).astype(float), 2.0)
        q = q * edge
    return np.einsum("nhw,nc->hwc", q, STAINS)


def picture(od, glass, affine=None, shape=None, noise: float = 0.002, seed: int = 0) -> ByteArray:
    """The scan of OD above glass; ``affine`` leads from the scan's (y, x) to those of ``od``."""
    if affine is not None:
        od = np.stack(
            [
                affine_transform(od[..., c], affine[:, :2], affine[:, 2], shape, mode="nearest")
                for c in range(3)
            ],
            2,
        )
    rng = np.random.default_rng(seed)
    return od_to_rgb(od + glass + noise * rng.normal(size=od.shape))


def turn(degrees: float, scale: float, centre: tuple[float, float], to: tuple[float, float]):
    """(2, 3) affine (y, x) that turns and scales about ``centre``, which goes to ``to``."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    linear = scale * np.array([(c, -s), (s, c)])
    return np.column_stack([linear, np.array(to) - linear @ np.array(centre)])


def inverse(affine):
    back = np.linalg.inv(affine[:, :2])
    return np.column_stack([back, -back @ affine[:, 2]])


def scans(
    seed: int = 1, degrees: float = 0.0, scale: float = 1.0, matrix=MATRIX, has_glass: bool = True
):
    """Scans on A and on B, and the affine from A's (y, x) to B's."""
    od = tissue_od(seed, has_glass=has_glass)
    h, w = od.shape[:2]
    shape = (round(h * scale), round(w * scale))
    affine = turn(degrees, scale, (h / 2, w / 2), (shape[0] / 2, shape[1] / 2))
    b = picture(od @ np.asarray(matrix).T, GLASS_B, inverse(affine), shape, seed=seed + 1)
    return picture(od, GLASS_A, seed=seed), b, affine
