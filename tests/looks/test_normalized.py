"""A normalised slide behind OpenSlide's interface, over real files and finished runs."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
from openslide.deepzoom import DeepZoomGenerator

import wsi_pgdips
from support.array_slide import psnr
from support.cheap_runs import FAST, Slide, phantom
from wsi_pgdips import deconvolve_image
from wsi_pgdips.errors import OutputError, SlideError, StainError
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.looks.normalized_slide import NormalizedSlide
from wsi_pgdips.looks.reference import Reference, rows_of
from wsi_pgdips.looks.slide_look import slide_look


@pytest.fixture(scope="module")
def target(finished: Layers) -> Reference:
    """Another look of the same stains."""
    own = slide_look(finished)
    scanner = np.array([[0.9, 0.1, 0], [0, 0.9, 0.1], [0.1, 0, 0.9]])
    turned = own.stain_matrix @ scanner
    return dataclasses.replace(
        own,
        name="other",
        matrix=rows_of(turned / np.linalg.norm(turned, axis=1, keepdims=True)),
        background=(0.05, 0.03, 0.04),
        spectral_correction=tuple(1.3 * m for m in own.spectral_correction),
        tissue_od=rows_of(1.3 * np.array(own.tissue_od) @ scanner),
    )


def test_self_is_the_slide_byte_for_byte_at_every_level(slide: Slide, finished: Layers):
    with (
        openslide.OpenSlide(slide.path) as plain,
        NormalizedSlide(slide.path, finished.path, "self") as ours,
    ):
        assert ours.level_dimensions == plain.level_dimensions
        assert ours.level_downsamples == plain.level_downsamples
        assert ours.dimensions == plain.dimensions
        assert ours.level_count == plain.level_count
        assert dict(plain.properties).items() <= dict(ours.properties).items()
        for downsample in (0.5, 1, 1.9, 2, 3, 100):
            assert ours.get_best_level_for_downsample(
                downsample
            ) == plain.get_best_level_for_downsample(downsample)
        for level, (w, h) in enumerate(plain.level_dimensions):
            for where, size in (((0, 0), (w, h)), ((-30, 40), (90, 70)), ((701, 333), (64, 64))):
                a = plain.read_region(where, level, size)
                b = ours.read_region(where, level, size)
                assert (a.mode, a.size) == (b.mode, b.size)
                assert np.array_equal(np.asarray(a), np.asarray(b)), (level, where)
        assert np.array_equal(plain.get_thumbnail((200, 200)), ours.get_thumbnail((200, 200)))


def test_another_look_is_the_same_at_all_levels_and_in_all_windows(
    slide: Slide, finished: Layers, target: Reference
):
    ours = NormalizedSlide(slide.path, finished, target)
    plain = openslide.OpenSlide(slide.path)
    whole = np.asarray(ours.read_region((0, 0), 0, ours.dimensions))
    assert psnr(whole, plain.read_region((0, 0), 0, plain.dimensions)) < 35
    part = np.asarray(ours.read_region((333, 222), 0, (300, 200)))
    difference = np.abs(part.astype(int) - whole[222:422, 333:633])
    assert difference.max() <= 1  # sums in another order, at the edge of rounding
    assert (difference > 0).mean() < 0.001
    if ours.level_count > 1:  # coarse levels: the same map on averaged pixels
        w, h = ours.level_dimensions[1]
        f = round(ours.level_downsamples[1])
        mean = whole[: h * f, : w * f, :3].reshape(h, f, w, f, 3).mean((1, 3))
        assert psnr(ours.read_region((0, 0), 1, (w, h)), mean) > 30


def test_glass_takes_the_reference_s_and_tissue_its_colours(
    slide: Slide, finished: Layers, target: Reference
):
    ours = NormalizedSlide(slide.path, finished, target)
    tissue = finished.tissue().compute()
    h, w = tissue.shape
    after = np.asarray(ours.read_region((0, 0), 0, (w, h)))[..., :3]
    if (~tissue).any():
        glass = 255 * 10 ** -np.array(target.background)
        assert np.abs(np.median(after[~tissue], 0) - glass).max() <= 2
    # what is measured of the new pixels is the reference's look
    found = deconvolve_image(after, str(slide.stains), "fast", finished.grid.mpp).look
    np.testing.assert_allclose(found.tissue_od, target.tissue_od, atol=0.03)
    assert "glass from" in ours.account[0]


@pytest.mark.parametrize("method", ["matched", "augmented"])
def test_no_step_where_the_mask_ends(
    slide: Slide, finished: Layers, target: Reference, method: str
):
    """Neighbours across the mask's edge differ as they do just inside and outside of it."""
    ours = NormalizedSlide(slide.path, finished, target, method=method)
    plain = openslide.OpenSlide(slide.path)
    h, w = finished.grid.shape
    after = np.asarray(ours.read_region((0, 0), 0, (w, h)))[..., :3].astype(float)
    before = np.asarray(plain.read_region((0, 0), 0, (w, h)))[..., :3].astype(float)
    moved = after - before
    mask = finished.tissue().compute()
    edge = mask[:, 1:] != mask[:, :-1]
    assert edge.any()
    step = np.abs(np.diff(moved, axis=1)).mean(-1)
    assert step[edge].mean() <= 1.5 * step[~mask[:, 1:]].mean() + 0.5


