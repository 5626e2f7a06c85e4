"""Pictures with a registered second acquisition: real pairs, and semi-synthetic ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality import similarity
from benchmarks.quality.cases import Case
from benchmarks.quality.methods import ABLATION, PICTURE, Method, attempts
from benchmarks.quality.picture import Result, read_picture
from benchmarks.quality.product import Product
from benchmarks.records import Records, Say, silent
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.optics.physics import rgb_to_od
from wsi_pgdips.optics.stain_files import load_stains
from wsi_pgdips.records import ByteArray, FloatArray
from wsi_pgdips.slide.source import ArraySource

MPP = 0.25
REGISTRATION = "registration"  # the method of what all methods share


@dataclass(frozen=True, eq=False)
class Pair:
    """A truth in register with the picture.

    Attributes:
        stain: index of the map it is compared with. label: ``Hematoxylin:DAPI``.
        shift: (dy, dx) of the truth. truth: (h, w), scaled, the common area.
        source_sharpness: of the picture's own mean OD there.
    """

    stain: int
    label: str
    shift: tuple[int, int]
    truth: FloatArray
    source_sharpness: float

    def cut(self, maps: FloatArray) -> FloatArray:
        """The (h, w) common area of the map, from (N, H, W)."""
        own = maps[self.stain]
        return np.asarray(similarity.in_register(own, own, self.shift)[0], np.float32)


def measure_picture(case: Case, methods: Sequence[Method], *, say: Say = silent) -> Records:
    """All records of one picture: registration, then every method, then at equal sharpness.

    Raises:
        SettingsError: a picture that cannot be read, or truths of another size.
        SlideError: there is no tissue in it.
    """
    if case.slide is None or case.stains is None:
        raise SettingsError("a picture needs a file and its stains", where=case.name)
    stains = load_stains(case.stains)
    rgb = read_rgb(case.slide)
    source = ArraySource(rgb, mpp=MPP, name=case.name)
    picture, product = read_picture(source, stains.stain_matrix), Product(source, stains)
    records = Records("quality", {"case": case.name, "kind": case.kind})
    pairs = [_pair(rgb, stains.labels, *truth) for truth in case.truths.items()]
    for pair in pairs:
        moved = dict(zip(("shift_y_px", "shift_x_px"), pair.shift, strict=True))
        records.add(moved, method=REGISTRATION, stain=pair.label)
    maps: dict[str, tuple[FloatArray, float]] = {}

    def measure(method: Method) -> Result:
        linear = method.family in ("linear", "closed")
        return picture.result(method.name) if linear else product.result(method.name)

    for name, found, seconds in attempts(methods, PICTURE, stains.n, measure, records, say):
        maps[name] = np.nan_to_num(found.maps, nan=0.0), seconds
        say(f"  {name}: {seconds:.1f} s")
    for pair in pairs:
        own = {name: (pair.cut(q), seconds) for name, (q, seconds) in maps.items()}
        _score(records.at(stain=pair.label), pair, own)
    return records


def read_rgb(path: Path) -> ByteArray:
    """(H, W, 3) uint8 of a PNG or JPEG file.

    Raises:
        SettingsError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise SettingsError("a picture cannot be read", where=path, found=error) from None


def read_truth(path: Path) -> FloatArray:
    """(H, W): mean OD of a brightfield picture, intensity of a fluorescence picture.

    A picture is brightfield where it has colour and a bright background. Of a TIFF with several
    channels the first is taken.

    Raises:
        SettingsError: it cannot be read.
    """
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        try:
            values = np.asarray(tifffile.imread(path))
        except (OSError, ValueError) as error:
            raise SettingsError("a picture cannot be read", where=path, found=error) from None
        if values.ndim == 3:
            values = values[0] if values.shape[0] < values.shape[2] else values[..., 0]
        return values.astype(np.float32)
    rgb = read_rgb(path)
    if np.median(rgb) > 127:
        return mean_od(rgb)
    return np.asarray(rgb.mean(-1), np.float32)


def mean_od(rgb: ByteArray) -> FloatArray:
    """(H, W) optical density, mean of the three channels: no method's view of a picture."""
    return np.asarray(rgb_to_od(rgb).mean(-1), np.float32)


def _pair(rgb: ByteArray, labels: tuple[str, ...], label: str, path: Path) -> Pair:
    truth = read_truth(path)
    if truth.shape != rgb.shape[:2]:
        raise SettingsError(
            "a truth must have the size of its picture",
            expected=f"{rgb.shape[1]} x {rgb.shape[0]} pixels",
            found=f"{truth.shape[1]} x {truth.shape[0]}",
            where=path,
        )
    od = mean_od(rgb)
    shift = similarity.best_shift(similarity.scaled(od), similarity.scaled(truth))
    own, moved = similarity.in_register(od, truth, shift)
    source_sharpness = similarity.sharpness(similarity.scaled(own))
    stain = labels.index(label.partition(":")[0])
    return Pair(stain, label, shift, similarity.scaled(moved), source_sharpness)


def _score(records: Records, pair: Pair, maps: dict[str, tuple[FloatArray, float]]) -> None:
    sharp = {name: similarity.sharpness(similarity.scaled(q)) for name, (q, _) in maps.items()}
    # an ablation may be as soft as it likes: it does not set what the others are held to
    candidates = [v for name, v in sharp.items() if v > 0 and not name.startswith(ABLATION)]
    softest = min(candidates, default=0.0)
    for name, (q, seconds) in maps.items():
        own = records.at(method=name, seconds=seconds)
        for sigma in (0.0, *similarity.SIGMAS):
            values = similarity.scaled(similarity.blur(q, sigma))
            found = _likeness(values, pair.truth)
            found["sharpness"] = edges = similarity.sharpness(values)
            found["sharpness_over_source"] = edges / pair.source_sharpness
            own.add(found, blur_px=sigma)
        sigma = similarity.equalising_sigma(q, softest) if sharp[name] > 0 else float("nan")
        values = similarity.scaled(similarity.blur(q, sigma))
        equal = {f"{k}_equal": v for k, v in _likeness(values, pair.truth).items()}
        own.add({**equal, "equal_sigma_px": sigma})


def _likeness(values: FloatArray, truth: FloatArray) -> dict[str, float]:
    return {"pcc": similarity.pcc(values, truth), "ssim": similarity.ssim(values, truth)}
