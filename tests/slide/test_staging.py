"""A slide is read from a whole copy that goes with the run, and stays what it was."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.cheap_runs import Slide
from wsi_pgdips.errors import OutputError, SlideError
from wsi_pgdips.progress import QuietProgress
from wsi_pgdips.slide import staging
from wsi_pgdips.slide.reader import read_meta
from wsi_pgdips.slide.staging import staged

QUIET = QuietProgress()
KILLED = """
import os, signal, sys
from pathlib import Path
from wsi_pgdips.slide import staging
from wsi_pgdips.progress import QuietProgress

class Dies(QuietProgress):
    def advance(self, n=1):
        if sys.argv[1] == "copying":
            os.kill(os.getpid(), signal.SIGKILL)

staging.PIECE = 2**20
with staging.staged(*map(Path, sys.argv[2:]), Dies()):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Told(QuietProgress):
    """Remembers what it was told; breaks off at an advance where asked to."""

    def __init__(self, breaks: type[BaseException] | None = None) -> None:
        self.breaks = breaks
        self.stages: list[tuple[str, int, str]] = []
        self.steps: list[int] = []
        self.notes: list[str] = []

    def stage(self, name: str, total: int, unit: str) -> None:
        self.stages.append((name, total, unit))

    def advance(self, n: int = 1) -> None:
        self.steps.append(n)
        if self.breaks is not None:
            raise self.breaks

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def share(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "scratch" / "mine"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.ome.zarr"


@pytest.fixture
def big(share: Path) -> Path:
    """2.5 MiB."""
    path = share / "case 7.svs"
    path.write_bytes(os.urandom(5 * 2**19))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"content of {name}".encode())