def test_from_layers_alone(finished: Layers, target: Reference, slide: Slide):
    ours = NormalizedSlide(None, finished.path, "self")
    assert ours.from_layers_alone
    assert "layers alone" in ours.properties["wsi-pgdips.residual"]
    assert ours.level_count == finished.grid.n_levels
    assert float(ours.properties["openslide.mpp-x"]) == finished.grid.mpp
    h, w = finished.grid.shape
    assert ours.dimensions == (w, h)
    plain = openslide.OpenSlide(slide.path).read_region((0, 0), 0, (w, h))
    tissue = finished.tissue().compute()
    model = np.asarray(ours.read_region((0, 0), 0, (w, h)))
    assert psnr(model, plain, tissue) >= 28
    outside = np.asarray(ours.read_region((-10, -10), 0, (8, 8)))
    assert (outside == 0).all()
    for level in range(ours.level_count):
        size = ours.level_dimensions[level]
        assert np.asarray(ours.read_region((0, 0), level, size))[..., 3].min() == 255
    other = NormalizedSlide(None, finished.path, target)
    with_slide = NormalizedSlide(slide.path, finished.path, target)
    a, b = (np.asarray(s.read_region((0, 0), 0, (w, h))) for s in (other, with_slide))
    assert psnr(a, b, tissue) > 24


def test_deep_zoom_takes_it_for_a_slide(slide: Slide, finished: Layers, target: Reference):
    ours = NormalizedSlide(slide.path, finished, target)
    zoom = DeepZoomGenerator(ours, tile_size=254, overlap=1, limit_bounds=True)
    plain = DeepZoomGenerator(openslide.OpenSlide(slide.path), tile_size=254, overlap=1)
    assert zoom.level_dimensions == plain.level_dimensions
    top = zoom.level_count - 1
    assert zoom.get_tile(top, (1, 1)).size == plain.get_tile(top, (1, 1)).size
    assert zoom.get_tile(top, (1, 1)).mode == "RGB"
    assert zoom.get_tile(8, (0, 0)).size == plain.get_tile(8, (0, 0)).size
    assert zoom.get_dzi("jpeg") == plain.get_dzi("jpeg")


def _region(slide: NormalizedSlide) -> bytes:
    return slide.read_region((300, 200), 0, (200, 150)).tobytes()


def test_threads_processes_and_pickles_give_the_same_bytes(
    slide: Slide, finished: Layers, target: Reference
):
    ours = NormalizedSlide(slide.path, finished.path, target)
    wanted = _region(ours)
    copy = pickle.loads(pickle.dumps(ours))
    assert _region(copy) == wanted
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(_region, [ours] * 16)) == {wanted}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_region, [ours]) == [wanted]


def test_an_open_slide_is_taken_too(slide: Slide, finished: Layers, target: Reference):
    by_path = NormalizedSlide(slide.path, finished, target)
    with openslide.OpenSlide(slide.path) as plain:
        borrowed = NormalizedSlide(plain, finished, target)
        assert _region(borrowed) == _region(by_path)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(borrowed)
        borrowed.close()
        plain.read_region((0, 0), 0, (4, 4))  # still open


