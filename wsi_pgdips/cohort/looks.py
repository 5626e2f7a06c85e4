"""The looks of a cohort's slides and of its groups, in the job folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.state import stamp_of
from wsi_pgdips.disk import make_folder
from wsi_pgdips.errors import WsiPgdipsError

if TYPE_CHECKING:
    from wsi_pgdips.looks.reference import Reference


def measure(folder: JobFolder, cohort: Cohort, entry: Entry) -> None:
    """Measure the look of a slide that gets no layers, unless it is there, and keep it.

    Raises:
        WsiPgdipsError: as ``measure_slide_look``.
    """
    from wsi_pgdips.looks.files import load_reference, save_reference
    from wsi_pgdips.pipeline.looks import measure_slide_look

    science, path = cohort.settings(entry).science, folder.look(entry)
    made_of = {"settings": science.digest(), "stamp": stamp_of(entry.slide)}
    with suppress(WsiPgdipsError):  # it is not there, or not whole
        known = load_reference(path)
        if known.tissue == entry.tissue and made_of.items() <= known.sources[0].items():
            return
    look = measure_slide_look(entry.slide, tissue=entry.tissue, **science.model_dump())
    sources = ({**look.sources[0], **made_of},)
    make_folder(path.parent)
    save_reference(replace(look, name=path.stem, sources=sources), path)


def keep_look(folder: JobFolder, entry: Entry) -> None:
    """Keep the look that the run of a slide has measured."""
    from wsi_pgdips.layers.reader import open_layers
    from wsi_pgdips.looks.files import save_reference
    from wsi_pgdips.looks.slide_look import slide_look

    look, path = slide_look(open_layers(folder.output(entry))), folder.look(entry)
    make_folder(path.parent)
    save_reference(replace(look, name=path.stem, tissue=entry.tissue), path)


def pool_groups(
    folder: JobFolder, cohort: Cohort, note: Callable[[str], None] = lambda _: None
) -> bool:
    """Make the look of each group of the looks that its slides have; return whether there are any.

    Args:
        note: is told of looks that cannot be read and of groups whose stains differ.
    """
    from wsi_pgdips.looks.files import load_reference, save_reference
    from wsi_pgdips.looks.groups import pool_looks

    looks = defaultdict(list)
    for entry in cohort.entries:
        if entry.group is not None and folder.look(entry).is_file():
            try:
                looks[entry.group].append(load_reference(folder.look(entry)))
            except WsiPgdipsError as error:
                note(f"{entry.name} has no say in its group: {error}")
    for name, members in sorted(looks.items()):
        try:
            pooled, path = pool_looks(members, name), folder.group(name)
            if not path.is_file() or look_at(path).digest != pooled.digest:
                make_folder(path.parent)
                save_reference(pooled, path)
        except WsiPgdipsError as error:
            note(f"group {name}: {error}")
    return bool(looks)


def group_has(folder: JobFolder, entry: Entry) -> bool:
    """Return whether the look of a slide is in that of its group, so that its copy can be made."""
    if entry.group is None:
        return False
    try:
        own = look_at(folder.look(entry)).digest
        return any(m.digest == own for m in look_at(folder.group(entry.group)).slides)
    except (WsiPgdipsError, FileNotFoundError):
        return False


def look_at(path: Path) -> Reference:
    """Load a look from a file, once in a process while the file stays as it is.

    Many slides ask for the look of their group, which holds those of all of them.

    Raises:
        FileNotFoundError: there is none. StainError: it cannot be read.
    """
    return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _loaded(path: Path, _stamp: int) -> Reference:
    from wsi_pgdips.looks.files import load_reference

    return load_reference(path)
