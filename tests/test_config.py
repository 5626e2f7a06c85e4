"""Settings: what is refused, how it is said, and what the digest depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wsi_pgdips.config import (
    ExecutionSettings,
    ScientificSettings,
    Settings,
    make_settings,
    tile_seed,
)
from wsi_pgdips.errors import SettingsError


def test_defaults():
    assert make_settings({}) == Settings()


def test_none_means_not_given_and_options_win_over_the_file(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('preset = "fast"\ntile = 256\nworkers = 3\n')
    settings = make_settings({"preset": None, "tile": 1024}, path)
    assert settings.science.preset == "fast"
    assert settings.science.tile == 1024
    assert settings.execution.workers == 3


def test_unknown_keys_list_the_valid_ones():
    with pytest.raises(SettingsError) as caught:
        make_settings({"presett": "fast", "tiel": 3})
    message = str(caught.value)
    assert "unknown settings" in message
    assert "found: presett, tiel" in message
    valid = {*ScientificSettings.model_fields, *ExecutionSettings.model_fields}
    assert all(name in message for name in valid)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preset", "slow"),
        ("tile", 500),
        ("block", 512),
        ("mpp", 0.01),
        ("mpp", 11),
        ("mpp", "fine"),
        ("mpp_source", 0.0),
        ("min_tissue", 1.5),
        ("seed", -1),
        ("learning_rate", 0),
        ("iterations", 0),
        ("beta", -0.1),
        ("workers", 0),
        ("batch", "big"),
        ("masker", "none"),
    ],
)
def test_bad_values_name_the_option(key: str, value: object):
    with pytest.raises(SettingsError) as caught:
        make_settings({key: value})
    message = str(caught.value)
    assert f"{key} = {value!r}" in message
    assert f"--{key.replace('_', '-')}" in message


def test_a_bad_value_of_a_file_names_the_file(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text("tile = 500\n")
    with pytest.raises(SettingsError, match=r"run\.toml"):
        make_settings({}, path)


@pytest.mark.parametrize("text", ["preset = ", "[[["])
def test_a_malformed_file_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="not valid TOML"):
        make_settings({}, path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="cannot be read"):
        make_settings({}, tmp_path / "none.toml")


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().science.tile = 256  # type: ignore[misc]


def test_digest_does_not_change_between_processes():
    # resuming an old run compares digests: a change here is a change of the file's contract
    assert ScientificSettings().digest() == ScientificSettings.model_validate({}).digest()
    assert ScientificSettings(seed=1, tile=256).digest() == (
        ScientificSettings(tile=256, seed=1).digest()
    )


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"stains": "hdab"}, {"mpp": "native"}, {"beta": 0.02}, {"tile": 256}]
)
def test_digest_depends_on_science(change: dict[str, object]):
    assert ScientificSettings.model_validate(change).digest() != ScientificSettings().digest()


def test_digest_does_not_depend_on_execution():
    a, b = make_settings({"workers": 1}), make_settings({"workers": 8, "device": "cuda"})
    assert a.science.digest() == b.science.digest()


@given(st.text(max_size=20), st.integers(0, 10**6), st.integers(0, 10**6), st.text(max_size=20))
def test_tile_seed_fits_63_bits_and_depends_on_position(slide, ty, tx, digest):
    seed = tile_seed(slide, ty, tx, digest)
    assert 0 <= seed < 2**63
    assert seed == tile_seed(slide, ty, tx, digest)
    assert seed != tile_seed(slide, ty + 1, tx, digest)
    assert seed != tile_seed(slide, ty, tx + 1, digest)
