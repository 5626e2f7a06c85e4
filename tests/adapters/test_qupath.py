"""The vectors in the QuPath script; QuPath itself is not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi_pgdips.looks.files import load_reference, qupath_script

SCRIPT = Path(__file__).parents[2] / "pipelines" / "qupath" / "open_normalized.groovy"


def test_the_script_holds_the_shipped_reference() -> None:
    shipped, found = load_reference("he"), load_reference(SCRIPT)
    assert found.labels == shipped.labels
    np.testing.assert_allclose(found.stain_matrix, shipped.stain_matrix, atol=1e-5)
    # QuPath keeps whole counts
    counts = [255 * 10.0 ** -np.array(r.background) for r in (found, shipped)]
    np.testing.assert_allclose(counts[0], counts[1], atol=0.51)


def test_its_literal_is_what_the_package_writes() -> None:
    line = qupath_script(load_reference("he"))
    literal = line[line.index("(") + 1 : line.rindex(")")]
    assert f"def STAINS = {literal}\n" in SCRIPT.read_text(encoding="utf-8")
