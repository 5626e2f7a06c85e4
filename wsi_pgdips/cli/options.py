"""Options that several commands share, and the settings of a run as options and as tables."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wsi_pgdips.config import ExecutionSettings, ScientificSettings

LayersPath = Annotated[
    Path, typer.Argument(help="Output of [b]run[/b].", metavar="LAYERS.ome.zarr")
]
MppSource = Annotated[
    float | None, typer.Option(help="Micrometres per pixel of files that do not say it.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Settings of this page as a flat TOML; the command line wins.", metavar="FILE.toml"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]

SETTINGS = {**ScientificSettings.model_fields, **ExecutionSettings.model_fields}
Command = Callable[..., None]

_KINDS: dict[Any, str] = {bool: "true, false", int: "integer", float: "number"}


def with_settings(*left_out: str) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for each setting.

    The command gets the options that were given as ``**options``.

    Args:
        left_out: names of settings that the command does not take.
    """
    chosen = {name: field for name, field in SETTINGS.items() if name not in left_out}
    options = [_option(name, field) for name, field in chosen.items()]

    def decorate(command: Command) -> Command:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]

        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            values = {name: given.pop(name) for name in chosen}
            command(**given, **{k: v for k, v in values.items() if v is not None})

        parameters = [*own, *options]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in parameters}
        del with_options.__wrapped__
        return with_options

    return decorate


def settings_table(settings: type[BaseModel]) -> str:
    """Return a Markdown table of settings: key, values, default and meaning."""
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in settings.model_fields.items():
        values = _metavar(field) or _KINDS[_value_type(field)]
        given = "" if field.default is None else f"`{json.dumps(field.default)}`"
        default = _texts(field)["shown"] or given
        cells = (f"`{name}`", values.replace("|", ", "), default, field.description)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, flag, texts = _value_type(field), name.replace("_", "-"), _texts(field)
    default = texts["shown"] or (flag if field.default is True else field.default)
    text = str(field.description)
    if default is not None and default is not False:
        text += f" [dim]default: {default}[/dim]"
    option = typer.Option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
        help=re.sub("`(.*?)`", r"[b]\1[/b]", text),
        metavar=_metavar(field),
        rich_help_panel=texts["panel"],
    )
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _texts(field: FieldInfo) -> dict[str, str | None]:
    """Return ``metavar``, ``panel`` and ``shown`` of a setting."""
    return cast(dict[str, str | None], field.json_schema_extra)


def _metavar(field: FieldInfo) -> str | None:
    """Return the values of a setting, separated by ``|``; None where its type says enough."""
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    return _texts(field)["metavar"]


def _value_type(field: FieldInfo) -> type:
    """Return the type of an option's value: text where the setting takes words too."""
    kinds = [k for k in get_args(field.annotation) or (field.annotation,) if k is not NoneType]
    return kinds[0] if len(kinds) == 1 and kinds[0] in _KINDS else str


with_run_options = with_settings()
