"""Typical colours of two looks, and the linear maps between them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from support.looks import TILE, look
from wsi_pgdips.looks.frame import (
    MAX_OFF_PLANE,
    linear_map,
    off_plane_gain,
    typical_pair,
)
from wsi_pgdips.looks.transfer import constant_fields, make_transfer


def test_a_stain_that_is_not_there_keeps_its_amount():
    own = dataclasses.replace(look(), typical=(look().typical[0], None))
    source, target = typical_pair(own, look(2, 1.4, 0.1))
    assert np.linalg.norm(source[1]) == pytest.approx(np.linalg.norm(target[1]), rel=1e-5)
    assert np.allclose(source[1] / np.linalg.norm(source[1]), own.stain_matrix[1], atol=1e-5)
    bare = dataclasses.replace(look(2, 1.4, 0.1), typical=(), spectral_correction=None)
    source, target = typical_pair(look(), bare)
    assert np.allclose(np.linalg.norm(source, axis=1), np.linalg.norm(target, axis=1))


def test_what_is_typical_of_background_staining_is_not_taken_for_the_stain():
    """DAB in one focus: its typical pixels are pale, but its M is as dark as the reference's."""
    pale = dataclasses.replace(look(), typical=(look().typical[0], (0.05, 0.06, 0.06)))
    source, target = typical_pair(pale, look())
    assert np.linalg.norm(target[1]) == pytest.approx(np.linalg.norm(source[1]), rel=1e-5)
    assert np.allclose(source[1] / np.linalg.norm(source[1]), pale.stain_matrix[1], atol=1e-5)
    assert np.allclose(source[0], look().typical_od[0])


def test_colours_spread_off_the_plane_of_two_stains_as_the_reference_s_do():
    own = dataclasses.replace(look(), off_plane=0.01)
    other = dataclasses.replace(look(2, 1.4, 0.1, 0.05), off_plane=0.02)
    pair = typical_pair(own, other)
    fields = constant_fields(own)
    maps = make_transfer(fields, own, other, tile=TILE).change[0, 0] + np.eye(3)
    normal, wanted = (np.cross(*rows) for rows in pair)
    normal, wanted = normal / np.linalg.norm(normal), wanted / np.linalg.norm(wanted)
    assert np.allclose(maps @ normal, 2.0 * wanted, atol=2e-3)
    assert np.allclose(maps @ pair[0].T, pair[1].T, atol=2e-3)  # the stains' own are as before
    # blood on one slide is not the other camera's colour
    odd = dataclasses.replace(other, off_plane=0.2)
    assert off_plane_gain(own, odd, *pair) == pytest.approx(1.4 * MAX_OFF_PLANE, rel=1e-3)
    kept = make_transfer(fields, own, odd, tile=TILE, keep_amounts=True)
    plain = make_transfer(fields, own, look(2, 1.4, 0.1, 0.05), tile=TILE, keep_amounts=True)
    assert np.allclose(kept.change, plain.change)
    assert off_plane_gain(own, look(), *pair) is None


@pytest.mark.parametrize(("degrees", "believed"), [(4, 0.0257), (9.936, 0.5), (40, 0.996)])
def test_typical_colours_that_lie_close_say_little_of_what_lies_beyond(degrees, believed):
    """Two stains, one of which is to be four times as dark: how much of that is done."""
    half = np.radians(degrees) / 2
    middle, across = np.array([0.6, 0.64, 0.48]), np.array([0.8, -0.48, -0.36])
    rows = np.stack([np.cos(half) * middle + sign * np.sin(half) * across for sign in (1, -1)])
    target = np.array([[1.0], [4.0]]) * rows
    # both by the gain they share but for what their difference says
    said = (target[0] - target[1]) / (2 * np.sin(half)) - 2 * across
    turned = linear_map(rows, target) - 2 * np.eye(3)
    assert np.linalg.norm(turned @ across) / np.linalg.norm(said) == pytest.approx(
        believed, rel=0.02
    )
    # what both are, is as it was said
    assert np.allclose(linear_map(rows, target) @ rows.sum(0), target.sum(0), rtol=1e-3)
