"""A slide as the settings of a run want it read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi_pgdips.config import ScientificSettings

if TYPE_CHECKING:
    from wsi_pgdips.slide.source import PyramidSource


def open_slide(slide: Path, settings: ScientificSettings) -> PyramidSource:
    """Open a slide on the output grid of its settings.

    Raises:
        SlideError, SettingsError: as ``slide.reader.open_source``.
    """
    from wsi_pgdips.slide.reader import open_source

    s = settings
    return open_source(
        slide, mpp=s.mpp, mpp_source=s.mpp_source, tile=s.tile, block=s.block, icc=s.icc
    )
