"""One run at a time on an output; a holder that died is no holder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from support.cheap_runs import FAST, Slide, differing, stop_at
from wsi_pgdips.errors import OutputError
from wsi_pgdips.layers.reader import Layers
from wsi_pgdips.pipeline import lock
from wsi_pgdips.pipeline.lock import (
    DEAD_S,
    QUIET_S,
    Holder,
    living_holder,
    lock_output,
    lock_path,
    locks_of,
)
from wsi_pgdips.pipeline.part import Part


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
        lock_output(output),
        pytest.raises(OutputError, match=f"process {os.getpid()} on"),
        lock_output(output),
    ):
        pass
    with lock_output(output):
        assert lock_path(output, "run").exists()
    assert list(output.parent.iterdir()) == []


def test_parts_of_a_stage_go_on_side_by_side_and_nothing_else(output: Path) -> None:
    with lock_output(output, Part("fit", 1, 2)):
        with lock_output(output, Part("fit", 2, 2)):
            pass
        for other in (Part(), Part("finalize"), Part("fit", 1, 2), Part("render", 1, 2)):
            with pytest.raises(OutputError), lock_output(output, other):
                pass
        assert [p.name for p in output.parent.iterdir()] == [lock_path(output, "fit-1-of-2").name]
        with lock_output(output.with_name("b.ome.zarr")):
            pass


def test_of_many_at_once_one_holds(output: Path) -> None:
    leave(lock_path(output, "run"), replace(Holder.this(), born="of an earlier process"))
    together, held = threading.Barrier(8), []

    def ask() -> None:
        together.wait()
        try:
            with lock_output(output):
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


def test_who_died_is_replaced(output: Path) -> None:
    this, path = Holder.this(), lock_path(output, "run")
    leave(path, replace(this, born="of an earlier process"))
    assert living_holder(path) is None
    leave(path, this, silent_s=10_000)  # on this machine it can be seen to live
    assert living_holder(path) == this
    elsewhere = replace(this, host="another")
    leave(path, elsewhere, silent_s=DEAD_S - 10)
    assert living_holder(path) == elsewhere
    leave(path, elsewhere, silent_s=DEAD_S + 10)
    assert living_holder(path) is None


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Holder:
    """A process of job 7 on another machine; so is this one, and Slurm knows no job but that."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(lock, "_has_ended", lambda job: job != "7")
    return replace(Holder.this(), host="another")


def test_what_slurm_says_counts_of_who_is_silent(
    elsewhere: Holder, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, silent_s = lock_path(output, "run"), QUIET_S + 10
    other = replace(elsewhere, job="8")  # of another cluster, or over
    leave(path, other)
    assert living_holder(path) == other
    leave(path, other, silent_s=silent_s)
    assert living_holder(path) is None
    # on two machines of one allocation
    leave(path, elsewhere, silent_s=silent_s)
    assert living_holder(path) == elsewhere
    with pytest.raises(OutputError, match="Slurm job 7"), lock_output(output):
        pass
    # started anew on this machine, as the other was lost
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert living_holder(path) is None
    leave(path, elsewhere)  # but not for those who work there
    assert living_holder(path) == elsewhere


def test_an_earlier_start_of_the_job_is_waited_for(
    elsewhere: Holder, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waits = lock_path(output, "run"), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        silent_s = 1e-3 if len(waits) < 3 else QUIET_S + 1
        leave(path, elsewhere, silent_s=silent_s)

    leave(path, elsewhere)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(lock.time, "sleep", sleep)
    with lock_output(output):
        assert waits == [lock.WAIT_S] * 3
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("restarted", [False, True])
def test_who_goes_on_is_not_waited_for_unless_its_job_was_started_anew(
    restarted: bool, elsewhere: Holder, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waits = lock_path(output, "run"), list[float]()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) < 9:
            os.utime(path, (1e9 + len(waits),) * 2)
        else:
            path.unlink()

    leave(path, elsewhere)
    if restarted:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(Holder, "lives", lambda *_: True)
    monkeypatch.setattr(lock.time, "sleep", sleep)
    assert lock.wait_until_free(output, Part()) == restarted
    assert len(waits) == (9 if restarted else lock.BEATS)


def test_a_torn_file_is_nobodys_when_it_is_silent(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "TORN_S", 0.2)
    path = lock_path(output, "run")
    path.write_text("{")
    assert living_holder(path) == Holder()
    with pytest.raises(OutputError, match="an unknown process"):
        lock_output(output).__enter__()
    os.utime(path, (1, 1))
    assert living_holder(path) is None
    with lock_output(output):
        pass


def test_a_holder_of_another_version_is_one(output: Path) -> None:
    path, this = lock_path(output, "run"), Holder.this()
    said = asdict(this) | {"colour": "red"}
    del said["since"]
    path.write_text(json.dumps(said))
    assert living_holder(path) == replace(this, since="")
    path.write_text('["process 12"]')
    assert living_holder(path) == Holder()


def test_who_cannot_be_read_lives(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(lock_path(output, "run"), replace(Holder.this(), host="another"))

    def away(self: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(self))

    monkeypatch.setattr(Path, "read_bytes", away)
    assert list(locks_of(output).values()) == [Holder()]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ESTALE, errno.EROFS, errno.EACCES])
def test_who_cannot_write_looks_by_the_own_clock(
    output: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(Holder.this(), host="another")

    def refused(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.tempfile, "TemporaryFile", refused)
    leave(lock_path(output, "run"), other, silent_s=DEAD_S - 30)
    assert list(locks_of(output).values()) == [other]
    leave(lock_path(output, "run"), other, silent_s=DEAD_S + 30)
    assert list(locks_of(output).values()) == [None]


def test_a_full_disk_leaves_nobody(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.json, "dumps", full)
    with pytest.raises(OutputError, match="the disk is full"), lock_output(output):
        pass
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("other", ["S1.2", "S1.run", "S1.fit-1-of-2", "S1.2.ome.zarr", "S10"])
def test_outputs_whose_names_go_on_are_others(tmp_path: Path, other: str) -> None:
    one, two = tmp_path / "S1", tmp_path / other
    with lock_output(one), lock_output(two):
        assert len(locks_of(one)) == len(locks_of(two)) == 1
    with lock_output(two), lock_output(one, Part("fit", 1, 2)):
        assert list(locks_of(one)) == [lock_path(one, "fit-1-of-2")]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_nothing(output: Path) -> None:
    code = (
        "import sys, pathlib, time\nfrom wsi_pgdips.pipeline.lock import lock_output\n"
        "with lock_output(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=str(process.pid)), lock_output(output):
            pass
        process.kill()
    with lock_output(output):
        assert [p.name for p in output.parent.iterdir()] == [lock_path(output, "run", 1).name]
    assert list(output.parent.iterdir()) == []


def test_two_runs_of_an_output(slide: Slide, finished: Layers, tmp_path: Path) -> None:
    output = tmp_path / "out.ome.zarr"
    stop_at(slide, output, "render", **FAST)
    with lock_output(output), pytest.raises(OutputError, match="another run works on this"):
        slide.run(output, **FAST)
    assert slide.run(output, **FAST).exit_code == 0
    assert differing(finished.path, output) == []
    with lock_output(output):
        assert slide.run(output, **FAST).already_done
