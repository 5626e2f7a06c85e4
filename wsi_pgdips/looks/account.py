"""This module says in plain words what a transfer will change, before it changes anything."""

from __future__ import annotations

import numpy as np

from wsi_pgdips.looks.colour_map import ColourMap
from wsi_pgdips.looks.recompose import SingleStain
from wsi_pgdips.looks.reference import Reference
from wsi_pgdips.looks.transfer import MatchedTransfer, Transfer
from wsi_pgdips.optics.physics import I0, angle_deg

LITTLE_EVIDENCE = 0.5


def account(
    own: Reference,
    target: Reference | None,
    transfer: Transfer,
    group: Reference | None = None,
    colour_map: ColourMap | None = None,
) -> tuple[str, ...]:
    """Say what is changed, one sentence a fact: glass, each stain, and what it rests on."""
    if isinstance(transfer, SingleStain):
        transfer = transfer.look
    if not isinstance(transfer, MatchedTransfer):
        return ()
    found, lines = transfer.found, []
    before = np.asarray(transfer.background, float).reshape(-1, 3).mean(0)
    after = before + np.asarray(transfer.shift, float).reshape(-1, 3).mean(0)
    white = [" ".join(f"{I0 * 10**-v:.0f}" for v in b) for b in (before, after)]
    if transfer.shift.any():
        lines.append(f"glass from {white[0]} to {white[1]}")
    else:
        lines.append(f"glass is kept at {white[0]}")
    if colour_map is not None:
        stretch = float(np.linalg.svd(found.matrix, compute_uv=False)[0])
        lines.append(
            f"colours by the map of {colour_map.pairs} registered pairs, which leaves "
            f"{colour_map.error_lab:.1f} of {colour_map.before_lab:.1f} dE on regions held out; no "
            f"colour is stretched more than {stretch:.2f} times"
        )
        return tuple(lines)
    assert target is not None  # without a map there is a reference
    if not own.glass_measured and group is None:
        lines.append("the slide shows no glass, so that its white point is not known")
    for k, label in enumerate(own.labels):
        s = own.stain_matrix[k].astype(float)
        new = found.matrix @ s
        turned, gain = float(angle_deg(new, s)), float(np.linalg.norm(new))
        lines.append(f"{label} turned by {turned:.1f} degrees, {gain:.2f} times as dark")
    lines.append(_basis(own, target, transfer, group))
    if len(target.slides) == 1:
        lines.append("the reference comes from one slide")
    return tuple(lines)


def _basis(
    own: Reference, target: Reference, transfer: MatchedTransfer, group: Reference | None
) -> str:
    """Say what the change of colours rests on."""
    found = transfer.found
    who = "the slide" if group is None else f"the {len(group.slides)} slides of its group"
    if not own.tissue_od and group is None:
        return "colours are kept, because the slide's look was not measured"
    if not any(look.tissue_od for look in target.slides):
        return "colours are kept, because the reference knows stain vectors only"
    if found.evidence < LITTLE_EVIDENCE:
        tissues = ", and no tissue is named for both" if found.labelled == () else ""
        return (
            f"colours are changed by {100 * found.evidence:.0f} % of the difference, because the "
            f"reference holds no tissue that is surely alike to that of {who}{tissues}"
        )
    stretch = float(np.linalg.svd(found.matrix, compute_uv=False)[0])
    named = f" of {', '.join(found.labelled)}" if found.labelled else ""
    times = f"{found.compared} comparison{'' if found.compared == 1 else 's'}"
    outside = _outside(own, transfer)
    beyond = f"; {100 * outside:.0f} % of the colours lie outside of them" if outside else ""
    return (
        f"colours are changed by what {times} of alike tissue{named} show; "
        f"no colour is stretched more than {stretch:.2f} times{beyond}"
    )


def _outside(own: Reference, transfer: MatchedTransfer) -> float:
    """The share of the slide's mean colours that lie outside of what the map was estimated on."""
    inside = transfer.found.inside
    if inside is None or not own.tissue_od:
        return 0.0
    y = np.asarray(own.tissue_od, float).T
    return float((np.abs(inside.nearest(y) - y).max(0) > 0.01).mean())
