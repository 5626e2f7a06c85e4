"""Progress says where a run is, neither too often nor with what it cannot know."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from support.cheap_runs import BALANCED, Slide
from wsi_pgdips.progress import (
    LineProgress,
    Progress,
    QuietProgress,
    RichProgress,
    clock_text,
    make_progress,
    progress_line,
)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_line_says_stage_count_rate_and_time_left() -> None:
    assert progress_line("fit", 3, 9, "tiles", 2.0) == "fit 3/9 tiles, 1.5 tiles/s, 0:04 left"


def test_a_line_leaves_out_what_is_not_known() -> None:
    assert progress_line("fit", 0, 9, "tiles", 2.0) == "fit 0/9 tiles"
    assert progress_line("fit", 3, 9, "tiles", 0.0) == "fit 3/9 tiles"
    assert progress_line("fit", 9, 9, "tiles", 3.0) == "fit 9/9 tiles, 3 tiles/s"
    assert progress_line("read", 4, 0, "rows", 2.0) == "read 4 rows, 2 rows/s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_time_is_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_lines_come_at_most_every_interval_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, interval=5.0, clock=clock)
    progress.stage("fit", 100, "tiles")
    for _ in range(100):
        clock.now += 0.12  # 12 s in all
        progress.advance()
    progress.close()
    assert lines(stream) == [
        "fit: 100 tiles",
        "fit 42/100 tiles, 8.33 tiles/s, 0:07 left",
        "fit 84/100 tiles, 8.33 tiles/s, 0:02 left",
        "fit 100/100 tiles, 8.33 tiles/s",
    ]


def test_a_stage_that_breaks_off_still_says_how_far_it_came() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock=clock)
    progress.stage("render", 10, "blocks")
    clock.now += 1
    progress.advance(4)
    progress.close()
    progress.close()
    assert lines(stream) == ["render: 10 blocks", "render 4/10 blocks, 4 blocks/s, 0:02 left"]


def test_a_new_stage_starts_its_own_count_and_clock() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock=clock)
    progress.stage("fit", 2, "tiles")
    clock.now += 1
    progress.advance(2)
    progress.stage("finalize", 0, "")
    progress.note("a note")
    progress.stage("render", 4, "blocks")
    clock.now += 2
    progress.advance(4)
    progress.close()
    assert lines(stream) == [
        "fit: 2 tiles",
        "fit 2/2 tiles, 2 tiles/s",
        "finalize",
        "a note",
        "render: 4 blocks",
        "render 4/4 blocks, 2 blocks/s",
    ]


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 20)), min_size=1, max_size=40))
def test_the_last_line_counts_everything(steps: list[tuple[int, float]]) -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock=clock)
    total = sum(n for n, _ in steps)
    progress.stage("fit", total, "tiles")
    for n, seconds in steps:
        clock.now += seconds
        progress.advance(n)
    progress.close()
    assert lines(stream)[-1].startswith(f"fit {total}/{total} tiles")
    assert len(lines(stream)) <= 2 + sum(s for _, s in steps) / 5


def test_the_bar_shows_count_and_rate_and_keeps_brackets_of_notes() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    progress = RichProgress(console)
    progress.note("before any stage: [bold]x[/bold].svs")
    progress.stage("fit", 4, "tiles")
    progress.advance()
    progress.advance(3)
    progress.stage("finalize", 0, "")
    progress.close()
    progress.close()
    shown = stream.getvalue()
    assert "before any stage: [bold]x[/bold].svs" in shown
    assert "4/4 tiles" in shown
    assert "tiles/s" in shown
    assert "finalize" in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars_and_a_file_gets_lines() -> None:
    assert isinstance(make_progress(Terminal()), RichProgress)
    assert isinstance(make_progress(io.StringIO()), LineProgress)


def test_quiet_takes_every_call() -> None:
    progress: Progress = QuietProgress()
    progress.stage("fit", 2, "tiles")
    progress.advance()
    progress.note("x")
    progress.close()


def test_a_run_counts_what_it_does(slide: Slide, tmp_path: Path) -> None:
    said = io.StringIO()
    progress = LineProgress(said, interval=0)
    done = slide.run(tmp_path / "out.ome.zarr", progress=progress, **BALANCED)
    steps = BALANCED["calibration_steps"]
    told = [line for line in lines(said) if line.startswith("calibrate")]
    assert told[0] == f"calibrate: {steps} steps"
    assert [line.split()[1] for line in told[1:]] == [f"{i + 1}/{steps}" for i in range(steps)]
    tiles = [line for line in lines(said) if line.startswith("fit ")]
    assert tiles[-1].split()[1] == f"{done.tiles}/{done.tiles}"
