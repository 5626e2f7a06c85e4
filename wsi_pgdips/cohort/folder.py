"""The job folder of a cohort: its plan, and the files of what became of each slide."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from wsi_pgdips.cohort.manifest import Entry
from wsi_pgdips.cohort.state import try_again
from wsi_pgdips.config import Settings, make_settings
from wsi_pgdips.disk import write_atomic, writing
from wsi_pgdips.errors import OutputError, SettingsError
from wsi_pgdips.export.place import is_export

VERSION = 1
_HINT = "give the folder of `wsi-pgdips cohort run` or `slurm submit`"


@dataclass(frozen=True)
class Cohort:
    """What is to be done, as kept in ``cohort.json``.

    Attributes:
        entries: in the order of the manifest. options: settings of ``run`` for all of them.
        retries: of a slide after a passing fault of a disk or network.
    """

    entries: tuple[Entry, ...]
    options: dict[str, Any] = field(default_factory=dict)
    retries: int = 2

    def settings(self, entry: Entry) -> Settings:
        """Of one slide.

        Raises:
            SettingsError: a value that cannot be used; names the slide.
        """
        try:
            return make_settings({**self.options, **entry.settings})
        except SettingsError as error:
            where = f"{error.where}, slide {entry.name}"
            hint = "see `wsi-pgdips run --help`"
            raise SettingsError.like(error, where=where, hint=hint) from None

    def entry(self, name: str) -> Entry:
        return next(e for e in self.entries if e.name == name)


@dataclass(frozen=True)
class JobFolder:
    """Paths of a cohort's files."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "cohort.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def failures(self) -> Path:
        return self.path / "failures.csv"

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    def state(self, entry: Entry) -> Path:
        """A folder with a file of each process that works, or has worked, on a slide."""
        return self.path / "state" / entry.name

    def log(self, entry: Entry) -> Path:
        return self.path / "logs" / f"{entry.name}.log"

    def output(self, entry: Entry) -> Path:
        return self.path / entry.output

    def normalised(self, entry: Entry) -> Path | None:
        """The slide in the look of its reference, beside its layers."""
        if entry.reference is None:
            return None
        output, look = self.output(entry), Path(entry.reference).stem
        name = output.name.removesuffix(".zarr").removesuffix(".ome")
        return output.with_name(f"{name}.{look}.tiff")

    @classmethod
    def opened(cls, path: Path) -> tuple[Self, Cohort]:
        """A folder that is there, and its plan.

        Raises:
            OutputError: there is none, or another version's.
        """
        folder = cls(path.absolute())  # jobs start elsewhere
        try:
            plan = json.loads(folder.plan.read_bytes())
            if plan["version"] != VERSION:
                raise OutputError(
                    "the job folder is of another version of wsi-pgdips",
                    expected=VERSION,
                    found=plan["version"],
                    where=folder.plan,
                )
            entries = tuple(Entry(**e) for e in plan["entries"])
            cohort = Cohort(entries, plan["options"], plan["retries"])
        except FileNotFoundError:
            raise OutputError(
                "there is no cohort here", expected="a cohort.json", where=path, hint=_HINT
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                "the plan of the cohort cannot be read", found=error, where=folder.plan, hint=_HINT
            ) from None
        folder.share_as_it_is()
        return folder, cohort

    def share_as_it_is(self) -> None:
        """What is made in a folder that its group may write to, its group may write to as well."""
        mode = self.path.stat().st_mode
        if mode & stat.S_IWGRP:
            os.umask(os.umask(0) & ~0o070)

    def keep(self, cohort: Cohort, note: Callable[[str], None] = lambda _: None) -> None:
        """Write the plan, unless what was made of other slides or settings would have to go.

        Args:
            note: is told of slides of before that are no longer named.

        Raises:
            OutputError: it does, or it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.share_as_it_is()
        if self.plan.exists():
            self._refuse_other(cohort, note)
        plan = {
            "version": VERSION,
            "options": cohort.options,
            "retries": cohort.retries,
            "entries": [asdict(e) for e in cohort.entries],
        }
        write_atomic(self.plan, json.dumps(plan, indent=1).encode() + b"\n")

    def _refuse_other(self, cohort: Cohort, note: Callable[[str], None]) -> None:
        """Of what was made of other slides or settings: worked on again where it may be."""
        _, before = self.opened(self.path)
        known = {e.name: e for e in before.entries}
        gone = sorted(known.keys() - {e.name for e in cohort.entries})
        if gone:
            some = f"{', '.join(gone[:8])}{' ...' if len(gone) > 8 else ''}"
            note(f"{len(gone)} slides are no longer of the cohort: {some}; what they became stays")
        for entry in cohort.entries:
            other = known.get(entry.name)
            if other is None:
                continue
            old, new = before.settings(other), cohort.settings(entry)
            was, now = old.science.model_dump(), new.science.model_dump()
            changed = [f"{k} = {was[k]!r}, now {now[k]!r}" for k in now if was[k] != now[k]]
            if other.slide != entry.slide:
                changed.insert(0, f"{other.slide}, now {entry.slide}")
            copy = self.normalised(entry)
            if other.reference != entry.reference and copy == self.normalised(other):
                changed.append(f"reference = {other.reference}, now {entry.reference}")
                if new.execution.overwrite and copy is not None and is_export(copy):
                    copy.unlink()
            if changed and new.execution.overwrite:
                try_again(self.state(entry))  # it may be done, but as it was before
            elif changed:
                raise OutputError(
                    "the job folder is of another cohort",
                    expected="the same slides and scientific settings as before; more slides "
                    "may have come",
                    found=f"{entry.name}: {'; '.join(changed)}",
                    where=self.path,
                    hint="give another job folder, or --overwrite to replace what is there",
                )
