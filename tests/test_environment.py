"""The descriptions of the project agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from wsi_pgdips import __version__
from wsi_pgdips.cli.options import settings_table
from wsi_pgdips.config import PRESETS, ExecutionSettings, ScientificSettings
from wsi_pgdips.optics.stain_files import stain_names

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_environment_lists_the_same_dependencies():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, pip = environment["dependencies"]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip["pip"] == [*PROJECT["dependencies"], "-e ."]


def test_citation_names_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["authors"]


def test_changelog_has_the_version():
    assert f"## {__version__}" in (ROOT / "docs" / "changelog.md").read_text()


@pytest.mark.parametrize("settings", [ScientificSettings, ExecutionSettings])
def test_cli_reference_has_the_table_of_the_settings(settings: type[BaseModel]):
    table = settings_table(settings)
    held = table in (ROOT / "docs" / "cli.md").read_text()
    assert held, f"put this in place of the table of settings in docs/cli.md:\n{table}"


def test_cli_reference_lists_every_preset_and_stain_set():
    text = (ROOT / "docs" / "cli.md").read_text()
    for name in [*PRESETS, *stain_names()]:
        assert f"`{name}`" in text, name


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
)
def test_relative_links_of_the_prose_lead_somewhere(page: Path):
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
