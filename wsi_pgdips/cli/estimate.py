"""``estimate``: what a run would take."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_pgdips.cli.say import print_rows

if TYPE_CHECKING:
    from wsi_pgdips.pipeline.estimate import Estimate


def estimate(
    slide: Annotated[Path, typer.Argument(help="Slide or image to read.", metavar="SLIDE")],
    stains: Annotated[
        str | None, typer.Option(help="Set of stains.", metavar="NAME|FILE.toml")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Effort per tile.", metavar="balanced|fast|paper")
    ] = None,
    mpp: Annotated[
        str | None,
        typer.Option(help="Micrometres per output pixel.", metavar="FLOAT|native"),
    ] = None,
    mpp_source: Annotated[
        float | None,
        typer.Option(help="The slide's own micrometres per pixel."),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile.", metavar="256|512|1024")
    ] = None,
    masker: Annotated[
        str | None, typer.Option(help="How tissue is found.", metavar="otsu|morphological")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Your own tissue mask.", metavar="FILE.png|.geojson")
    ] = None,
    roi: Annotated[
        Path | None, typer.Option(help="Region to process.", metavar="FILE.geojson")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one worker.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings as a flat TOML, as of [b]run[/b]; the command line wins.",
            metavar="FILE.toml",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say how long a run would take, and how much memory and disk."""
    from wsi_pgdips.pipeline.estimate import estimate_slide

    found = estimate_slide(
        slide,
        config=config,
        stains=stains,
        preset=preset,
        mpp=mpp,
        mpp_source=mpp_source,
        tile=tile,
        masker=masker,
        mask=None if mask is None else str(mask),
        roi=None if roi is None else str(roi),
        device=device,
        workers=workers,
        threads=threads,
    )
    if as_json:
        typer.echo(json.dumps({**asdict(found), "total_s": round(found.total_s, 3)}, indent=2))
    else:
        print_rows(_rows(found))


def _rows(found: Estimate) -> list[tuple[str, str]]:
    from wsi_pgdips.checks.info import times_text

    who = f"{found.threads} threads" if found.threads > 1 else "one thread"
    alike = found.workers > 1
    rows = [
        ("slide", found.slide),
        ("run", f"{found.preset} on {found.device}, {_processes(found.workers)}{who}"),
        ("tiles", f"{found.tiles}, {found.tiles_to_fit} to be fitted on their own"),
        ("blocks", str(found.blocks)),
        ("time", f"about {time_text(found.total_s)}"),
        ("seconds", times_text(found.wall_s)),
        ("memory", size_text(found.peak_rss_mb * 2**20) + (" a process" if alike else "")),
    ]
    if found.peak_vram_mb:
        rows.append(("GPU memory", size_text(found.peak_vram_mb * 2**20)))
    rows += [
        ("disk", size_text(found.disk_bytes)),
        ("disk, at most", f"{size_text(found.peak_disk_bytes)} until the run is done"),
    ]
    return rows


def _processes(count: int) -> str:
    return f"{count} processes of " if count > 1 else ""


def time_text(seconds: float) -> str:
    """``40 s``, ``3 min``, ``2 h 10 min``."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def size_text(size: float) -> str:
    """``40 MB``, ``3.4 GB``: powers of ten, as disks are sold."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(round(size / 1e6), 1)} MB"
