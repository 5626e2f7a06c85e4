"""Settings: validated, frozen, and described once.

``ScientificSettings`` decides what the result is, ``ExecutionSettings`` how the run is carried out.
The options of the command line and the tables of ``docs/cli.md`` are made from the fields here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.geometry import BLOCK_SIZES, MPP_LIMITS, TILE_SIZES

PresetName = Literal["paper", "balanced", "fast"]
PRESETS: tuple[str, ...] = get_args(PresetName)
METHOD, EXPERT, MACHINE = "What the result depends on", "For experts", "How the run is carried out"


def _setting(
    default: Any,
    description: str,
    metavar: str | None = None,
    *,
    panel: str = METHOD,
    shown: str | None = None,
    **limits: Any,
) -> Any:
    """Make a field that carries what a user reads about it.

    Args:
        default: value where none is given. description: sentences, code in backticks.
        metavar: what the help shows in place of a value, where the type does not say enough.
        panel: heading of the option in the help. shown: the default in words.
        limits: bounds of the value, as ``pydantic.Field`` takes them.
    """
    extra: dict[str, Any] = {"metavar": metavar, "panel": panel, "shown": shown}
    return Field(default, description=description, json_schema_extra=extra, **limits)


_expert = functools.partial(_setting, panel=EXPERT)
_machine = functools.partial(_setting, panel=MACHINE)


def _one_of(sizes: tuple[int, ...]) -> AfterValidator:
    def check(value: int) -> int:
        if value not in sizes:
            raise ValueError(f"one of {', '.join(map(str, sizes))}")
        return value

    return AfterValidator(check)


def _check_mpp(value: float | str | None) -> float | str | None:
    if isinstance(value, float) and not MPP_LIMITS[0] <= value <= MPP_LIMITS[1]:
        raise ValueError(f"{MPP_LIMITS[0]} to {MPP_LIMITS[1]} um/px")
    return value


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScientificSettings(_Frozen):
    """Everything the result depends on; hashed, stored, and compared before a resume."""

    stains: str = _setting(
        "he",
        "Stain set: a name that `wsi-pgdips stains` lists, or your own file.",
        "NAME|FILE.toml",
    )
    stain_vectors: Literal["estimate", "refine", "fixed"] | None = _setting(
        None,
        "How far the slide may change the set's vectors. `estimate` takes the slide's own, "
        "`refine` stays within the uncertainty that your file states (5 degrees where it states "
        "none), `fixed` keeps them.",
        metavar="estimate|refine|fixed",
        shown="`estimate` for sets of the library; for your own file `fixed`, or `refine` where it "
        "states `uncertainty_deg`",
    )
    preset: PresetName = _setting("balanced", "Effort for each tile.")
    mpp: Annotated[float | Literal["native"], AfterValidator(_check_mpp)] = _setting(
        0.5, "Micrometres per output pixel.", "FLOAT|native"
    )
    mpp_source: Annotated[float | None, AfterValidator(_check_mpp)] = _setting(
        None, "Micrometres per pixel of the slide, where its file states none or a wrong value."
    )
    tile: Annotated[int, _one_of(TILE_SIZES)] = _setting(
        512, "Side of a tile in output pixels.", "|".join(map(str, TILE_SIZES))
    )
    block: Annotated[int, _one_of(BLOCK_SIZES)] = _expert(
        4096,
        "Side of a block in output pixels. A block is the unit of work, and one shard.",
        "|".join(map(str, BLOCK_SIZES)),
    )
    min_tissue: float = _setting(
        0.05,
        "Share of tissue below which a tile is not fitted. It is rendered all the same.",
        ge=0,
        le=1,
    )
    seed: int = _setting(0, "Seed of all random numbers.", ge=0)
    masker: Literal["od", "otsu", "morphological"] = _setting(
        "od",
        "Method that finds the tissue: `od` by optical density above the glass and by texture; "
        "`otsu` and `morphological` are TIAToolbox's.",
    )
    specimen: Literal["tissue", "cytology"] = _setting(
        "tissue",
        "Kind of specimen. Stained pieces below 500 um2 count as dust in `tissue`, "
        "below 20 um2 in `cytology`.",
    )
    mask: str | None = _setting(
        None,
        "Your own tissue mask: PNG, or GeoJSON in level-0 pixels. "
        "Fill and ink are taken out of it.",
        "FILE.png|.geojson",
    )
    roi: str | None = _setting(
        None, "Region to process: GeoJSON in level-0 pixels.", "FILE.geojson"
    )
    icc: bool = _setting(False, "Apply the slide's ICC profile.")
    store_residual: bool = _setting(False, "Also store the signed residual.")
    iterations: int | None = _setting(
        None, "Network steps for each tile, of `paper`.", shown="6000", ge=1
    )
    learning_rate: float | None = _expert(
        None,
        "Learning rate of the networks; of `balanced` the peak of its schedule.",
        shown="5e-4 for `paper`, 4e-3 for `balanced`",
        gt=0,
    )
    alpha: float | None = _expert(
        None, "Weight of the reconstruction loss.", shown="1 for `paper`, 0 for `balanced`", ge=0
    )
    beta: float | None = _expert(
        None, "Weight of the exclusion loss.", shown="0.01 for `paper`, 0 for `balanced`", ge=0
    )
    calibration_tiles: int = _expert(16, "Tiles that the slide's prior is measured on.", ge=1)
    calibration_steps: int = _expert(
        400, "Training steps of the slide's network, of `balanced`.", ge=1
    )
    prior_weight: float | Literal["auto"] = _expert(
        "auto",
        "Lambda, the weight of the network's maps in the render. "
        "0 is plain non-negative least squares.",
        "auto|FLOAT",
    )

    def digest(self) -> str:
        """Hex SHA-256 over the canonical JSON of the settings."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


