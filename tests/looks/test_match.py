"""What two looks differ by is the scanner only where their tissue is alike."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from support.looks import look
from wsi_pgdips.looks.groups import pool_looks
from wsi_pgdips.looks.match import match_looks
from wsi_pgdips.looks.reference import rows_of

SCANNER = np.array([[1.1, -0.2, 0.1], [0.0, 0.8, 0.1], [0.0, 0.1, 0.9]])


def scanned(tissue: int, label: str | None = None, noise: float = 0.0, gain: float = 1.0):
    """A tissue on the other scanner."""
    own = look(tissue=tissue, label=label)
    rng = np.random.default_rng(tissue)
    rows = gain * np.array(own.tissue_od) @ SCANNER.T
    return dataclasses.replace(
        own, tissue_od=rows_of(rows * (1 + rng.normal(0, noise, rows.shape)))
    )


def apart(found, tissue: int) -> float:
    """How far colours of a tissue remain from those on the other scanner, relative."""
    y = np.array(look(tissue=tissue).tissue_od)
    wanted = y @ SCANNER.T
    return float(np.linalg.norm(y @ found.matrix.T - wanted) / np.linalg.norm(y - wanted))


def test_alike_tissue_shows_the_scanner_whatever_its_gain() -> None:
    found = match_looks(look(), scanned(0, noise=0.02))
    assert found.evidence > 0.95
    assert apart(found, 0) < 0.25
    darker = match_looks(look(), scanned(0, gain=2.0))
    assert np.linalg.norm(darker.matrix) > 1.7 * np.linalg.norm(found.matrix)


@pytest.mark.parametrize("tissue", [1, 2, 3])
def test_other_tissue_shows_nothing(tissue: int) -> None:
    found = match_looks(look(), scanned(tissue))
    assert found.evidence < 0.05
    assert np.allclose(found.matrix, np.eye(3), atol=0.05)
    assert match_looks(look(), dataclasses.replace(scanned(0), tissue_od=())).evidence == 0


def test_a_group_finds_its_partners_and_serves_a_slide_of_another_tissue() -> None:
    group = pool_looks([look(tissue=t) for t in (1, 2, 3)])
    target = pool_looks([scanned(t, noise=0.02) for t in (3, 1, 2)])
    alone = match_looks(look(), target)
    assert alone.evidence < 0.05
    found = match_looks(look(), target, group)
    assert found.evidence > 0.95
    assert found.compared == 3
    assert apart(found, 0) < 0.35
    disjoint = match_looks(look(), pool_looks([scanned(5), scanned(6)]), group)
    assert disjoint.evidence < 0.1


def test_a_slide_s_own_evidence_moves_it_from_its_group() -> None:
    group = pool_looks([look(tissue=t) for t in (1, 2, 3)])
    target = pool_looks([scanned(t) for t in (1, 2, 3)] + [scanned(0, gain=1.3)])
    kept = match_looks(look(), pool_looks([scanned(t) for t in (1, 2, 3)]), group)
    moved = match_looks(look(), target, group)
    y = np.array(look().tissue_od)
    gain = np.linalg.norm(y @ moved.matrix.T) / np.linalg.norm(y @ kept.matrix.T)
    assert 1.1 < gain < 1.31


def test_names_of_tissues_decide_what_is_compared() -> None:
    names = ("liver", "kidney", "skin")
    noisy = [scanned(t, name, noise=0.08) for t, name in zip((1, 2, 3), names, strict=True)]
    group = pool_looks([look(tissue=t, label=n) for t, n in zip((1, 2, 3), names, strict=True)])
    found = match_looks(look(), pool_looks(noisy), group)
    assert found.labelled == ("kidney", "liver", "skin")
    assert found.evidence > 0.9
    # the same numbers under names that the group does not hold are not compared
    elsewhere = pool_looks([dataclasses.replace(m, tissue=f"other {m.tissue}") for m in noisy])
    nothing = match_looks(look(), elsewhere, group)
    assert nothing.labelled == ()
    assert nothing.evidence == 0


def test_many_slides_are_compared_as_mixtures() -> None:
    """No slide has a partner, but both sides hold the same mixture of tissues."""
    rng = np.random.default_rng(0)

    def slides(change):
        base = look()
        out = []
        for _ in range(16):
            rows = np.array(base.tissue_od) * rng.lognormal(0, 0.25, (14, 1)) @ change.T
            texture = tuple(t * rng.lognormal(0, 0.15) for t in base.texture)
            out.append(dataclasses.replace(base, tissue_od=rows_of(rows), texture=texture))
        return pool_looks(out)

    found = match_looks(look(), slides(SCANNER), slides(np.eye(3)))
    assert found.evidence > 0.8
    assert apart(found, 0) < 0.5
