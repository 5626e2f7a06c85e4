"""A Slurm that is not one."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest


class FakeSlurm:
    """Commands on the PATH: they note how they were called, and say what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "next").write_text("100")
        self.says(
            "sbatch", f'n=$(cat {folder}/next); echo $((n + 1)) > {folder}/next; echo "$n;cluster"'
        )
        self.says("squeue", "true")
        self.says("scancel", "true")
        self.says("scontrol", "echo 'MaxArraySize            = 1001'")

    def says(self, command: str, script: str) -> None:
        path = self.folder / command
        calls = shlex.quote(str(self.folder / "calls"))
        path.write_text(f'#!/bin/sh\necho "{command} $*" >> {calls}\n{script}\n')
        path.chmod(0o755)

    def lacks(self, command: str) -> None:
        (self.folder / command).unlink()

    def calls(self, command: str) -> list[str]:
        """Arguments of each call of a command so far."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split()[0] == command]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    # nothing else but a shell and what scripts need: a real Slurm must not be asked
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "sleep"):
        found = next(Path(p) / name for p in ("/bin", "/usr/bin") if (Path(p) / name).exists())
        (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", f"{fake.folder}:{tools}")
    for name in [n for n in os.environ if n.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return fake
