"""The description of a phantom slide: frozen and validated, read from TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsi_pgdips.errors import SettingsError

Vector = tuple[float, float, float]
Role = Literal["nuclear", "counterstain", "marker"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhantomStain(_Frozen):
    """One stain of a phantom.

    Attributes:
        label: display name.
        vector: RGB optical density of the stain library, of any length.
        role: the structures that it colours: nuclei, matrix and cytoplasm, or positive cells.
        amount: M0, factor on the concentrations of the textures.
        presence: share of the tissue that holds the stain, in blobs; 1 is everywhere.
        absent_level: factor on the concentration elsewhere.
    """

    label: str
    vector: Vector
    role: Role
    amount: float = Field(default=1.0, gt=0, le=3)
    presence: float = Field(default=1.0, gt=0, le=1)
    absent_level: float = Field(default=0.0, ge=0, le=1)


class PhantomConfig(_Frozen):
    """A synthetic slide. All its pixels follow from these values.

    Attributes:
        shape: (height, width) of level 0 in pixels. mpp: micrometres per pixel.
        tilt_deg: smallest angle of the true stain vectors to the library's, anywhere on the slide.
        true_stain_matrix: N explicit true vectors instead of a tilt in a seeded direction.
        stain_drift_deg: rotation of each true vector from one end of the slide to the other.
        drift_shape: course of all drifts: a ramp, or a step across the middle.
        mass_drift: relative change of M from end to end.
        background: B at the centre, OD; (.03, .05, .02) is glass at 238, 227, 243.
        background_drift: change of B from end to end, OD.
        saturated_fraction: share of the tissue in dark folds that reach the detector's floor.
        optical_sigma: Gaussian blur of procedural concentrations, pixels, in the slide and in the
            truth: the point spread and the pixel of a scanner in focus.
        defocus_sigma: Gaussian blur of the intensities, pixels (the truth stays sharp).
        noise: standard deviation in counts at white; it falls as the root of the intensity.
        jpeg_quality: 1 to 100; 0 writes lossless deflate.
        glass: False covers the slide with tissue.
        pieces: pieces of tissue on the glass. tile: side of a TIFF tile.
        level_factor: between levels of the TIFF.
    """

    name: str
    seed: int = Field(default=0, ge=0)
    shape: tuple[int, int] = (2048, 2560)
    mpp: float = Field(default=0.5, ge=0.2, le=2.0)
    stains: tuple[PhantomStain, ...] = Field(min_length=1, max_length=3)
    tilt_deg: float = Field(default=9.0, ge=0, le=25)
    true_stain_matrix: tuple[Vector, ...] | None = None
    stain_drift_deg: float = Field(default=0.0, ge=0, le=25)
    drift_shape: Literal["ramp", "step"] = "ramp"
    mass_drift: float = Field(default=0.0, ge=-1, le=1)
    background: Vector = (0.03, 0.05, 0.02)
    background_drift: Vector = (0.0, 0.0, 0.0)
    saturated_fraction: float = Field(default=0.0, ge=0, le=0.5)
    optical_sigma: float = Field(default=0.8, ge=0, le=4)
    defocus_sigma: float = Field(default=0.0, ge=0, le=8)
    noise: float = Field(default=1.5, ge=0, le=30)
    jpeg_quality: int = Field(default=80, ge=0, le=100)
    jpeg_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"
    glass: bool = True
    pieces: int = Field(default=1, ge=1, le=4)
    tile: Literal[256, 512] = 512
    level_factor: Literal[2, 4] = 2

    @model_validator(mode="after")
    def _consistent(self) -> PhantomConfig:
        if min(self.shape) < 256:
            raise ValueError(f"shape: expected at least 256 x 256 pixels, found {self.shape}")
        roles = [s.role for s in self.stains]
        if len(set(roles)) < len(roles):
            raise ValueError("stains: each role may be taken by one stain only")
        for s in self.stains:
            if min(s.vector) < 0 or max(s.vector) <= 0:
                raise ValueError(f"stains: vector of {s.label} must be an optical density >= 0")
        if self.true_stain_matrix is not None and len(self.true_stain_matrix) != len(self.stains):
            raise ValueError("true_stain_matrix: expected one row for each stain")
        lowest = [
            b - abs(d) / 2 for b, d in zip(self.background, self.background_drift, strict=True)
        ]
        if min(lowest) < 0:
            raise ValueError("background_drift: B would be negative at one end of the slide")
        return self

    @property
    def n_stains(self) -> int:
        """Number of stains."""
        return len(self.stains)


HEMATOXYLIN = PhantomStain(label="Hematoxylin", vector=(0.65, 0.704, 0.286), role="nuclear")
EOSIN = PhantomStain(label="Eosin", vector=(0.072, 0.99, 0.105), role="counterstain")


def default_config() -> PhantomConfig:
    """Return the demonstration slide: H&E with drifting colours and scarce eosin."""
    return PhantomConfig(
        name="demo",
        seed=7,
        shape=(2048, 2560),
        stains=(HEMATOXYLIN, EOSIN.model_copy(update={"presence": 0.8, "absent_level": 0.1})),
        tilt_deg=9.0,
        stain_drift_deg=8.0,
        mass_drift=0.2,
        background_drift=(0.01, 0.02, 0.01),
    )


def make_phantom_config(values: dict[str, Any], where: object = None) -> PhantomConfig:
    """Validate the keys and values of a description.

    Args:
        where: named in errors.

    Raises:
        SettingsError: unknown key (the valid ones are listed), missing key or bad value.
    """
    try:
        return PhantomConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            in_stain = first["loc"][0] == "stains"
            fields = PhantomStain.model_fields if in_stain else PhantomConfig.model_fields
            raise SettingsError(
                "unknown key in a phantom's description",
                expected="one of " + ", ".join(sorted(fields)),
                found=path,
                where=where,
            ) from None
        raise SettingsError(
            "a phantom's description cannot be used",
            found=f"{path}: {first['msg']}" if path else first["msg"],
            where=where,
        ) from None


def load_phantom_config(path: Path) -> PhantomConfig:
    """Load a description from a TOML file with the keys of :class:`PhantomConfig`.

    Each stain is a table ``[[stains]]``.

    Raises:
        SettingsError: unreadable file, invalid TOML, unknown or missing key, bad value.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise SettingsError(
            "the phantom's description cannot be read", where=path, found=error.strerror
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            "the phantom's description is not valid TOML", where=path, found=error
        ) from None
    return make_phantom_config(values, path)
