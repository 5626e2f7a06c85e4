"""Stain vectors as QuPath has them: ``setColorDeconvolutionStains('{"Name" : ...}');``."""

from __future__ import annotations

import json
import re

import numpy as np

from wsi_pgdips.errors import StainError
from wsi_pgdips.looks.reference import Reference, triple
from wsi_pgdips.optics.physics import I0
from wsi_pgdips.optics.stains import make_stain_set

_OBJECT = re.compile(r"\{[^{}]*\"Stain 1\"[^{}]*\}")
_RESIDUAL = "residual"  # QuPath's name for a third vector that is no stain


def looks_like(text: str) -> bool:
    """Whether a text holds QuPath's stain vectors."""
    return _OBJECT.search(text) is not None


def parse(text: str, where: object) -> Reference:
    """Vectors, names and background of a text, e.g. a script or an entry of its workflow.

    QuPath's background is intensity (255 255 255 is none).

    Raises:
        StainError: not two or three stains with three numbers each.
    """
    found = _OBJECT.search(text)
    try:
        table = json.loads(found.group() if found else "")
        pairs = [
            (table[f"Stain {k}"], _numbers(table[f"Values {k}"]))
            for k in (1, 2, 3)
            if f"Stain {k}" in table and _RESIDUAL not in table[f"Stain {k}"].casefold()
        ]
        background = _numbers(table.get("Background", "255 255 255"))
        name = str(table.get("Name", "qupath"))
    except (ValueError, KeyError, AttributeError) as error:
        raise StainError(
            "QuPath's stain vectors cannot be read",
            expected='setColorDeconvolutionStains(\'{"Name" : ..., "Stain 1" : ..., '
            '"Values 1" : "r g b", ..., "Background" : "r g b"}\')',
            found=repr(error),
            where=where,
        ) from None
    stains = make_stain_set(
        name, [label for label, _ in pairs], [v for _, v in pairs], source="QuPath", where=where
    )
    if not all(0 < v <= I0 for v in background):
        raise StainError(
            "QuPath's background is an intensity",
            expected="three numbers above 0, up to 255",
            found=background,
            where=where,
        )
    return Reference(
        name,
        stains.labels,
        stains.colors,
        tuple(triple(row) for row in stains.matrix),
        triple(-np.log10(np.asarray(background) / I0)),
        sources=({"name": "QuPath"},),
    )


def script(reference: Reference) -> str:
    """The line of a Groovy script that gives an image in QuPath these vectors.

    Raises:
        StainError: QuPath takes two or three stains.
    """
    if not 2 <= reference.n <= 3:
        raise StainError(
            "QuPath deconvolves two or three stains",
            expected="2 or 3",
            found=reference.n,
            where=reference.name,
        )
    entries = [("Name", reference.name)]
    for k, (label, row) in enumerate(zip(reference.labels, reference.matrix, strict=True), 1):
        entries += [(f"Stain {k}", label), (f"Values {k}", " ".join(f"{v:.5f}" for v in row))]
    light = I0 * 10.0 ** -np.asarray(reference.background or (0.0, 0.0, 0.0))
    entries.append(("Background", " ".join(f"{v:.0f}" for v in light)))
    body = ", ".join(f"{json.dumps(key)} : {json.dumps(value)}" for key, value in entries)
    return f"setColorDeconvolutionStains('{{{body}}}');\n"


def _numbers(text: str) -> list[float]:
    values = [float(v) for v in text.split()]
    if len(values) != 3:
        raise ValueError(f"three numbers expected, found {text!r}")
    return values
