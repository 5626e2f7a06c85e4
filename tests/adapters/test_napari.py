"""Layers through napari-ome-zarr's reader, without a window."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest

from support.adapter_case import Case

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("napari_ome_zarr") is None, reason="napari-ome-zarr is not installed"
)


def test_napari_shows_one_layer_a_stain_and_the_labels_in_micrometres(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # napari's own
        from napari_ome_zarr import napari_get_reader

        reader = napari_get_reader(str(case.layers))
        assert reader is not None
        shown = reader(str(case.layers))
    layers = case.opened()
    image, *labels = ({"data": d, "kind": k, **options} for d, options, k in shown)
    assert [found["kind"] for found in (image, *labels)] == ["image", "labels", "labels"]
    tissue, artifact = labels
    assert [name.rpartition(": ")[2] for name in image["name"]] == list(layers.stains.labels)
    for shown_as in (image, tissue, artifact):
        np.testing.assert_allclose(shown_as["scale"], [layers.grid.mpp] * 2)
        assert list(shown_as["units"]) == ["micrometer"] * 2
    assert image["contrast_limits"] == [[0, 2000]] * layers.stains.n
    for colormap, color in zip(image["colormap"], layers.stains.colors, strict=True):
        wanted = [int(color[k : k + 2], 16) / 255 for k in (0, 2, 4)]
        np.testing.assert_allclose(colormap.colors[-1][:3], wanted, atol=1e-3)
    assert len(image["data"]) == len(tissue["data"]) == layers.grid.n_levels
    for level, (data, mask) in enumerate(zip(image["data"], tissue["data"], strict=True)):
        np.testing.assert_array_equal(np.asarray(data), layers.codes(level)[:])
        np.testing.assert_array_equal(np.asarray(mask) > 0, layers.tissue(level).compute())
        found = np.asarray(artifact["data"][level])
        np.testing.assert_array_equal(found, layers.artifact(level).compute())
