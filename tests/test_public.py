"""The public names: there, documented, and cheap to import."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wsi_pgdips
from wsi_pgdips import adapters

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
HEAVY = ("torch", "zarr", "dask", "distributed", "tiatoolbox", "openslide", "scipy", "matplotlib")


@pytest.mark.parametrize("module", [wsi_pgdips, adapters], ids=lambda m: m.__name__)
def test_each_public_name_says_what_it_takes_and_what_it_raises(module: object) -> None:
    for name in module.__all__:
        if name != "__version__":
            text = inspect.getdoc(getattr(module, name)) or ""
            assert "Args:" in text, name
            assert name in ("PgdipsNormalizer", "StainAugment") or "Raises:" in text, name


@pytest.mark.parametrize("asked", ["import wsi_pgdips", "import wsi_pgdips.adapters"])
def test_import_brings_nothing_heavy(asked: str) -> None:
    program = f"import sys; {asked}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


@pytest.mark.parametrize("page", [Path("README.md"), *PAGES], ids=lambda p: p.name)
def test_documentation_imports_public_names_only(page: Path) -> None:
    text = (Path(__file__).parents[1] / page).read_text("utf-8")
    for room, names in re.findall(r"^\s*from (wsi_pgdips[\w.]*) import ([^\n#]+)", text, re.M):
        module = {"wsi_pgdips": wsi_pgdips, "wsi_pgdips.adapters": adapters}.get(room)
        assert module is not None, f"{page.name} imports from the room {room}"
        assert set(re.split(r"[,\s()]+", names.strip())) - {""} <= set(module.__all__)
