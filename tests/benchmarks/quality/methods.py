"""The methods that are compared: names, families, and the scenes they can be measured in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.records import Records, Say
from wsi_pgdips.config import PRESETS
from wsi_pgdips.errors import SettingsError, WsiPgdipsError

Found = TypeVar("Found")
PHANTOM, SPECTRAL, PICTURE, SHIFT = "phantom", "spectral", "picture", "shift"
EVERYWHERE = (PHANTOM, SPECTRAL, PICTURE, SHIFT)
ABLATION = "ablation-"
CLOSED = "closed-constant"
TIME_QUALITY = "time-quality"


@dataclass(frozen=True)
class Method:
    """One way to a slide's concentrations.

    Attributes:
        family: ``truth`` (told S and B), ``linear``, ``preset``, ``ablation``, ``fields`` (the
            same closed form under three pairs of fields), ``closed`` (our closed form under the
            slide's constants) or ``time``.
        scenes: phantoms, phantoms seen by cameras with known spectra, pictures with a registered
            truth, and tile grids that are shifted.
        two_stains: knows two stains only. asked: measured only where it is asked for.
    """

    name: str
    family: str
    scenes: tuple[str, ...]
    two_stains: bool = False
    asked: bool = False


def _linear(name: str, *scenes: str, two_stains: bool = False, glass: bool = True) -> list[Method]:
    names = [name, f"{name}-glass"] if glass else [name]
    return [Method(n, "linear", scenes, two_stains) for n in names]


ABLATIONS_ON_PICTURES = (
    "no-network",
    "no-data-consistency",
    "no-glass",
    "no-stain-prior",
    "exclusion",
    "pgdips-loss",
)

METHODS: tuple[Method, ...] = (
    Method("oracle", "truth", (PHANTOM, SPECTRAL)),
    Method("oracle-constant", "truth", (PHANTOM,)),
    *_linear("fixed", PHANTOM, SPECTRAL, PICTURE),
    *_linear("complement", PHANTOM, SPECTRAL, PICTURE),
    Method("macenko-tile", "linear", (PHANTOM, SPECTRAL, SHIFT), two_stains=True),
    Method("macenko-tile-glass", "linear", (PHANTOM, SPECTRAL), two_stains=True),
    *_linear("macenko-slide", PHANTOM, SPECTRAL, PICTURE, two_stains=True),
    *_linear("vahadane", PHANTOM, SPECTRAL, PICTURE, two_stains=True),
    *_linear("rays-slide", PHANTOM, SPECTRAL, PICTURE, glass=False),
    Method(CLOSED, "closed", (PHANTOM, SPECTRAL, PICTURE)),
    *(Method(p, "preset", EVERYWHERE, asked=p == "paper") for p in PRESETS),
    Method("ablation-no-blending", "ablation", (PHANTOM, SHIFT)),
    *(Method(ABLATION + a, "ablation", (PHANTOM, PICTURE)) for a in ABLATIONS_ON_PICTURES),
    Method("ablation-no-slide-prior", "ablation", (PHANTOM, SHIFT)),
    *(Method(f"fields-{f}", "fields", (PHANTOM,)) for f in ("constant", "oracle", "blended")),
    Method(TIME_QUALITY, "time", ()),
)
BY_NAME = {m.name: m for m in METHODS}


def choose(
    methods: Iterable[str] | None = None, presets: Iterable[str] | None = None
) -> tuple[Method, ...]:
    """The methods to measure, in the order of ``METHODS``.

    Args:
        methods: names; None takes all but those that are measured only where asked for.
        presets: of the product, in place of those that ``methods`` would bring along; where
            ``methods`` is given too, both are taken.

    Raises:
        SettingsError: an unknown method or preset; the known ones are listed.
    """
    names = {m.name for m in METHODS if not m.asked} if methods is None else set(methods)
    wanted = set(presets or ())
    refuse_unknown("method", names, BY_NAME, "--methods")
    refuse_unknown("preset", wanted, PRESETS, "--preset")
    if wanted and methods is None:
        names -= set(PRESETS)
    names |= wanted
    return tuple(m for m in METHODS if m.name in names)


def fits(method: Method, scene: str, stains: int) -> bool:
    """Return whether a method can be measured in a kind of scene with ``stains`` stains."""
    return scene in method.scenes and (stains == 2 or not method.two_stains)


def attempts(
    methods: Iterable[Method],
    scene: str,
    stains: int,
    measure: Callable[[Method], Found],
    records: Records,
    say: Say,
) -> Iterator[tuple[str, Found, float]]:
    """Measure each method that fits; one that fails leaves a null in the records.

    Yields:
        name, what was found, and seconds.
    """
    for method in methods:
        if not fits(method, scene, stains):
            continue
        begin = time.perf_counter()
        try:
            found = measure(method)
        except (WsiPgdipsError, ValueError):  # an extractor or a fit that cannot cope
            seconds = time.perf_counter() - begin
            metric = "pcc" if scene in (PICTURE, SPECTRAL) else "rmse_joint"
            records.add({metric: float("nan")}, method=method.name, seconds=seconds)
            say(f"  {method.name}: no result")
            continue
        yield method.name, found, time.perf_counter() - begin


def refuse_unknown(
    what: str, names: Iterable[str], known: Iterable[str], option: str, hint: str | None = None
) -> None:
    """Refuse names that nothing has.

    Args:
        what: kind of things that are named. option: where the names were given.

    Raises:
        SettingsError: some names are unknown; the known ones are listed.
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SettingsError(
            f"unknown {what}",
            expected=f"some of {', '.join(known)}",
            found=", ".join(unknown),
            where=option,
            hint=hint,
        )
