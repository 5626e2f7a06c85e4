"""Settings, frozen and validated: what changes the result apart from what changes the run."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.geometry import BLOCK_SIZES, MPP_LIMITS, TILE_SIZES

PRESETS = ("paper", "balanced", "fast")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScientificSettings(_Frozen):
    """Everything the result depends on; hashed, stored, and compared before a resume."""

    stains: str = "he"
    preset: Literal["paper", "balanced", "fast"] = "balanced"
    mpp: float | Literal["native"] = 0.5
    mpp_source: float | None = None
    tile: int = 512
    block: int = 4096
    min_tissue: float = Field(default=0.05, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    masker: Literal["otsu", "morphological"] = "otsu"
    mask: str | None = None
    roi: str | None = None
    icc: bool = False
    store_residual: bool = False
    iterations: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    alpha: float | None = Field(default=None, ge=0)
    beta: float | None = Field(default=None, ge=0)
    calibration_tiles: int = Field(default=16, ge=1)
    calibration_steps: int = Field(default=200, ge=1)
    prior_weight: float | Literal["auto"] = "auto"

    @field_validator("tile")
    @classmethod
    def _tile(cls, value: int) -> int:
        if value not in TILE_SIZES:
            raise ValueError(f"expected one of {', '.join(map(str, TILE_SIZES))}, found {value}")
        return value

    @field_validator("block")
    @classmethod
    def _block(cls, value: int) -> int:
        if value not in BLOCK_SIZES:
            raise ValueError(f"expected one of {', '.join(map(str, BLOCK_SIZES))}, found {value}")
        return value

    @field_validator("mpp", "mpp_source")
    @classmethod
    def _mpp(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not MPP_LIMITS[0] <= value <= MPP_LIMITS[1]:
            raise ValueError(f"expected {MPP_LIMITS[0]} to {MPP_LIMITS[1]} um/px, found {value:g}")
        return value

    def digest(self) -> str:
        """Hex SHA-256 over the canonical JSON of the settings."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


class ExecutionSettings(_Frozen):
    """How a run is carried out; none of it changes a byte of the result on one kind of device."""

    device: str = "auto"
    workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    cluster: str = "local"
    batch: int | Literal["auto"] = "auto"
    cache: str | None = None
    keep_pixels: bool | None = None
    overwrite: bool = False
    resume: bool = True

    @field_validator("cluster")
    @classmethod
    def _cluster(cls, value: str) -> str:
        if value == "local" or _is_address(value):
            return value
        expected = "local, or a scheduler such as tcp://host:8786 or tls://host:8786"
        raise ValueError(f"expected {expected}, found {value}")


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("tcp", "tls") and bool(parts.hostname) and bool(parts.port)
    except ValueError:  # a port that is no number
        return False


class Settings(_Frozen):
    """Both kinds together, as a ``--config`` file or the command line give them."""

    science: ScientificSettings = ScientificSettings()
    execution: ExecutionSettings = ExecutionSettings()


def read_settings(path: Path) -> dict[str, Any]:
    """What a TOML of settings says, unchecked.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            "the settings file cannot be read", where=path, found=error.strerror
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            "the settings file is not valid TOML", where=path, found=error
        ) from None


def make_settings(options: dict[str, Any], config_file: Path | None = None) -> Settings:
    """Settings from a flat mapping (command line) laid over an optional TOML file.

    The TOML is flat too: ``preset = "fast"``. ``None`` values of ``options`` mean "not given".

    Raises:
        SettingsError: unreadable file, unknown key (the valid ones are listed), bad value.
    """
    values = {} if config_file is None else read_settings(config_file)
    values.update({k: v for k, v in options.items() if v is not None})
    science, execution = set(ScientificSettings.model_fields), set(ExecutionSettings.model_fields)
    unknown = sorted(set(values) - science - execution)
    if unknown:
        raise SettingsError(
            "unknown setting" + ("s" if len(unknown) > 1 else ""),
            expected=", ".join(sorted(science | execution)),
            found=", ".join(unknown),
            where=config_file,
        )
    try:
        return Settings(
            science=ScientificSettings(**{k: v for k, v in values.items() if k in science}),
            execution=ExecutionSettings(**{k: v for k, v in values.items() if k in execution}),
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1] if first["loc"][-1] in science | execution else first["loc"][0])
        raise SettingsError(
            "a setting has a value that cannot be used",
            found=f"{name} = {values.get(name)!r}: {first['msg']}",
            where=f"--{name.replace('_', '-')}" if config_file is None else config_file,
            hint="see `wsi-pgdips run --help`",
        ) from None


def tile_seed(slide_checksum: str, ty: int, tx: int, settings_digest: str) -> int:
    """63-bit seed of a tile: a function of slide, position and settings, of nothing else."""
    text = f"{slide_checksum}:{ty}:{tx}:{settings_digest}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
