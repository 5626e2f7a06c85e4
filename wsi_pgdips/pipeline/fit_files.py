"""The files of ``calibrate`` and ``fit``: the slide's prior, the parameters of a block's tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from wsi_pgdips.pipeline.ledger import load_arrays, save_array, save_arrays
from wsi_pgdips.records import Acquisition, BlockFit, SlidePrior

_PLAIN = (
    "index",
    "tissue",
    "stain_matrix",
    "spectral_correction",
    "background",
    "confidence",
    "loss",
    "steps",
    "flags",
)


def save_prior(prior: SlidePrior, path: Path) -> None:
    save_arrays(
        path,
        stain_matrix=prior.stain_matrix,
        spectral_correction=prior.spectral_correction,
        background=prior.background,
        presence=prior.presence,
        noise_od=np.float64(prior.noise_od),
        pooled_noise_od=np.float64(prior.pooled_noise_od),
        prior_weight=prior.prior_weight,
        measured=prior.measured,
        flags=np.array(prior.flags, dtype=np.str_),
        loss=np.float64(prior.loss),
        acquisition=np.array(_words(prior.acquisition), dtype=np.str_),
        **{f"network.{k}": v for k, v in prior.network.items()},
    )


def load_prior(path: Path) -> SlidePrior:
    a = load_arrays(path)
    return SlidePrior(
        stain_matrix=a["stain_matrix"],
        spectral_correction=a["spectral_correction"],
        background=a["background"],
        presence=a["presence"],
        noise_od=float(a["noise_od"]),
        pooled_noise_od=float(a["pooled_noise_od"]),
        prior_weight=a["prior_weight"],
        measured=a["measured"],
        network={k[len("network.") :]: v for k, v in a.items() if k.startswith("network.")},
        flags=tuple(str(f) for f in a["flags"]),
        loss=float(a["loss"]),
        acquisition=_acquisition(a["acquisition"]),
    )


def _acquisition(words: npt.NDArray[np.str_]) -> Acquisition | None:
    if not len(words):
        return None
    noise, quality, chroma, defocus, *coarse = (str(w) for w in words)
    return Acquisition(
        float(noise), int(quality), chroma, float(defocus), tuple(float(c) for c in coarse)
    )


def _words(found: Acquisition | None) -> list[str]:
    if found is None:
        return []
    plain = (found.noise, found.quality, found.chroma, found.defocus)
    return [str(v) for v in (*plain, *found.coarse)]


def save_fit(fit: BlockFit, path: Path, maps: Path) -> None:
    """The maps first: the ``fit`` file is the marker of the block."""
    if fit.concentration is not None:
        save_array(maps, fit.concentration)
    plain = {name: getattr(fit, name) for name in _PLAIN}
    save_arrays(path, **plain, **{f"statistics.{k}": v for k, v in fit.statistics.items()})


def load_fit(path: Path, *, statistics: bool = True) -> BlockFit:
    """Without the maps, which are read apart.

    Args:
        statistics: whether to load them; there is more of them than of all else.
    """
    a = load_arrays(path, None if statistics else _PLAIN)
    found = {k[len("statistics.") :]: v for k, v in a.items() if k.startswith("statistics.")}
    return BlockFit(**{name: a[name] for name in _PLAIN}, statistics=found)


class FitFiles(Sequence[BlockFit]):
    """Fits of a slide's blocks, one in memory at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, i: int) -> BlockFit: ...

    @overload
    def __getitem__(self, i: slice) -> FitFiles: ...

    def __getitem__(self, i: int | slice) -> BlockFit | FitFiles:
        return FitFiles(self._paths[i]) if isinstance(i, slice) else load_fit(self._paths[i])
