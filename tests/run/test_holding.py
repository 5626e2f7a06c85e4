"""One run at a time on an output; a holder that died is no holder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from cheap_runs import FAST, Slide, differing, stop_at

from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.run import holding
from wsi_pgdips.run.holding import Holder, alive, place


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "a [1].ome.zarr"


def leave(path: Path, holder: Holder, *, silent_s: float = 0.0) -> None:
    """What a holder leaves that was killed."""
    path.write_text(json.dumps(asdict(holder)))
    now = path.stat().st_mtime
    os.utime(path, (now - silent_s, now - silent_s))


def test_a_second_holder_is_told_of_the_first(output: Path) -> None:
    with (
        holding.holding(output),
        pytest.raises(OutputError, match=f"process {os.getpid()} on"),
        holding.holding(output),
    ):
        pass
    with holding.holding(output):
        assert place(output, "run").exists()
    assert list(output.parent.iterdir()) == []


def test_parts_of_a_stage_go_on_side_by_side_and_nothing_else(output: Path) -> None:
    with holding.holding(output, "fit-1-of-2", beside="fit-"):
        with holding.holding(output, "fit-2-of-2", beside="fit-"):
            pass
        for other in ("run", "finalize", "fit-1-of-2", "render-1-of-2"):
            beside = "render-" if "render" in other else None
            with pytest.raises(OutputError), holding.holding(output, other, beside=beside):
                pass
        assert [p.name for p in output.parent.iterdir()] == [place(output, "fit-1-of-2").name]
        with holding.holding(output.with_name("b.ome.zarr")):
            pass


def test_of_many_at_once_one_holds(output: Path) -> None:
    leave(place(output, "run"), replace(Holder.this(), born="of an earlier process"))
    together, held = threading.Barrier(8), []

    def ask() -> None:
        together.wait()
        try:
            with holding.holding(output):
                held.append(1)
                together.wait()  # nobody lets go before all have asked
        except OutputError:
            together.wait()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert list(output.parent.iterdir()) == []


def test_who_died_is_replaced(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this, path = Holder.this(), place(output, "run")
    leave(path, replace(this, born="of an earlier process"))
    assert alive(path) is None
    leave(path, this, silent_s=10_000)  # on this machine it can be seen to live
    assert alive(path) == this
    elsewhere = replace(this, host="another")
    leave(path, elsewhere, silent_s=holding.DEAD_S - 10)
    assert alive(path) == elsewhere
    leave(path, elsewhere, silent_s=holding.DEAD_S + 10)
    assert alive(path) is None
    # the same job of Slurm, started anew on another node
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    leave(path, replace(elsewhere, job="7"))
    assert alive(path) is None
    leave(path, replace(elsewhere, job="8"))
    monkeypatch.setattr(holding, "_has_ended", lambda job: job == "8")
    assert alive(path) is None


def test_a_torn_file_is_nobodys(output: Path) -> None:
    path = place(output, "run")
    path.write_text("{")
    os.utime(path, (1, 1))
    assert alive(path) is None
    with holding.holding(output):
        pass


def test_a_killed_process_holds_nothing(output: Path) -> None:
    code = (
        "import sys, pathlib, time\nfrom wsi_pgdips.run.holding import holding\n"
        "with holding(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=str(process.pid)), holding.holding(output):
            pass
        process.kill()
    with holding.holding(output):
        assert [p.name for p in output.parent.iterdir()] == [place(output, "run", 1).name]
    assert list(output.parent.iterdir()) == []


def test_two_runs_of_an_output(slide: Slide, finished: Layers, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.zarr"
    stop_at(slide, output, "render", **FAST)
    with holding.holding(output), pytest.raises(OutputError, match="another run works on this"):
        slide.run(output, **FAST)
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []
    with holding.holding(output):
        assert slide.run(output, **FAST).already_done