class ExecutionSettings(_Frozen):
    """Settings that carry out a run; on one kind of device none changes a byte of the result."""

    device: str = _machine("auto", "Device that does the work.", "auto|cpu|cuda|cuda:N")
    workers: int | None = _machine(
        None, "Worker processes.", shown="one per GPU, one on a CPU", ge=1
    )
    threads: int | None = _machine(None, "Threads of each worker.", shown="cores / workers", ge=1)
    cluster: str = _machine(
        "local",
        "Where the workers run: on this machine, or with a dask scheduler, given by its address, "
        "such as `tcp://host:8786` or `tls://host:8786`.",
        "local|tcp://HOST:PORT",
    )
    batch: int | Literal["auto"] = _machine("auto", "Tiles in one batch on a GPU.", "auto|N")
    cache: str | None = _machine(
        None,
        "Folder on a local disk. The slide is copied there while it is processed, "
        "which avoids many small reads from a network share.",
        "DIR",
    )
    keep_pixels: bool | None = _machine(
        None,
        "Keep decoded pixels in the output until the run is done, so that the slide is decoded "
        "once (0.8 MB a tile).",
        shown="where the disk has room",
    )
    overwrite: bool = _machine(False, "Replace an existing output.")
    strict: bool = _machine(
        False, "End with exit code 3 unless the verdict on the slide is `pass`."
    )
    resume: bool = _machine(True, "Resume an unfinished output of the same settings.")

    @field_validator("cluster")
    @classmethod
    def _check_cluster(cls, value: str) -> str:
        if value == "local" or _is_address(value):
            return value
        expected = "local, or a scheduler such as tcp://host:8786 or tls://host:8786"
        if value == "slurm":
            expected += "; `wsi-pgdips slurm submit --split-slide` runs a slide as jobs of Slurm"
        raise ValueError(expected)


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("tcp", "tls") and bool(parts.hostname) and bool(parts.port)
    except ValueError:  # the port is not a number
        return False


class Settings(_Frozen):
    """Both kinds together, as a ``--config`` file or the command line give them."""

    science: ScientificSettings = ScientificSettings()
    execution: ExecutionSettings = ExecutionSettings()


def read_settings(path: Path) -> dict[str, Any]:
    """Read a TOML of settings, unchecked.

    Raises:
        SettingsError: the file cannot be read.
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
    """Make settings from a flat mapping (command line) laid over an optional TOML file.

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
            expected=first["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
            found=f"{name} = {values.get(name)!r}",
            where=f"--{name.replace('_', '-')}" if config_file is None else config_file,
            hint="see `wsi-pgdips run --help`",
        ) from None


def tile_seed(slide_checksum: str, ty: int, tx: int, settings_digest: str) -> int:
    """Return the 63-bit seed of a tile, which depends on slide, position and settings alone.

    A run gives its identity for both texts: a digest of the slide's checksum and the settings.
    """
    text = f"{slide_checksum}:{ty}:{tx}:{settings_digest}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
