"""The cases of the benchmark, and what each is there for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.methods import PHANTOM, PICTURE, SHIFT
from wsi_pgdips.errors import SettingsError

QUICK_CASES = ("he", "scarce", "close", "ramp_hdab")
QUICK_SHAPE = (1024, 1024)
TIME_QUALITY_CASE = "time_quality"
FIELD_GROUP = "drift"

_FOLDER = Path(__file__).with_name("cases")

# easy: linear unmixing does well. hard: it is expected to be weak. drift: S and B vary.
_GROUPS = {
    "he": "easy",
    "hdab": "easy",
    "cast": "hard",
    "close": "hard",
    "defocus": "hard",
    "jpeg50": "hard",
    "saturated": "hard",
    "scarce": "hard",
    "single_stain": "hard",
    "three": "hard",
    "ramp_he": FIELD_GROUP,
    "ramp_hdab": FIELD_GROUP,
    "step_he": FIELD_GROUP,
    "step_hdab": FIELD_GROUP,
}
# concentrations of a real slide under drifting, known S and B
_REAL = {
    "real_he": ("BS9_HE2_40x_AT2.svs", "he"),
    "real_hdab": ("metaplasia_trypsin_DAB_20x.svs", "hdab"),
}
_SHIFTED_SLIDES = {
    "shift_cmu1": ("CMU-1-Small-Region.svs", "he"),
    "shift_metaplasia": ("metaplasia_trypsin_DAB_20x.svs", "hdab"),
}


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        kind: as of a record. scene: what a method must be able to work on.
        group: ``easy``, ``hard``, ``drift``, ``real``... of the page.
        description: of a phantom. slide: of which the tissue, or the whole, is taken; for pictures
            the image. stains: a stain set, where the description does not say.
        truths: stain of the map -> name and file of the picture it is compared with.
    """

    name: str
    kind: str
    scene: str
    group: str
    description: Path | None = None
    slide: Path | None = None
    stains: str | None = None
    truths: tuple[tuple[str, str, Path], ...] = ()


def all_cases(data: Path | None, extra: tuple[Path, str] | None = None) -> list[Case]:
    """Every case that can be measured with what is there, in the order of the page.

    Args:
        data: folder with ``truth``, ``semisynthetic`` and ``slides``; None for phantoms alone.
        extra: a slide and its stain set, of which one more phantom takes its tissue.

    Raises:
        SettingsError: no such folder, or no such slide.
    """
    if data is not None and not data.is_dir():
        raise SettingsError(
            "the data of the benchmark is not there",
            expected="a folder with truth/, semisynthetic/ and slides/",
            found="a file" if data.exists() else "nothing",
            where=data,
        )
    cases = [
        Case(name, "phantom", PHANTOM, group, description=_description(name))
        for name, group in _phantoms().items()
    ]
    if data is not None:
        cases += _slides(data, _REAL, "phantom", PHANTOM, "real")
    if extra is not None:
        slide, stains = extra
        if not slide.is_file():
            raise SettingsError("there is no such slide", found="nothing", where=slide)
        cases.append(Case(f"from_{slide.stem}", "phantom", PHANTOM, "real", None, slide, stains))
    if data is not None:
        cases += _paired(data) + _semisynthetic(data)
        cases += _slides(data, _SHIFTED_SLIDES, "consistency", SHIFT, "shift")
    cases += [
        Case(f"shift_{name}", "consistency", SHIFT, "shift", description=_description(name))
        for name, group in _GROUPS.items()
        if group == FIELD_GROUP
    ]
    return cases


def choose(cases: Sequence[Case], names: Iterable[str] | None) -> list[Case]:
    """The named cases, in their order; all without names.

    Raises:
        SettingsError: an unknown case; the known ones are listed.
    """
    if names is None:
        return list(cases)
    wanted = list(names)
    known = {case.name: case for case in cases}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SettingsError(
            "unknown case",
            expected=f"some of {', '.join(known)}",
            found=", ".join(unknown),
            where="--cases",
            hint="cases of real images are there only with --data",
        )
    return [case for case in cases if case.name in wanted]


def stains_of(case: Case) -> int:
    """Number of stains of a case.

    Raises:
        WsiPgdipsError: its description or stain set cannot be read.
    """
    if case.description is not None:
        from wsi_pgdips.phantom.config import load_phantom_config

        return load_phantom_config(case.description).n_stains
    from wsi_pgdips.optics.stains import load_stains

    return load_stains(case.stains or "he").n


def group_of(case: str) -> str:
    """Group of a phantom by its name; ``real`` for those on real tissue."""
    return _phantoms().get(case, "real")


def _phantoms() -> dict[str, str]:
    """Name -> group of every description that comes with the package."""
    there = {path.stem for path in _FOLDER.glob("*.toml")}
    others = dict.fromkeys(sorted(there - set(_GROUPS)), "hard")
    return {name: group for name, group in (_GROUPS | others).items() if name in there}


def _description(name: str) -> Path:
    return _FOLDER / f"{name}.toml"


def _slides(
    data: Path, table: dict[str, tuple[str, str]], kind: str, scene: str, group: str
) -> list[Case]:
    return [
        Case(name, kind, scene, group, slide=data / "slides" / file, stains=stains)
        for name, (file, stains) in table.items()
        if (data / "slides" / file).is_file()
    ]


_TRUTHS = (("Hematoxylin", "H"), ("Hematoxylin", "DAPI"), ("DAB", "Ki67"))


def _paired(data: Path) -> list[Case]:
    cases = []
    for image in sorted((data / "truth").glob("*_IHC.png")):
        name = image.stem.removesuffix("_IHC")
        found = tuple(
            (stain, truth, path)
            for stain, truth in _TRUTHS
            if (path := image.with_name(f"{name}_{truth}.png")).is_file()
        )
        if found:
            cases.append(Case(name, "paired", PICTURE, "paired", None, image, "hdab", found))
    return cases


def _semisynthetic(data: Path) -> list[Case]:
    cases = []
    for image in sorted((data / "semisynthetic").glob("*_HE.jpg")):
        name = image.stem.removesuffix("_HE")
        path = image.with_name(f"{name}_mIF.tif")
        if path.is_file():
            found = (("Hematoxylin", "DAPI", path),)
            cases.append(Case(name, "semisynthetic", PICTURE, "paired", None, image, "he", found))
    return cases
