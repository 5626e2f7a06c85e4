"""Run slides and write down the verdict on each, with its figures.

    python tests/verdicts.py OUT.json DATA [--preset fast] [--page PAGE.md]

DATA is the folder of the real slides. With ``--page``, the table between the two marks of the page
is written anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from wsi_pgdips import deconvolve_slide, open_layers
from wsi_pgdips.errors import WsiPgdipsError

# slide, stain set (or file beside it), and the mpp of those that state none
SLIDES: tuple[tuple[str, str, float | None], ...] = (
    ("slides/BS9_HE2_40x_AT2.svs", "he", None),
    ("slides/CK7p40_dualIHC_crop_40x_AT2.svs", "hdab_red", None),
    ("slides/CMU-1-Small-Region.svs", "he", None),
    ("slides/TCGA-CR-7395-01A-01-TS1.svs", "he", 0.25),
    ("slides/ectopic_pancreas_HE_crop_40x_GT450.svs", "he", None),
    ("slides/glycogen_PASD_nompp.tif", "pas", 0.25),
    ("slides/metaplasia_trypsin_DAB_20x.svs", "hdab", None),
    ("failing/amyloid_vector.tiff", "failing/amyloid_vector.toml", 0.25),
    ("failing/dab_saturated.svs", "hdab", None),
    ("failing/faint_ihc_mask.svs", "hdab", None),
    ("failing/fluorescence_dapi.tiff", "he", None),
    ("failing/hdab_neon.svs", "hdab", None),
    ("failing/pas_purple.tiff", "pas", 0.25),
    ("failing/pen_cytology_lattice.svs", "he", None),
    ("failing/pigment_green.svs", "he", None),
)
BEGIN, END = "<!-- verdicts -->", "<!-- end of verdicts -->"


def verdict_of(data: Path, name: str, stains: str, mpp: float | None, preset: str) -> Any:
    """Return the verdict on one slide, or why it is refused."""
    chosen = str(data / stains) if stains.endswith(".toml") else stains
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.ome.zarr"
        try:
            deconvolve_slide(data / name, output, stains=chosen, preset=preset, mpp_source=mpp)
        except WsiPgdipsError as error:
            return {"status": "refused", "reasons": [f"{error.message}: {error.found}"]}
        own = open_layers(output).provenance
        vectors = {v["stain"]: v["angle_deg"] for v in own["stain_vectors"]}
        figures = ("seam_step_od", "lattice_p999", "lattice_max")
        return {**own["verdict"], "angle_deg": vectors, **{k: own.get(k) for k in figures}}


def table(found: dict[str, Any]) -> str:
    """Return the verdicts as a Markdown table."""
    lines = ["| slide | stains | verdict | why |", "|---|---|---|---|"]
    for name, stains, _ in SLIDES:
        if name in found:
            row = found[name]
            why = "; ".join(row["reasons"])
            lines.append(f"| {name} | {Path(stains).stem} | {row['status']} | {why} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for name, stains, mpp in SLIDES:
        found[name] = verdict_of(asked.data, name, stains, mpp, asked.preset)
        print(name, found[name]["status"], *found[name]["reasons"], sep="\n  ", flush=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    if asked.page:
        before, _, rest = asked.page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        asked.page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


if __name__ == "__main__":
    main()
