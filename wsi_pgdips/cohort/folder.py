"""The job folder of a cohort: the plan that it keeps, and the paths of its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from wsi_pgdips.cohort.manifest import Entry, is_file_of, is_path
from wsi_pgdips.cohort.state import ask_for_attempt
from wsi_pgdips.config import Settings, make_settings, read_settings
from wsi_pgdips.disk import make_folder, write_atomic, writing
from wsi_pgdips.errors import OutputError, SettingsError
from wsi_pgdips.export.place import is_export

VERSION = 1
RETRIES = 2
GROUP = "group"  # in place of a reference: the look of the slide's own group
_HINT = "give the folder of `wsi-pgdips cohort run` or `slurm submit`"
_OWN = {"reference": str, "retries": int, "skip_errors": bool, "looks_only": bool}


@dataclass(frozen=True)
class CohortOptions:
    """The options of a command: settings of all slides, and those of the cohort itself.

    Attributes:
        settings: of ``run``; paths in it are absolute, as jobs start in other folders.
        reference: look of normalised copies, None for no copies.
        retries: of a slide after a passing fault of a disk or network.
        skip_errors: go on after a slide has failed.
        looks_only: make looks, and copies by them, but no layers.
    """

    settings: dict[str, Any]
    reference: str | None = None
    retries: int = RETRIES
    skip_errors: bool = True
    looks_only: bool = False

    @classmethod
    def of(cls, config: Path | None, own: dict[str, Any], settings: dict[str, Any]) -> Self:
        """Read a TOML with keys of both kinds; the command line wins.

        Args:
            own: the cohort's, None where not given. settings: of ``run``.

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
        if config is not None:
            _check_keys(values, config)
        values |= {k: v for k, v in settings.items() if v is not None}
        make_settings(values)
        if is_file_of(str(mine.get("reference", ""))):
            mine["reference"] = str(Path(mine["reference"]).absolute())
        absolute = {k: str(Path(v).absolute()) for k, v in values.items() if is_path(k, str(v))}
        return cls({**values, **absolute}, **mine)


def _check_keys(values: dict[str, Any], config: Path) -> None:
    """Refuse an unknown key; the error names the file, and the cohort's own keys.

    Raises:
        SettingsError: there is one.
    """
    try:
        make_settings(values)
    except SettingsError as error:
        more = f"{error.expected}, {', '.join(_OWN)}" if error.expected else None
        raise SettingsError.like(error, expected=more, where=config) from None


@dataclass(frozen=True)
class Cohort:
    """The plan of a cohort, as kept in ``cohort.json``.

    Attributes:
        entries: in the order of the manifest. options: settings of ``run`` for all of them.
        retries: of a slide after a passing fault of a disk or network.
        looks_only: make looks, and copies by them, but no layers.
    """

    entries: tuple[Entry, ...]
    options: dict[str, Any] = field(default_factory=dict)
    retries: int = RETRIES
    looks_only: bool = False

    def settings(self, entry: Entry) -> Settings:
        """Return the settings of one slide.

        Raises:
            SettingsError: a value cannot be used; names the slide.
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
    """The paths of a cohort's files."""

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
        """Return the folder of a slide's states: a file of each process that has worked on it."""
        return self.path / "state" / entry.name

    def log(self, entry: Entry) -> Path:
        return self.path / "logs" / f"{entry.name}.log"

    def output(self, entry: Entry) -> Path:
        return self.path / entry.output

    def look(self, entry: Entry) -> Path:
        """Return the path of a slide's look."""
        return self.path / "looks" / f"{entry.name}.json"

    def group(self, name: str) -> Path:
        """Return the path of the look of a group of slides."""
        return self.path / "groups" / f"{name}.json"

    def reference(self, entry: Entry) -> str | None:
        """Return the reference of a slide: its name or file; of ``group``, that of its group."""
        if entry.reference == GROUP and entry.group is not None:
            return str(self.group(entry.group))
        return entry.reference

    def normalised(self, entry: Entry) -> Path | None:
        """Return the path of the slide in the look of its reference; None without a reference."""
        if entry.reference is None:
            return None
        output, look = self.output(entry), Path(entry.reference).stem
        name = output.name.removesuffix(".zarr").removesuffix(".ome")
        return output.with_name(f"{name}.{look}.tiff")

    @classmethod
    def opened(cls, path: Path) -> tuple[Self, Cohort]:
        """Return a job folder that is there, and its plan.

        Raises:
            OutputError: there is none, or it is of another version.
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
            cohort = Cohort(
                entries, plan["options"], plan["retries"], plan.get("looks_only", False)
            )
        except FileNotFoundError:
            raise OutputError(
                "there is no cohort here", expected="a cohort.json", where=path, hint=_HINT
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                "the plan of the cohort cannot be read", found=error, where=folder.plan, hint=_HINT
            ) from None
        return folder, cohort

    def keep(self, cohort: Cohort, note: Callable[[str], None] = lambda _: None) -> None:
        """Write the plan, if it agrees with a plan that is there.

        Args:
            note: is told of slides of the plan before that are no longer named.

        Raises:
            OutputError: the plan before has other slides of the same names, or other settings,
                and ``overwrite`` is not set; or the plan cannot be written.
        """
        with writing(self.path):
            make_folder(self.path)
        if self.plan.exists():
            self._refuse_other(cohort, note)
        plan = {
            "version": VERSION,
            "options": cohort.options,
            "retries": cohort.retries,
            "looks_only": cohort.looks_only,
            "entries": [asdict(e) for e in cohort.entries],
        }
        write_atomic(self.plan, json.dumps(plan, indent=1).encode() + b"\n")

    def _refuse_other(self, cohort: Cohort, note: Callable[[str], None]) -> None:
        """Refuse other slides or settings than before; with ``overwrite``, ask for new attempts.

        Raises:
            OutputError: there are some that may not be overwritten.
        """
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
                ask_for_attempt(self.state(entry))
            elif changed:
                raise OutputError(
                    "the job folder is of another cohort",
                    expected="the same slides and scientific settings as before; more slides "
                    "may have come",
                    found=f"{entry.name}: {'; '.join(changed)}",
                    where=self.path,
                    hint="give another job folder, or --overwrite to replace what is there",
                )
