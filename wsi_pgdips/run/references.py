"""References from slides: a quick run where there are no layers yet, then the look of each."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_pgdips.layers.reader import open_layers
from wsi_pgdips.looks.reference import Reference, combine
from wsi_pgdips.run.own_look import slide_look
from wsi_pgdips.run.progress import Progress


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
        settings: of ``ScientificSettings`` for these runs, e.g. ``stains="hdab"``.

    Raises:
        SlideError, OutputError: something cannot be read. StainError: stains differ.
    """
    return combine([_look(path, progress, settings) for path in paths], name)


def _look(path: Path, progress: Progress | None, settings: dict[str, Any]) -> Reference:
    if (path / "zarr.json").is_file():
        return slide_look(open_layers(path))
    from wsi_pgdips.run.pipeline import deconvolve_slide

    with tempfile.TemporaryDirectory(prefix="wsi-pgdips-") as folder:
        output = Path(folder) / "layers.ome.zarr"
        deconvolve_slide(path, output, progress=progress, **{"preset": "fast", **settings})
        return slide_look(open_layers(output))
