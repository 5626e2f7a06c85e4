"""Registration: a known affine is found, and what is not the same glass is refused."""

from __future__ import annotations

import numpy as np
import pytest

from support.pairs import scans
from wsi_pgdips.errors import SlideError
from wsi_pgdips.looks.register import MIN_INLIERS, register, warped


def corners(shape):
    return np.array([(y, x) for y in (0, shape[0]) for x in (0, shape[1])], float)


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (3, 0.6), (118, 1.5)])
def test_known_affine_is_found_at_any_turn_and_scale(degrees: float, scale: float):
    a, b, affine = scans(degrees=degrees, scale=scale)
    found = register(a, b)
    at = corners(a.shape)
    off = (at @ found.linear.T + found.shift) - (at @ affine[:, :2].T + affine[:, 2])
    assert np.linalg.norm(off, axis=1).max() < 0.5 * max(scale, 1)
    assert found.scale == pytest.approx(scale, rel=2e-3)
    assert found.inliers >= 2 * MIN_INLIERS
    assert found.rms_px < 1
    assert found.correlation > 0.9
    back = found.inverse
    assert np.allclose((at @ found.linear.T + found.shift) @ back[:, :2].T + back[:, 2], at)


def test_other_field_mirror_and_blank_are_refused_with_figures():
    a, b, _ = scans()
    other = scans(seed=7)[1]
    for wrong in (other, np.ascontiguousarray(b[:, ::-1]), np.full_like(b, 240)):
        with pytest.raises(SlideError, match="cannot be registered") as refused:
            register(a, wrong, "a.png and b.png")
        assert refused.value.where == "a.png and b.png"
        assert "matching features" in str(refused.value.found)
        assert "same glass" in str(refused.value.hint)


def test_stretched_picture_is_refused():
    a, b, _ = scans()
    with pytest.raises(SlideError, match="cannot be registered"):
        register(a, np.ascontiguousarray(np.repeat(b, 2, axis=0)))


def test_warped_is_nan_outside():
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    out = warped(image, np.array([(1.0, 0, 1), (0, 1.0, -1)]), (3, 4))
    assert np.array_equal(out[0, 1:], image[1, :3])
    assert np.isnan(out[2]).all()
    assert np.isnan(out[:, 0]).all()
