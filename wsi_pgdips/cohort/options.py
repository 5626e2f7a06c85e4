"""What a command says of a cohort: settings of its slides, and of the cohort itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wsi_pgdips.cohort.manifest import is_file_of
from wsi_pgdips.config import make_settings, read_settings
from wsi_pgdips.errors import SettingsError

RETRIES = 2
_OWN = {"reference": str, "retries": int, "skip_errors": bool}
_PATHS = ("mask", "roi", "cache")


@dataclass(frozen=True)
class CohortOptions:
    """Of all slides.

    Attributes:
        settings: of ``run``; paths in it are absolute, as jobs start in other folders.
        reference: look of normalised copies, None for no copies. retries: after passing faults.
        skip_errors: go on after a slide has failed.
    """

    settings: dict[str, Any]
    reference: str | None = None
    retries: int = RETRIES
    skip_errors: bool = True

    @classmethod
    def of(cls, config: Path | None, own: dict[str, Any], settings: dict[str, Any]) -> Self:
        """From a TOML with keys of both kinds, under what the command line says.

        Args:
            own: of the cohort, None where not given. settings: of ``run``.

        Raises:
            SettingsError: unreadable, an unknown key, a bad value.
        """
        values = {} if config is None else read_settings(config)
        for name, kind in _OWN.items():
            if name in values and type(values[name]) is not kind:
                raise SettingsError(
                    "a setting of the cohort has a value that cannot be used",
                    expected=f"{name} = a {kind.__name__}",
                    found=f"{name} = {values[name]!r}",
                    where=config,
                )
        mine = {k: values.pop(k) for k in _OWN if k in values}
        mine |= {k: v for k, v in own.items() if v is not None}
        if mine.get("retries", 0) < 0:
            raise SettingsError("retries cannot be negative", found=mine["retries"], where=config)
        given = {k: v for k, v in settings.items() if v is not None}
        if config is not None:
            _check_keys(values, config)
        both = {**values, **given}
        make_settings(both)
        if is_file_of(str(mine.get("reference", ""))):
            mine["reference"] = str(Path(mine["reference"]).absolute())
        return cls({k: _absolute(k, v) for k, v in both.items()}, **mine)


def _check_keys(values: dict[str, Any], config: Path) -> None:
    """Say which file an unknown key is in, and which keys a cohort has besides."""
    try:
        make_settings(values)
    except SettingsError as error:
        more = f"{error.expected}, {', '.join(_OWN)}" if error.expected else None
        raise SettingsError.like(error, expected=more, where=config) from None


def _absolute(name: str, value: Any) -> Any:
    path = name in _PATHS or (name == "stains" and is_file_of(str(value)))
    return str(Path(value).absolute()) if path else value
