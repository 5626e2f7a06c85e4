"""The cases of the benchmark, in groups that say what each is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.quality.methods import PHANTOM, PICTURE, SHIFT, SPECTRAL, refuse_unknown
from benchmarks.quality.spectral import CAMERAS
from wsi_pgdips.errors import SettingsError

QUICK_CASES = ("he", "scarce", "close", "ramp_hdab")
QUICK_SHAPE = (1024, 1024)
TIME_QUALITY_CASE = "time_quality"
CONSISTENCY = "consistency"
_FOLDER = Path(__file__).with_name("cases")
_SCENES = {
    "phantom": PHANTOM,
    "spectral": SPECTRAL,
    "paired": PICTURE,
    "semisynthetic": PICTURE,
    CONSISTENCY: SHIFT,
}

# easy: linear unmixing does well. hard: it is expected to be weak. drift: S and B vary.
_GROUPS = {
    "easy": ("he", "hdab"),
    "hard": ("cast", "close", "defocus", "jpeg50", "saturated", "scarce", "single_stain", "three"),
    "drift": ("ramp_he", "ramp_hdab", "step_he", "step_hdab"),
}
# what is laid on a phantom that is easy without it
_FOREIGN = {"ink": "he", "carbon": "hdab", "black_tiles": "he"}
# measured absorption of the stains of a phantom, seen by each camera with known spectra
_SPECTRA, _SPECTRAL_BASE = "spectra/he_endmembers.csv", "he"  # a description and a stain set
# concentrations of a real slide under drifting, known S and B
_REAL = {
    "real_he": ("BS9_HE2_40x_AT2.svs", "he"),
    "real_hdab": ("metaplasia_trypsin_DAB_20x.svs", "hdab"),
}
_SHIFTED_SLIDES = {
    "shift_cmu1": ("CMU-1-Small-Region.svs", "he"),
    "shift_metaplasia": ("metaplasia_trypsin_DAB_20x.svs", "hdab"),
}
# pictures, their stains, and endings of the truths by map and truth
_PICTURES = {
    "paired": (
        "truth/*_IHC.png",
        "hdab",
        {"Hematoxylin:H": "_H.png", "Hematoxylin:DAPI": "_DAPI.png", "DAB:Ki67": "_Ki67.png"},
    ),
    "semisynthetic": ("semisynthetic/*_HE.jpg", "he", {"Hematoxylin:DAPI": "_mIF.tif"}),
}


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        kind: as of a record. description: of a phantom.
        slide: of which the tissue, or the whole, is taken; for pictures the image.
        stains: a stain set, where the description does not say; for a camera with known spectra
            the set of the package that methods start from.
        truths: ``stain:name`` of the map and of the picture it is compared with -> its file.
        foreign: what is laid on the phantom, a kind of ``foreign.lay_on``.
        spectra: of the stains, where a camera of ``spectral.CAMERAS`` sees the phantom; the case
            has the camera's name.
    """

    name: str
    kind: str
    description: Path | None = None
    slide: Path | None = None
    stains: str | None = None
    truths: Mapping[str, Path] = field(default_factory=dict)
    foreign: str | None = None
    spectra: Path | None = None

    @property
    def seeded(self) -> bool:
        """Whether the case is a phantom, of which each seed makes another."""
        return self.scene in (PHANTOM, SPECTRAL)

    @property
    def scene(self) -> str:
        """The kind of scene that a method must be able to work on."""
        return _SCENES[self.kind]


def all_cases(data: Path | None, extra: tuple[Path, str] | None = None) -> list[Case]:
    """Every case that can be measured with what is there, in the order of the page.

    Args:
        data: folder with ``truth``, ``semisynthetic``, ``slides`` and ``spectra``; None for
            phantoms alone.
        extra: a slide and its stain set, of which one more phantom takes its tissue.

    Raises:
        SettingsError: there is no such slide.
    """
    described = [(name, _FOLDER / f"{name}.toml") for names in _GROUPS.values() for name in names]
    cases = [Case(name, "phantom", path) for name, path in described]
    for name, base in _FOREIGN.items():
        cases.append(Case(name, "phantom", _FOLDER / f"{base}.toml", foreign=name))
    if data is not None:
        cases += _slides(data, _REAL, "phantom")
        cases += _spectral(data / _SPECTRA)
    if extra is not None:
        slide, stains = extra
        if not slide.is_file():
            raise SettingsError("there is no such slide", found="nothing", where=slide)
        cases.append(Case(f"from_{slide.stem}", "phantom", slide=slide, stains=stains))
    if data is not None:
        cases += [case for kind in _PICTURES for case in _pictures(data, kind)]
        cases += _slides(data, _SHIFTED_SLIDES, CONSISTENCY)
    drift = [(name, path) for name, path in described if group_of(name) == "drift"]
    return cases + [Case(f"shift_{name}", CONSISTENCY, path) for name, path in drift]


def choose(cases: Sequence[Case], names: Iterable[str] | None) -> list[Case]:
    """The named cases, in their order; all without names.

    Raises:
        SettingsError: an unknown case; the known ones are listed.
    """
    if names is None:
        return list(cases)
    wanted = set(names)
    hint = "cases of real images and measured spectra are there only with --data"
    refuse_unknown("case", wanted, [case.name for case in cases], "--cases", hint)
    return [case for case in cases if case.name in wanted]


def stains_of(case: Case) -> int:
    """Number of stains of a case.

    Raises:
        WsiPgdipsError: its description or stain set cannot be read.
    """
    if case.description is not None:
        from wsi_pgdips.phantom.config import load_phantom_config

        return load_phantom_config(case.description).n_stains
    from wsi_pgdips.optics.stain_files import load_stains

    return load_stains(case.stains or "he").n


def group_of(case: str) -> str:
    """Group of a phantom by its name; ``real`` for those on real tissue."""
    groups = {**_GROUPS, "foreign": tuple(_FOREIGN)}
    return next((group for group, names in groups.items() if case in names), "real")


def _slides(data: Path, table: dict[str, tuple[str, str]], kind: str) -> list[Case]:
    return [
        Case(name, kind, slide=data / "slides" / file, stains=stains)
        for name, (file, stains) in table.items()
        if (data / "slides" / file).is_file()
    ]


def _spectral(spectra: Path) -> Iterable[Case]:
    """The cameras with known spectra, where the absorption of the stains is there."""
    path = _FOLDER / f"{_SPECTRAL_BASE}.toml"
    if spectra.is_file():
        for name in CAMERAS:
            yield Case(name, "spectral", path, stains=_SPECTRAL_BASE, spectra=spectra)


def _pictures(data: Path, kind: str) -> Iterable[Case]:
    """Pictures of a kind that have a truth beside them."""
    pattern, stains, endings = _PICTURES[kind]
    for image in sorted(data.glob(pattern)):
        name = image.stem.rpartition("_")[0]
        there = {label: image.with_name(name + ending) for label, ending in endings.items()}
        truths = {label: path for label, path in there.items() if path.is_file()}
        if truths:
            yield Case(name, kind, slide=image, stains=stains, truths=truths)
