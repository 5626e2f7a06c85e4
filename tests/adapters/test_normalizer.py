"""The normaliser, beside TIAToolbox's own and inside TIAToolbox's loops."""

from __future__ import annotations

import inspect
import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import openslide
import pytest

from support.adapter_case import Case
from wsi_pgdips.adapters.normalizer import PgdipsNormalizer
from wsi_pgdips.errors import SettingsError, SlideError, StainError
from wsi_pgdips.looks.files import load_reference
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.slide_look import slide_look


@pytest.fixture(scope="module")
def toolbox() -> Any:
    """TIAToolbox's parts that meet a normaliser; its imports warn of others' deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tiatoolbox.models.dataset import WSIPatchDataset
        from tiatoolbox.tools import stainnorm
        from tiatoolbox.tools.patchextraction import get_patch_extractor
        from tiatoolbox.wsicore.wsireader import WSIReader

    return SimpleNamespace(
        dataset=WSIPatchDataset, norm=stainnorm, extractor=get_patch_extractor, reader=WSIReader
    )


@pytest.fixture
def fitted(case: Case) -> PgdipsNormalizer:
    normalizer = PgdipsNormalizer(slide_look(case.opened()))
    normalizer.fit("he")
    return normalizer


def test_has_the_interface_of_the_toolbox(toolbox: Any, case: Case) -> None:
    ours = PgdipsNormalizer(slide_look(case.opened()))
    theirs = toolbox.norm.get_normalizer("Macenko")
    for name in ("fit", "transform"):
        wanted = inspect.signature(getattr(theirs, name)).parameters
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(wanted)
    target, image = case.tile(), case.tile(x=768)
    for norm in (ours, theirs):
        assert norm.fit(target) is None
        out = norm.transform(image)
        assert out.shape == image.shape
        assert out.dtype == np.uint8
        assert not np.array_equal(out, image)


def test_maps_a_tile_as_the_normalized_slide_does(case: Case, fitted: PgdipsNormalizer) -> None:
    image = case.tile()
    before = image.copy()
    out = fitted.transform(image).astype(int)
    with NormalizedSlide(case.slide, case.layers, "he") as slide:
        wanted = np.array(slide.read_region((512, 128), 0, (256, 256)).convert("RGB")).astype(int)
    np.testing.assert_array_equal(image, before)
    moved = np.abs(before.astype(int) - wanted).mean()
    # what is left is how far the slide's fields are from its constant look here
    assert np.abs(out - wanted).mean() < 0.5 * moved + 1


def test_a_pickled_copy_gives_the_same_bytes(case: Case, fitted: PgdipsNormalizer) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(case.tile()), fitted.transform(case.tile()))


def test_without_the_slides_look_the_images_own_is_measured(case: Case) -> None:
    image = case.tile(side=512)
    alone = PgdipsNormalizer(mpp=0.25)
    alone.fit("he")
    out = alone.transform(image)
    white = [np.percentile(i.reshape(-1, 3), 99, axis=0) for i in (image, out)]
    light = 255 * 10 ** -np.array(load_reference("he").background)
    assert np.abs(white[1] - light).max() < np.abs(white[0] - light).max()


def test_glass_without_a_look_is_left_alone() -> None:
    glass = np.full((256, 256, 3), 243, np.uint8)
    alone = PgdipsNormalizer()
    alone.fit("he")
    out = alone.transform(glass)
    np.testing.assert_array_equal(out, glass)
    assert out is not glass
    with pytest.raises(SlideError):
        alone.fit(glass)


def test_what_cannot_be_done_is_said(case: Case, fitted: PgdipsNormalizer) -> None:
    with pytest.raises(SettingsError, match="call fit"):
        PgdipsNormalizer(slide_look(case.opened())).transform(case.tile())
    with pytest.raises(SettingsError, match="uint8"):
        fitted.transform(case.tile().astype(np.float32))
    with pytest.raises(SettingsError, match="target"):
        fitted.fit("self")
    with pytest.raises(StainError, match="other stains"):
        fitted.fit("hdab")
    with pytest.raises(SettingsError, match="unknown method"):
        PgdipsNormalizer(method="magic")  # type: ignore[arg-type]


def test_as_preprocessing_of_the_toolbox_patch_dataset(
    toolbox: Any, case: Case, fitted: PgdipsNormalizer
) -> None:
    """Its engines call a model's preprocessing as ``dataset.preproc_func``."""
    dataset = toolbox.dataset(
        case.slide,
        patch_input_shape=(224, 224),
        stride_shape=(224, 224),
        resolution=1.0,
        units="baseline",
        auto_get_mask=False,
    )
    plain = dataset[1]["image"]
    dataset.preproc_func = fitted.transform
    np.testing.assert_array_equal(dataset[1]["image"], fitted.transform(plain))


def test_in_a_patch_extractor_loop(toolbox: Any, case: Case, fitted: PgdipsNormalizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = toolbox.reader.open(case.slide)
        patches = list(
            toolbox.extractor(
                "slidingwindow",
                input_img=reader,
                patch_size=(256, 256),
                resolution=0,
                units="level",
                within_bound=True,
            )
        )
    with openslide.OpenSlide(case.slide) as slide:
        width, height = slide.dimensions
    assert len(patches) == (width // 256) * (height // 256)
    row = patches[: width // 256]
    whole = fitted.transform(np.concatenate(row, 1))
    np.testing.assert_array_equal(np.concatenate([fitted.transform(p) for p in row], 1), whole)
