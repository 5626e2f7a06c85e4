"""References from slides: a quick run where there are no layers yet, then the look of each."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_pgdips.errors import SlideError
from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.looks.reference import Reference, combine
from wsi_pgdips.looks.slide_look import slide_look
from wsi_pgdips.progress import Progress


def fit_reference(
    paths: Sequence[Path],
    name: str,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Reference:
    """The common look of slides or of finished layers.

    Args:
        paths: slides, which are run by preset ``fast`` in a temporary folder, or layers.
        name: of the reference. progress: of these runs.
        settings: of ``ScientificSettings`` for these runs, e.g. ``stains="hdab"``; ``mpp_source``
            is for files that do not say their own.

    Raises:
        SlideError, OutputError: something cannot be read. StainError: stains differ.
    """
    return combine([_look(path, progress, settings) for path in paths], name)


def _look(path: Path, progress: Progress | None, settings: dict[str, Any]) -> Reference:
    if (path / "zarr.json").is_file():
        return slide_look(open_layers(path))
    from wsi_pgdips.pipeline.slide import deconvolve_slide
    from wsi_pgdips.slide.reader import fallback_mpp

    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-") as folder:
        output = Path(folder) / "layers.ome.zarr"
        told = fallback_mpp(path, settings.get("mpp_source"))
        chosen = {"preset": "fast", **settings, "mpp_source": told}
        summary = deconvolve_slide(path, output, progress=progress, **chosen)
        if summary.incomplete:
            raise SlideError(
                "a slide that a reference is fitted to cannot be read everywhere",
                found=f"{summary.failed_tiles} tiles that failed",
                where=path,
                hint="leave it out, or give layers of a run that was finished",
            )
        return slide_look(open_layers(output))