def test_what_does_not_belong_together_is_refused(slide: Slide, finished: Layers, tmp_path: Path):
    other = phantom(tmp_path, "tiny", (512, 512))
    with pytest.raises(SlideError, match="not the one that these layers were made of"):
        NormalizedSlide(other.path, finished, "self")
    with pytest.raises(OutputError, match="not layers"):
        NormalizedSlide(slide.path, tmp_path, "self")
    with pytest.raises(StainError, match="unknown reference"):
        NormalizedSlide(slide.path, finished, "nobody")
    with pytest.raises(SlideError, match="no such file"):
        NormalizedSlide(tmp_path / "none.svs", finished, "self")
    ours = NormalizedSlide(slide.path, finished, "self")
    with pytest.raises(ValueError, match="negative size"):
        ours.read_region((0, 0), 0, (-1, 5))


def test_public_names(slide: Slide, finished: Layers):
    assert wsi_pgdips.NormalizedSlide is NormalizedSlide
    assert wsi_pgdips.load_reference("he").name == "he"


def test_reference_command(call, tmp_path: Path, slide: Slide, finished: Layers, capsys):
    out = tmp_path / "mine.json"
    assert call("reference", "fit", finished.path, "-o", out) == 0
    assert call("reference", "fit", finished.path, "-o", out) == 2
    assert "exists" in capsys.readouterr().err
    assert call("reference", "show", out) == 0
    assert '"name": "mine"' in capsys.readouterr().out
    assert call("reference", "convert", out, tmp_path / "mine.groovy") == 0
    assert call("reference", "convert", tmp_path / "mine.groovy", tmp_path / "back.json") == 0
    assert call("reference") == 0
    assert "hdab" in capsys.readouterr().out
    assert call("reference", "show", "nobody") == 2


def test_reference_from_a_slide_that_was_not_run(slide: Slide, finished: Layers):
    from wsi_pgdips.pipeline.references import fit_reference

    fitted = fit_reference([slide.path], "new", stains=str(slide.stains), **FAST)
    own = slide_look(finished)
    assert np.allclose(fitted.tissue_od, own.tissue_od, atol=0.02)
    assert fitted.name == "new"
    assert fit_reference([finished.path], "new").tissue_od == own.tissue_od


def test_compare_says_before_and_after(
    call, tmp_path: Path, slide: Slide, finished, target, capsys
):

    ours = NormalizedSlide(slide.path, finished, target)
    after = tmp_path / "after.png"
    ours.read_region((0, 0), 0, ours.dimensions).convert("RGB").save(after)
    wanted = tmp_path / "wanted.png"
    wanted.write_bytes(after.read_bytes())
    mpp = str(finished.grid.mpp)
    options = ("--mpp", mpp, "--mpp-source", mpp, "--json")
    assert call("compare", after, wanted, "--before", slide.path, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["tissue"] == {"od": 0.0, "lab": 0.0}
    assert found["before"]["tissue"]["od"] > 0.01
    assert call("compare", after, wanted, "--mpp", mpp, "--mpp-source", mpp) == 0
    assert "stroma" in capsys.readouterr().out


_FORKED = """
import os, sys, time
import numpy as np
import torch
from wsi_pgdips.looks.files import load_reference
from wsi_pgdips.looks.pixels import PixelGrid
from wsi_pgdips.looks.transfer import constant_fields, make_transfer
from wsi_pgdips.machine import in_threads

torch.set_num_threads(2)
own = load_reference("he")
transfer = make_transfer(constant_fields(own), own, own, tile=1.0, method="augmented")
rgb = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)

def work(_=None):
    out = rgb.copy()
    transfer.recolour(out, PixelGrid((0, 0), (512, 512), (1, 1)))
    return out

before = work()
list(in_threads(work, range(2), 2))
child = os.fork()
if child == 0:
    same = [bool((a == before).all()) for a in (work(), *in_threads(work, range(2), 2))]
    os._exit(0 if all(same) else 4)
ended = time.monotonic() + 60
while time.monotonic() < ended:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, 9)
sys.exit("the child hangs")
"""


def test_what_unmixes_survives_a_fork_too() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKED], capture_output=True, check=False)
    assert (done.returncode, done.stderr[-400:]) == (0, b"")