def kill(when: str, slide: Path, cache: Path, output: Path) -> None:
    command = [sys.executable, "-c", KILLED, when, str(slide), str(cache), str(output)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL


def test_a_real_slide_reads_as_before(
    slide: Slide, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(slide.path.parent)
    before = read_meta(slide.path)
    with staged(Path(slide.path.name), cache, output, QUIET) as path:
        assert path.is_absolute()
        assert read_meta(path) == before


def test_the_copy_is_whole_named_alike_private_and_goes(
    big: Path, cache: Path, output: Path
) -> None:
    with staged(big, cache, output, QUIET) as path:
        assert path.parent.parent == cache
        assert path.name == big.name
        assert files(path.parent) == {big.name: big.read_bytes()}
        assert path.stat().st_ino != big.stat().st_ino
        assert path.parent.stat().st_mode & 0o077 == 0
        assert [p.name for p in cache.iterdir()] == [path.parent.name]
    assert list(cache.iterdir()) == []
    assert big.exists()


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_the_copy_goes_after_an_error_which_stays_what_it_was(
    error: type[BaseException], big: Path, cache: Path, output: Path
) -> None:
    with pytest.raises(error, match="of the run"), staged(big, cache, output, QUIET):
        raise error("of the run")
    assert list(cache.iterdir()) == []


def test_an_interrupted_copy_leaves_nothing(
    big: Path, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "PIECE", 2**20)
    progress = Told(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), staged(big, cache, output, progress):
        pytest.fail("the run began")
    assert progress.steps == [1]
    assert list(cache.iterdir()) == []


def test_no_cache_no_copy(big: Path, output: Path) -> None:
    progress = Told()
    with staged(big, None, output, progress) as path:
        assert path == big
    assert progress.stages == []


@pytest.mark.parametrize("kind", ["missing", "folder", "unreadable", "piece unreadable"])
def test_what_cannot_be_read_is_left_to_its_reader(
    kind: str, share: Path, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = share / "a.mrxs"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        make(share, "a.mrxs", "a/Data0000.dat")
        closed = path if kind == "unreadable" else share / "a" / "Data0000.dat"
        monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != closed)
    with staged(path, cache, output, QUIET) as given:
        assert given == path
    assert not cache.exists()


def test_a_killed_copy_is_replaced(big: Path, cache: Path, output: Path) -> None:
    kill("copying", big, cache, output)
    (partial,) = cache.iterdir()
    assert partial.name.endswith(".partial")
    assert 0 < (partial / big.name).stat().st_size < big.stat().st_size
    (partial / "left.over").touch()
    with staged(big, cache, output, QUIET) as path:
        assert [p.name for p in cache.iterdir()] == [partial.name.removesuffix(".partial")]
        assert files(path.parent) == {big.name: big.read_bytes()}
    assert list(cache.iterdir()) == []


def test_the_copy_of_a_killed_run_is_taken_over(
    big: Path, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill("running", big, cache, output)
    (home,) = cache.iterdir()
    before = (home / big.name).stat()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    progress = Told()
    with staged(big, cache, output, progress) as path:
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert path.read_bytes() == big.read_bytes()
    assert progress.stages == []
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_copy_that_lost_something_is_made_again(
    damage: str, share: Path, cache: Path, output: Path
) -> None:
    make(share, "a.mrxs", "a/Index.dat", "a/Data0000.dat")
    before = files(share)
    kill("running", share / "a.mrxs", cache, output)
    (home,) = cache.iterdir()
    if damage == "gone":
        (home / "a" / "Data0000.dat").unlink()
    else:
        os.truncate(home / "a" / "Data0000.dat", 3)
    with staged(share / "a.mrxs", cache, output, QUIET) as path:
        assert files(path.parent) == before


def test_runs_share_no_copy(big: Path, cache: Path, output: Path) -> None:
    other = big.with_name("other.svs")
    shutil.copy2(big, other)
    with (
        staged(big, cache, output, QUIET) as first,
        staged(big, cache, output.with_name("b"), QUIET) as second,
        staged(other, cache, output, QUIET) as third,
    ):
        assert len({p.parent for p in (first, second, third)}) == 3
        assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("change", ["time", "size", "piece"])
def test_a_changed_slide_has_another_folder(
    change: str, share: Path, cache: Path, output: Path
) -> None:
    make(share, "a.dcm", "b.dcm")
    slide = share / "a.dcm"
    with staged(slide, cache, output, QUIET) as before:
        pass
    changed = share / "b.dcm" if change == "piece" else slide
    stat = changed.stat()
    if change == "size":
        changed.write_bytes(b"longer than it was before")
    later = stat.st_mtime_ns + (0 if change == "size" else 1)
    os.utime(changed, ns=(stat.st_atime_ns, later))
    with staged(slide, cache, output, QUIET) as after:
        assert after.parent != before.parent
        assert files(after.parent) == files(share)


KEYS = """\
[Virtual Microscope Specimen]
NoJpegColumns=1
ImageFile=a.jpg
ImageFile(0,1) = a(0,1).jpg \r
MapFile=map.jpg
OptimisationFile=a.opt
MacroImage=gone.jpg
Elsewhere=../out.jpg
Comment={long}
AuthCode=sub
Empty=
"""


@pytest.mark.parametrize(
    ("name", "others", "strangers"),
    [
        ("a.mrxs", ["a/Slidedat.ini", "a/Data0000.dat", "a/deep/x"], ["b.mrxs", "b/x", "a.txt"]),
        ("a.b.mrxs", ["a.b/Index.dat"], ["a/Index.dat"]),
        ("a.dcm", ["b.dcm", "c.DCM"], ["a.txt", "deep/d.dcm", "a/x"]),
        ("a.vms", ["a.jpg", "a(0,1).jpg", "map.jpg", "a.opt"], ["b.jpg", "../out.jpg", "sub/x"]),
        ("a.VMU", ["a.jpg", "map.jpg"], ["b.jpg"]),
        ("a.svs", [], ["a/x", "a.dcm", "b.svs"]),
        ("a.ndpi", [], ["a.jpg"]),
        ("a.mrxs", [], ["b.mrxs"]),
    ],
)
def test_every_file_of_a_slide_comes_along_and_no_other(
    name: str, others: list[str], strangers: list[str], share: Path, cache: Path, output: Path
) -> None:
    make(share, name, *others, *strangers)
    if name.lower().endswith(("vms", "vmu")):
        (share / name).write_bytes(KEYS.format(long="x" * 400).encode() + b"Name=\xff\0\n")
    expected = {n: (share / n).read_bytes() for n in [name, *others]}
    with staged(share / name, cache, output, QUIET) as path:
        assert path.name == name
        assert files(path.parent) == expected
    assert files(cache) == {}


def test_dicom_goes_by_content_where_the_name_says_nothing(
    share: Path, cache: Path, output: Path
) -> None:
    for name in ("1.2.840", "1.2.841"):
        (share / name).write_bytes(bytes(128) + b"DICM" + name.encode())
    make(share, "notes", "c.dcm")
    with staged(share / "1.2.840", cache, output, QUIET) as path:
        assert set(files(path.parent)) == {"1.2.840", "1.2.841", "c.dcm"}


@pytest.mark.parametrize("missing", [1, 0])
def test_space_is_looked_at_first(
    missing: int, big: Path, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=big.stat().st_size - missing)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    progress = Told()
    if missing:
        with (
            pytest.raises(OutputError, match="too little space") as caught,
            staged(big, cache, output, progress),
        ):
            pytest.fail("the run began")
        assert (caught.value.expected, caught.value.found) == ("3 MiB free", "2 MiB free")
        assert caught.value.where == cache
        assert "--cache" in (caught.value.hint or "")
        assert progress.stages == []
    else:
        with staged(big, cache, output, progress) as path:
            assert path.read_bytes() == big.read_bytes()
    assert asked == [cache]
    assert list(cache.iterdir()) == []


def test_a_cache_that_is_no_folder_is_refused(big: Path, share: Path, output: Path) -> None:
    make(share, "scratch")
    progress = Told()
    with (
        pytest.raises(OutputError, match="cannot be written") as caught,
        staged(big, share / "scratch", output, progress),
    ):
        pytest.fail("the run began")
    assert str(share / "scratch") in str(caught.value)
    assert progress.notes == []


def test_progress_counts_mebibytes_over_all_pieces(
    share: Path, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "PIECE", 2**19)
    make(share, "a.mrxs", "a/z")
    (share / "a" / "Data0000.dat").write_bytes(bytes(5 * 2**19))
    progress = Told()
    with staged(share / "a.mrxs", cache, output, progress):
        assert progress.stages == [("stage slide", 3, "MiB")]
        assert progress.steps == [1, 1, 1]
    assert progress.notes == []


@pytest.mark.parametrize("change", [-7, 7])
def test_a_slide_that_is_being_written_is_refused(
    change: int, big: Path, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scanner(QuietProgress):
        def stage(self, name: str, total: int, unit: str) -> None:
            os.truncate(big, size + change)

    size = big.stat().st_size
    with (
        pytest.raises(SlideError, match="changed while") as caught,
        staged(big, cache, output, Scanner()),
    ):
        pytest.fail("the run began")
    assert (caught.value.expected, caught.value.found) == (
        f"{size} bytes",
        f"{size + change} bytes",
    )
    assert list(cache.iterdir()) == []


def test_a_failing_read_names_its_file(
    share: Path, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise OSError(errno.EIO, "Input/output error")

    make(share, "a.mrxs", "a/Data0000.dat")
    bad = share / "a" / "Data0000.dat"
    plain = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *args: Broken() if path == bad else plain(path, *args)
    )
    with pytest.raises(OutputError) as caught, staged(share / "a.mrxs", cache, output, QUIET):
        pytest.fail("the run began")
    assert (caught.value.where, caught.value.found) == (bad, "Input/output error")
    assert list(cache.iterdir()) == []


def test_a_copy_that_cannot_be_removed_is_told_of(
    big: Path, cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    progress = Told()
    with staged(big, cache, output, progress) as path:
        monkeypatch.setattr(shutil, "rmtree", refuse)
    assert any("could not be removed" in n and str(path.parent) in n for n in progress.notes)
