"""Tiles of a normalised slide through real DataLoaders."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from support.adapter_case import Case
from wsi_pgdips.adapters.augment import StainAugment
from wsi_pgdips.adapters.dataset import NormalizedTiles
from wsi_pgdips.errors import SettingsError, SlideError
from wsi_pgdips.looks.normalized_slide import NormalizedSlide

# Python 3.12 warns of forking with threads
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def tiles(case: Case, **options: Any) -> NormalizedTiles:
    return NormalizedTiles(case.slide, case.layers, "he", **{"size": 128, **options})


def test_an_item_is_what_the_slide_shows_there(case: Case) -> None:
    dataset = tiles(case)
    item = dataset[len(dataset) // 2]
    region = dataset.slide.read_region((item["x_l0"], item["y_l0"]), 0, (128, 128))
    wanted = np.array(region.convert("RGB"))
    assert item["image"].dtype == torch.uint8
    np.testing.assert_array_equal(item["image"].permute(1, 2, 0).numpy(), wanted)


def test_positions_are_the_tissues_in_raster_order(case: Case) -> None:
    mask = np.asarray(case.opened().tissue().compute())
    step = case.opened().grid.factor
    every, some = tiles(case, min_tissue=0), tiles(case, min_tissue=0.5)
    width, height = every.slide.dimensions
    assert len(every) == (width // 128) * (height // 128) > len(some) > 0
    order = [(y, x) for x, y in every.positions]
    assert order == sorted(order)
    side = round(128 / step)
    for (x, y), share in zip(every.positions, every.tissue, strict=True):
        top, left = round(y / step), round(x / step)
        exact = mask[top : top + side, left : left + side].mean()
        assert share == pytest.approx(exact, abs=0.1)  # the mask is read at a coarse level
    assert set(map(tuple, some.positions)) < set(map(tuple, every.positions))
    assert some.tissue.min() >= 0.5


@pytest.mark.parametrize(("factor", "level"), [(2, 1), (4, 2), (8, 2)])
def test_another_mpp_is_a_mean_of_the_next_finer_level(case: Case, factor: int, level: int) -> None:
    native = tiles(case)
    options: dict[str, Any] = {"size": 32, "min_tissue": 0.3, "mpp": native.mpp * factor}
    dataset = tiles(case, **options)
    assert dataset.factor == factor * native.factor
    assert dataset.mpp == pytest.approx(factor * native.mpp)
    item = dataset[len(dataset) // 2]
    k = round(factor / dataset.slide.level_downsamples[level])
    region = dataset.slide.read_region((item["x_l0"], item["y_l0"]), level, (32 * k, 32 * k))
    wanted = np.array(region.convert("RGB"), float).reshape(32, k, 32, k, 3).mean((1, 3))
    found = item["image"].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, wanted, atol=0.51)  # rounded to bytes


def test_between_levels_it_is_resampled_in_place(case: Case) -> None:
    dataset = NormalizedTiles(case.slide, case.layers, "self", size=64, mpp=tiles(case).mpp * 3)
    item = dataset[len(dataset) // 2]
    found = item["image"].permute(1, 2, 0).numpy().astype(float)
    whole = case.tile(item["x_l0"], item["y_l0"], 192).astype(float)
    wanted = whole.reshape(64, 3, 64, 3, 3).mean((1, 3))
    aside = [np.abs(np.roll(found, k, axis) - wanted).mean() for k in (-1, 1) for axis in (0, 1)]
    # what is left is the JPEG of the slide's own coarser level
    assert np.abs(found - wanted).mean() < 0.8 * min(aside)
    # moved to one side it would fit better moved back
    assert max(aside[0] / aside[2], aside[2] / aside[0]) < 1.2
    assert max(aside[1] / aside[3], aside[3] / aside[1]) < 1.2


def test_from_layers_alone_the_grid_is_theirs(case: Case) -> None:
    dataset = NormalizedTiles(None, case.layers, "he", size=128)
    assert dataset.factor == 1
    assert dataset[0]["image"].shape == (3, 128, 128)


@pytest.mark.parametrize(
    ("start", "workers", "alone"), [("fork", 2, False), ("fork", 2, True), ("spawn", 1, False)]
)
def test_workers_give_the_same_tiles(case: Case, start: str, workers: int, alone: bool) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} on this system")
    dataset = NormalizedTiles(None if alone else case.slide, case.layers, "he", size=256)
    subset = torch.utils.data.Subset(dataset, range(4))
    wanted = [dataset[k] for k in range(4)]  # before the fork: everything is open by then
    loader = DataLoader(subset, batch_size=2, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)
    images = torch.cat([b["image"] for b in batches])
    assert torch.equal(images, torch.stack([item["image"] for item in wanted]))
    assert torch.cat([b["x_l0"] for b in batches]).tolist() == [item["x_l0"] for item in wanted]
    assert torch.cat([b["y_l0"] for b in batches]).tolist() == [item["y_l0"] for item in wanted]


def test_augmented_loading_is_repeated_by_the_loaders_seed(case: Case) -> None:
    augment = StainAugment("he", generator=torch.Generator().manual_seed(1))
    dataset = tiles(case, transform=v2.Compose([augment, v2.ToDtype(torch.float32, scale=True)]))
    same = torch.utils.data.Subset(dataset, [3, 3, 3, 3])

    def epochs(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(
            same, 2, num_workers=2, generator=generator, multiprocessing_context="fork"
        )
        return [torch.cat([b["image"] for b in loader]) for _ in range(2)]

    first, second = epochs(5)
    again, other = epochs(5), epochs(6)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, other[0])
    # each worker and each epoch draws its own
    views = [*first, *second]
    pairs = ((a, b) for i, a in enumerate(views) for b in views[:i])
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_what_cannot_be_cut_is_said(case: Case) -> None:
    with pytest.raises(SettingsError, match="min_tissue"):
        tiles(case, min_tissue=1.5)
    with pytest.raises(SlideError, match="finer"):
        tiles(case, mpp=0.1)


@pytest.fixture(scope="module")
def image(case: Case) -> torch.Tensor:
    return torch.from_numpy(case.tile()).permute(2, 0, 1)


def still(**sigmas: float) -> dict[str, float]:
    return {"sigma_s_deg": 0, "sigma_m": 0, "sigma_b": 0, "sigma_c": 0, **sigmas}


def test_no_sigma_gives_every_byte_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    ramps = torch.stack([values, values.flip(0), values.roll(99)])[:, None]
    augment = StainAugment("he", **still())
    assert torch.equal(augment(ramps), ramps)
    assert torch.allclose(augment(ramps / 255), ramps / 255, atol=0.5 / 255 + 1e-6)


def test_takes_what_torchvision_takes(image: torch.Tensor) -> None:
    from torchvision import tv_tensors

    def one() -> StainAugment:
        return StainAugment("he", generator=torch.Generator().manual_seed(3))

    wanted = one()(image)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    assert np.array_equal(np.array(one()(picture)), wanted.permute(1, 2, 0).numpy())
    marked = one()(tv_tensors.Image(image))
    assert isinstance(marked, tv_tensors.Image)
    assert torch.equal(marked.as_subclass(torch.Tensor), wanted)
    floats = one()(image / 255)
    assert (floats - wanted / 255).abs().max() <= 1 / 255
    chain = v2.Compose([v2.RandomHorizontalFlip(1.0), one(), v2.PILToTensor()])
    assert torch.equal(chain(picture), one()(image.flip(-1)))
    batch = one()(torch.stack([image, image]))
    assert torch.equal(batch[0], wanted)
    assert not torch.equal(batch[0], batch[1])


def test_background_alone_is_a_shift_of_density() -> None:
    flat = torch.full((3, 4, 4), 0.5)
    augment = StainAugment("he", **still(sigma_b=0.05), generator=torch.Generator().manual_seed(2))
    out = augment(flat)
    shift = -torch.log10(out / flat)
    assert shift.abs().max() > 0.01
    assert torch.allclose(shift, shift[:, :1, :1].expand_as(shift), atol=1e-5)
    again = StainAugment("he", **still(sigma_b=0.05), generator=torch.Generator().manual_seed(2))
    # whatever is there already
    assert torch.allclose(-torch.log10(again(flat / 2) / flat * 2), shift, atol=1e-5)


def test_amounts_and_colours_change_as_said(case: Case) -> None:
    """Pure stains of the look on a grid: gains scale them, gammas bend them, vectors turn."""
    with NormalizedSlide(case.slide, case.layers, "self") as slide:
        look = slide.look
    amount = torch.linspace(0.1, 0.6, 11, dtype=torch.float64)
    rows = torch.tensor(look.matrix, dtype=torch.float64)
    glass = torch.tensor(look.background, dtype=torch.float64)
    od = glass[:, None, None] + rows.T[:, :, None] * amount  # (3, N, 11): a row a stain
    picture = (10**-od).float()

    def changed(seed: int, **sigmas: float) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        out = StainAugment(look, **still(**sigmas), generator=generator)(picture)
        y = -np.log10(out.double().numpy()) - glass.numpy()[:, None, None]
        return np.moveaxis(y, 0, -1)  # (N, 11, 3)

    gained = np.linalg.norm(changed(0, sigma_m=0.3), axis=2) / amount.numpy()
    np.testing.assert_allclose(gained, gained[:, :1].repeat(11, 1), rtol=1e-3)
    assert np.abs(np.log(gained[:, 0])).min() > 0.01
    assert abs(gained[0, 0] - gained[1, 0]) > 0.01
    bent = np.linalg.norm(changed(0, sigma_c=0.3), axis=2)
    full = np.array(look.spectral_correction)[:, None]
    share = amount.numpy() / full
    power = np.log(bent[:, :1] / full) / np.log(share[:, :1])
    assert np.abs(power - 1).min() > 0.01
    np.testing.assert_allclose(bent, full * share**power, rtol=5e-3)
    angles = []
    for seed in range(40):
        turned = changed(seed, sigma_s_deg=5.0)[:, 5]
        assert turned.min() > -1e-4
        cosine = (turned * rows.numpy()).sum(1) / np.linalg.norm(turned, axis=1)
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    # 80 draws of |N(0, 5)|: the root mean square is 5 within a fifth, less what is cut off at 0
    assert 4 < np.sqrt(np.square(angles).mean()) < 6


def test_the_generator_alone_decides(image: torch.Tensor) -> None:
    def run(seed: int, noise: int, p: float = 1.0) -> list[torch.Tensor]:
        torch.manual_seed(noise)
        augment = StainAugment("he", p=p, generator=torch.Generator().manual_seed(seed))
        return [augment(image) for _ in range(4)]

    for a, b in zip(run(7, 1), run(7, 2), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(run(7, 1)[0], run(8, 1)[0])
    # skipping an image does not change how the others look
    for sure, maybe in zip(run(7, 1), run(7, 1, p=0.5), strict=True):
        assert torch.equal(maybe, sure) or torch.equal(maybe, image)
    assert all(torch.equal(out, image) for out in run(7, 1, p=0.0))


def test_what_cannot_be_augmented_is_said(image: torch.Tensor) -> None:
    with pytest.raises(SettingsError, match="sigma_m -1"):
        StainAugment("he", sigma_m=-1)
    with pytest.raises(SettingsError, match="self"):
        StainAugment("self")
    with pytest.raises(SettingsError, match="PIL"):
        StainAugment("he")(image[0])
