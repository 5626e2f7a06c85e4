"""A slide that several processes do together: the same bytes, whoever does what and how it went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cheap_runs import BALANCED, FAST, Slide, differing
from wsi_pgdips.errors import NotReadyError, SettingsError
from wsi_pgdips.layers.reader import Layers, open_layers
from wsi_pgdips.pipeline import part as parts
from wsi_pgdips.pipeline.ledger import Block, Ledger
from wsi_pgdips.pipeline.part import Part, share_out
from wsi_pgdips.pipeline.record import RunSummary
from wsi_pgdips.pipeline.slide import run_stage
from wsi_pgdips.stages import fit as fitting

SHARES = [f"{i}/3" for i in (2, 1, 3)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network share here that hides files for a minute."""
    monkeypatch.setattr(parts, "PATIENCE_S", ())


def do(slide: Slide, output: Path, stage: str, share: str | None = None, **options: Any) -> Any:
    return run_stage(slide.path, output, stage, share, stains=str(slide.stains), **options)


def breaking() -> Callable[..., Any]:
    """``fit_block`` that fails for one block."""
    genuine = fitting.fit_block

    def fit_block(context: Any, prior: Any, plan: Any, **others: Any) -> Any:
        if (plan.by, plan.bx) == (0, 1):
            raise ArithmeticError("a surprise")
        return genuine(context, prior, plan, **others)

    return fit_block


def do_all(slide: Slide, output: Path, **options: Any) -> RunSummary:
    do(slide, output, "calibrate", **options)
    for share in SHARES:
        do(slide, output, "fit", share, **options)
    do(slide, output, "blend", **options)
    for share in SHARES:
        do(slide, output, "render", share, **options)
    summary: RunSummary = do(slide, output, "finalize", **options)
    return summary


@given(
    st.dictionaries(st.tuples(st.integers(0, 9), st.integers(0, 9)), st.integers(1, 64)),
    st.integers(1, 12),
)
def test_each_block_has_one_owner_and_shares_are_even(tiles: dict[Block, int], count: int) -> None:
    shares = share_out(tiles, count)
    assert len(shares) == count
    assert sorted(b for share in shares for b in share) == sorted(tiles)
    sizes = [sum(tiles[b] for b in share) for share in shares]
    assert max(sizes) - min(sizes) <= max(tiles.values(), default=0)
    parts = [Part("fit", i + 1, count).blocks(tiles) for i in range(count)]
    assert parts == shares
    assert Part("render", 1, 1).blocks(tiles) == share_out(tiles, 1)[0]


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_stage_by_stage_in_shares_is_the_whole(
    preset: str, slide: Slide, output: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole: Layers = request.getfixturevalue("finished" if preset == "fast" else preset)
    options = FAST if preset == "fast" else BALANCED
    assert do_all(slide, output, **options).exit_code == 0
    assert differing(whole.path, output) == []
    record = open_layers(output).run_record
    assert list(record["wall_s"])
    assert set(record["wall_s"]) == set(whole.run_record["wall_s"])
    assert record["tiles"] == whole.run_record["tiles"]
    assert do(slide, output, "fit", "1/3", **options).already_done
    assert [path.name for path in tmp_path.iterdir()] == ["out.ome.zarr"]


def test_a_stage_does_not_begin_before_those_before_it(
    slide: Slide, finished: Layers, output: Path
) -> None:
    with pytest.raises(NotReadyError, match=r"fit cannot begin(.|\n)*calibrate"):
        do(slide, output, "fit", "1/2", **FAST)
    assert not output.exists()
    do(slide, output, "calibrate", **FAST)
    do(slide, output, "fit", "1/2", **FAST)
    with pytest.raises(NotReadyError, match=r"blend cannot begin(.|\n)*fit has not come"):
        do(slide, output, "blend", **FAST)
    with pytest.raises(NotReadyError, match="render cannot begin"):
        do(slide, output, "render", "1/2", **FAST)
    do(slide, output, "fit", "2/2", **FAST)
    do(slide, output, "blend", **FAST)
    do(slide, output, "render", "2/2", **FAST)
    with pytest.raises(NotReadyError, match="finalize cannot begin"):
        do(slide, output, "finalize", **FAST)
    # one process goes on with what several began
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


@pytest.mark.parametrize("stage", ["render", "finalize"])
def test_a_fit_that_is_gone_after_blend_is_missed(
    stage: str, slide: Slide, finished: Layers, output: Path
) -> None:
    for done in ("calibrate", "fit", "blend", *(["render"] if stage == "finalize" else [])):
        do(slide, output, done, **FAST)
    Ledger(output).fit((0, 1)).unlink()
    with pytest.raises(NotReadyError, match=rf"{stage} cannot begin(.|\n)*fit has not come"):
        do(slide, output, stage, **FAST)
    assert do_all(slide, output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_a_plan_may_come_late(
    slide: Slide, finished: Layers, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    do(slide, output, "calibrate", **FAST)
    hidden = Ledger(output).plan.rename(tmp_path / "hidden")

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            hidden.rename(Ledger(output).plan)

    with monkeypatch.context() as patient:
        patient.setattr(parts, "PATIENCE_S", (1, 2, 4))
        patient.setattr("time.sleep", sleep)
        do(slide, output, "fit", **FAST)
    assert waits == [1, 2]
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_a_block_that_fails_holds_nobody_up_and_is_tried_again(
    slide: Slide, finished: Layers, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "fit_block", breaking())
    done = do_all(slide, output, **FAST)
    assert (done.exit_code, done.failed_blocks) == (3, 1)
    assert open_layers(output, unfinished=True).run_record["failures"] == {
        "0,1": "ArithmeticError: a surprise"
    }
    monkeypatch.undo()
    monkeypatch.setattr(parts, "PATIENCE_S", ())
    assert do_all(slide, output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_a_failure_before_an_interruption_is_made_good(
    slide: Slide, finished: Layers, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(fitting, "fit_block", breaking())
        do(slide, output, "calibrate", **FAST)
        do(slide, output, "fit", **FAST)
        do(slide, output, "blend", **FAST)  # without the block
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []


def test_a_shard_that_is_gone_is_written_again(
    slide: Slide, finished: Layers, output: Path
) -> None:
    for stage in ("calibrate", "fit", "blend", "render"):
        do(slide, output, stage, **FAST)
    assert len(list(Ledger(output).work.glob("render/*.npz"))) == 3
    (output / "0/c/0/0/1").unlink()
    with pytest.raises(NotReadyError, match="finalize cannot begin"):
        do(slide, output, "finalize", **FAST)
    do(slide, output, "render", **FAST)
    assert do(slide, output, "finalize", **FAST).exit_code == 0
    assert differing(finished.path, output) == []


@pytest.mark.parametrize(
    ("stage", "share", "message"),
    [
        ("polish", None, "unknown stage"),
        ("blend", "1/2", "only the blocks of a stage"),
        (None, "1/2", "only the blocks of a stage"),
        ("fit", "0/2", "not a part"),
        ("fit", "3/2", "not a part"),
        ("fit", "half", "not a part"),
    ],
)
def test_parts_that_there_are_not(stage: str | None, share: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Part.of(stage, share)
